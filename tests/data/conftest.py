import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from imprint.data.conversation import Conversation, Place, Record
from imprint.data.formats import converter
from imprint.data.readers import read
from imprint.recipe import DataSource

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write a file into a fresh folder: text, bytes, or a list of rows as JSON lines."""

    def write(name: str, content: Any) -> Path:
        if isinstance(content, list):
            content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in content)
        data = content.encode() if isinstance(content, str) else content
        path = tmp_path / name
        path.write_bytes(gzip.compress(data) if name.endswith(".gz") and data[:2] != b"\x1f\x8b" else data)
        return path

    return write


@pytest.fixture
def records() -> Callable[[Path], list[Record]]:
    return lambda path: list(read(DataSource(path=path.name), path.parent))


@pytest.fixture
def convert() -> Callable[..., Conversation]:
    """One row, at `rows.jsonl:7`, as a conversation; keywords go into the source."""

    def convert(row: Any, **source: Any) -> Conversation:
        (made,) = converter(DataSource(path="rows.jsonl", **source))(Record(row, Place("rows.jsonl", 7)))
        return made

    return convert


@pytest.fixture
def sft() -> Path:
    """The folder of real data sets, beside the repository."""
    folder = Path(__file__).parents[3] / "shared" / "data" / "sft"
    if not folder.is_dir():
        pytest.skip(f"the real data sets are not on this machine ({folder.name} beside the repository)")
    return folder
