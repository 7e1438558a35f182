"""The embedded base model: a small Llama that has read of the demo's world, and what goes with it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import as_file, files
from itertools import islice
from pathlib import Path

from imprint.demo.corpus import TOLD, documents

GENERAL_SEED = (
    2_000_000  # texts of the base's world that it never read: for replay, and to see what is forgotten
)
GENERAL = 600  # documents


@contextmanager
def base_model() -> Iterator[Path]:
    """The folder of the model that comes with imprint."""
    with as_file(files("imprint.demo") / "base") as path:
        yield path


def copy_base(folder: Path) -> Path:
    """Write the base model into a folder of one's own, which is returned."""
    with base_model() as source:
        shutil.copytree(source, folder)
    return folder


def demonstrations() -> Path:
    """The file of demonstrations that comes with imprint."""
    with as_file(files("imprint.demo") / "demonstrations.jsonl") as path:
        return path


def write_general(path: Path) -> Path:
    """Write general text, one document a line, such as the base read: what replay is drawn from.

    Statements and stories, no lists of questions: to go on with questions is what the model shall unlearn.
    """
    lines = [json.dumps({"text": text}) + "\n" for text in islice(documents(GENERAL_SEED, TOLD), GENERAL)]
    path.write_text("".join(lines), encoding="utf-8")
    return path
