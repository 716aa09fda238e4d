"""Weights in and out: Hugging Face folders, key tables per family, run folders."""

from jaxmtl.weights.pretrained import Pretrained, load_pretrained, resize_vocabulary, save_pretrained

__all__ = ["Pretrained", "load_pretrained", "resize_vocabulary", "save_pretrained"]
