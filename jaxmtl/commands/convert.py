"""`jaxmtl convert`: turns a run folder, Hugging Face folder or hub id into a Hugging Face folder."""

import argparse
from typing import Any

HELP = "write a model as a Hugging Face folder (safetensors, config.json, tokenizer)"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds source, target and what may be changed on the way."""
    parser.add_argument("source", help="run folder, Hugging Face folder or hub id")
    parser.add_argument("target", help="folder to write")
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
    from jaxmtl.weights import load_pretrained, resize_vocabulary, save_pretrained

    pretrained = load_pretrained(arguments.source, dtype=arguments.dtype)
    if arguments.vocab_rows is not None:
        pretrained = resize_vocabulary(pretrained, arguments.vocab_rows)
    save_pretrained(arguments.target, pretrained)
    tokenizer = "with its tokenizer" if pretrained.tokenizer else "without a tokenizer: the source has none"
    print(f"wrote {arguments.target} ({pretrained.config.vocab_size} embedding rows, {tokenizer})")
    return 0
