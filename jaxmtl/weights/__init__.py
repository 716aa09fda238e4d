"""Weights in and out: Hugging Face folders, key tables per family, run folders."""

from jaxmtl.weights.pretrained import (
    Pretrained,
    load_module,
    load_pretrained,
    resize_vocabulary,
    save_pretrained,
    step_of,
    write_config,
)

__all__ = [
    "Pretrained",
    "load_module",
    "load_pretrained",
    "resize_vocabulary",
    "save_pretrained",
    "step_of",
    "write_config",
]
