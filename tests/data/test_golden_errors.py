"""The whole message for what most often is wrong with a file: place, what was found, the smallest remedy."""

import json

import pytest

from imprint.data.ledger import Ledger
from imprint.data.load import load
from imprint.errors import DataError
from imprint.recipe import DataSource

GOOD = [{"prompt": f"q{i}", "response": "yes"} for i in range(400)]
LINES = [json.dumps(row) for row in GOOD]


@pytest.fixture
def message(write):
    """The error with which `load` ends on a file of this content."""

    def message(name, content, bad_rows="stop"):
        path = write(name, content)
        options = {"validation": 0.0, "consecutive_replies": "merge", "seed": 0, "base": path.parent}
        with pytest.raises(DataError) as caught:
            load([DataSource(path=name)], bad_rows=bad_rows, ledger=Ledger(), **options)
        return str(caught.value)

    return message


def test_broken_json_at_line_317(message):
    lines = list(LINES)
    lines[316] = '{"prompt": "q" "response": "yes"}'
    assert (
        message("train.jsonl", "\n".join(lines))
        == """\
train.jsonl:317:16: not valid JSON
  found     Expecting ',' delimiter, at: '{"prompt": "q" "response": "yes"}'
  to fix    add the comma, or write a quotation mark inside a text as \\"
            or train without the bad rows: bad_rows=leave_out"""
    )
    assert (
        message("train.json", "[" + ",\n".join(lines) + "]")
        == """\
train.json:317:16: not valid JSON
  found     Expecting ',' delimiter, at: '{"prompt": "q" "response": "yes"},'
  to fix    add the comma, or write a quotation mark inside a text as \\\""""
    )


def test_utf16(message):
    text = "\n".join(LINES)
    assert (
        message("train.jsonl", text.encode("utf-16"))
        == """\
train.jsonl: the file is UTF-16
  found     the byte order mark FF FE at byte offset 0
  expected  UTF-8
  to fix    save it as UTF-8: iconv -f UTF-16 -t UTF-8 OLD > NEW"""
    )
    assert (
        message("train.jsonl", text.encode("utf-16-le"))
        == """\
train.jsonl: the file is UTF-16LE
  found     a zero byte at byte offset 1, and one beside nearly every letter
  expected  UTF-8
  to fix    save it as UTF-8: iconv -f UTF-16LE -t UTF-8 OLD > NEW"""
    )


def test_gbk_and_an_invalid_byte(message):
    chinese = json.dumps({"prompt": "这个问题的答案是什么?", "response": "我们不知道。"}, ensure_ascii=False)
    assert (
        message("train.jsonl", f"{LINES[0]}\n{chinese}\n".encode("gbk"))
        == """\
train.jsonl:2: the text is not UTF-8
  found     byte 0xD5 at byte offset 48 (perhaps GB18030)
  expected  UTF-8
  to fix    save it as UTF-8: iconv -f GB18030 -t UTF-8 OLD > NEW
            or train without the bad rows: bad_rows=leave_out"""
    )
    assert (
        message("train.csv", b"prompt,response\nWhere?,the caf\xe9\n")
        == """\
train.csv:2: the text is not UTF-8
  found     byte 0xE9 at byte offset 30 (perhaps WINDOWS-1252 or Latin-1)
  expected  UTF-8
  to fix    save it as UTF-8: iconv -f WINDOWS-1252 -t UTF-8 OLD > NEW"""
    )


def test_an_empty_file_and_one_without_a_single_usable_row(message):
    assert (
        message("train.jsonl", "\n")
        == """\
train.jsonl: the file is empty
  found     no rows
  expected  at least one row
  to fix    give another file"""
    )
    rows = '{"prompt": "q", "response": ""}\n{"prompt": "q"\n{"prompt": "q", "response": null}\n'
    assert (
        message("train.jsonl", rows, bad_rows="leave_out")
        == """\
train.jsonl: 0 trainable rows
  found     the reply is empty × 2 (train.jsonl:1, train.jsonl:3)
            not valid JSON × 1 (train.jsonl:2)
  expected  at least one conversation with a reply to learn
  to fix    mend these rows, or give other data"""
    )


def test_a_type_that_changes_between_rows(message):
    rows = list(GOOD)
    rows[41] = {"prompt": "q", "response": 7}
    rows[77] = {"prompt": "q", "response": ["yes"]}
    told = message("train.jsonl", rows)
    assert told.startswith("train.jsonl:42: a column is not a text\n  found     response: 7, a number\n")
    assert "and 1 more:" in told
    assert "train.jsonl:78" in told
    assert "  expected  a text\n" in told
    assert told.endswith("or train without the bad rows: bad_rows=leave_out")
