import errno
import os
import pathlib
import subprocess
import sys

import pytest
import safetensors

from jaxmtl import files
from jaxmtl.types import InputError

ROOT = pathlib.Path(__file__).parents[1]
# No file may grow beyond 1 kB: the operating system fails writes half-way, as on a full disk.
FULL_DISK = """
import resource, sys
import numpy as np
from jaxmtl.types import InputError
from jaxmtl import files, writers
from jaxmtl.weights import safetensors_io
from pathlib import Path

folder, big = Path(sys.argv[1]), "x" * 5000
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
metrics = writers.JsonLinesWriter(folder / "metrics.jsonl")
metrics.start(0, 1)
for write in (
    lambda: files.write_whole(folder / "text", big),
    lambda: metrics.scalars(1, {big: 1.0}),
    lambda: safetensors_io.write_tensors(folder, {"a": 4000}, [("a", np.zeros(1000, np.float32))]),
):
    try:
        write()
    except InputError as error:
        print(error)
"""


def test_a_folder_is_replaced_as_a_whole_or_not_at_all(tmp_path):
    path = tmp_path / "new" / "a"
    for content in ("first", "second"):
        with files.replacing_folder(path) as partial:
            (partial / content).write_text(content)
    assert [child.name for child in path.iterdir()] == ["second"]
    with pytest.raises(OSError, match="no more"), files.replacing_folder(path) as partial:
        (partial / "third").write_text("half")
        raise OSError("no more")
    assert [child.name for child in path.iterdir()] == ["second"]
    assert [child.name for child in path.parent.iterdir()] == ["a"]


def test_a_folder_takes_the_place_of_a_file_and_of_what_a_crash_has_left(tmp_path):
    (tmp_path / "a").write_text("a file")
    (tmp_path / ".a.partial").mkdir()
    (tmp_path / ".a.partial" / "stale").write_text("of a crash")
    with files.replacing_folder(tmp_path / "a") as partial:
        (partial / "whole").write_text("")
    assert [child.name for child in (tmp_path / "a").iterdir()] == ["whole"]
    assert [child.name for child in tmp_path.iterdir()] == ["a"]


def test_a_file_is_replaced_and_its_folder_made(tmp_path):
    path = tmp_path / "new" / "a"
    files.write_whole(path, "ä")
    assert path.read_bytes() == "ä".encode()
    files.write_whole(path, b"b")
    assert path.read_bytes() == b"b"
    assert list(path.parent.iterdir()) == [path]


def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    files.write_whole(path, "old")

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match="a.json: cannot be written \\(No space left on device\\); free space"):
        files.write_whole(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written") as error:
        files.write_whole(tmp_path / "file" / "a.json", "new")
    assert "\n" not in str(error.value)


def test_what_a_stopped_write_has_left_is_removed(tmp_path):
    with pytest.raises(KeyboardInterrupt), files.replacing(tmp_path / "a") as partial:
        partial.write_text("half")
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())


def test_safetensors_own_error_is_explained_too(tmp_path):
    with pytest.raises(InputError, match="a: cannot be written \\(I/O error: full disk\\)"), files.explained("a"):
        raise safetensors.SafetensorError("I/O error:\nfull disk")


def test_every_writer_of_a_run_tells_a_full_disk_in_one_line_with_its_file(tmp_path):
    command = [sys.executable, "-c", FULL_DISK, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.partition(":")[0] for line in lines] == [
        str(tmp_path / name) for name in ("text", "metrics.jsonl", "model.safetensors")
    ]
    assert all("cannot be written (" in line and "free space" in line for line in lines)
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]
