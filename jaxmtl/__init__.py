"""jaxmtl: train language models on many tasks at once, in JAX. Import the part you mean; each imports alone."""

__version__ = "0.1.0"
