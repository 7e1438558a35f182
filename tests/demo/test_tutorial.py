"""docs/tutorial.md is what the committed figures make, and its pictures were drawn from them."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any
from xml.etree import ElementTree

import pytest

from imprint.demo.lessons import LESSONS
from imprint.demo.teach import rows_of

ROOT = Path(__file__).parents[2]
FIGURES = ROOT / "docs" / "tutorial" / "figures.json"
SVG = "{http://www.w3.org/2000/svg}"


def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("write_tutorial", ROOT / "tools" / "write_tutorial.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def figures() -> dict[str, Any]:
    read: dict[str, Any] = json.loads(FIGURES.read_text(encoding="utf-8"))
    return read


def test_the_page_is_made_of_the_figures(figures: dict[str, Any]) -> None:
    assert tool().page(figures) == (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")


def test_the_page_follows_the_figures(figures: dict[str, Any]) -> None:
    """Another count of right answers is another page: no figure is written by hand."""
    changed = json.loads(json.dumps(figures))
    for trial in changed["trials"].values():
        trial["held_out"]["right"] = 1
    changed["exam"][0]["after"]["right"] -= 1
    changed["run"]["steps"] += 1
    before, after = (tool().page(some).split("\n\n") for some in (figures, changed))
    assert sum(a != b for a, b in zip(before, after, strict=True)) >= len(LESSONS) + 2


def test_every_picture_was_drawn_from_these_figures(figures: dict[str, Any]) -> None:
    """By the digest in it: matplotlib of another version draws other bytes."""
    rows = rows_of(figures)
    for lesson in LESSONS:
        path = ROOT / "docs" / "tutorial" / f"{lesson.name}.svg"
        root = ElementTree.fromstring(path.read_text(encoding="utf-8"))
        assert root.findtext(f"{SVG}desc") == tool().digest_of(rows[lesson.name]), lesson.name
        assert path.stat().st_size < 60_000
        shown = " ".join(root.itertext())
        labels = [label for label, _ in rows[lesson.name]] if lesson.name != "epochs" else ["epochs"]
        assert all(label in shown for label in labels)


def test_links_and_pictures_are_there() -> None:
    text = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
    heads = {
        re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-")
        for head in re.findall(r"^#+ (.*)$", text, re.M)
    }
    links = re.findall(r"\]\(([^)]+)\)", text)
    assert len(links) == len(LESSONS) + 1
    for link in links:
        assert link[1:] in heads if link.startswith("#") else (ROOT / "docs" / link).is_file(), link


def test_incomplete_figures_are_named(figures: dict[str, Any]) -> None:
    fewer = figures | {
        "trials": {key: found for key, found in figures["trials"].items() if "wrong" not in key}
    }
    with pytest.raises(SystemExit, match="not complete: noise"):
        tool().page(fewer)
