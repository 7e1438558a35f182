import bz2
import gzip
import io
import json
import lzma
import os
import pickle
import random
import sqlite3
import zipfile
from functools import partial

import pyarrow
import pyarrow.feather
import pyarrow.parquet
import pytest

from imprint.data.ledger import Ledger
from imprint.data.open import KINDS, PACKED, look
from imprint.data.readers import fingerprint, read
from imprint.errors import DataError
from imprint.meaning import DATA_SUFFIXES
from imprint.recipe import DataSource

ROWS = [{"prompt": f"q{i}", "response": "ü" * i} for i in range(300)]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()


def packed(name, data, folder):
    """`data` packed as the end of a file's name says."""
    if name.endswith(".zst"):
        with pyarrow.output_stream(folder / "packed", compression="zstd") as stream:
            stream.write(data)
        return (folder / "packed").read_bytes()
    pack = {"gz": gzip.compress, "xz": partial(lzma.compress, preset=0), "bz2": bz2.compress}.get(
        name.rpartition(".")[2], bytes
    )
    return pack(data)


def values(records):
    return [record.value for record in records]


@pytest.fixture
def message(tmp_path):
    """The one message with which a file of this content is refused, already when it is hashed."""

    def message(name, content):
        (tmp_path / name).write_bytes(content)
        source = DataSource(path=name)
        with pytest.raises(DataError) as caught:
            list(read(source, tmp_path))
        with pytest.raises(DataError) as hashed:
            fingerprint(source, tmp_path)
        assert str(hashed.value) == str(caught.value)
        return str(caught.value)

    return message


def test_the_suffixes_that_mean_a_file_are_those_that_are_read():
    assert {*KINDS, *PACKED} == DATA_SUFFIXES


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst", ".xz", ".bz2", ".GZ"])
def test_packed_files_are_read_whatever_they_are_called(tmp_path, suffix):
    content = packed(f"a{suffix.lower()}", LINES, tmp_path)
    for name in (f"a.jsonl{suffix}", f"a.json{suffix}", "a.jsonl", "plain", "a.data", f"b.JSONL{suffix}"):
        (tmp_path / name).write_bytes(content)
        assert values(read(DataSource(path=name), tmp_path)) == ROWS, name


def test_parts_packed_one_after_the_other_are_one_file(tmp_path):
    for suffix in ("gz", "zst", "xz", "bz2"):
        half = len(LINES) // 2
        parts = [packed(f"a.{suffix}", part, tmp_path) for part in (LINES[:half], LINES[half:])]
        (tmp_path / f"a.jsonl.{suffix}").write_bytes(b"".join(parts))
        assert values(read(DataSource(path=f"a.jsonl.{suffix}"), tmp_path)) == ROWS, suffix


@pytest.mark.parametrize("suffix", ["gz", "zst", "xz", "bz2"])
def test_damage_in_a_packed_file_is_told_with_the_last_row(tmp_path, suffix):
    draw = random.Random(0)
    noise = "".join(json.dumps({"prompt": draw.randbytes(400).hex()}) + "\n" for _ in range(4000)).encode()
    whole = packed(f"a.{suffix}", noise, tmp_path)
    half = len(whole) // 2
    spoiled = [whole[: half - 100] + b"\xff" * 200 + whole[half + 100 :]]
    for content in (whole[:half], *(spoiled if suffix != "zst" else [])):  # Arrow writes no checksums
        (tmp_path / f"a.jsonl.{suffix}").write_bytes(content)
        seen = []
        with pytest.raises(DataError) as caught:
            seen.extend(record.place for record in read(DataSource(path=f"a.jsonl.{suffix}"), tmp_path))
        error = caught.value
        assert (error.what, error.where) == ("the file cannot be read", f"a.jsonl.{suffix}")
        assert f"behind {seen[-1]}" in error.found
        assert seen[-1].line >= len(seen)  # unpacked damage may hold an empty line
        assert 500 < len(seen) < 3500
        assert "fetch or write the file again" in error.fix


@pytest.mark.parametrize("name", ["a.parquet", "A.PARQUET", "a.data", "a", "a.jsonl"])
def test_parquet_is_known_by_its_first_bytes(tmp_path, name):
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / name)
    found = list(read(DataSource(path=name), tmp_path))
    assert values(found) == ROWS
    assert str(found[-1].place) == f"{name}:row 300"


@pytest.mark.parametrize("name", ["a.arrow", "a.feather", "a.FEATHER", "a.bytes"])
@pytest.mark.parametrize("stream", [False, True])
def test_arrow_files_and_streams(tmp_path, name, stream):
    table = pyarrow.Table.from_pylist(ROWS)
    make = pyarrow.ipc.new_stream if stream else pyarrow.ipc.new_file
    with make(tmp_path / name, table.schema) as writer:
        writer.write_table(table, max_chunksize=70)
    assert values(read(DataSource(path=name), tmp_path)) == ROWS
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="Arrow file cannot be read"):
        list(read(DataSource(path=name), tmp_path))


def test_feather_packed_inside(tmp_path):
    pyarrow.feather.write_feather(pyarrow.Table.from_pylist(ROWS), tmp_path / "a.feather", compression="zstd")
    assert values(read(DataSource(path="a.feather"), tmp_path)) == ROWS


def test_a_table_file_that_is_packed_once_more(tmp_path, message):
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    told = message("a.parquet.gz", gzip.compress((tmp_path / "a.parquet").read_bytes()))
    assert "Parquet packed by gzip" in told
    assert "unpack it" in told


def zipped(*names):
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        for name in names:
            archive.writestr(name, "x")
    return made.getvalue()


def database():
    made = sqlite3.connect(":memory:")
    made.execute("create table rows (a)")
    return made.serialize()


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.data", "a.txt"])
@pytest.mark.parametrize(
    ("content", "what", "fix"),
    [
        (zipped("x.jsonl", "y.jsonl"), "a zip archive of x.jsonl, y.jsonl", "unzip"),
        (zipped("[Content_Types].xml", "xl/workbook.xml"), "an Excel workbook", "save it as CSV"),
        (zipped("archive/data.pkl", "archive/version"), "a PyTorch file", "it may hold code"),
        (pickle.dumps([{"a": 1}]), "a Python pickle", "it may hold code"),
        (b"<!DOCTYPE html>\n<html><body>Sign in</body></html>", "a web page", "log in"),
        (b"\n <HTML lang='en'>", "a web page", "log in"),
        (database(), "an SQLite database", "sqlite3 -json"),
        (POINTER, "a Git LFS pointer", "git lfs pull"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an old Excel", "save it as CSV"),
        (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code>", "XML", "download it again"),
        (b"%PDF-1.7\n", "a PDF", "pdftotext"),
    ],
)
def test_what_is_no_data_is_said_to_be_what_it_is(message, name, content, what, fix):
    told = message(name, content)
    assert told.startswith(f"{name}: imprint does not read this kind of file\n")
    assert what in told
    assert fix in told


@pytest.mark.parametrize(
    ("name", "fix"),
    [
        ("a.pkl", "may hold code"),
        ("a.pt", "may hold code"),
        ("a.yaml", "recipe"),
        ("a.xlsx", "CSV"),
        ("a.safetensors", "that is a model"),
        ("a.orc", "Parquet"),
        ("notes", "suffix"),
    ],
)
def test_names_of_no_data(message, name, fix):
    told = message(name, b"some text")
    assert "imprint does not read this kind of file" in told
    assert fix in told


def test_a_pickle_is_never_loaded(message, tmp_path):
    class Evil:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "owned"),))

    for protocol in range(6):
        message("a.pkl", pickle.dumps(Evil(), protocol))
        for name in ("a.jsonl", "a.txt", "a.csv"):
            if protocol >= 2:
                message(name, pickle.dumps(Evil(), protocol))
    assert not (tmp_path / "owned").exists()


def test_a_name_that_promises_a_table(message):
    assert "no Parquet file" in message("a.parquet", b'{"a": 1}\n')


def test_texts_that_only_look_like_something_else(write):
    for text in (
        "ORCHARDS are fine\n",
        "RIFFS\n",
        "BZh is no archive\n",
        "Obj 1\n",
        "FEA1 is a word\n",
        "GGUF\n",
    ):
        path = write("a.txt", text)
        assert values(read(DataSource(path=path.name), path.parent)) == [{"text": text}]


def test_a_text_file_is_one_record(write):
    path = write("book.txt", "\ufeffOne.\r\n\r\nTwo.\n")
    (record,) = read(DataSource(path=path.name), path.parent)
    assert (record.value, str(record.place)) == ({"text": "One.\r\n\r\nTwo.\n"}, "book.txt:1")


def test_a_file_that_nobody_may_read(tmp_path, monkeypatch, message):
    path = tmp_path / "a.jsonl"
    path.write_text("{}\n")
    original = type(path).open

    def refused(self, *given):
        if self.name == "a.jsonl":
            raise PermissionError(13, "Permission denied", str(self))
        return original(self, *given)

    monkeypatch.setattr(type(path), "open", refused)
    with pytest.raises(DataError, match=r"(?s)cannot be read.*Permission denied.*permissions"):
        list(read(DataSource(path="a.jsonl"), tmp_path))
    with pytest.raises(DataError, match="Permission denied"):
        fingerprint(DataSource(path="a.jsonl"), tmp_path)


def test_look_says_what_a_file_holds(write):
    assert look(write("a.json", '{"a": 1}\n{"a": 2}\n'), "a").kind == "jsonl"
    assert look(write("a.json", '[{"a": 1}]'), "a").kind == "json"
    assert look(write("a.tsv.gz", "a\tb\n"), "a")[:2] == ("tsv", "gzip")


def test_warnings_reach_the_ledger(write):
    path = write("a.tsv", "What is this, then?\tA test.\nAnd?\tYes.\n")
    ledger = Ledger()
    rows = values(read(DataSource(path=path.name), path.parent, ledger=ledger))
    assert rows == [{"0": "What is this, then?", "1": "A test."}, {"0": "And?", "1": "Yes."}]
    assert [(text, str(tally)) for text, tally in ledger.warnings.items()] == [
        ("the table has no header: its columns are 0, 1, …", "a.tsv:1")
    ]


ROW = '{"prompt": "a", "response": "b"}'


@pytest.mark.parametrize("name", ["a.txt", "a.csv", "a.tsv", "a.txt.gz"])
@pytest.mark.parametrize("text", [f"{ROW}\n{ROW}\n", f"[{ROW},\n{ROW}]", f"[\n  {ROW}, {ROW}\n]\n", ROW])
def test_rows_of_json_are_read_as_such_whatever_the_name(write, name, text):
    path = write(name, text)
    found = [record.value for record in read(DataSource(path=path.name), path.parent)]
    assert found == [json.loads(ROW)] * text.count(ROW)


@pytest.mark.parametrize(
    "text", ["[1] Once upon a time.\n", "{sic} it was\n", '{"prompt"\nand so on\n', "[]\n"]
)
def test_a_text_that_begins_with_a_bracket_is_a_text(write, text):
    path = write("a.txt", text)
    (record,) = read(DataSource(path=path.name), path.parent)
    assert record.value == {"text": text}


def test_a_text_that_looks_like_a_table_is_told(write):
    ledger = Ledger()
    path = write("a.txt", "prompt\tresponse\na\tb\nc\td\n")
    assert len(list(read(DataSource(path=path.name), path.parent, ledger=ledger))) == 1
    assert [said for said in ledger.warnings if "name it .tsv" in said]
    ledger = Ledger()
    path = write("b.txt", "Once, it was.\nThen, it went.\n")
    list(read(DataSource(path=path.name), path.parent, ledger=ledger))
    assert not ledger.warnings
