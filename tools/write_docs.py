"""Writes the pages of docs/ that are made from the code: `python tools/write_docs.py`."""

from __future__ import annotations

from pathlib import Path

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


PAGES = {"recipe.md": recipe_page}


def main() -> None:
    DOCS.mkdir(exist_ok=True)
    for name, page in PAGES.items():
        (DOCS / name).write_text(page(), encoding="utf-8")
        print(f"wrote docs/{name}")


if __name__ == "__main__":
    main()
