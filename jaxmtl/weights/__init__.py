"""Weights in and out: Hugging Face folders, T5X checkpoints, key tables per family, run folders, PEFT's adapters."""

from jaxmtl.weights.peft_io import load_adapter, save_adapter
from jaxmtl.weights.pretrained import (
    Pretrained,
    home_of,
    load_module,
    load_pretrained,
    resize_vocabulary,
    save_pretrained,
    tokenizer_of,
    write_config,
)
from jaxmtl.weights.steps import seed_of, step_of, steps_of
from jaxmtl.weights.t5x import save_t5x, unread
from jaxmtl.weights.vocabulary import check_reads

__all__ = [
    "Pretrained",
    "check_reads",
    "home_of",
    "load_adapter",
    "load_module",
    "load_pretrained",
    "resize_vocabulary",
    "save_adapter",
    "save_pretrained",
    "save_t5x",
    "seed_of",
    "step_of",
    "steps_of",
    "tokenizer_of",
    "unread",
    "write_config",
]
