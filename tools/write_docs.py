"""Writes the pages of docs/ that are made from the code: `python tools/write_docs.py [PAGE.md …]`."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from imprint.schema import Setting, describe

DOCS = Path(__file__).parent.parent / "docs"

RECIPE_HEAD = """\
# The recipe

One run is described by one recipe: a YAML file, `key=value` arguments, or both. Only `model` and
`data` are required. Made from `src/imprint/recipe.py` by `tools/write_docs.py`; a test keeps it up
to date.

Values are laid over each other: defaults, then the preset of the model (`imprint.yaml` in its
folder), then the recipe file, then the arguments. `imprint config show` prints the outcome,
`imprint config why KEY` tells where one value comes from. `auto` is resolved once, when the run is
created, and printed with the reason.

`N` counts the sources of `data` from 0; `validation` may be a source of the same keys. A setting
that has no meaning beside the others is refused.

| key | type | default | meaning |
|---|---|---|---|
"""


def recipe_page() -> str:
    """docs/recipe.md: every key of a recipe."""
    return RECIPE_HEAD + "".join(_line(row) for row in describe())


def _line(row: Setting) -> str:
    cells = (f"`{row.key}`", row.type, f"`{row.default}`", row.description)
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |\n"


def templates_page() -> str | None:
    """docs/templates.md: what every template accepts, by a run of the whole harness (some minutes)."""
    pages = _harness("pages")
    return pages and pages.templates_page(list(pages.every_cell()))


def twins_page() -> str | None:
    """docs/trl-twins.md: TRL's training templates against our turns."""
    pages = _harness("twins_page")
    return pages and pages.twins_page(list(pages.every_pair()))


def _harness(module: str) -> Any:
    """A module of tests/render, which makes pages from real templates; None where these are not here."""
    folder = str(DOCS.parent / "tests")
    if folder not in sys.path:
        sys.path.insert(0, folder)
    return (
        importlib.import_module(f"render.{module}")
        if importlib.import_module("render.corpus").TEMPLATES
        else None
    )


PAGES: dict[str, Callable[[], str | None]] = {
    "recipe.md": recipe_page,
    "trl-twins.md": twins_page,
    "templates.md": templates_page,
}


def main(names: Sequence[str]) -> None:
    DOCS.mkdir(exist_ok=True)
    for name in names or PAGES:
        page = PAGES[name]()
        if page is None:
            print(f"left docs/{name} as it is: the templates that it is made from are not here")
            continue
        (DOCS / name).write_text(page, encoding="utf-8")
        print(f"wrote docs/{name}")


if __name__ == "__main__":
    main(sys.argv[1:])
