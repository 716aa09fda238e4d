"""Examples kept in a file that is mapped into memory, so that there may be more of them than memory holds."""

import bisect
import itertools
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import overload

import pyarrow as pa

from jaxmtl.files import explained
from jaxmtl.types import Example

_SCHEMA = pa.schema(
    [("id", pa.large_string()), ("inputs", pa.large_string()), ("targets", pa.list_(pa.large_string()))]
)
_BATCH = 256


class MappedExamples(Sequence[Example]):
    """A sequence of examples that are made when they are looked at.

    Args:
      batches: Arrow record batches.
    """

    def __init__(self, batches: Sequence[pa.RecordBatch]) -> None:
        self._batches = batches
        self._starts = [0, *itertools.accumulate(batch.num_rows for batch in batches)]

    def __len__(self) -> int:
        return self._starts[-1]

    @overload
    def __getitem__(self, index: int) -> Example: ...

    @overload
    def __getitem__(self, index: slice) -> tuple[Example, ...]: ...

    def __getitem__(self, index: int | slice) -> Example | tuple[Example, ...]:
        if isinstance(index, slice):
            return tuple(self[place] for place in range(*index.indices(len(self))))
        place = range(len(self))[index]  # checks the bounds
        number = bisect.bisect_right(self._starts, place) - 1
        return next(_read(self._batches[number].slice(place - self._starts[number], 1)))

    def __iter__(self) -> Iterator[Example]:
        return (example for batch in self._batches for example in _read(batch))


def mapped_examples(examples: Iterable[Example]) -> MappedExamples:
    """Writes examples to a temporary file and maps it; the file goes away with the last reference to them.

    Args:
      examples: read once, a few hundred in memory at a time.

    Returns:
      The same examples.

    Raises:
      InputError: if the disk with the temporary folder is full.
    """
    handle, name = tempfile.mkstemp(prefix="jaxmtl-", suffix=".arrow")
    os.close(handle)
    file = Path(name)
    try:
        with explained(file), pa.OSFile(name, "wb") as sink, pa.ipc.new_file(sink, _SCHEMA) as writer:
            for batch in _batched(examples):
                writer.write_batch(_record_batch(batch))
        with pa.memory_map(name) as source, pa.ipc.open_file(source) as reader:
            return MappedExamples([reader.get_batch(number) for number in range(reader.num_record_batches)])
    finally:
        file.unlink()  # what is mapped stays readable


def _batched(examples: Iterable[Example]) -> Iterator[tuple[Example, ...]]:
    source = iter(examples)
    while batch := tuple(itertools.islice(source, _BATCH)):
        yield batch


def _record_batch(examples: Sequence[Example]) -> pa.RecordBatch:
    columns = zip(*((one.id, one.inputs, list(one.targets)) for one in examples), strict=True)
    arrays = [pa.array(list(column), field.type) for column, field in zip(columns, _SCHEMA, strict=True)]
    return pa.record_batch(arrays, schema=_SCHEMA)


def _read(batch: pa.RecordBatch) -> Iterator[Example]:
    for key, inputs, targets in zip(*(column.to_pylist() for column in batch.columns), strict=True):
        yield Example(id=key, inputs=inputs, targets=tuple(targets))
