"""`jaxmtl convert`: turns a run folder, Hugging Face folder, hub id or T5X checkpoint into one of the others' forms."""

import argparse
from typing import Any

HELP = "write a model as a Hugging Face folder (safetensors, config.json, tokenizer) or a T5X checkpoint"
FORMS = {
    "hf": "safetensors for transformers",
    "t5x": "T5X checkpoint",
    "t5x_scanned": "the same with scanned layers",
    "t5x_file": "the same as one file",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds source, target and what may be changed on the way."""
    parser.add_argument("source", help="run folder, Hugging Face folder, hub id or T5X checkpoint")
    parser.add_argument("target", help="folder to write")
    forms = "; ".join(f"{name}: {what}" for name, what in FORMS.items())
    parser.add_argument("--to", default="hf", choices=FORMS, help=f"form to write ({forms})")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"), help="dtype of the weights")
    parser.add_argument("--vocab_rows", type=int, help="embedding rows, such as 32128 for T5's padded vocabulary")


def run(arguments: argparse.Namespace, config: Any) -> int:
    """Converts and says what was written.

    Args:
      arguments: the flags.
      config: not used.

    Returns:
      0.
    """
    from jaxmtl.weights import load_pretrained, resize_vocabulary, save_pretrained, save_t5x, step_of, unread

    pretrained = load_pretrained(arguments.source, dtype=arguments.dtype)
    if arguments.vocab_rows is not None:
        pretrained = resize_vocabulary(pretrained, arguments.vocab_rows)
    if arguments.to == "hf":
        save_pretrained(arguments.target, pretrained)
    else:
        save_t5x(arguments.target, pretrained, step=step_of(arguments.source), form=arguments.to)
    if note := unread(arguments.source):
        print(f"{arguments.source}: {note}")
    tokenizer = "with its tokenizer" if pretrained.tokenizer else "without a tokenizer: the source has none"
    print(f"wrote {arguments.target} ({pretrained.config.vocab_size} embedding rows, {tokenizer})")
    return 0
