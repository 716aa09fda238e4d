"""Which Super-NaturalInstructions tasks are used and how each is split: the official rules and those of S001.

A selection is any object with the two methods of `Selection`. Subsets are drawn by hash of (seed, task name), so a
task's splits depend on its own file only. Source: methods sheet, sections 2.2 and 2.4.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from jaxmtl.tasks.fewshot import seeded_order
from jaxmtl.tasks.spec import TaskSpec, check_task_name
from jaxmtl.types import InputError, unknown_name

Splits = Mapping[str, tuple[int, ...]]

OFFICIAL_TRAIN_PER_TASK = 100
OFFICIAL_TEST_PER_TASK = 100
# S001: a held-out task qualifies with MORE than 140 examples, one of the further evaluation sets with at least 140.
UNSEEN_MORE_THAN = 140
UNSEEN_TEST = 100
UNSEEN_FEWSHOT = 40
SEEN_MAX_TRAIN = 5_000
SEEN_TEST_FRACTION = 0.1
SEEN_VALIDATION_FRACTION = 0.1
HELD_OUT_CATEGORIES = frozenset(
    {
        "Coreference Resolution",
        "Data to Text",
        "Question Rewriting",
        "Title Generation",
        "Dialogue Act Recognition",
        "Answerability Classification",
        "Keyword Tagging",
        "Overlap Extraction",
        "Word Analogy",
        "Cause Effect Classification",
        "Grammar Error Correction",
    }
)
HELD_OUT_DOMAINS = frozenset(
    {
        "Healthcare",
        "Social Media",
        "Social Media -> Twitter",
        "Social Media -> Reddit",
        "Sports",
        "Animals",
        "Reviews -> Books",
        "Reviews -> Trip Advisor",
        "Reviews -> Restaurants",
        "Reviews -> Music",
        "Public Places -> Restaurants",
        "Scientific Research Papers",
    }
)
ADVERSARIAL_SOURCES = frozenset({"anli", "paws", "hans", "hellaswag", "codah", "adversarial_qa"})
SYNTHETIC_SOURCE = "synthetic"
ENGLISH = ("English",)
_LANGUAGE_FIELDS = ("input_language", "output_language", "instruction_language")
NO_LANGUAGE = ("english", "other")
ROLES = ("train", "unseen", "synthetic", "domain", "adversarial")


class Selection(Protocol):
    """What `sni.load` asks of a selection."""

    def roles(self, folder: Path) -> dict[str, str] | None:
        """Returns task name -> role for the tasks to open, or None to open all files of the folder."""
        ...

    def splits(self, task: TaskSpec, role: str | None) -> Splits | None:
        """Returns the task's splits, or None to leave the task out; `role` is None where `roles` gave none."""
        ...


def read_task_list(folder: Path, task_list: str | Path) -> list[str]:
    """Reads a file with one task name a line.

    Args:
      folder: what a relative path starts from.
      task_list: the file.

    Returns:
      The names in the file's order, each once.

    Raises:
      InputError: if the file cannot be read, is empty, or a line is no task name.
    """
    path = folder / task_list
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"task list {path}: cannot be read ({error}); expected one task name a line") from error
    named = [(number, line.strip()) for number, line in enumerate(lines, start=1) if line.strip()]
    names = dict.fromkeys(check_task_name(name, f"{path} line {number}") for number, name in named)
    if not names:
        raise InputError(f"task list {path} is empty; expected one task name a line")
    return list(names)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EveryTask:
    """Every task of the folder: "all", the official test instances, and a training subset apart from them.

    Splits: "all"; "test": the first `num_test` instances; "train": a seeded subset of `max_per_task` of the others
    (absent where there are no others). For looking around, or for folders without official lists.
    """

    max_per_task: int | None = OFFICIAL_TRAIN_PER_TASK
    num_test: int = OFFICIAL_TEST_PER_TASK
    seed: int = 0

    def roles(self, folder: Path) -> None:
        """Returns None: all files."""
        return None

    def splits(self, task: TaskSpec, role: str | None) -> Splits:
        """Returns the three splits."""
        count = len(task.examples)
        test = range(min(self.num_test, count))
        train = [i for i in seeded_order(count, self.seed, task.name) if i >= self.num_test][: self.max_per_task]
        return _filled({"all": range(count), "test": test, "train": train})


@dataclasses.dataclass(frozen=True, kw_only=True)
class OfficialTrain:
    """Official training tasks: "train" is a seeded subset of each task.

    Attributes:
      max_per_task: size of "train"; None for all that are left.
      num_validation: size of "validation", apart from "train"; 0 for none.
      seed: the data seed.
    """

    max_per_task: int | None = OFFICIAL_TRAIN_PER_TASK
    num_validation: int = 0
    seed: int = 0

    def roles(self, folder: Path) -> None:
        """Returns None: all files, unless `sni.load` is given a task list."""
        return None

    def splits(self, task: TaskSpec, role: str | None) -> Splits:
        """Returns "train" and, if asked for, "validation"."""
        order = seeded_order(len(task.examples), self.seed, task.name)
        # Validation comes from the end of the order: growing it never changes the training subset's first examples.
        held = order[len(order) - min(self.num_validation, len(order) // 2) :]
        train = order[: len(order) - len(held)][: self.max_per_task]
        return _filled({"train": train, "validation": held})


@dataclasses.dataclass(frozen=True, kw_only=True)
class OfficialTest:
    """Official test tasks: "test" is the first `first` instances, which the authors balanced by label.

    Attributes:
      first: how many instances of the file's beginning count.
      limit: a seeded cut among them; None for all, in file order.
      seed: the data seed of the cut.
    """

    first: int = OFFICIAL_TEST_PER_TASK
    limit: int | None = None
    seed: int = 0

    def roles(self, folder: Path) -> None:
        """Returns None: all files, unless `sni.load` is given a task list."""
        return None

    def splits(self, task: TaskSpec, role: str | None) -> Splits:
        """Returns "test"."""
        count = min(self.first, len(task.examples))
        return _filled({"test": range(count) if self.limit is None else self._cut(count, task.name)})

    def _cut(self, count: int, name: str) -> list[int]:
        return seeded_order(count, self.seed, name)[: self.limit]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Official:
    """The official English track in one go: the folder's own lists say which tasks train and which test.

    Attributes:
      train: splits of the training tasks.
      test: splits of the test tasks.
      train_list: file of training task names, relative to the data folder or absolute.
      test_list: file of test task names.
    """

    train: OfficialTrain = OfficialTrain()
    test: OfficialTest = OfficialTest()
    train_list: str = "splits/default/train_tasks.txt"
    test_list: str = "splits/default/test_tasks.txt"

    def roles(self, folder: Path) -> dict[str, str]:
        """Returns the tasks of both lists; a task in both is an error."""
        train, test = read_task_list(folder, self.train_list), read_task_list(folder, self.test_list)
        both = set(train) & set(test)
        if both:
            raise InputError(f"task {min(both)} is in {self.train_list} and in {self.test_list}; expected only one")
        return dict.fromkeys(train, "train") | dict.fromkeys(test, "test")

    def splits(self, task: TaskSpec, role: str | None) -> Splits:
        """Returns "train" (and "validation") or "test", by the list the task is in."""
        if role not in ("train", "test"):
            raise InputError("the selection Official reads its own two lists; give train_list and test_list instead")
        return (self.train if role == "train" else self.test).splits(task, role)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransferMatters:
    """S001's selection: English, not synthetic; whole categories are held out as unseen tasks.

    Training tasks get "train" (at most `max_train`), "validation" and "test"; all others "test" and "fewshot".

    Attributes:
      keep: which of `ROLES` to load. "synthetic", "domain" and "adversarial" are the paper's further evaluation sets.
      held_out_categories: a task with any of these categories is unseen.
      held_out_domains: a task with any of these domains is no training task (exact membership).
      adversarial_sources: a task with any of these sources is no training task (exact membership).
      no_language: how to take a task without language fields (2021 schema): "english" or "other".
      more_than: an unseen task needs more examples than this; the further sets need at least as many.
      num_test: test examples of an unseen task.
      num_fewshot: further examples of an unseen task to tune on.
      test_fraction: part of a training task held out as "test".
      validation_fraction: part of a training task held out as "validation".
      max_train: most training examples of a task; None for all.
      seed: the data seed.

    Raises:
      InputError: if `keep` or `no_language` holds an unknown name.

    Source: S001, section 2.4 and appendix A. "Synthetic", "English" and exact membership are this project's reading.
    """

    keep: tuple[str, ...] = ("train", "unseen")
    held_out_categories: frozenset[str] = HELD_OUT_CATEGORIES
    held_out_domains: frozenset[str] = HELD_OUT_DOMAINS
    adversarial_sources: frozenset[str] = ADVERSARIAL_SOURCES
    no_language: str = "english"
    more_than: int = UNSEEN_MORE_THAN
    num_test: int = UNSEEN_TEST
    num_fewshot: int = UNSEEN_FEWSHOT
    test_fraction: float = SEEN_TEST_FRACTION
    validation_fraction: float = SEEN_VALIDATION_FRACTION
    max_train: int | None = SEEN_MAX_TRAIN
    seed: int = 0

    def __post_init__(self) -> None:
        for role in self.keep:
            if role not in ROLES:
                raise unknown_name("role", role, ROLES)
        if self.no_language not in NO_LANGUAGE:
            raise unknown_name("value of no_language", self.no_language, NO_LANGUAGE)

    def roles(self, folder: Path) -> None:
        """Returns None: the rules look into all files, unless `sni.load` is given a task list."""
        return None

    def role(self, task: TaskSpec) -> str | None:
        """Returns what the task is used for, one of `ROLES`, or None if for nothing."""
        held_out = not self.held_out_categories.isdisjoint(task.metadata["categories"])
        if not self._is_english(task):
            return None
        if SYNTHETIC_SOURCE in task.metadata["source"]:
            role = "synthetic" if held_out else None
        elif held_out:
            role = "unseen"
        elif not self.adversarial_sources.isdisjoint(task.metadata["source"]):
            role = "adversarial"
        elif not self.held_out_domains.isdisjoint(task.metadata["domains"]):
            role = "domain"
        else:
            return "train"
        needed = self.more_than + 1 if role == "unseen" else self.more_than
        return role if len(task.examples) >= needed else None

    def splits(self, task: TaskSpec, role: str | None) -> Splits | None:
        """Returns the splits by the task's role, or None if the role is not kept."""
        use = self.role(task)
        if use not in self.keep:
            return None
        order = seeded_order(len(task.examples), self.seed, task.name)
        if use != "train":
            end = self.num_test + self.num_fewshot
            return _filled({"test": order[: self.num_test], "fewshot": order[self.num_test : end]})
        num_test = int(len(order) * self.test_fraction)
        end = num_test + int(len(order) * self.validation_fraction)
        # The cap comes after the cut, so a data limit changes the training examples only.
        train = order[end:][: self.max_train]
        return _filled({"train": train, "validation": order[num_test:end], "test": order[:num_test]})

    def _is_english(self, task: TaskSpec) -> bool:
        languages = [task.metadata[field] for field in _LANGUAGE_FIELDS]
        if not any(languages):
            return self.no_language == "english"
        return all(language == ENGLISH for language in languages)


def _filled(splits: Mapping[str, range | list[int]]) -> Splits:
    return {name: tuple(indices) for name, indices in splits.items() if indices}
