import dataclasses

import pytest

from jaxmtl.evals import files
from jaxmtl.types import InputError, Record

WHERE = dict(study="", split="test", run="r", seed=0, step=1, config_hash="", weights_hash="w", git_hash="")
RECORD = Record(**WHERE, task="t", category="c", headline="rouge_l", metric="nll", value=1.5, n=2, time=1.0)


def test_rows_come_back_with_any_text(tmp_path):
    rows = [{"text": 'a\u2028b\n"<script>" \u00e9 \U0001f600'}, {"text": ""}]
    files.write_rows(tmp_path / "rows.jsonl", rows)
    assert files.read_rows(tmp_path / "rows.jsonl") == rows
    assert (tmp_path / "rows.jsonl").read_bytes().count(b"\n") == 2


def test_broken_rows_are_named(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"a": 1}\n[1]\n')
    with pytest.raises(InputError, match="rows.jsonl, line 2: a list"):
        files.read_rows(tmp_path / "rows.jsonl")
    (tmp_path / "rows.jsonl").write_text('{"a": 1\n')
    with pytest.raises(InputError, match="rows.jsonl, line 1: no JSON"):
        files.read_rows(tmp_path / "rows.jsonl")


def test_a_record_is_added_once_and_after_an_unfinished_line(tmp_path):
    path, other = tmp_path / "records.jsonl", dataclasses.replace(RECORD, step=2)
    files.append_records(path, [RECORD])
    files.append_records(path, [dataclasses.replace(RECORD, time=9.0), other])
    assert files.read_records(path) == [RECORD, other]
    path.write_text(path.read_text()[:-30])
    files.append_records(path, [RECORD, other])
    assert files.read_records(path) == [RECORD, other]


def test_broken_records_are_named(tmp_path):
    path = tmp_path / "records.jsonl"
    with pytest.raises(InputError, match="records.jsonl: cannot be read .*run `jaxmtl evaluate`"):
        files.read_records(path)
    path.write_text(RECORD.to_json() + "\n{}\n")
    with pytest.raises(InputError, match="records.jsonl, line 2: not a record"):
        files.read_records(path)
