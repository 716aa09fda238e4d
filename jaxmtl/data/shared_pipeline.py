"""One SeqIO pipeline for many task splits: building a pipeline takes longer than running it over a task's examples."""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import seqio
import tensorflow as tf

from jaxmtl.data.seqio_tasks import PREPROCESSORS, SpecSource, lengths, signature, source_of

_SPLIT = "all"  # the only split of a `_Chain`


def can_share(name: str) -> bool:
    """Tells whether a task's pipeline can serve other tasks too: it makes one row of each example.

    Args:
      name: a name that `seqio_tasks.register` returned.

    Returns:
      Whether its preprocessors are those that `register` gives to tasks without an objective.
    """
    return seqio.TaskRegistry.get(name).preprocessors is PREPROCESSORS


class SharedPipeline:
    """Runs over task splits one after the other; the rows are those that each task's own pipeline would give.

    Args:
      parts: (seqio task, split), in the order that they will be asked for; tasks that `can_share`, of one vocabulary
        and one preprocessing.
    """

    def __init__(self, parts: Sequence[tuple[str, str]]) -> None:
        self._parts = list(parts)
        self._places = {part: place for place, part in enumerate(self._parts)}
        self._next: int | None = None
        self._rows: Iterator[dict[str, Any]] = iter(())

    def run(self, name: str, split: str) -> list[dict[str, Any]]:
        """Runs over one task split; starts anew there if it is not the one after the last.

        Args:
          name: name of the seqio task.
          split: name of the split.

        Returns:
          The features of one row per example, in the split's order.
        """
        place = self._places[name, split]
        if place != self._next:
            self._rows = self._start(self._parts[place:])
        self._next = place + 1
        return list(itertools.islice(self._rows, source_of(name).num_input_examples(split)))

    def close(self) -> None:
        """Ends a pipeline that nobody reads to its end: at the interpreter's own end it would wait for it forever."""
        self._next, self._rows = None, iter(())

    def _start(self, parts: Sequence[tuple[str, str]]) -> Iterator[dict[str, Any]]:
        sources = [(source_of(name), split) for name, split in parts]
        task = seqio.TaskRegistry.get(parts[0][0]).replace(source=_Chain(sources))
        limits = lengths(sources[0][0].preprocessing, task.output_features)
        dataset = task.get_dataset(sequence_length=limits, split=_SPLIT, shuffle=False, try_in_mem_cache=False)
        return dataset.as_numpy_iterator()


class _Chain(seqio.DataSource):
    """The examples of several task splits, one after the other."""

    def __init__(self, parts: Sequence[tuple[SpecSource, str]]) -> None:
        self._parts = parts
        super().__init__(splits=[_SPLIT])

    @property
    def supports_arbitrary_sharding(self) -> bool:
        return False

    def list_shards(self, split: str) -> Sequence[str]:
        return [split]

    def get_dataset(self, *unused: Any, **also_unused: Any) -> tf.data.Dataset:
        def texts() -> Iterator[dict[str, Any]]:
            return itertools.chain.from_iterable(source.texts(source.task.splits[part]) for source, part in self._parts)

        return tf.data.Dataset.from_generator(texts, output_signature=signature(self._parts[0][0].preprocessing))
