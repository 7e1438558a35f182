"""Exchanges that are kept: appended, never written over, and good as demonstrations."""

from __future__ import annotations

import json

import pytest

from imprint.data.check import survey
from imprint.errors import DataError
from imprint.recipe import DataSource
from imprint.serve.keep import append_row

ROW = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b – ☃\n\u2028"}]}


def test_rows_are_appended_and_counted(tmp_path):
    path = tmp_path / "new" / "good.jsonl"
    assert [append_row(path, ROW) for _ in range(3)] == [1, 2, 3]
    assert [json.loads(line) for line in path.read_bytes().splitlines()] == [ROW] * 3
    found = survey([DataSource(path=str(path))])
    assert [(shape.format, shape.conversations) for shape in found.shapes] == [("messages", 3)]


@pytest.mark.parametrize("before", [b'{"messages": 1}', b'{"a": 2}\n\n', b"", b'{"a": 1}\n{"b": 2}'])
def test_what_is_there_stays(tmp_path, before):
    path = tmp_path / "good.jsonl"
    path.write_bytes(before)
    number = append_row(path, ROW)
    after = path.read_bytes()
    assert after.startswith(before)
    lines = after.decode().split("\n")
    assert json.loads(lines[number - 1]) == ROW, "the number is the line's"
    assert lines[number:] == [""]


@pytest.mark.parametrize(
    ("name", "before", "match"),
    [
        ("good.json", None, "JSON lines only"),
        ("good.csv", b"a,b\n", "JSON lines only"),
        ("good.jsonl", b"a,b\nc,d\n", "no file of JSON lines"),
        ("good.jsonl", b"[1,\n2]\n", "no file of JSON lines"),
        ("good.jsonl", b'{"a": 1}\n{"b": ', "no file of JSON lines"),
        ("good.jsonl", b"\xff\xfe\n", "no file of JSON lines"),
    ],
)
def test_another_file_is_left_alone(tmp_path, name, before, match):
    path = tmp_path / name
    if before is not None:
        path.write_bytes(before)
    with pytest.raises(DataError, match=match):
        append_row(path, ROW)
    assert (path.read_bytes() if path.exists() else None) == before


def test_what_is_no_demonstration_is_not_kept(tmp_path):
    row = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": " \n"}]}
    with pytest.raises(DataError):
        append_row(tmp_path / "good.jsonl", row)
    assert not (tmp_path / "good.jsonl").exists()


def test_a_folder_in_its_place(tmp_path):
    (tmp_path / "good.jsonl").mkdir()
    with pytest.raises(DataError, match="cannot be read"):
        append_row(tmp_path / "good.jsonl", ROW)
