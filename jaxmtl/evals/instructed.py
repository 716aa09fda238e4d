"""Scoring with a hypernetwork: which instruction each request follows, and what the instructions do to the model."""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from jaxmtl.adapters.adaptation import Instructed, together
from jaxmtl.adapters.hypernet import Hyper, read_ids, task_ids
from jaxmtl.feed.store import TokenStore
from jaxmtl.tasks.fewshot import stable_hash
from jaxmtl.types import InputError
from jaxmtl.weights import Pretrained
from jaxmtl.weights.fingerprint import weights_hash

MOST_HELD = 256
"""Instructions whose adaptations are held at once: of T5 base each takes tens of megabytes."""
Choice = Callable[[Sequence[str], Sequence[str], Sequence[bytes]], list[str]]
"""Maps names, categories and first instructions [N] of tasks to the task whose instruction each of them gets, [N]."""


def own(names: Sequence[str], categories: Sequence[str], first: Sequence[bytes]) -> list[str]:
    """Gives each task its own instruction.

    Args:
      names: [N], the tasks.
      categories: [N], their categories.
      first: [N], what tells the first instruction of each from others.

    Returns:
      `names`.
    """
    return list(names)


def of_another_category(
    names: Sequence[str], categories: Sequence[str], first: Sequence[bytes], *, seed: int = 0
) -> list[str]:
    """Gives each task the instruction of one of another category: a control of whether instructions are used at all.

    Categories may share instructions, such as P3's three rounds of ANLI; none gives a task its own.

    Args:
      names: as in `own`.
      categories: as in `own`.
      first: as in `own`.
      seed: which one.

    Returns:
      [N] names; what a task gets does not depend on the order of the tasks.

    Raises:
      InputError: if no task of another category has another instruction.
    """
    tasks = sorted(zip(names, categories, first, strict=True))

    def stranger(name: str, category: str, text: bytes) -> str:
        others = [other for other, of, says in tasks if of != category and says != text]
        if not others:
            raise InputError(f"task {name}: none of {len(tasks)} tasks has another category and another instruction")
        return min(others, key=lambda other: stable_hash(seed, name, "other instruction", other))

    return [stranger(*task) for task in zip(names, categories, first, strict=True)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ByInstruction:
    """Scores tasks with what a hypernetwork makes of instructions.

    Attributes:
      hyper: the hypernetwork.
      choose: which task's instruction each task gets.
    """

    hyper: Hyper
    choose: Choice = own


@dataclasses.dataclass(frozen=True, kw_only=True)
class Instructions:
    """The instructions of a task's requests.

    Attributes:
      hyper: reads them.
      ids: token ids of each request's instruction.
    """

    hyper: Hyper
    ids: Sequence[np.ndarray]


def hyper_hash(hyper: Hyper) -> str:
    """Hashes a hypernetwork's config and parameters.

    Args:
      hyper: the hypernetwork.

    Returns:
      16 hexadecimal digits.
    """
    return weights_hash({"config": np.frombuffer(repr(hyper.config).encode(), np.uint8), "params": hyper.params})


def instructions_of(store: TokenStore, split: str, task: str, count: int, hyper: Hyper) -> Instructions:
    """Looks up the instructions of a task, one for each of some requests; they repeat where there are fewer.

    A hypernetwork that has learned its tasks reads which task it is instead.

    Args:
      store: the tokenised examples.
      split: the split.
      task: the task whose instructions they are.
      count: number of requests.
      hyper: reads them.

    Returns:
      The instructions.

    Raises:
      InputError: if the store has no instructions.
      UnknownNameError: if the hypernetwork has learned its tasks, and this is none of them.
    """
    if hyper.config.encoder == "learned":
        return Instructions(hyper=hyper, ids=[np.array(task_ids(hyper, task), np.int32)] * count)
    examples = store.examples(task, split)
    if not examples.has_instructions:
        raise InputError(
            f"token store {store.folder}: task {task} has no instructions for the hypernetwork; cache with "
            "tasks/with_instructions.gin, or tasks/p3.gin with INSTRUCTION=@prompts.definition_only"
        )
    return Instructions(hyper=hyper, ids=[examples.instruction(row % len(examples)) for row in range(count)])


def first_of(store: TokenStore, split: str, task: str, hyper: Hyper) -> bytes:
    """Returns what tells a task's first instruction from others; arguments and errors as in `instructions_of`."""
    return np.asarray(instructions_of(store, split, task, 1, hyper).ids[0], np.int32).tobytes()


def instructed(pretrained: Pretrained, given: Sequence[Instructions]) -> Instructed:
    """Reads the instructions of requests, each distinct one once.

    Args:
      pretrained: the model.
      given: those of some tasks, at least one, all of one hypernetwork.

    Returns:
      What scoring and generation take as adapter.

    Raises:
      InputError: if there are more instructions than are held at once.
    """
    rows = [tuple(np.asarray(ids).tolist()) for one in given for ids in one.ids]
    place = {ids: number for number, ids in enumerate(dict.fromkeys(rows))}
    if len(place) > MOST_HELD:
        raise InputError(
            f"{len(rows)} examples have {len(place)} different instructions; at most {MOST_HELD} are held at once: "
            "store one for each task, or score fewer examples of each (MAX_EXAMPLES)"
        )
    read = [read_ids(given[0].hyper, pretrained, [list(ids)]) for ids in place]
    return Instructed(adaptation=together(read), index=np.array([place[ids] for ids in rows], np.int32))
