"""A SeqIO mixture -> token store on Apache Beam: workers write one task split each, the bytes of `data.cache`.

The pipeline carries names only. A worker registers the tasks itself, and checks that they are those of the process
that started it. What it writes must be seen by that process: the store lies on a filesystem that all of them share.
"""

import contextlib
import importlib
import logging
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import seqio

from jaxmtl.data.cache import pipeline_rows, plan_of
from jaxmtl.data.seqio_tasks import source_of
from jaxmtl.feed.manifest import Vocabulary
from jaxmtl.feed.parts import Part
from jaxmtl.feed.store import TokenStore
from jaxmtl.feed.unfinished import UnfinishedParts, write_file
from jaxmtl.feed.writer import StoreWriter, existing_store
from jaxmtl.types import InputError, Progress

SECONDS_BETWEEN_LOOKS = 1.0
_log = logging.getLogger(__name__)
_registering = threading.Lock()  # a worker may have many threads, SeqIO's registry is one per process

Work = tuple[str, Part]
"""What a worker gets: the seqio task's name, and what its rows must be made from."""


def cache_mixture(
    name: str,
    splits: Sequence[str],
    folder: str | Path,
    *,
    options: Sequence[str],
    prepare: Callable[[], object],
    progress: Progress | None = None,
) -> TokenStore:
    """Does on Apache Beam what `data.cache.cache_mixture` does; task splits finished by an earlier run are kept.

    Args:
      name: a registered mixture (or task) of tasks that `seqio_tasks.register` registered.
      splits: which splits; a task takes part in those that it has.
      folder: the store to make, on a filesystem that all workers see.
      options: Beam's pipeline options, such as `--runner=DataflowRunner`.
      prepare: registers the same tasks in a worker; is pickled.
      progress: told now and then.

    Returns:
      The store; an existing one that holds the same already.

    Raises:
      InputError: if Apache Beam is missing, a task fails (naming it; the others are finished first), workers do not
        see the folder, or for any reason that `data.cache.cache_mixture` has.
    """
    beam = _apache_beam()
    plan = plan_of(name, splits)
    work = [(task, Part.of(spec, split)) for task, spec, split in plan.parts]
    folder = Path(folder).absolute()
    origins = {(part.task, part.split): part.origin for _, part in work}
    store = existing_store(folder, plan.tokenizer, plan.description, origins)
    if store is not None:
        return store
    with StoreWriter(folder, plan.tokenizer, plan.description) as writer:
        missing = [(task, part) for task, part in work if writer.parts.finished(part) is None]
        for _, part in missing:
            _failure_file(writer.unfinished, part).unlink(missing_ok=True)
        with _watched(writer.unfinished, work, progress):
            _run(beam, missing, options, writer.unfinished, prepare)
        _check_all_there([part for _, part in missing], writer.unfinished)
        for _, part in work:
            if not writer.reuse(part):
                raise InputError(
                    f"task {part.task}, split {part.split!r}: what a worker wrote is not in {writer.unfinished}; put "
                    "the store on a filesystem that all workers see"
                )
        return writer.finish()


def write_part(work: Work, unfinished: str, prepare: Callable[[], object]) -> None:
    """Makes and writes one task split; runs in a worker. What fails is written beside it, for the one who waits.

    Args:
      work: the task split.
      unfinished: folder of the unfinished store.
      prepare: registers the tasks.

    Raises:
      InputError: if this worker does not see the folder.
    """
    task, part = work
    folder = Path(unfinished)
    if not folder.is_dir():
        raise InputError(f"a worker does not see {folder}; put the store on a filesystem that all workers see")
    try:
        _write_part(task, part, folder, prepare)
    except Exception as error:
        _log.exception("task %s, split %r", part.task, part.split)
        text = " ".join(str(error).split())[:1000]
        if not isinstance(error, InputError):
            text = f"{type(error).__name__}: {text}"
        named = text.startswith((f"task {part.task}", f"seqio task {task}"))
        message = text if named else f"task {part.task}, split {part.split!r}: {text}"
        write_file(_failure_file(folder, part), message.encode())


def _write_part(task: str, part: Part, folder: Path, prepare: Callable[[], object]) -> None:
    with _registering:
        if task not in seqio.TaskRegistry.names():
            prepare()
    source = source_of(task)
    parts = UnfinishedParts(folder=folder, vocabulary=Vocabulary.of(source.tokenizer), preprocessing=source.describe())
    if not parts.was_begun():
        raise InputError("a worker has another vocabulary, prompt or limit; install the same jaxmtl on all workers")
    if Part.of(source.task, part.split) != part:
        raise InputError("a worker reads other examples; put the data on a filesystem that all workers see")
    parts.write(part, pipeline_rows(task, part.split))


def _run(
    beam: Any, work: Sequence[Work], options: Sequence[str], unfinished: Path, prepare: Callable[[], object]
) -> None:
    if not work:
        return
    pipeline_options = importlib.import_module("apache_beam.options.pipeline_options").PipelineOptions(list(options))
    try:
        with beam.Pipeline(options=pipeline_options) as pipeline:
            spread = pipeline | beam.Create(list(work)) | beam.Reshuffle()  # else one worker gets all
            _ = spread | beam.Map(write_part, str(unfinished), prepare)
    except Exception as error:
        text = str(error)
        ours = re.findall(r"InputError: ([^\n\\]+)", text)
        reason = ours[-1] if ours else f"{type(error).__name__}: {(text.strip().splitlines() or [''])[-1][:500]}"
        raise InputError(f"Apache Beam ({' '.join(options)}) failed: {reason}") from error


def _apache_beam() -> Any:
    try:
        return importlib.import_module("apache_beam")
    except ImportError as error:
        raise InputError(f"caching on Apache Beam needs it: pip install 'jaxmtl[beam]' ({error})") from error


@contextlib.contextmanager
def _watched(folder: Path, work: Sequence[Work], progress: Progress | None) -> Iterator[None]:
    """Tells how many task splits are there while the block runs: runners tell nothing before the end."""
    ended = threading.Event()
    files = [folder / part.split / f"{part.task}.arrow.json" for _, part in work]

    def tell(most: int) -> None:
        if progress is not None:
            progress(min(sum(file.is_file() for file in files), most), len(files), "task splits")

    def look() -> None:
        while not ended.wait(SECONDS_BETWEEN_LOOKS):
            tell(len(files) - 1)  # the end is told once, below

    watcher = threading.Thread(target=look, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()
    tell(len(files))


def _check_all_there(parts: Sequence[Part], folder: Path) -> None:
    failures = [file for part in parts if (file := _failure_file(folder, part)).is_file()]
    if failures:
        more = f" (and {len(failures) - 1} more task splits failed)" if len(failures) > 1 else ""
        raise InputError(failures[0].read_text(encoding="utf-8") + more)


def _failure_file(folder: Path, part: Part) -> Path:
    return folder / part.split / f"{part.task}.failed"
