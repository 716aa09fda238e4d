"""SeqIO tasks, mixtures and caching: the only folder that imports TensorFlow."""

import os
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


def _import_tensorflow_quietly() -> None:
    """Imports it while nothing reaches stderr, and keeps it away from GPUs, whose memory it would take whole.

    TensorFlow only tokenises here: what it says of missing GPU drivers and CPU features would bury our own messages.
    While it loads and looks for devices, it writes to the file descriptor itself, whatever its log level.
    """
    sys.stderr.flush()
    kept = os.dup(2)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        import tensorflow

        tensorflow.config.set_visible_devices([], "GPU")
    finally:
        os.dup2(kept, 2)
        os.close(kept)


_import_tensorflow_quietly()
