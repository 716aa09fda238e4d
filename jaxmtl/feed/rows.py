"""The rows of some tasks of a token store, addressed as they are drawn: by task id and example id."""

import functools
import hashlib
import json
from collections.abc import Iterator, Sequence

import numpy as np

from jaxmtl.feed.permutation import permute, stream_key
from jaxmtl.feed.sampler import Draw
from jaxmtl.feed.store import Examples, TokenStore
from jaxmtl.tasks.answers import IGNORED
from jaxmtl.types import InputError


class TaskRows:
    """The rows of several tasks of one split; files are mapped when first used.

    Args:
      store: where the rows are.
      split: name of the split.
      tasks: task names, in the order of task ids; None for all of the split.
      limit: most examples of a task, a seeded choice that a larger limit only adds to; None for all.
      seed: which examples a limit keeps.

    Raises:
      InputError: if the store has no such split or task, there is no task, or the limit is below 1.
    """

    def __init__(
        self,
        store: TokenStore,
        split: str,
        tasks: Sequence[str] | None = None,
        *,
        limit: int | None = None,
        seed: int = 0,
    ) -> None:
        self.names = store.task_names(split) if tasks is None else list(tasks)
        if not self.names:
            raise InputError(f"no tasks to read from split {split!r} of token store {store.folder}")
        if limit is not None and limit < 1:
            raise InputError(f"the limit of examples of a task is {limit}; expected 1 or more")
        self.entries = [store.entry(name, split) for name in self.names]
        self._stored = np.array([entry.num_examples for entry in self.entries], np.int64)
        self.sizes = self._stored if limit is None else np.minimum(self._stored, limit)
        self.max_input_tokens = max(entry.max_input_tokens for entry in self.entries)
        self.max_target_tokens = max(entry.max_target_tokens for entry in self.entries)
        self.max_instruction_tokens = max(entry.max_instruction_tokens for entry in self.entries)
        self._are_labels = np.array([bool(entry.answer) for entry in self.entries])
        self.has_labels = bool(self._are_labels.any())
        self._check_instructions(store)
        self.pad_id = store.manifest.vocabulary.pad
        self.folder = store.folder
        self._store, self._split, self._seed = store, split, seed
        self._limit = limit
        self._examples: dict[int, Examples] = {}

    @property
    def categories(self) -> list[str]:
        """Returns each task's category."""
        return [entry.category for entry in self.entries]

    def identity(self) -> dict[str, str]:
        """Returns two hashes: of the tasks' names in their order, and of the examples that can be drawn."""
        kept: list[object] = [entry.sha256 for entry in self.entries]
        if self._limit is not None:
            kept += [self._limit, self._seed]
        parts = {"tasks": self.names, "examples": kept}
        return {name: hashlib.sha256(json.dumps(values).encode()).hexdigest()[:16] for name, values in parts.items()}

    def read(self, draw: Draw) -> Iterator[tuple[int, int, np.ndarray, np.ndarray]]:
        """Reads rows.

        Args:
          draw: M rows.

        Yields:
          Task id, example id, inputs int32 [s] and targets int32 [t], views of the file.
        """
        tasks, rows = draw.task_ids, self._rows(draw)
        nexts = rows + 1
        # Where rows are in their files is looked up for all at once: one by one it costs more than the copy of a row.
        bounds: list[list[int]] = []
        for ends, shifts in zip(self._ends, self._shifts, strict=True):
            own = shifts[tasks]
            bounds += [(ends[rows] + own).tolist(), (ends[nexts] + own).tolist()]
        all_ids = self._file_ids
        drawn = zip(tasks.tolist(), draw.example_ids.tolist(), *bounds, strict=True)
        for task, example, first, end, start, stop in drawn:
            ids = all_ids[task]
            yield task, example, ids[first:end], ids[start:stop]

    def weights(self, task_id: int, targets: np.ndarray) -> np.ndarray | float:
        """Returns how much each target of a row counts in the loss.

        Args:
          task_id: which task.
          targets: int32 [t], the row's targets.

        Returns:
          1 for token ids. For labels float64 [t] that add up to 1, so that each example weighs the same; 0 where there
          is no label.
        """
        if not self.has_labels or not self._are_labels[task_id]:
            return 1.0
        counted = targets != IGNORED
        return counted / max(1, np.count_nonzero(counted))

    def instructions(self, draw: Draw) -> Iterator[np.ndarray]:
        """Reads what a hypernetwork reads for rows; only where `max_instruction_tokens` is above 0.

        Args:
          draw: M rows.

        Yields:
          int32 [i], a view of the file.
        """
        places = self._places(draw.task_ids, draw.example_ids).tolist()
        for task, place in zip(draw.task_ids.tolist(), places, strict=True):
            yield self._task(task).instruction(place)

    def lengths(self, draw: Draw) -> tuple[np.ndarray, np.ndarray]:
        """Looks up how long rows are, without reading them.

        Args:
          draw: M rows.

        Returns:
          Input and target lengths, int64 [M] each.
        """
        rows = self._rows(draw)
        inputs, targets = (ends[rows + 1] - ends[rows] for ends in self._ends)
        return inputs, targets

    def loss_weights(self, draw: Draw) -> np.ndarray:
        """Looks up what the loss mask of rows will add up to: their target lengths, 1 where targets are labels.

        Args:
          draw: M rows.

        Returns:
          float64 [M].
        """
        return np.where(self._are_labels[draw.task_ids], 1.0, self.lengths(draw)[1])

    def split_lengths(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns input and target lengths of the whole split, int64 [M] each, whichever of its tasks are read."""
        return self._store.lengths(self._split)

    def _check_instructions(self, store: TokenStore) -> None:
        """Refuses tasks of which some have instructions and some have not: a batch has them for all rows or none."""
        without = [
            name for name, entry in zip(self.names, self.entries, strict=True) if not entry.max_instruction_tokens
        ]
        if self.max_instruction_tokens and without:
            raise InputError(
                f"token store {store.folder}: {len(without)} of {len(self.names)} tasks have no instructions, such as "
                f"{without[0]}; read tasks with and without them apart"
            )

    def _task(self, task_id: int) -> Examples:
        if task_id not in self._examples:
            self._examples[task_id] = self._store.examples(self.names[task_id], self._split)
        return self._examples[task_id]

    @functools.cached_property
    def _ends(self) -> tuple[np.ndarray, np.ndarray]:
        return self._store.ends(self._split)

    @functools.cached_property
    def _file_ids(self) -> list[np.ndarray]:
        return [self._task(task).file_ids() for task in range(len(self.names))]

    @functools.cached_property
    def _shifts(self) -> list[np.ndarray]:
        """What leads from places among all rows' ids, as `_ends` tells them, into `_file_ids`, int64 [N] each."""
        starts = np.array([self._task(task).starts for task in range(len(self.names))], np.int64).T
        return [start - ends[self._first_rows] for start, ends in zip(starts, self._ends, strict=True)]

    def _rows(self, draw: Draw) -> np.ndarray:
        """Returns the places of a draw's rows among all rows of the split, int64 [M]."""
        return self._first_rows[draw.task_ids] + self._places(draw.task_ids, draw.example_ids)

    @functools.cached_property
    def _first_rows(self) -> np.ndarray:
        """Where each task's rows begin among all rows of the split, int64 [N]."""
        sizes = self._store.sizes(self._split)
        begins = dict(zip(self._store.task_names(self._split), (np.cumsum(sizes) - sizes).tolist(), strict=True))
        return np.array([begins[name] for name in self.names], np.int64)

    @functools.cached_property
    def _limit_keys(self) -> np.ndarray:
        """Keys of the permutations of which a limit keeps the first examples, uint64 [N]."""
        return np.array([stream_key(self._seed, f"limit/{name}") for name in self.names], np.uint64)

    def _places(self, task_ids: np.ndarray, example_ids: np.ndarray) -> np.ndarray:
        """Returns where examples are in their files, int64 [M]: a limit keeps the first ones of a permutation."""
        if self._limit is None:
            return example_ids
        sizes = self._stored[task_ids]
        limited = sizes > self.sizes[task_ids]
        places = np.array(example_ids, np.int64)
        if limited.any():
            places[limited] = permute(places[limited], sizes[limited], self._limit_keys[task_ids[limited]])
        return places
