"""Which Super-NaturalInstructions tasks are used and how each is split: the official rules and those of S001.

A selection is any object with the two methods of `Selection`. Subsets are drawn by hash of (seed, task name), so a
task's splits depend on its own file only. Source: methods sheet, sections 2.2 and 2.4.
"""

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from jaxmtl.tasks.fewshot import seeded_order
from jaxmtl.tasks.spec import TaskSpec
from jaxmtl.tasks.task_lists import read_task_list
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
        """Says which tasks to open.

        Args:
          folder: the data folder.

        Returns:
          Task name to role, or None to open all files of the folder.

        Raises:
          InputError: if a list of the folder cannot be used.
        """
        ...

    def splits(self, task: TaskSpec, role: str | None) -> Splits | None:
        """Splits a task.

        Args:
          task: the task, without splits.
          role: what `roles` gave for it; None where it gave none.

        Returns:
          Split name to indices of examples, or None to leave the task out.

        Raises:
          InputError: if the selection cannot do with the role.
        """
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class EveryTask:
    """Every task of the folder: "all", the official test instances, and a training subset apart from them.

    Splits: "all"; "test": the first `num_test` instances; "train": a seeded subset of `max_per_task` of the others
    (absent where there are no others). For looking around, or for folders without official lists.

    Attributes:
      max_per_task: size of "train"; None for all that are left.
      num_test: size of "test".
      seed: the data seed.

    Raises:
      InputError: if a number is below 0.
    """

    max_per_task: int | None = OFFICIAL_TRAIN_PER_TASK
    num_test: int = OFFICIAL_TEST_PER_TASK
    seed: int = 0

    def __post_init__(self) -> None:
        _check_counts(self)

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

    Raises:
      InputError: if a number is below 0.
    """

    max_per_task: int | None = OFFICIAL_TRAIN_PER_TASK
    num_validation: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        _check_counts(self)

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
      num_fewshot: "fewshot", examples to tune on: so many of all instances whose input is none of "test", or as many as
        there are.
      seed: the data seed of the cut, and of the examples to tune on.

    Raises:
      InputError: if a number is below 0.
    """

    first: int = OFFICIAL_TEST_PER_TASK
    limit: int | None = None
    num_fewshot: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        _check_counts(self)

    def roles(self, folder: Path) -> None:
        """Returns None: all files, unless `sni.load` is given a task list."""
        return None

    def splits(self, task: TaskSpec, role: str | None) -> Splits:
        """Returns "test", and "fewshot" if asked for and there is any."""
        count = min(self.first, len(task.examples))
        test = range(count) if self.limit is None else self._cut(count, task.name)
        return _filled({"test": test, "fewshot": self._others(task, test) if self.num_fewshot else []})

    def _others(self, task: TaskSpec, test: Sequence[int]) -> list[int]:
        order = seeded_order(len(task.examples), self.seed, task.name, "fewshot")
        return _with_other_inputs(task, order, test)[: self.num_fewshot]

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

    train: OfficialTrain = dataclasses.field(default_factory=OfficialTrain)
    test: OfficialTest = dataclasses.field(default_factory=OfficialTest)
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
      more_than: an unseen task needs more examples than this; the further sets need at least as many. At least
        `num_test + num_fewshot`, so that both splits are full unless inputs repeat.
      num_test: test examples of an unseen task.
      num_fewshot: further examples of an unseen task to tune on, none with the input of a test example.
      test_fraction: part of a training task held out as "test".
      validation_fraction: part of a training task held out as "validation".
      max_train: most training examples of a task; None for all.
      seed: the data seed.

    Raises:
      InputError: if `keep` or `no_language` holds an unknown name, a set of names is a single text, or a number is out
        of range.

    Source: S001, section 2.4 and appendix A. "Synthetic", "English" and exact membership are this project's reading.
    """

    keep: Collection[str] = ("train", "unseen")
    held_out_categories: Collection[str] = HELD_OUT_CATEGORIES
    held_out_domains: Collection[str] = HELD_OUT_DOMAINS
    adversarial_sources: Collection[str] = ADVERSARIAL_SOURCES
    no_language: str = "english"
    more_than: int = UNSEEN_MORE_THAN
    num_test: int = UNSEEN_TEST
    num_fewshot: int = UNSEEN_FEWSHOT
    test_fraction: float = SEEN_TEST_FRACTION
    validation_fraction: float = SEEN_VALIDATION_FRACTION
    max_train: int | None = SEEN_MAX_TRAIN
    seed: int = 0

    def __post_init__(self) -> None:
        for field in ("keep", "held_out_categories", "held_out_domains", "adversarial_sources"):
            # A tuple or list from a configuration file is fine; a text would count as its letters.
            object.__setattr__(self, field, _name_set(field, getattr(self, field)))
        for role in sorted(self.keep):
            if role not in ROLES:
                raise unknown_name("role", role, ROLES)
        if self.no_language not in NO_LANGUAGE:
            raise unknown_name("value of no_language", self.no_language, NO_LANGUAGE)
        _check_counts(self)
        self._check_sizes()

    def _check_sizes(self) -> None:
        fractions = (self.test_fraction, self.validation_fraction)
        if min(fractions) < 0 or not sum(fractions) < 1:
            raise InputError(
                f"TransferMatters: test_fraction {fractions[0]} and validation_fraction {fractions[1]} leave nothing "
                "to train on; expected 0 or more, their sum below 1"
            )
        if self.num_test + self.num_fewshot > self.more_than:
            raise InputError(
                f"TransferMatters: num_test {self.num_test} and num_fewshot {self.num_fewshot} are more than more_than "
                f"{self.more_than}, so that unseen tasks could lack examples; raise more_than or lower one of them"
            )

    def roles(self, folder: Path) -> None:
        """Returns None: the rules look into all files, unless `sni.load` is given a task list."""
        return None

    def role(self, task: TaskSpec) -> str | None:
        """Decides what a task is used for, whether it is kept or not.

        Args:
          task: the task.

        Returns:
          One of `ROLES`, or None if for nothing.
        """
        held_out = _any_in(task.metadata["categories"], self.held_out_categories)
        if not self._is_english(task):
            return None
        if SYNTHETIC_SOURCE in task.metadata["source"]:
            role = "synthetic" if held_out else None
        elif held_out:
            role = "unseen"
        elif _any_in(task.metadata["source"], self.adversarial_sources):
            role = "adversarial"
        elif _any_in(task.metadata["domains"], self.held_out_domains):
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
            test = order[: self.num_test]
            return _filled({"test": test, "fewshot": _with_other_inputs(task, order, test)[: self.num_fewshot]})
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


def _with_other_inputs(task: TaskSpec, order: Sequence[int], test: Sequence[int]) -> list[int]:
    """Leaves the examples whose input no test example has: some files hold the same instance twice."""
    asked = {task.examples[index].inputs for index in test}
    return [index for index in order if task.examples[index].inputs not in asked]


def _any_in(values: Collection[str], chosen: Collection[str]) -> bool:
    return any(value in chosen for value in values)


def _name_set(field: str, names: Collection[str]) -> frozenset[str]:
    many = isinstance(names, Collection) and not isinstance(names, str)
    if not many or not all(isinstance(name, str) for name in names):
        raise InputError(f"TransferMatters: {field} is {names!r:.80}; expected texts in brackets, such as ('x', 'y')")
    return frozenset(names)


def _check_counts(selection: Any) -> None:
    """Refuses numbers below 0: Python would count them from the end, and examples would be left out silently."""
    for field in dataclasses.fields(selection):
        value = getattr(selection, field.name)
        if field.name != "seed" and isinstance(value, int) and value < 0:
            kind = type(selection).__name__
            raise InputError(f"{kind}: {field.name} is {value}; expected 0 or more{_or_none(field.type)}")


def _or_none(kind: Any) -> str:
    return ", or None for all" if kind == int | None else ""


def _filled(splits: Mapping[str, range | list[int]]) -> Splits:
    return {name: tuple(indices) for name, indices in splits.items() if indices}
