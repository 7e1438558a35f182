"""Damaged files of every kind: each is read, or refused with a place and a remedy; never a traceback."""

import bz2
import csv
import gzip
import io
import json
import lzma
import random
import zipfile

import pyarrow
import pyarrow.parquet
import pytest

from imprint.data.conversation import Record
from imprint.data.readers import fingerprint, read
from imprint.data.text import Broken
from imprint.errors import DataError
from imprint.recipe import DataSource

ROWS = [{"prompt": f"q{i} é", "response": "a\n" * i, "meta": {"k": [1, None, 3]}} for i in range(20)]
SPLINTERS = (
    *(
        b"\0",
        b"\xff",
        b"\xef\xbb\xbf",
        b"[",
        b"{",
        b'"',
        b"\r",
        b"\n",
        b"\\",
        b"\\ud83d",
        b"[" * 3000,
        b"9" * 5000,
    ),
    *(
        b",",
        b"}",
        b"]",
        b"\xff\xfe",
        b"NaN",
        b"-",
        b"PAR1",
        b"\x80\x04",
        b'"a": 1, "a": 2',
        b"\t",
        b";",
        b"\x1f\x8b",
    ),
)


def whole_files():
    """One good file of every kind, by name."""
    lines = "".join(json.dumps(row, ensure_ascii=i % 2 == 0) + "\n" for i, row in enumerate(ROWS)).encode()
    sheet = io.StringIO(newline="")
    csv.writer(sheet).writerows([["prompt", "response"], *([row["prompt"], row["response"]] for row in ROWS)])
    table = pyarrow.Table.from_pylist(ROWS)
    parquet, archive, packed = io.BytesIO(), io.BytesIO(), pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(table, parquet)
    with zipfile.ZipFile(archive, "w") as made:
        made.writestr("a.jsonl", lines)
    with pyarrow.CompressedOutputStream(packed, "zstd") as stream:
        stream.write(lines)
    arrow = {}
    for name, make in (("a.arrow", pyarrow.ipc.new_file), ("b.arrow", pyarrow.ipc.new_stream)):
        sink = io.BytesIO()
        with make(sink, table.schema) as writer:
            writer.write_table(table)
        arrow[name] = sink.getvalue()
    comma = sheet.getvalue().encode()
    return arrow | {
        "a.jsonl": lines,
        "plain": lines,
        "a.txt": b"A text:\n" + lines,
        "a.json": json.dumps(ROWS, indent=1).encode(),
        "b.json": json.dumps({"version": 1, "data": ROWS}).encode(),
        "a.csv": comma,
        "a.tsv": comma.replace(b",", b"\t"),
        "a.parquet": parquet.getvalue(),
        "a.jsonl.gz": gzip.compress(lines),
        "a.jsonl.xz": lzma.compress(lines),
        "a.jsonl.bz2": bz2.compress(lines),
        "a.jsonl.zst": packed.getvalue().to_pybytes(),
        "z.jsonl": archive.getvalue(),
    }


def damaged(content, rng):
    """One to three things that happen to files: cut, splinters, flipped, lost, doubled or random bytes."""
    made = bytearray(content)
    for _ in range(rng.randrange(1, 4)):
        start = rng.randrange(len(made) + 1)
        end = min(len(made), start + rng.randrange(1, 60))
        match rng.randrange(6):
            case 0:
                del made[start:]
            case 1:
                made[start:start] = rng.choice(SPLINTERS)
            case 2:
                made[start:end] = bytes(byte ^ (1 << rng.randrange(8)) for byte in made[start:end])
            case 3:
                del made[start:end]
            case 4:
                made[start:start] = made[start:end]
            case 5:
                made[start:end] = rng.randbytes(rng.randrange(40))
    return bytes(made)


def said_of(work):
    """The DataError in which something ends, if it does; anything else is a failure of the test."""
    try:
        work()
    except DataError as error:
        return error
    return None


def read_mutants(folder, count, seed):
    """How many mutants were read, refused, and had broken rows."""
    files, rng = whole_files(), random.Random(seed)
    good = refused = broken = 0
    for _ in range(count):
        name = rng.choice(sorted(files))
        (folder / name).write_bytes(damaged(files[name], rng))
        source = DataSource(path=name)
        rows: list[Record] = []
        fault = said_of(lambda source=source, rows=rows: rows.extend(read(source, folder)))
        faults = [row.value.error for row in rows if isinstance(row.value, Broken)]
        good, refused, broken = good + (fault is None), refused + (fault is not None), broken + bool(faults)
        assert rows or fault
        assert len({str(row.place) for row in rows}) == len(rows)
        faults += [fault, said_of(lambda source=source: fingerprint(source, folder))]
        for one in filter(None, faults):
            assert one.where.startswith(name)
            assert one.fix
            assert len(str(one)) < 3000
    return good, refused, broken


def test_whole_files_are_read(tmp_path):
    for name, content in whole_files().items():
        (tmp_path / name).write_bytes(content)
        if name != "z.jsonl":
            found = [record.value for record in read(DataSource(path=name), tmp_path)]
            assert len(found) == (1 if name == "a.txt" else 20)


def test_damaged_files(tmp_path):
    good, refused, broken = read_mutants(tmp_path, 600, 0)
    assert min(good, refused) > 150
    assert broken > 50


@pytest.mark.full
@pytest.mark.parametrize("seed", range(1, 5))
def test_twenty_thousand_damaged_files(tmp_path, seed):
    good, refused, broken = read_mutants(tmp_path, 5000, seed)
    assert min(good, refused, broken) > 500
