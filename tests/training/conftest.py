import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent))  # for training_toy, which subprocesses of tests import too
