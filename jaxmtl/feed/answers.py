"""Tasks with labels, tags or spans -> token store, for models with heads that read `<s> a </s></s> b </s>`.

`inputs` hold the texts, `targets` what a head shall say: the label id; for each token the tag id of the word that it
begins, `IGNORED` elsewhere; or the places of the answer's first and last token. A text too long for a question becomes
windows that overlap: rows with the id of the same example, those without the answer pointing at `<s>`.
Source: methods 5.2.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tokenizers

from jaxmtl.feed.parts import Part
from jaxmtl.feed.store import TokenStore
from jaxmtl.feed.tokenise import cache_parts, task_splits
from jaxmtl.feed.unfinished import Rows
from jaxmtl.tasks.answers import CLASS, IGNORED, TAGS, Answer, AnsweredExample, answer_of
from jaxmtl.tasks.spec import TaskSpec
from jaxmtl.tokenizers import JSON_FILE, Tokenizer
from jaxmtl.types import InputError, Progress

NUM_FRAMING = 4
"""Special tokens around two texts."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Windows:
    """How long rows are.

    Attributes:
      max_input_tokens: most ids of a row, special ones counted; other texts than contexts are cut to this.
      stride: tokens that two windows of a context share.

    Raises:
      InputError: if a limit is too small.
    """

    max_input_tokens: int = 384
    stride: int = 128

    def __post_init__(self) -> None:
        if self.max_input_tokens < NUM_FRAMING + 2 or not 0 <= self.stride < self.max_input_tokens - NUM_FRAMING:
            raise InputError(
                f"max_input_tokens is {self.max_input_tokens}, stride {self.stride}; expected at least "
                f"{NUM_FRAMING + 2}, and a stride that leaves room for new tokens"
            )


class _Frame(NamedTuple):
    """The ids before and after a text."""

    start: int
    end: int

    def around(self, *texts: Sequence[int]) -> list[int]:
        ids = [self.start, *texts[0], self.end]
        for text in texts[1:]:
            ids += [self.end, *text, self.end]
        return ids


def cache_answers(
    tasks: Iterable[TaskSpec],
    splits: Sequence[str],
    folder: str | Path,
    tokenizer: Tokenizer,
    *,
    windows: Windows | None = None,
    progress: Progress | None = None,
) -> TokenStore:
    """Tokenises tasks with typed answers into a token store; a store that holds the same already is opened instead.

    Args:
      tasks: the tasks; their order is the order of task ids, and so of heads.
      splits: which splits; a task takes part in those that it has.
      folder: the store to make.
      tokenizer: the vocabulary; frames texts by `<s>` and `</s>`.
      windows: how long rows are; the default if None.
      progress: told after each task split.

    Returns:
      The store.

    Raises:
      InputError: if a task has texts as answers, the tokenizer does not frame texts, or as `tokenise.cache_tasks`.
    """
    windows = windows or Windows()
    frame_of(tokenizer)
    pairs = task_splits(tasks, splits)
    by_name = {task.name: task for task, _ in pairs}
    parts = [Part.of_answers(task, split) for task, split in pairs]
    make_rows = lambda part: answer_rows(by_name[part.task], part.split, windows, tokenizer)
    return cache_parts(parts, make_rows, folder, describe(windows), tokenizer, progress=progress)


def describe(windows: Windows) -> dict[str, Any]:
    """Describes how rows are made, for the store's manifest.

    Args:
      windows: how long rows are.

    Returns:
      JSON values.
    """
    return {"prompt": "<s> a </s></s> b </s>", **dataclasses.asdict(windows)}


def answer_rows(task: TaskSpec, split: str, windows: Windows, tokenizer: Tokenizer) -> Rows:
    """Tokenises one split of a task.

    Args:
      task: the task, with typed answers.
      split: one of its splits.
      windows: how long rows are.
      tokenizer: the vocabulary.

    Returns:
      One row per example, in the split's order; for spans one per window.

    Raises:
      InputError: if the task has no such split or no typed answers, or a question leaves no room for its context.
    """
    answer, frame = answer_of(task), frame_of(tokenizer)
    examples: Any = task.split(split)
    if answer.kind == CLASS:
        found = list(_class_rows(examples, answer, frame, windows, tokenizer))
    elif answer.kind == TAGS:
        found = list(_tag_rows(examples, answer, frame, windows, tokenizer))
    else:
        found = list(_span_rows(examples, frame, windows, tokenizer))
    return Rows(
        ids=[example.id for example, _, _ in found],
        inputs=[inputs for _, inputs, _ in found],
        targets=[targets for _, _, targets in found],
        references=[example.targets for example, _, _ in found],
    )


def frame_of(tokenizer: Tokenizer) -> _Frame:
    """Finds out which ids frame a text.

    Args:
      tokenizer: the vocabulary.

    Returns:
      The ids of `<s>` and `</s>`.

    Raises:
      InputError: if texts are not framed by one id on each side.
    """
    ids = tokenizer.encode("")
    if len(ids) != 2:
        raise InputError(
            f"vocabulary {tokenizer.source} adds {len(ids)} ids to a text; a model with heads reads <s> and </s>, as "
            "RoBERTa's and XLM-R's vocabularies add them"
        )
    return _Frame(*ids)


_Row = tuple[AnsweredExample, list[int], list[int]]
"""An example, its inputs and its targets."""


def _class_rows(
    examples: Sequence[AnsweredExample], answer: Answer, frame: _Frame, windows: Windows, tokenizer: Tokenizer
) -> Iterator[_Row]:
    ids = iter(tokenizer.encode_batch([text for example in examples for text in example.texts], False))
    place = {label: index for index, label in enumerate(answer.labels)}
    for example in examples:
        texts = [next(ids) for _ in example.texts]
        room = windows.max_input_tokens - 2 * len(texts)
        yield example, frame.around(*_shortened(texts, room)), [place[str(example.answer)]]


def _shortened(texts: list[list[int]], room: int) -> list[list[int]]:
    """Cuts the longer of two texts until both fit."""
    lengths = [len(text) for text in texts]
    while sum(lengths) > room:
        lengths[int(np.argmax(lengths))] -= 1
    return [text[:length] for text, length in zip(texts, lengths, strict=True)]


def _tag_rows(
    examples: Sequence[AnsweredExample], answer: Answer, frame: _Frame, windows: Windows, tokenizer: Tokenizer
) -> Iterator[_Row]:
    # Each word is encoded as it stands inside a text, with a space before it.
    pieces = iter(tokenizer.encode_batch([f" {word}" for example in examples for word in example.texts], False))
    place: dict[Any, int] = {label: index for index, label in enumerate(answer.labels)}
    room = windows.max_input_tokens - 2
    for example in examples:
        ids: list[int] = []
        tags: list[int] = []
        for tag in example.answer:
            piece = next(pieces)
            ids += piece
            tags += [place[tag], *[IGNORED] * (len(piece) - 1)] if piece else []
        yield example, frame.around(ids[:room]), [IGNORED, *tags[:room], IGNORED]


def _span_rows(
    examples: Sequence[AnsweredExample], frame: _Frame, windows: Windows, tokenizer: Tokenizer
) -> Iterator[_Row]:
    if JSON_FILE not in tokenizer.files:
        raise InputError(
            f"vocabulary {tokenizer.source} does not tell where in a text its tokens stand; give a {JSON_FILE}"
        )
    pipeline: Any = tokenizers.Tokenizer.from_buffer(tokenizer.files[JSON_FILE])
    contexts = {example.texts[1]: None for example in examples}
    coded = dict(zip(contexts, pipeline.encode_batch(list(contexts), add_special_tokens=False), strict=True))
    questions = tokenizer.encode_batch([example.texts[0] for example in examples], False)
    for example, question in zip(examples, questions, strict=True):
        context = coded[example.texts[1]]
        offset = len(question) + 3  # <s> question </s></s>
        room = windows.max_input_tokens - NUM_FRAMING - len(question)
        if room <= windows.stride:
            raise InputError(
                f"example {example.id!r}: a question of {len(question)} tokens leaves {max(room, 0)} for its context; "
                f"expected more than the stride, {windows.stride}; allow more input tokens"
            )
        first, last = answer_tokens(example, np.array(context.offsets).reshape(-1, 2))
        for start in _starts(len(context.ids), room, windows.stride):
            window = context.ids[start : start + room]
            inside = start <= first and last < start + len(window)
            targets = [first - start + offset, last - start + offset] if inside else [0, 0]
            yield example, frame.around(question, window), targets


def answer_tokens(example: AnsweredExample, offsets: np.ndarray) -> tuple[int, int]:
    """Finds the tokens of an example's first answer.

    Args:
      example: its `answer` and `targets` say where the answer stands in the context.
      offsets: int [c, 2], characters that each token of the context begins and ends at.

    Returns:
      The last token that begins at or before the answer's first character, and the first that ends at or after its
      last.
    """
    start = int(example.answer[0])
    first = np.searchsorted(offsets[:, 0], start, side="right") - 1
    last = np.searchsorted(offsets[:, 1], start + len(example.targets[0]), side="left")
    return int(first), int(last)


def _starts(length: int, room: int, stride: int) -> Iterator[int]:
    """Yields where windows begin; the last one reaches the end."""
    start = 0
    yield start
    while start + room < length:
        start += room - stride
        yield start
