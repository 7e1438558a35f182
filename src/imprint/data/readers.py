"""Read the records of one source: a file (.json, .jsonl, .csv, .parquet, also .gz) or a hub dataset."""

from __future__ import annotations

import functools
import gzip
import hashlib
import json
import re
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from imprint.data import formats, parse_json, parse_table
from imprint.data.conversation import Place, Record
from imprint.errors import DataError, nearest
from imprint.recipe import DataSource

KINDS = {".json": "json", ".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".parquet": "parquet"}
ACCEPTED = ".json, .jsonl, .ndjson, .csv (each also .gz), .parquet"
HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")


def read(source: DataSource, base: Path | None = None) -> Iterator[Record]:
    """The records of `source`, in order, each with its place; a relative path starts at `base`.

    A row that cannot be parsed, in a file that can be read on, comes as a record whose value is
    `text.Broken`. Raises DataError when the source is missing, is empty, or cannot be read on.
    """
    path = locate(source, base)
    return _not_empty(_hub(source) if path is None else _file(path, source), source.path)


def fingerprint(source: DataSource, base: Path | None = None) -> str:
    """SHA-256 of the source's bytes and of the settings that change what is read from it.

    The path is not part of it: the same file elsewhere holds the same data. A hub dataset is
    represented by its id, its revision and the fingerprint that `datasets` gives it.
    """
    path = locate(source, base)
    settings: dict[str, Any] = {"format": source.format, "fields": source.fields}
    digest = hashlib.sha256()
    if path is None:
        settings |= source.model_dump(include={"path", "split", "config", "revision"})
        digest.update(
            str(_hub_dataset(source.path, source.config, source.split, source.revision)[1]).encode()
        )
    else:
        settings["kind"] = _kind(path, source.path)
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    digest.update(json.dumps(settings, sort_keys=True).encode())
    return digest.hexdigest()


def locate(source: DataSource, base: Path | None = None) -> Path | None:
    """The file that `source` names, or None for a hub id; DataError where it is neither."""
    path = (base or Path()) / Path(source.path).expanduser()
    if path.is_file():
        return path
    if path.is_dir():
        files = sorted(item.name for item in path.iterdir() if _suffix(item) in KINDS)
        raise DataError(
            "the path is a folder, not a file",
            where=source.path,
            found=", ".join(files[:8]) or "no data file in it",
            expected=f"a file: {ACCEPTED}",
            fix=f"name a file: {source.path.rstrip('/')}/{files[0]}" if files else "name a file",
        )
    if HUB_ID.fullmatch(source.path) and _suffix(path) not in KINDS:
        return None
    raise DataError("there is no such file", where=source.path, **_neighbours(path, source.path))


def _neighbours(path: Path, given: str) -> dict[str, str]:
    """What an error says about a missing file: what its folder holds, and the name most like it."""
    if not path.parent.is_dir():
        return {"found": f"no folder {Path(given).parent}", "fix": "correct the folder's name"}
    names = sorted(item.name for item in path.parent.iterdir() if item.is_file())
    like = nearest(path.name, names)
    if like:
        return {"found": f"a file {like!r} in that folder", "fix": f"write {Path(given).with_name(like)}"}
    data = [name for name in names if _suffix(Path(name)) in KINDS]
    return {"found": ", ".join(data[:8]) or "no data file in its folder", "fix": "correct the path"}


def _suffix(path: Path) -> str:
    """The suffix that tells the kind of file, in lower case and without .gz."""
    return Path(path.stem if path.suffix.lower() == ".gz" else path.name).suffix.lower()


def _kind(path: Path, given: str) -> str:
    kind = KINDS.get(_suffix(path))
    zipped = path.suffix.lower() == ".gz"
    if kind is None or (kind == "parquet" and zipped):
        raise DataError(
            "imprint does not read this kind of file",
            where=given,
            found="".join(path.suffixes[-2:] if zipped else path.suffixes[-1:]) or "no suffix",
            expected=ACCEPTED,
            fix="unpack it" if kind else "rename or convert it",
        )
    return kind


def _file(path: Path, source: DataSource) -> Iterator[Record]:
    kind, given = _kind(path, source.path), source.path
    if kind == "parquet":
        yield from parse_table.parquet_rows(path, given)
        return
    zipped = path.suffix.lower() == ".gz"
    open_file: Callable[..., Any] = gzip.open if zipped else open
    try:
        with open_file(path, "rb") as file:
            if kind == "jsonl":
                yield from parse_json.json_lines(file, given)
            elif kind == "csv":
                yield from parse_table.csv_rows(file.read(), given)
            else:
                yield from parse_json.json_document(file.read(), given, functools.partial(_is_row, source))
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(
            "the file cannot be read",
            where=given,
            found=str(error),
            expected="a whole gzip file" if zipped else "a file that you may read",
            fix="fetch or write the file again" if zipped else "check its permissions",
        ) from error


def _is_row(source: DataSource, value: dict[str, Any]) -> bool:
    return any(column in value for column in source.fields.values()) or formats.is_row(value)


def _not_empty(records: Iterator[Record], given: str) -> Iterator[Record]:
    first = next(records, None)
    if first is None:
        raise DataError(
            "the file is empty",
            where=given,
            found="no rows",
            expected="at least one row",
            fix="give another file",
        )
    yield first
    yield from records


def _hub(source: DataSource) -> Iterator[Record]:
    rows, _ = _hub_dataset(source.path, source.config, source.split, source.revision)
    for number, row in enumerate(rows, 1):
        yield Record(parse_table.without_nulls(row), Place(source.path, number, "row"))


@functools.lru_cache(maxsize=4)
def _hub_dataset(path: str, config: str | None, split: str, revision: str | None) -> tuple[Any, str]:
    """The dataset (memory-mapped by `datasets`) and its fingerprint."""
    import datasets

    try:
        found = datasets.load_dataset(path, config, split=split, revision=revision)
    except Exception as error:  # the hub, its cache and each dataset's builder raise dozens of types
        like = nearest(Path(path).name, [item.name for item in Path().glob("*") if _suffix(item) in KINDS])
        raise DataError(
            "the hub dataset cannot be loaded",
            where=path,
            found=f"{type(error).__name__}: {error}",
            expected="a dataset of that name, configuration and split on the hub or in its local cache",
            fix=f"write {like}, if you meant the file"
            if like
            else "check id, config and split; offline, download it first or give a file",
        ) from error
    return found, str(found._fingerprint)
