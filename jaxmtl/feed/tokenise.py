"""Task specs -> token store, without TensorFlow: prompt, tokenise, cut, write.

`jaxmtl.data.cache` does the same through SeqIO pipelines and writes the same bytes.
"""

import dataclasses
import functools
import hashlib
import inspect
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from jaxmtl.feed.parts import Part
from jaxmtl.feed.store import TokenStore
from jaxmtl.feed.writer import Rows, StoreWriter, existing_store
from jaxmtl.tasks.choices import choices_of
from jaxmtl.tasks.fewshot import stable_hash
from jaxmtl.tasks.prompts import Prompt
from jaxmtl.tasks.spec import Demonstration, TaskSpec
from jaxmtl.tokenizers import Tokenizer
from jaxmtl.types import Example, InputError, Progress, unknown_name

MAX_INPUT_TOKENS = 1024
MAX_TARGET_TOKENS = 128
MAX_INSTRUCTION_TOKENS = 1024

Reference = Callable[[TaskSpec, Example], str]
"""Chooses the text that an example is trained on among its references."""


def first_reference(task: TaskSpec, example: Example) -> str:
    """Chooses the first reference."""
    return example.targets[0]


def seeded_reference(task: TaskSpec, example: Example, *, seed: int = 0) -> str:
    """Chooses a reference by hash of (seed, task, example id).

    Args:
      task: the task.
      example: the example.
      seed: the draw's seed.

    Returns:
      One of the references.

    Source: Tk-Instruct draws a reference anew each time; a store holds one for all epochs.
    """
    return example.targets[stable_hash(seed, task.name, "reference", example.id) % len(example.targets)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """All that turns an example into ids, but for the vocabulary.

    Attributes:
      prompt: (task, example, tokenizer=) -> input text.
      reference: (task, example) -> target text.
      max_input_tokens: inputs are cut to this many ids, special ones counted.
      max_target_tokens: targets are cut to this many ids, special ones counted.
      input_ends: whether inputs end with the vocabulary's end token, where it gives one to them; targets always do.
      instruction: (task, example, tokenizer=) -> what a hypernetwork reads for the example; None for nothing.
      max_instruction_tokens: instructions are cut to this many ids, special ones counted.

    Raises:
      InputError: if a limit is too small to hold a token and an end.
    """

    prompt: Prompt
    reference: Reference = first_reference
    max_input_tokens: int = MAX_INPUT_TOKENS
    max_target_tokens: int = MAX_TARGET_TOKENS
    input_ends: bool = True
    instruction: Prompt | None = None
    max_instruction_tokens: int = MAX_INSTRUCTION_TOKENS

    def __post_init__(self) -> None:
        for name in ("max_input_tokens", "max_target_tokens", "max_instruction_tokens"):
            if getattr(self, name) < 2:
                raise InputError(f"{name} is {getattr(self, name)}; expected 2 or more")


def cache_tasks(
    tasks: Iterable[TaskSpec],
    splits: Sequence[str],
    folder: str | Path,
    preprocessing: Preprocessing,
    tokenizer: Tokenizer,
    *,
    progress: Progress | None = None,
) -> TokenStore:
    """Tokenises tasks into a token store; a store that holds the same already is opened instead.

    Args:
      tasks: the tasks; their order is the order of task ids.
      splits: which splits; a task takes part in those that it has.
      folder: the store to make.
      preprocessing: how examples become ids.
      tokenizer: the vocabulary.
      progress: told after each task split.

    Returns:
      The store.

    Raises:
      InputError: if no task has one of the splits, a task has none of them, a split of a task is empty, two tasks
        share a name, the folder holds something else, or the disk is full.
    """
    pairs = task_splits(tasks, splits)
    by_name = {task.name: task for task, _ in pairs}
    parts = [Part.of(task, split) for task, split in pairs]
    make_rows = lambda part: tokenise(by_name[part.task], part.split, preprocessing, tokenizer)
    return cache_parts(parts, make_rows, folder, describe(preprocessing, tokenizer), tokenizer, progress=progress)


def cache_parts(
    parts: Sequence[Part],
    make_rows: Callable[[Part], Rows],
    folder: str | Path,
    description: dict[str, Any],
    tokenizer: Tokenizer,
    *,
    progress: Progress | None = None,
) -> TokenStore:
    """Writes task splits into a store, those that an earlier, stopped run has finished excepted.

    Args:
      parts: the task splits, in the order of the store.
      make_rows: makes the rows of one.
      folder: the store to make.
      description: JSON values that decide what the model reads.
      tokenizer: the vocabulary.
      progress: told after each task split.

    Returns:
      The store; an existing one that holds the same already.

    Raises:
      InputError: if the folder holds something else, or the disk is full.
    """
    origins = {(part.task, part.split): part.origin for part in parts}
    store = existing_store(folder, tokenizer, description, origins)
    if store is not None:
        return store
    with StoreWriter(folder, tokenizer, description) as writer:
        for number, part in enumerate(parts, start=1):
            if not writer.reuse(part):
                writer.add(part, make_rows(part))
            if progress is not None:
                progress(number, len(parts), f"{part.task} {part.split}")
        return writer.finish()


def tokenise(task: TaskSpec, split: str, preprocessing: Preprocessing, tokenizer: Tokenizer) -> Rows:
    """Tokenises one split of a task.

    Args:
      task: the task.
      split: one of its splits.
      preprocessing: how examples become ids.
      tokenizer: the vocabulary.

    Returns:
      One row per example, in the split's order.

    Raises:
      InputError: if the task has no such split or a text cannot be tokenised.
    """
    return tokenise_examples(task, task.split(split), preprocessing, tokenizer)


def tokenise_examples(
    task: TaskSpec, examples: Sequence[Example], preprocessing: Preprocessing, tokenizer: Tokenizer
) -> Rows:
    """Tokenises some examples of a task.

    Args:
      task: the task.
      examples: any of its examples.
      preprocessing: how examples become ids.
      tokenizer: the vocabulary.

    Returns:
      One row per example.

    Raises:
      InputError: if a text cannot be tokenised.
    """
    inputs = tokenizer.encode_batch([preprocessing.prompt(task, one, tokenizer=tokenizer) for one in examples])
    targets = tokenizer.encode_batch([preprocessing.reference(task, one) for one in examples])
    end = tokenizer.eos_token_id
    return Rows(
        ids=[example.id for example in examples],
        inputs=[cut(open_ended(ids, end, preprocessing), preprocessing.max_input_tokens, end) for ids in inputs],
        targets=[cut(ended(ids, end), preprocessing.max_target_tokens, end) for ids in targets],
        references=[example.targets for example in examples],
        choices=choices_of(examples),
        instructions=_instructions(task, examples, preprocessing, tokenizer),
    )


def _instructions(
    task: TaskSpec, examples: Sequence[Example], preprocessing: Preprocessing, tokenizer: Tokenizer
) -> list[list[int]] | None:
    """Tokenises each distinct instruction once: mostly there is one for the whole task."""
    if preprocessing.instruction is None:
        return None
    texts = [preprocessing.instruction(task, one, tokenizer=tokenizer) for one in examples]
    distinct = list(dict.fromkeys(texts))
    limit, end = preprocessing.max_instruction_tokens, tokenizer.eos_token_id
    ids = dict(zip(distinct, (cut(one, limit, end) for one in tokenizer.encode_batch(distinct)), strict=True))
    return [ids[text] for text in texts]


def ended(ids: list[int], end: int) -> list[int]:
    """Adds the end-of-text id if the tokenizer did not (GPT-2's does not): a model must learn where targets end.

    Args:
      ids: token ids.
      end: the end-of-text id.

    Returns:
      The ids, ending with `end`.
    """
    return ids if ids[-1:] == [end] else [*ids, end]


def open_ended(ids: list[int], end: int, preprocessing: Preprocessing) -> list[int]:
    """Takes the end-of-text id off an input if inputs have none.

    Args:
      ids: token ids of an input.
      end: the end-of-text id.
      preprocessing: says whether inputs have one.

    Returns:
      The ids.
    """
    return ids[:-1] if not preprocessing.input_ends and ids[-1:] == [end] else ids


def cut(ids: list[int], limit: int, end: int) -> list[int]:
    """Shortens ids that are too many, keeping the end-of-text id if they had one.

    Args:
      ids: token ids.
      limit: most ids that may stay, 2 or more.
      end: the end-of-text id.

    Returns:
      The ids themselves if they fit, else the first `limit - 1` and the end (or the first `limit`).
    """
    if len(ids) <= limit:
        return ids
    return [*ids[: limit - 1], end] if ids[-1] == end else ids[:limit]


def task_splits(tasks: Iterable[TaskSpec], splits: Sequence[str]) -> list[tuple[TaskSpec, str]]:
    """Pairs tasks with those of the splits that they have.

    Args:
      tasks: the tasks.
      splits: the splits that are asked for.

    Returns:
      (task, split), all tasks of the first split first.

    Raises:
      InputError: if something asked for would be left out silently, see `cache_tasks`.
    """
    tasks = list(tasks)
    names: set[str] = set()
    for task in tasks:
        if task.name in names:
            raise InputError(f"two tasks are called {task.name!r}; rename one")
        names.add(task.name)
        if not set(splits) & set(task.splits):
            raise unknown_name(f"split of task {task.name}", ", ".join(splits), task.splits)
    parts = [(task, split) for split in dict.fromkeys(splits) for task in tasks if split in task.splits]
    for split in splits:
        if not any(split == found for _, found in parts):
            raise unknown_name("split", split, {name for task in tasks for name in task.splits})
    for task, split in parts:
        if not task.splits[split]:
            raise InputError(f"task {task.name}: split {split!r} is empty; leave out the split or the task")
    return parts


def describe(preprocessing: Preprocessing, tokenizer: Tokenizer) -> dict[str, Any]:
    """Describes a preprocessing so that two that differ are told apart.

    Names and bound arguments say what differs. They cannot see settings that a config system binds out of sight, so
    the hash of what the prompt makes of fixed examples is part of the description.

    Args:
      preprocessing: how examples become ids.
      tokenizer: the vocabulary.

    Returns:
      JSON values.
    """
    prompts = [preprocessing.prompt(_PROBE, example, tokenizer=tokenizer) for example in _PROBE.examples]
    references = [preprocessing.reference(_PROBE, example) for example in _PROBE.examples]
    instructed = {}
    if preprocessing.instruction is not None:
        own = functools.partial(preprocessing.instruction, _PROBE, tokenizer=tokenizer)
        instructed = {
            "instruction": _describe_function(preprocessing.instruction),
            "max_instruction_tokens": preprocessing.max_instruction_tokens,
            "instruction_probe": _hash([own(example) for example in _PROBE.examples]),
        }
    described = {
        "prompt": _describe_function(preprocessing.prompt),
        "reference": _describe_function(preprocessing.reference),
        "max_input_tokens": preprocessing.max_input_tokens,
        "max_target_tokens": preprocessing.max_target_tokens,
        "probe": _hash([prompts, references]),
        **instructed,
    }
    return described if preprocessing.input_ends else {**described, "input_ends": False}


def _hash(texts: Any) -> str:
    return hashlib.sha256(json.dumps(texts).encode()).hexdigest()[:16]


def _describe_function(function: Callable[..., Any]) -> dict[str, Any]:
    bound: dict[str, Any] = {}
    inner: Any = function
    while isinstance(inner, functools.partial):
        bound = {**inner.keywords, **bound}
        inner = inner.func
    parameters = inspect.signature(inner).parameters.values()
    defaults = {one.name: one.default for one in parameters if one.default is not one.empty}
    arguments = {name: _plain(value) for name, value in sorted({**defaults, **bound}.items()) if name != "tokenizer"}
    return {"name": getattr(inner, "__qualname__", type(inner).__qualname__), "arguments": arguments}


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return _describe_function(value) if callable(value) else repr(value)


def _probe() -> TaskSpec:
    good, bad = (
        tuple(Demonstration(inputs=f"{mark}{k}", output=f"{k}", explanation=f"{k}!") for k in range(5)) for mark in "ab"
    )
    long = " ".join(f"word{k}" for k in range(1000))  # so that limits of length show
    examples = tuple(
        Example(id=f"e{k}", inputs=long if k == 6 else f"c{k}", targets=(f"d{k}", f"e{k}", f"f{k}")) for k in range(14)
    )
    return TaskSpec(
        name="task040_probe_text",
        category="Probe",
        definition="Go.",
        examples=examples,
        positive=good,
        negative=bad,
        splits={"train": tuple(range(14))},
    )


_PROBE = _probe()
