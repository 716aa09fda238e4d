"""Linen models: no TensorFlow, no I/O, no mesh."""
