"""`jaxmtl demo`: the whole way on the embedded tasks: vocabulary, token store, training, scores, report."""

import argparse
import pathlib
import shlex
import time
from typing import Any

HELP = "train a small T5 on the embedded tasks, score tasks it has never seen, write a report"
NUM_EXAMPLES = 400
VOCABULARY_SIZE = 1000
QUICK = ["--gin.MAX_TOKENS=48", "--gin.MAX_EXAMPLES=40", "--gin.BATCH_SIZE=64"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the run folder and how long to train."""
    parser.add_argument("--run_dir", default="runs/demo", help="folder to write into (default: runs/demo)")
    parser.add_argument("--steps", type=int, default=1000, help="training steps (default: 1000)")
    parser.add_argument("--examples", type=int, default=NUM_EXAMPLES, help="examples of each task (default: 400)")


def run(arguments: argparse.Namespace, config: Any) -> int:
    """Goes the whole way, printing each command that one would type for it.

    Args:
      arguments: the flags, and `run_verb`, which runs one command line.
      config: not used: the demo brings its own gin files.

    Returns:
      The first exit code that is not 0, or 0.
    """
    began = time.monotonic()
    folder = pathlib.Path(arguments.run_dir)
    vocabulary = make_vocabulary(folder / "vocabulary", arguments.examples)
    for words in steps(folder, vocabulary, arguments):
        print(f"\n$ jaxmtl {shlex.join(words)}", flush=True)
        code = arguments.run_verb(words)
        if code:
            return code
    print(f"\n{summary(folder / 'run')}\n\ndone in {time.monotonic() - began:.0f} s")
    print(f"open {folder / 'run' / 'report.html'}")
    return 0


def steps(folder: pathlib.Path, vocabulary: pathlib.Path, arguments: argparse.Namespace) -> list[list[str]]:
    """Returns the commands of the demo, in order.

    Args:
      folder: everything is written below it.
      vocabulary: the SentencePiece model.
      arguments: the flags.
    """
    store, run_dir = folder / "store", folder / "run"
    model = "--gin_file=models/t5_1_1/tiny.gin"
    places = [f"--gin.STORE={store}", f"--gin.RUN_DIR={run_dir}"]
    return [
        ["cache", "--gin_file=tasks/toy.gin", f"--gin.STORE={store}", f"--gin.VOCABULARY={vocabulary}"]
        + [f"--gin.NUM_EXAMPLES={arguments.examples}"],
        ["evaluate", model, "--gin_file=runs/untrained.gin", *places, *QUICK],
        ["train", model, "--gin_file=runs/demo.gin", *places, f"--gin.STEPS={arguments.steps}"]
        + [f"--gin.WARMUP_STEPS={min(100, arguments.steps // 2)}"],
        ["evaluate", "--gin_file=runs/evaluate.gin", f"--gin.CHECKPOINT={run_dir}", *places, *QUICK],
        ["report", str(run_dir)],
    ]


def summary(run_dir: pathlib.Path) -> str:
    """Returns what training has brought, for tasks it saw and for tasks it never saw.

    Args:
      run_dir: the run folder, evaluated before and after training.
    """
    from jaxmtl.reports.sources import read_run
    from jaxmtl.tasks import catalog, metrics

    columns = read_run(run_dir).columns
    before, after = columns[0], columns[-1]
    unseen = {name for name, task in catalog.load("toy", None, num_examples=10).items() if task.metadata["held_out"]}
    lines = [f"{'ROUGE-L (exact match), mean over examples':<44}{'before':>16}{'after':>16}"]
    for title, names in (
        ("held-out examples of trained tasks", before.scores.keys() - unseen),
        ("tasks never seen, zero-shot", unseen),
    ):
        cells = []
        for column in (before, after):
            means = metrics.overall([column.scores[name] for name in sorted(names)]).metrics
            cells.append(f"{means['rouge_l']:.1f} ({means['exact_match']:.1f})")
        lines.append(f"{title:<44}{cells[0]:>16}{cells[1]:>16}")
    return "\n".join(lines)


def make_vocabulary(folder: pathlib.Path, num_examples: int) -> pathlib.Path:
    """Trains the demo's SentencePiece vocabulary on the training tasks' texts.

    Args:
      folder: where to write `spiece.model`.
      num_examples: examples of each task.

    Returns:
      Path of the model file.
    """
    from jaxmtl.tasks import catalog
    from jaxmtl.tokenizers import train_sentencepiece

    folder.mkdir(parents=True, exist_ok=True)
    enough = max(num_examples, NUM_EXAMPLES)  # few texts do not fill a vocabulary of this size
    tasks = catalog.load("toy", None, num_examples=enough).values()
    texts = [task.definition for task in tasks]
    texts += [text for task in tasks for example in task.examples for text in (example.inputs, *example.targets)]
    path = folder / "spiece.model"
    train_sentencepiece(texts, path, VOCABULARY_SIZE)
    return path
