"""`jaxmtl generate_adapter`: from an instruction in words to an adapter that PEFT loads, by a trained hypernetwork."""

import argparse
import pathlib
from typing import Any

from jaxmtl.types import InputError

HELP = "write the adapter that a hypernetwork makes of an instruction"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds hypernetwork, model, instruction and target."""
    parser.add_argument("--checkpoint", required=True, help="folder that a hypernetwork was saved to (hypernet.json)")
    parser.add_argument(
        "--model", required=True, help="the model it was trained on: run folder, Hugging Face folder, hub id"
    )
    words = parser.add_mutually_exclusive_group(required=True)
    words.add_argument("--instruction", help="the instruction")
    words.add_argument("--instruction_file", help="a text file that holds it")
    parser.add_argument("--out", required=True, help="folder to write")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"), help="dtype of the model")


def run(arguments: argparse.Namespace, config: Any) -> int:
    """Generates, writes, and says what a plain adapter leaves out.

    Args:
      arguments: the flags.
      config: not used.

    Returns:
      0.

    Raises:
      InputError: if a folder does not hold what it should, or the instruction is empty.
    """
    from jaxmtl.adapters.hypernet import adapters_of, left_out, read_instructions
    from jaxmtl.models.low_rank import COLLECTION
    from jaxmtl.weights import load_pretrained, save_adapter
    from jaxmtl.weights.adaptation_io import FILE, save_adaptation
    from jaxmtl.weights.hyper_io import load_hyper

    instruction = _instruction(arguments)
    pretrained = load_pretrained(arguments.model, dtype=arguments.dtype)
    hyper = load_hyper(arguments.checkpoint, pretrained)
    adaptation = read_instructions(hyper, pretrained, [instruction])
    out = pathlib.Path(arguments.out)
    num_tokens = int(adaptation.mask.sum())
    if COLLECTION in adaptation.generated:
        (adapter,) = adapters_of(hyper.config, adaptation)
        save_adapter(out, adapter, pretrained)
        print(f"wrote {out} (PEFT, rank {adapter.rank}, alpha {adapter.alpha:g}; instruction of {num_tokens} tokens)")
    if missing := left_out(hyper.config):
        save_adaptation(out, adaptation, pretrained)
        print(f"an adapter leaves out {', '.join(missing)}; all of what the instruction does is in {out / FILE}")
    return 0


def _instruction(arguments: argparse.Namespace) -> str:
    from jaxmtl.files import explained

    text = arguments.instruction
    if text is None:
        path = pathlib.Path(arguments.instruction_file)
        with explained(path):
            text = path.read_text("utf-8")
    if not text.strip():
        raise InputError("the instruction is empty; say in words what the model is to do")
    return text.strip()
