"""Parquet and Arrow in, records out: files, and folders that `datasets` saved."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from imprint.data.conversation import Place, Record
from imprint.errors import DataError, nearest

BATCH = 1024  # rows made into Python objects at a time


def parquet_rows(path: Path, file: str) -> Iterator[Record]:
    """One record per row; the place counts rows from 1. Nulls inside structs are dropped."""
    import pyarrow.parquet

    def batches() -> Iterator[Any]:
        with pyarrow.parquet.ParquetFile(path) as table:
            yield from table.iter_batches(BATCH)

    yield from _records(batches(), file, "Parquet")


def arrow_rows(path: Path, file: str) -> Iterator[Record]:
    """One record per row of an Arrow file (Feather too) or stream, as `parquet_rows`."""
    yield from _records(_batches([path]), file, "Arrow")


def saved_rows(folder: Path, file: str, split: str) -> Iterator[Record]:
    """The rows of a folder that `save_to_disk` of `datasets` wrote: a dataset, or one split of several."""
    yield from _records(_batches(saved_files(folder, file, split)), file, "Arrow")


def saved_files(folder: Path, file: str, split: str) -> list[Path]:
    """The Arrow files of a saved dataset, in its order."""
    if (folder / "dataset_dict.json").is_file():
        splits = _read(folder / "dataset_dict.json", file, "splits")
        if split not in splits:
            like = nearest(split, splits) or (splits or ["train"])[0]
            raise DataError(
                "the saved dataset has no such split",
                where=file,
                found=f"splits {', '.join(splits) or 'none'}",
                expected=f"a split {split!r}",
                fix=f"set split: {like}",
            )
        folder = folder / split
    return [folder / item["filename"] for item in _read(folder / "state.json", file, "_data_files")]


def _read(path: Path, file: str, key: str) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))[key]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            "the saved dataset cannot be read",
            where=file,
            found=f"{path.name}: {type(error).__name__}: {error}",
            expected="a folder as save_to_disk writes it",
            fix="save it again, or name its .arrow files",
        ) from error


def _batches(paths: list[Path]) -> Iterator[Any]:
    import pyarrow
    import pyarrow.ipc

    for path in paths:
        with pyarrow.memory_map(str(path)) as data:
            if data.read(6) == b"ARROW1":
                reader = pyarrow.ipc.open_file(data)
                whole: Iterator[Any] = (reader.get_batch(i) for i in range(reader.num_record_batches))
            else:
                data.seek(0)
                whole = iter(pyarrow.ipc.open_stream(data))
            for batch in whole:
                yield from (batch.slice(start, BATCH) for start in range(0, batch.num_rows, BATCH))


def _records(batches: Iterator[Any], file: str, kind: str) -> Iterator[Record]:
    import pyarrow

    number = 0
    try:
        for batch in batches:
            batch.validate(full=True)  # Arrow trusts a file's offsets: a damaged one would end the process
            for row in batch.to_pylist():
                number += 1
                yield Record(without_nulls(row), Place(file, number, "row"))
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"the {kind} file cannot be read",
            where=str(Place(file, number + 1, "row")),
            found=str(error).splitlines()[0],
            expected=f"a whole {kind} file",
            fix="fetch or write the file again",
        ) from error


def without_nulls(row: dict[str, Any]) -> dict[str, Any]:
    """The row of an Arrow table without the nulls inside its columns; a null column stays null.

    Arrow gives every struct the fields of all others, as nulls (ms-swift#10125): a tool's schema
    would show parameters that it does not have.
    """
    return {key: _pruned(value) if isinstance(value, (dict, list)) else value for key, value in row.items()}


def _pruned(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _pruned(inner) for key, inner in value.items() if inner is not None}
    return [_pruned(inner) for inner in value] if isinstance(value, list) else value
