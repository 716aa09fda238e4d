"""Files that are either whole or not there, and one error for all that can go wrong when writing them."""

import contextlib
import os
import pathlib
import shutil
from collections.abc import Iterator

import safetensors

from jaxmtl.types import InputError


@contextlib.contextmanager
def replacing(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Gives a name to write under; the file gets its own name once it is complete and on disk.

    Args:
      path: file to write or replace; its folder is made if missing.

    Yields:
      The name to write under, in the same folder. Whatever goes wrong, nothing is left under it.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        with partial.open("rb") as written:
            os.fsync(written.fileno())
        os.replace(partial, path)
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()


@contextlib.contextmanager
def replacing_folder(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Gives a folder to write into; it gets its own name once all is written, and only then an older one is removed.

    Args:
      path: folder to write or replace; the one that holds it is made if missing.

    Yields:
      The folder to write into, empty. Whatever goes wrong, nothing is left of it.
    """
    partial, old = (path.with_name(f".{path.name}.{what}") for what in ("partial", "old"))
    try:
        _remove(partial)
        partial.mkdir(parents=True)
        yield partial
        if path.exists():
            _remove(old)
            os.replace(path, old)
        os.replace(partial, path)
        _remove(old)
    finally:
        with contextlib.suppress(OSError):
            _remove(partial)


def _remove(path: pathlib.Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def explained(path: pathlib.Path) -> Iterator[None]:
    """Turns what a failing write raises into an error for the user.

    Args:
      path: the file or folder that is written, for the message.

    Raises:
      InputError: if writing fails inside.
    """
    try:
        yield
    except (OSError, safetensors.SafetensorError) as error:  # safetensors has an error of its own for a full disk
        reason = " ".join(str(getattr(error, "strerror", None) or error).split())
        raise InputError(f"{path}: cannot be written ({reason}); free space or check rights, then try again") from error


def write_whole(path: pathlib.Path, content: str | bytes) -> None:
    """Writes a file so that a reader, a crash or a full disk never sees half of it.

    Args:
      path: file to write or replace; its folder is made if missing.
      content: text (written as UTF-8) or bytes.

    Raises:
      InputError: if it cannot be written; nothing is left behind then.
    """
    with explained(path), replacing(path) as partial:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)
