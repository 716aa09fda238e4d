"""SeqIO tasks, mixtures and caching: the only folder that imports TensorFlow."""

import os

# TensorFlow only tokenises here: what it says of missing GPU drivers and CPU features would bury our own messages.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
