"""An example and its task's instruction -> the text the model reads: Tk-Instruct's format and S001's.

A prompt is a function (task, example, *, tokenizer) -> text; bind its other arguments beforehand. The strings
are byte exact. Source: methods sheet, sections 2.1 (Tk-Instruct) and 2.5 (S001, figure 5).
"""

import dataclasses
import functools
import re
import string
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

from jaxmtl.tasks.fewshot import stable_hash
from jaxmtl.tasks.spec import Demonstration, TaskSpec
from jaxmtl.types import Example, InputError

MAX_TOKENS = 1024
NUM_EXEMPLARS = 3
_SNI_NAME = re.compile(r"task(\d+)(?:_([^_]+))?.*")


class Tokenizer(Protocol):
    """What a prompt needs to measure and cut text; tokenizers of this project and of `transformers` both fit.

    A tokenizer that has an attribute `splits_on_whitespace` which is True promises that no token spans whitespace,
    that whitespace alone makes no token, and that words are encoded independently (T5's is such a one). Texts of many
    parts are then measured part by part, and a task's fixed parts only once: the same numbers, several times faster.
    """

    def encode(self, text: str, /) -> list[int]:
        """Returns the ids, with the special tokens that end (or frame) a text."""
        ...

    def decode(self, ids: list[int], /, skip_special_tokens: bool = ...) -> str:
        """Returns the text of ids."""
        ...


class Prompt(Protocol):
    """Any function that turns an example of a task into the model's input text."""

    def __call__(self, task: TaskSpec, example: Example, *, tokenizer: Any) -> str:
        """Returns the input text."""
        ...


def tk_instruct(
    task: TaskSpec,
    example: Example,
    *,
    task_name: bool = False,
    definition: bool = True,
    num_positive: int = 0,
    num_negative: int = 0,
    explanation: bool = False,
    max_tokens: int = MAX_TOKENS,
    tokenizer: Tokenizer,
) -> str:
    """Builds Tk-Instruct's input.

    Demonstrations are tried in file order and the first that would not fit ends the list; positive ones come first.
    A source that is still too long keeps its first `max_tokens` ids, so the end of the instance is what is lost.

    Args:
      task: the task.
      example: the instance.
      task_name: whether the text starts with the task's name (which does not count when demonstrations are fitted).
      definition: whether the definition is shown.
      num_positive: most positive demonstrations.
      num_negative: most negative demonstrations.
      explanation: whether demonstrations are explained, where the file has an explanation.
      max_tokens: most tokens of the input, special tokens counted.
      tokenizer: measures and cuts.

    Returns:
      The input text.

    Raises:
      InputError: if a number is out of range.

    Source: Tk-Instruct (Wang et al. 2022) and its public collator.
    """
    _check(max_tokens, num_positive, num_negative)
    count = _counter(tokenizer)
    instance = f"Now complete the following example -\n{_ended('Input: ' + example.inputs.strip())}\nOutput: "
    fits = lambda parts: count([*parts, instance]) <= max_tokens
    shown = _shown(task, fits, definition, num_positive, num_negative, explanation)
    name = f"{task.name}. " if task_name else ""
    return _cut([name, *shown, instance], max_tokens, tokenizer, count)


def instruction_only(
    task: TaskSpec,
    example: Example,
    *,
    definition: bool = True,
    num_positive: int = 0,
    num_negative: int = 0,
    explanation: bool = False,
    max_tokens: int = MAX_TOKENS,
    tokenizer: Tokenizer,
) -> str:
    """Builds what stands before the instance in Tk-Instruct's input: what a hypernetwork reads.

    With `tk_instruct(..., definition=False)` behind it, it is Tk-Instruct's input.

    Args:
      task: the task.
      example: not shown.
      definition: as in `tk_instruct`.
      num_positive: as in `tk_instruct`.
      num_negative: as in `tk_instruct`.
      explanation: as in `tk_instruct`.
      max_tokens: most tokens of the instruction, special tokens counted; demonstrations that do not fit are left out.
      tokenizer: measures and cuts.

    Returns:
      The instruction.

    Raises:
      InputError: if a number is out of range, or nothing is shown of the task.

    Source: methods 1.2; choice 8 of methods 8.
    """
    _check(max_tokens, num_positive, num_negative)
    count = _counter(tokenizer)
    fits = lambda parts: count(parts) <= max_tokens
    text = _cut(_shown(task, fits, definition, num_positive, num_negative, explanation), max_tokens, tokenizer, count)
    if not text.strip():
        raise InputError(
            f"task {task.name}: its instruction would be empty; show the definition or at least one demonstration"
        )
    return text


def definition_only(task: TaskSpec, example: Example, *, max_tokens: int = MAX_TOKENS, tokenizer: Tokenizer) -> str:
    """Builds a task's definition as it is: of a task of P3 its template, which a hypernetwork reads.

    Args:
      task: the task.
      example: not shown.
      max_tokens: most tokens, special tokens counted.
      tokenizer: measures and cuts.

    Returns:
      The instruction.

    Raises:
      InputError: if a number is out of range, or the definition is empty.

    Source: methods 1.1 ("only template as input"); choice 11 of methods 8.
    """
    _check(max_tokens)
    if not task.definition.strip():
        raise InputError(f"task {task.name}: its definition is empty, so that there is nothing to read of it")
    return _cut([task.definition], max_tokens, tokenizer)


MIXTURE: tuple[dict[str, Any], ...] = (
    {"definition": True},
    {"definition": False, "num_positive": 2},
    {"definition": True, "num_positive": 2},
    {"definition": True, "num_positive": 2, "num_negative": 2},
    {"definition": True, "num_positive": 2, "explanation": True},
)
"""The five encodings of Tk-Instruct's mixture, as arguments of `tk_instruct`."""


def tk_instruct_mixture(
    task: TaskSpec, example: Example, *, seed: int = 0, max_tokens: int = MAX_TOKENS, tokenizer: Tokenizer
) -> str:
    """Builds Tk-Instruct's input in one of five encodings, drawn evenly by hash of (seed, task, example id).

    Args:
      task: the task.
      example: the instance.
      seed: the draw's seed.
      max_tokens: most tokens of the input, special tokens counted.
      tokenizer: measures and cuts.

    Returns:
      The input text.

    Source: the "tk_instruct" flag of Tk-Instruct's public code, which draws anew each time.
    """
    options = MIXTURE[stable_hash(seed, task.name, "encoding", example.id) % len(MIXTURE)]
    return tk_instruct(task, example, **options, max_tokens=max_tokens, tokenizer=tokenizer)


def printed_id(name: str) -> str:
    """Shortens a task name as S001 prints it: `task040_qasc_question_generation` -> `task_040_qasc`.

    Args:
      name: task name; one without a number is returned as it is.

    Returns:
      The short name. Two tasks may share it.
    """
    match = _SNI_NAME.fullmatch(name)
    return "_".join(part for part in ("task", *match.groups()) if part) if match else name


def number_id(name: str) -> str:
    """Shortens a task name to its number: `task040_qasc_question_generation` -> `task040`.

    Args:
      name: task name; one without a number is returned as it is.

    Returns:
      The short name. A few SNI tasks share their number.
    """
    match = _SNI_NAME.fullmatch(name)
    return f"task{match[1]}" if match else name


def full_id(name: str) -> str:
    """Returns the task name as it is, which no two tasks share."""
    return name


def unique_id(
    task: TaskSpec,
    example: Example,
    *,
    style: Callable[[str], str] = printed_id,
    max_tokens: int = MAX_TOKENS,
    tokenizer: Tokenizer,
) -> str:
    """Builds S001's "unique ID" input: `task_040_qasc: ` and the instance.

    Args:
      task: the task.
      example: the instance.
      style: task name -> id: `printed_id`, `number_id` or `full_id`.
      max_tokens: most tokens of the input, special tokens counted.
      tokenizer: measures and cuts.

    Returns:
      The input text.

    Source: S001, figure 5.
    """
    _check(max_tokens)
    return _cut([f"{style(task.name)}: ", example.inputs.strip()], max_tokens, tokenizer)


def instruction(task: TaskSpec, example: Example, *, max_tokens: int = MAX_TOKENS, tokenizer: Tokenizer) -> str:
    """Builds S001's "instruction" input: the definition, a line break and the instance, without labels.

    Args:
      task: the task.
      example: the instance.
      max_tokens: most tokens of the input, special tokens counted.
      tokenizer: measures and cuts.

    Returns:
      The input text.

    Source: S001, figure 5, which sets the two parts apart without saying how; the line break is ours.
    """
    _check(max_tokens)
    return _cut([f"{task.definition.strip()}\n", example.inputs.strip()], max_tokens, tokenizer)


def context(
    task: TaskSpec,
    example: Example,
    *,
    num_exemplars: int = NUM_EXEMPLARS,
    max_tokens: int = MAX_TOKENS,
    tokenizer: Tokenizer,
) -> str:
    r"""Builds S001's "context" input: exemplars, then `input:` with the instance on the next line.

    Args:
      task: the task; its positive demonstrations are the exemplars, fewer where there are fewer.
      example: the instance.
      num_exemplars: how many exemplars.
      max_tokens: most tokens of the input, special tokens counted.
      tokenizer: measures and cuts.

    Returns:
      The input text, `input: x1\noutput: y1\n...input:\nx`; there is no closing `output:`.

    Source: S001, figure 5.
    """
    _check(max_tokens, num_exemplars)
    shown = [f"input: {d.inputs.strip()}\noutput: {d.output.strip()}\n" for d in task.positive[:num_exemplars]]
    return _cut([*shown, "input:\n", example.inputs.strip()], max_tokens, tokenizer)


def bare(task: TaskSpec, example: Example, *, max_tokens: int = MAX_TOKENS, tokenizer: Tokenizer) -> str:
    """Builds the input without any context: the instance alone.

    Args:
      task: the task; not shown.
      example: the instance.
      max_tokens: most tokens of the input, special tokens counted.
      tokenizer: measures and cuts.

    Returns:
      The input text.

    Source: S001, "no context".
    """
    _check(max_tokens)
    return _cut([example.inputs.strip()], max_tokens, tokenizer)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Led:
    """Puts a special token before another prompt: OPT was pretrained with `</s>` before every text.

    Attributes:
      prompt: the prompt; its limit of tokens should leave room for one more.
      lead: name of the token.
    """

    prompt: Prompt
    lead: str = "</s>"

    def __call__(self, task: TaskSpec, example: Example, *, tokenizer: Tokenizer) -> str:
        """Returns the input text; the tokenizer makes the token of its name."""
        return self.lead + self.prompt(task, example, tokenizer=tokenizer)


def _check(max_tokens: int, *counts: int) -> None:
    if max_tokens < 1 or min(counts, default=0) < 0:
        raise InputError(f"prompt with max_tokens {max_tokens}, demonstrations {counts}; expected above 0, 0 or more")


def _shown(
    task: TaskSpec,
    fits: Callable[[Sequence[str]], bool],
    definition: bool,
    num_positive: int,
    num_negative: int,
    explanation: bool,
) -> list[str]:
    """Returns the definition and the demonstrations that fit, each text as it is written."""
    intro = f"{_ended('Definition: ' + task.definition.strip())}\n\n" if definition else ""
    kept: dict[str, list[str]] = {"Positive": [], "Negative": []}
    for kind, demos in (("Positive", task.positive[:num_positive]), ("Negative", task.negative[:num_negative])):
        for number, demo in enumerate(demos, start=1):
            block = _demonstration_text(f" {kind} Example {number} -\n", demo, explanation)
            # The space between kept demonstrations is only there while measuring; the source has none.
            if not fits([intro, *_spaced(kept["Positive"]), *_spaced(kept["Negative"]), block]):
                break
            kept[kind].append(block)
    return [intro, *kept["Positive"], *kept["Negative"]]


def _ended(line: str) -> str:
    # Tested on the whole line, so a line without text ends in its label's space and gets a full stop too.
    return line if line[-1] in string.punctuation else line + "."


def _demonstration_text(title: str, demo: Demonstration, explanation: bool) -> str:
    lines = [_ended(f"Input: {demo.inputs.strip()}"), _ended(f" Output: {demo.output.strip()}")]
    if explanation and demo.explanation is not None:
        lines.append(_ended(f" Explanation: {demo.explanation.strip()}"))
    return title + "\n".join(lines) + "\n\n"


def _spaced(blocks: Sequence[str]) -> Iterator[str]:
    for index, block in enumerate(blocks):
        yield from (" ", block) if index else (block,)


def _cut(parts: list[str], max_tokens: int, tokenizer: Tokenizer, count: "_Count | None" = None) -> str:
    source = "".join(parts)
    if (count or _counter(tokenizer))(parts) <= max_tokens:
        return source
    return tokenizer.decode(tokenizer.encode(source)[:max_tokens], skip_special_tokens=True)


_Count = Callable[[Sequence[str]], int]


def _counter(tokenizer: Tokenizer) -> _Count:
    """Returns the function from a text's parts to its number of tokens; parts meet at whitespace."""
    if getattr(tokenizer, "splits_on_whitespace", False):
        special = _num_ids(tokenizer, "")
        return lambda parts: special + sum(_num_ids(tokenizer, part) - special for part in parts)
    known: dict[str, int] = {}  # the text measured last is often the whole source

    def count(parts: Sequence[str]) -> int:
        text = "".join(parts)
        if text not in known:
            known[text] = len(tokenizer.encode(text))
        return known[text]

    return count


@functools.lru_cache(maxsize=4096)
def _num_ids(tokenizer: Tokenizer, text: str) -> int:
    return len(tokenizer.encode(text))
