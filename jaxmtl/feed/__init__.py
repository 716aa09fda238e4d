"""Token stores, sampling and batching: what training and evaluation read. NumPy and Arrow only."""
