"""Rows of a dataset on the Hugging Face hub, or in its local cache, through `datasets`."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from imprint.data.conversation import Place, Record
from imprint.data.open import KINDS, stem_suffix
from imprint.data.parse_arrow import without_nulls
from imprint.data.sets import download, explained, on_hub
from imprint.errors import DataError, nearest
from imprint.recipe import DataSource


def hub_rows(source: DataSource) -> Iterator[Record]:
    """One record per row, numbered from 1; the dataset is mapped into memory by `datasets`."""
    rows, _ = _loaded(source)
    for number, row in enumerate(rows, 1):
        yield Record(without_nulls(row), Place(source.path, number, "row"))


def hub_fingerprint(source: DataSource) -> str:
    """What `datasets` identifies the rows by."""
    return _loaded(source)[1]


def _loaded(source: DataSource) -> tuple[Any, str]:
    found = on_hub(source)
    try:
        return _dataset(found.path, found.config, found.split, found.revision)
    except DataError as error:
        raise explained(error, source) from error


@functools.lru_cache(maxsize=4)
def _dataset(path: str, config: str | None, split: str, revision: str | None) -> tuple[Any, str]:
    """The dataset and its fingerprint."""
    import datasets

    try:
        found = datasets.load_dataset(path, config, split=split, revision=revision)
    except Exception as error:  # the hub, its cache and each dataset's builder raise dozens of types
        like = nearest(
            Path(path).name, [item.name for item in Path().glob("*") if stem_suffix(item.name) in KINDS]
        )
        raise DataError(
            "the hub dataset cannot be loaded",
            where=path,
            found=f"{type(error).__name__}: {error}",
            expected="a dataset of that name, configuration and split on the hub or in its local cache",
            fix=f"write {like}, if you meant the file" if like else _remedy(path, revision, error),
        ) from error
    return found, str(found._fingerprint)


def _remedy(path: str, revision: str | None, error: Exception) -> str:
    if "/" not in path:
        return "give a file that is here, or an id of the hub: OWNER/NAME"
    check = "check id, config, split and revision"
    unreachable = isinstance(error, OSError) or "offline" in str(error).lower()
    return f"{check}\n{download(path, Path(path).name, revision)}" if unreachable else check
