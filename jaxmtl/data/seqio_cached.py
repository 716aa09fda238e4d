"""Tasks that `seqio_cache_tasks` has cached -> token store: ids are taken as they are, nothing is tokenised again."""

import dataclasses
import functools
import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import tensorflow as tf
from google.protobuf import message

from jaxmtl.data.vocabularies import adds_end
from jaxmtl.feed.parts import Part
from jaxmtl.feed.store import TokenStore
from jaxmtl.feed.tokenise import MAX_INPUT_TOKENS, MAX_TARGET_TOKENS, cache_parts, cut, ended
from jaxmtl.feed.writer import Rows
from jaxmtl.tasks.spec import check_task_name
from jaxmtl.tokenizers import Tokenizer
from jaxmtl.types import InputError, Progress, unknown_name

COMPLETED = "COMPLETED"
_NUM_LOOKED_AT = 16  # texts of a split whose ids are compared
_log = logging.getLogger(__name__)

Ending = Callable[[list[int], Tokenizer], list[int]]
"""Decides whether cached input ids get the end-of-text id."""


def ended_like_texts(ids: list[int], tokenizer: Tokenizer) -> list[int]:
    """Adds the end-of-text id that is missing, if the tokenizer ends its texts (T5's does, GPT-2's does not)."""
    return ended(ids, tokenizer.eos_token_id) if adds_end(tokenizer) else ids


def as_cached(ids: list[int], tokenizer: Tokenizer) -> list[int]:
    """Leaves ids as they are, such as the inputs of P3, which have no end."""
    return ids


@dataclasses.dataclass(frozen=True, kw_only=True)
class CachedSplit:
    """One split of a cached task.

    Attributes:
      task: the task's name in the store, see `store_name`.
      split: name of the split.
      shards: its TFRecord files, in order.
      num_examples: how many examples it has, as its `stats` file says.
    """

    task: str
    split: str
    shards: tuple[Path, ...]
    num_examples: int


def cache_seqio_tasks(
    cache_dir: str | Path,
    splits: Sequence[str],
    folder: str | Path,
    tokenizer: Tokenizer,
    *,
    tasks: Sequence[str] | None = None,
    end_inputs: Ending = ended_like_texts,
    max_input_tokens: int = MAX_INPUT_TOKENS,
    max_target_tokens: int = MAX_TARGET_TOKENS,
    category: str = "SeqIO",
    metric: str = "rouge_l",
    progress: Progress | None = None,
) -> TokenStore:
    """Turns cached SeqIO tasks into a token store; targets always end with the end-of-text id.

    Args:
      cache_dir: what was given to `seqio_cache_tasks` as `--output_cache_dir`.
      splits: which splits; a task takes part in those that it has.
      folder: the store to make.
      tokenizer: the vocabulary that the tasks were cached with.
      tasks: names of SeqIO tasks, in the order of the store; None for all in the folder, by name.
      end_inputs: decides whether inputs get an end, `ended_like_texts` or `as_cached`.
      max_input_tokens: inputs are cut to this many ids.
      max_target_tokens: targets are cut to this many ids.
      category: category of all tasks in the store.
      metric: headline metric of all tasks in the store.
      progress: told after each task split.

    Returns:
      The store; an existing one that holds the same already.

    Raises:
      InputError: if a task or split is not there or not complete, has no `inputs` and `targets` of ids, holds ids
        outside the vocabulary, or for any reason that `feed.tokenise.cache_parts` has.
    """
    found = cached_splits(cache_dir, splits, tasks)
    by_name = {(one.task, one.split): one for one in found}
    parts = [
        Part(task=one.task, split=one.split, category=category, metric=metric, origin=_origin(one)) for one in found
    ]
    finish = functools.partial(
        _finish,
        tokenizer=tokenizer,
        end_inputs=end_inputs,
        max_input_tokens=max_input_tokens,
        max_target_tokens=max_target_tokens,
    )
    description = {
        "prompt": {"name": "cached by SeqIO", "arguments": {"end_inputs": end_inputs.__name__}},
        "max_input_tokens": max_input_tokens,
        "max_target_tokens": max_target_tokens,
    }
    make_rows = lambda part: cached_rows(by_name[part.task, part.split], tokenizer, finish)
    return cache_parts(parts, make_rows, folder, description, tokenizer, progress=progress)


def store_name(name: str) -> str:
    """Returns the name that a SeqIO task has in a store: a store's names become file names.

    Args:
      name: name of the SeqIO task, such as `prefix:task1#z`.

    Returns:
      The same with "." for ":" and "-" for "#".
    """
    return name.replace(":", ".").replace("#", "-")


def cached_splits(
    cache_dir: str | Path, splits: Sequence[str], tasks: Sequence[str] | None = None
) -> list[CachedSplit]:
    """Finds cached tasks and checks that they are complete.

    Args:
      cache_dir: the folder that SeqIO cached into.
      splits: the splits that are asked for.
      tasks: names of SeqIO tasks; None for all that are there.

    Returns:
      All tasks of the first split first.

    Raises:
      InputError: if a task or split is not there, or not complete.
    """
    root = Path(cache_dir)
    there = {".".join(file.parent.relative_to(root).parts): file.parent for file in sorted(root.rglob(COMPLETED))}
    if not there:
        raise InputError(f"{root} holds no task that seqio_cache_tasks finished (no file {COMPLETED} below it)")
    folders = {}
    for name in tasks or [":".join(folder.relative_to(root).parts) for folder in there.values()]:
        folder = root.joinpath(*name.split(":"))
        if folder not in there.values():
            raise _not_there(root, name, folder, [":".join(one.relative_to(root).parts) for one in there.values()])
        task = check_task_name(store_name(name), f"SeqIO cache {root}")
        if task in folders:
            raise InputError(f"SeqIO cache {root}: two tasks are called {task!r} in a store; cache them apart")
        folders[task] = folder
    known = {task: _splits_in(folder) for task, folder in folders.items()}
    for task, of_task in known.items():
        if not set(splits) & of_task:
            raise unknown_name(f"split of cached task {task}", ", ".join(splits), of_task)
    for split in splits:
        if not any(split in of_task for of_task in known.values()):
            raise unknown_name("split", split, set().union(*known.values()))
    wanted = [(task, split) for split in dict.fromkeys(splits) for task in folders if split in known[task]]
    return [_cached_split(folders[task], task, split) for task, split in wanted]


def cached_rows(
    part: CachedSplit, tokenizer: Tokenizer, finish: Callable[[str, list[int]], list[int]] | None = None
) -> Rows:
    """Reads one split of a cached task.

    Args:
      part: the split.
      tokenizer: the vocabulary that it was cached with.
      finish: (feature name, ids) -> ids, such as one that cuts; None to take ids as they are.

    Returns:
      One row per example, in the order of the shards. References are those that the examples carry (`references`),
      else the text of the target before it was tokenised, else the target's ids as text. Ids are the examples' own
      if they have any (`id`), else their numbers.

    Raises:
      InputError: if a shard is damaged, examples are missing, or an example has no ids.
    """
    where = f"cached task {part.task}, split {part.split!r}"
    names: list[str] = []
    ids: dict[str, list[list[int]]] = {"inputs": [], "targets": []}
    references: list[list[str]] = []
    strange = 0
    for number, example in enumerate(_examples(part, where)):
        here = f"{where}, example {number}"
        for name, column in ids.items():
            found = _ids(example, name, tokenizer, here)
            column.append(found if finish is None else finish(name, found))
        text = _text(example, "targets", here)
        plain = [tokenizer.decode(ids["targets"][-1])] if text is None else [text]
        references.append(_texts(example, "references", here) or plain)
        names.append((_texts(example, "id", here) or [str(number)])[0])
        if number < _NUM_LOOKED_AT and text is not None:
            strange += not _same_start(ids["targets"][-1], tokenizer.encode(text), tokenizer)
    if len(names) != part.num_examples:
        raise InputError(f"{where}: {len(names)} examples in its shards, {part.num_examples} in its stats file")
    if strange:
        _log.warning(
            "%s: %d of the first %d targets have other ids than this vocabulary gives their text; is it the right one?",
            where,
            strange,
            min(_NUM_LOOKED_AT, len(names)),
        )
    return Rows(ids=names, inputs=ids["inputs"], targets=ids["targets"], references=references)


def _finish(
    name: str,
    ids: list[int],
    *,
    tokenizer: Tokenizer,
    end_inputs: Ending,
    max_input_tokens: int,
    max_target_tokens: int,
) -> list[int]:
    if name == "inputs":
        return cut(end_inputs(ids, tokenizer), max_input_tokens, tokenizer.eos_token_id)
    return cut(ended(ids, tokenizer.eos_token_id), max_target_tokens, tokenizer.eos_token_id)


def _examples(part: CachedSplit, where: str) -> Iterator[Mapping[str, Any]]:
    try:
        for record in tf.data.TFRecordDataset([str(file) for file in part.shards]).as_numpy_iterator():
            yield tf.train.Example.FromString(record).features.feature
    except tf.errors.OpError as error:
        raise InputError(f"{where}: a shard is damaged ({error.message[:200]!r}); cache it again with SeqIO") from error
    except message.DecodeError as error:
        raise InputError(f"{where}: a record is no tf.train.Example ({error}); cache it again with SeqIO") from error


def _ids(example: Mapping[str, Any], name: str, tokenizer: Tokenizer, where: str) -> list[int]:
    if name not in example or not example[name].int64_list.value:
        raise InputError(f"{where}: no ids under {name!r}; found {', '.join(sorted(example))}")
    ids = list(example[name].int64_list.value)
    if not 0 <= min(ids) <= max(ids) < tokenizer.vocab_size:
        raise InputError(
            f"{where}: {name} hold ids from {min(ids)} to {max(ids)}; the vocabulary has 0 to "
            f"{tokenizer.vocab_size - 1}: give the one that the task was cached with"
        )
    return ids


def _texts(example: Mapping[str, Any], name: str, where: str) -> list[str]:
    try:
        return [text.decode("utf-8") for text in example[name].bytes_list.value] if name in example else []
    except UnicodeDecodeError as error:
        raise InputError(f"{where}: {name!r} is no UTF-8 text ({error})") from error


def _text(example: Mapping[str, Any], name: str, where: str) -> str | None:
    """Returns the text of a feature before it was tokenised; SeqIO called it "plaintext" once."""
    found = _texts(example, f"{name}_pretokenized", where) or _texts(example, f"{name}_plaintext", where)
    return found[0] if len(found) == 1 else None


def _same_start(cached: list[int], encoded: list[int], tokenizer: Tokenizer) -> bool:
    """Tells whether ids are those of a text, cut or not, ended or not."""
    plain = cached[:-1] if cached[-1] == tokenizer.eos_token_id else cached
    return encoded[: len(plain)] == plain


def _not_there(root: Path, name: str, folder: Path, known: list[str]) -> InputError:
    if folder.is_dir():
        return InputError(f"cached task {name} in {root} is not complete (no file {COMPLETED}); let SeqIO finish it")
    return unknown_name(f"task cached in {root}", name, known)


def _splits_in(folder: Path) -> set[str]:
    return {file.name[len("info.") : -len(".json")] for file in folder.glob("info.*.json")}


def _cached_split(folder: Path, task: str, split: str) -> CachedSplit:
    where = f"cached task {folder}, split {split!r}"
    info, stats = (_json(folder / f"{kind}.{split}.json", where) for kind in ("info", "stats"))
    num_shards, num_examples = info.get("num_shards"), stats.get("examples")
    if type(num_shards) is not int or type(num_examples) is not int:
        raise InputError(f"{where}: its info or stats file names no number of shards or examples; cache it again")
    shards = tuple(folder / f"{split}.tfrecord-{number:05}-of-{num_shards:05}" for number in range(num_shards))
    missing = [file.name for file in shards if not file.is_file()]
    if missing:
        raise InputError(
            f"{where}: {len(missing)} of {num_shards} shards are missing, such as {missing[0]}; cache it again as "
            "TFRecords"
        )
    return CachedSplit(task=task, split=split, shards=shards, num_examples=num_examples)


def _json(file: Path, where: str) -> dict[str, Any]:
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{where}: {file.name} cannot be read ({error}); cache it again with SeqIO") from error
    if not isinstance(value, dict):
        raise InputError(f"{where}: {file.name} holds no object; cache it again with SeqIO")
    return value


def _origin(part: CachedSplit) -> str:
    digest = hashlib.sha256()
    for file in part.shards:
        with file.open("rb") as opened:
            digest.update(hashlib.file_digest(opened, "sha256").digest())
    return digest.hexdigest()
