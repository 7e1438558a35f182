"""Files that went wrong: small files of demonstrations in every kind, each damaged in one to three ways.

`mutant(seed, number)` is a pure function: the same two integers give the same file on every machine that
has the same seeds. Seeds are excerpts of the real files, where these are there, and the example of every
format.
"""

from __future__ import annotations

import bz2
import copy
import csv
import functools
import gzip
import io
import json
import lzma
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import pyarrow
import pyarrow.feather
import pyarrow.parquet

from data.damage import BYTE_DAMAGE, PACKED_DAMAGE, RAW, ROW_DAMAGE
from imprint.data.catalogue import FORMATS

DATA = Path(__file__).parents[3] / "shared" / "data"
ROWS = 8  # of each excerpt
LONGEST = 1500  # characters of a row that is taken for it
EXCERPTS = (
    "alpaca_gpt4_zh_demo.json", "alpaca_tiny_with_text.json", "code_alpaca_2k.json", "dolly_short_no_context.jsonl",
    "fastchat_dummy_conversation.json", "flan_cot_qasc.tsv", "glaive_toolcall_en_demo.json", "gsm8k_train.jsonl.gz",
    "loss_weight_messages_demo.jsonl", "oasst_en_100_trees.jsonl", "oasst_prompt_lottery_250.jsonl",
    "persona_system_prompts.csv", "reason_tool_use_demo_50.jsonl", "self_instruct_seed_tasks.jsonl",
    "t0_p3_templated.jsonl.gz", "tulu3_sft_sample.jsonl",
)  # fmt: skip
PACK: dict[str, Callable[[bytes], bytes]] = {
    ".gz": functools.partial(gzip.compress, mtime=0),
    ".xz": lzma.compress,
    ".bz2": bz2.compress,
    ".zst": lambda data: pyarrow.compress(data, "zstd", asbytes=True),
}
TABLES = {".csv": ",", ".tsv": "\t"}


@dataclass(frozen=True)
class Mutant:
    """A damaged file: its name and bytes, the rows that it was made of, and what was done to them.

    `plain` are its bytes before they were packed; None where the packed bytes, or those of a Parquet or
    Arrow file, were damaged. `written` says how its rows stand in it: jsonl, json, csv, tsv, txt, parquet.
    """

    name: str
    data: bytes
    rows: tuple[Any, ...]
    written: str
    done: tuple[str, ...]
    plain: bytes | None


# ---- seeds


@functools.cache
def seeds() -> tuple[tuple[Any, ...], ...]:
    """Rows that are alike, of each real file and of each format."""
    examples = []
    for format in FORMATS:
        other = json.loads(json.dumps(format.example).replace("France", "Peru").replace("Paris", "Lima"))
        examples.append((format.example, other))
    return (*examples, *(rows for rows in map(_excerpt, EXCERPTS) if rows))


def _excerpt(name: str) -> tuple[Any, ...]:
    path = DATA / "sft" / name
    if not path.is_file():
        return ()
    text = gzip.decompress(path.read_bytes()).decode() if name.endswith(".gz") else path.read_text("utf-8")
    rows: Iterator[Any]
    if ".csv" in name:
        rows = csv.DictReader(io.StringIO(text, newline=""))
    elif ".tsv" in name:
        names = ("question", "answer", "rationale")
        rows = (dict(zip(names, line.split("\t"), strict=True)) for line in text.splitlines())
    else:
        rows = iter(json.loads(text)) if name.endswith(".json") else map(json.loads, text.splitlines())
    short = (row for row in rows if len(json.dumps(row)) <= LONGEST)
    return tuple(row for row, _ in zip(short, range(ROWS), strict=False))


# ---- files


def write(rows: list[Any], written: str, random: Random) -> bytes:
    """The rows as a file; TypeError or an Arrow error where this kind cannot hold them."""
    if written == "jsonl":
        lines = [json.dumps(row, ensure_ascii=random.random() < 0.5) + "\n" for row in rows]
        return _with_raw("".join(lines), random).encode("utf-8", "replace")
    if written == "json":
        made: Any = {"rows": rows} if random.random() < 0.2 else rows
        indent = random.choice((None, 0, 2))
        return _with_raw(json.dumps(made, ensure_ascii=False, indent=indent), random).encode(
            "utf-8", "replace"
        )
    if written == "txt":
        return "\n".join(map(str, rows)).encode("utf-8", "replace")
    if not all(isinstance(row, dict) for row in rows):
        raise TypeError
    if written in ("csv", "tsv"):
        return _table(rows, TABLES[f".{written}"]).encode("utf-8", "replace")
    table, file = pyarrow.Table.from_pylist(rows), io.BytesIO()
    if written == "parquet":
        pyarrow.parquet.write_table(table, file)
    else:
        pyarrow.feather.write_feather(table, file, compression="uncompressed")
    return file.getvalue()


def _with_raw(text: str, random: Random) -> str:
    for mark, raw in RAW.items():
        text = text.replace(f'"{mark}"', raw)
    return text


def _table(rows: list[dict[str, Any]], delimiter: str) -> str:
    """The rows as a table: texts as they are, everything else as JSON, what is missing as an empty cell."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    if len(columns) < 2 or "" in columns:
        raise TypeError
    file = io.StringIO(newline="")
    writer = csv.writer(file, delimiter=delimiter, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        cells = [row.get(name, "") for name in columns]
        writer.writerow([cell if isinstance(cell, str) else json.dumps(cell) for cell in cells])
    return file.getvalue()


KINDS = ("jsonl",) * 8 + ("json",) * 4 + ("csv",) * 5 + ("tsv",) * 2 + ("txt", "parquet", "parquet", "arrow")


def mutant(seed: int, number: int) -> Mutant:
    """The mutant of a number: rows of a seed, written, damaged, and perhaps packed."""
    random = Random(f"{seed}/{number}")
    pristine = [*random.choice(seeds())]
    if random.random() < 0.15:
        pristine += random.choice(seeds())
    rows = copy.deepcopy(pristine)
    done: list[str] = []
    how = random.choice((0, 0, 0, 1, 1, 1, 2, 2, 3))  # the rows, the bytes, both, the packed bytes
    for _ in range(random.choice((1, 1, 2)) if how in (0, 2) else 0):
        damage = random.choice(ROW_DAMAGE)
        at = random.randrange(len(rows))
        if isinstance(rows[at], (dict, list)):
            damage(rows[at], random)
            done.append(damage.__name__)
    written = random.choice(KINDS)
    try:
        data = write(rows, written, random)
    except (TypeError, ValueError, OverflowError, pyarrow.ArrowException):
        written = "jsonl"
        data = write(rows, written, random)
    binary = written in ("parquet", "arrow")
    plain: bytes | None = data
    if how in (1, 2):
        damage = random.choice(PACKED_DAMAGE if binary else BYTE_DAMAGE)
        plain = data = damage(data, random)
        done.append(damage.__name__)
    suffix = f".{written}"
    if not binary and (how == 3 or random.random() < 0.15):
        pack = random.choice(list(PACK))
        data, suffix = PACK[pack](data), suffix + pack
    if how == 3:
        damage = random.choice(PACKED_DAMAGE)
        data, plain = damage(data, random), None
        done.append(f"packed {damage.__name__}")
    if binary and how:
        plain = None
    elif random.random() < 0.05 and written in ("jsonl", "json"):
        suffix = random.choice((".JSON", ".json", ".ndjson", ".data", ""))
        done.append(f"named {suffix or 'without a suffix'}")
    return Mutant(f"rows{suffix}", data, tuple(pristine), written, tuple(done), plain)
