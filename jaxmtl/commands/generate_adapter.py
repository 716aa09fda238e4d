"""`jaxmtl generate_adapter`: from an instruction in words to an adapter that PEFT loads, by a trained hypernetwork.

The instruction is written as hypernetworks are trained to read them on tasks: "Definition: ...", and worked examples
behind it. `--prompt=plain` hands it over as it is, with examples only if the text itself has some. Of a hypernetwork
that has learned its tasks, `--task` names one of them instead.

What an earlier call wrote to the folder is removed before a new adapter is written; a folder that holds anything else
is refused, so that no adapter lies beside files of another.
"""

import argparse
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from jaxmtl.types import InputError

if TYPE_CHECKING:
    from jaxmtl.adapters.adaptation import Adaptation
    from jaxmtl.adapters.hypernet import Hyper
    from jaxmtl.tasks.spec import Demonstration
    from jaxmtl.weights import Pretrained

HELP = "write the adapter that a hypernetwork makes of an instruction"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds hypernetwork, model, instruction and target."""
    parser.add_argument(
        "--checkpoint", required=True, help="run folder of a hypernetwork, or a folder that one was saved to"
    )
    parser.add_argument(
        "--model", help="the model it was trained on: run folder, Hugging Face folder, hub id; a run folder has its own"
    )
    words = parser.add_mutually_exclusive_group(required=True)
    words.add_argument("--instruction", help="the instruction")
    words.add_argument("--instruction_file", help="a text file that holds it")
    words.add_argument("--task", help="a task that the hypernetwork has learned by name, as those of Text-to-LoRA")
    parser.add_argument("--examples", help='a file with worked examples, one a line: {"input": "...", "output": "..."}')
    parser.add_argument(
        "--prompt", choices=("tk_instruct", "plain"), help="how the instruction is written (default: tk_instruct)"
    )
    parser.add_argument("--out", required=True, help="folder to write: a new one, or that of an adapter to replace")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"), help="dtype of the model")


def run(arguments: argparse.Namespace, config: Any) -> int:
    """Generates, writes, and says what a plain adapter leaves out.

    Args:
      arguments: the flags.
      config: not used.

    Returns:
      0.

    Raises:
      InputError: if a folder does not hold what it should, or holds more, or the instruction is empty.
      UnknownNameError: if the hypernetwork has not learned the task.
    """
    from jaxmtl.adapters.hypernet import adapters_of, left_out
    from jaxmtl.models.low_rank import COLLECTION
    from jaxmtl.weights import save_adapter
    from jaxmtl.weights.adaptation_io import FILE, save_adaptation

    read, out = _reading(arguments), pathlib.Path(arguments.out)
    _check_free(out)
    pretrained, hyper = load(arguments.checkpoint, arguments.model, arguments.dtype)
    adaptation = read(pretrained, hyper)
    _clear(out)
    whose = f"task {arguments.task}" if arguments.task else f"instruction of {int(adaptation.mask.sum())} tokens"
    if COLLECTION in adaptation.generated:
        (adapter,) = adapters_of(hyper.config, adaptation)
        save_adapter(out, adapter, pretrained)
        print(f"wrote {out} (PEFT, rank {adapter.rank}, alpha {adapter.alpha:g}; {whose})")
    if missing := left_out(hyper.config):
        save_adaptation(out, adaptation, pretrained)
        print(f"an adapter leaves out {', '.join(missing)}; what is made of the instruction is whole in {out / FILE}")
    if hyper.config.base != "nothing":
        print(f"it adapts the model as {arguments.checkpoint} has trained it, not the one that training began with")
    return 0


def _own_files() -> tuple[str, ...]:
    """Names what is written; the config, without which the adapter does not load, before the rest."""
    from jaxmtl.weights import adaptation_io, peft_config, peft_io

    return peft_config.CONFIG, peft_io.MODEL, adaptation_io.FILE


def _check_free(out: pathlib.Path) -> None:
    """Refuses a folder with files that are not replaced: the new adapter would be taken for a part of what they are."""
    from jaxmtl.files import explained

    with explained(out):
        found = [path.name for path in out.iterdir()] if out.exists() else []
    # Hidden files, such as what a write that was cut short left, are read by nobody.
    others = sorted(name for name in found if name not in _own_files() and not name.startswith("."))
    if others:
        raise InputError(
            f"--out {out} holds {others[0]!r}, which is no file of a generated adapter; remove it or choose another "
            "folder"
        )


def _clear(out: pathlib.Path) -> None:
    """Removes what an earlier call wrote: not every hypernetwork makes every file."""
    from jaxmtl.files import explained

    for name in _own_files():
        with explained(out / name):
            (out / name).unlink(missing_ok=True)


def _reading(arguments: argparse.Namespace) -> "Callable[[Pretrained, Hyper], Adaptation]":
    """Returns what reads instruction or task; wrong flags are refused before anything is loaded."""
    from jaxmtl.adapters.hypernet import read_instructions, read_tasks

    if arguments.task is not None:
        if arguments.examples is not None or arguments.prompt is not None:
            raise InputError("--task names a task that was learned; --examples and --prompt are for instructions")
        return lambda pretrained, hyper: read_tasks(hyper, pretrained, [arguments.task])
    text, shown = _instruction(arguments), _demonstrations(arguments)
    if arguments.prompt == "plain":
        return lambda pretrained, hyper: read_instructions(hyper, pretrained, [text])
    return lambda pretrained, hyper: read_instructions(hyper, pretrained, [written(text, shown, pretrained)])


def load(checkpoint: str, model: str | None, dtype: str) -> "tuple[Pretrained, Hyper]":
    """Loads a hypernetwork and the model that it adapts.

    Args:
      checkpoint: run folder of a hypernetwork, or a folder that one was saved to.
      model: the model; None for that of the run.
      dtype: dtype of the model.

    Returns:
      Model and hypernetwork.

    Raises:
      InputError: if a folder does not hold what it should, or the model is given twice or not at all.
    """
    from jaxmtl.weights import load_pretrained, run_folder
    from jaxmtl.weights.hyper_io import load_hyper, load_hyper_run

    if run_folder.has_hypernetwork(pathlib.Path(checkpoint)):
        if model is not None:
            raise InputError(f"--checkpoint {checkpoint} is a run folder and has its model; leave out --model")
        return load_hyper_run(checkpoint, dtype=dtype)
    if model is None:
        raise InputError(f"--checkpoint {checkpoint} is no run of a hypernetwork: give its model as --model")
    pretrained = load_pretrained(model, dtype=dtype)
    return pretrained, load_hyper(checkpoint, pretrained)


def written(text: str, shown: "Sequence[Demonstration]", pretrained: "Pretrained") -> str:
    """Writes an instruction and worked examples as Tk-Instruct does.

    Args:
      text: the instruction.
      shown: the examples.
      pretrained: the model, with the tokenizer that measures.

    Returns:
      The text that a hypernetwork reads.

    Raises:
      InputError: if the examples do not all fit, or the model has no tokenizer.
    """
    from jaxmtl.adapters.hypernet import MAX_INSTRUCTION_TOKENS
    from jaxmtl.evals.requests import tokenizer_of
    from jaxmtl.tasks.prompts import instruction_only
    from jaxmtl.tasks.spec import TaskSpec
    from jaxmtl.types import Example

    task = TaskSpec(name="instruction", category="", definition=text, positive=tuple(shown), examples=())
    nobody, tokenizer = Example(id="", inputs="", targets=("",)), tokenizer_of(pretrained)
    options: dict[str, Any] = dict(num_positive=len(shown), tokenizer=tokenizer)
    # Without a limit: what does not fit would be left out silently.
    whole = instruction_only(task, nobody, max_tokens=sys.maxsize, **options)
    length = len(tokenizer.encode(whole))
    if length > MAX_INSTRUCTION_TOKENS:
        raise InputError(
            f"instruction and {len(shown)} examples have {length} tokens; a hypernetwork reads "
            f"{MAX_INSTRUCTION_TOKENS}: give fewer or shorter ones"
        )
    return whole


def _demonstrations(arguments: argparse.Namespace) -> "Sequence[Demonstration]":
    from jaxmtl.tasks.jsonl import demonstrations

    if arguments.examples is None:
        return ()
    if arguments.prompt == "plain":
        raise InputError("--prompt=plain takes the instruction as it is: write the examples into it, or leave it out")
    return demonstrations(arguments.examples)


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
