"""What `imprint data formats` prints."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from imprint.cli_arguments import listing, print_pairs
from imprint.errors import RecipeError, nearest

if TYPE_CHECKING:
    from rich.console import Console

    from imprint.data.catalogue import Format


def print_formats(console: Console, formats: Sequence[Format]) -> None:
    """A table of all formats: name and columns; an example of each is one command away."""
    from rich.text import Text

    table = listing(console, ("format", 0), ("columns", 2), ("what becomes of a row", 3))
    for one in formats:
        table.add_row(Text(one.name, "cyan"), Text(", ".join(one.columns)), Text(one.becomes))
    console.print(table)
    console.print(
        "\nAn example of one: imprint data formats NAME. Say a format: format=NAME; or map columns"
        "\nof your own names: fields.prompt=COLUMN fields.response=COLUMN",
        markup=False,
    )


def print_format(console: Console, one: Format) -> None:
    """All that is known of one format."""
    from rich.text import Text

    console.print(Text(one.name, "bold cyan"))
    also = [column for column in one.uses if column not in one.columns]
    facts = [
        ("columns", ", ".join(one.columns)),
        ("also reads", ", ".join(also)),
        ("becomes", one.becomes),
        ("example", json.dumps(one.example, ensure_ascii=False)),
        ("say it", f"format={one.name}, where it is not recognised"),
    ]
    print_pairs(console, facts)


def to_json(one: Format) -> dict[str, Any]:
    """A format as values that JSON can hold."""
    return {
        "name": one.name,
        "columns": one.columns,
        "uses": one.uses,
        "becomes": one.becomes,
        "example": one.example,
    }


def format_named(name: str) -> Format:
    """The format of this name; RecipeError where there is none."""
    from imprint.data.catalogue import BY_NAME

    if found := BY_NAME.get(name.lower()):
        return found
    like = nearest(name, BY_NAME)
    raise RecipeError(
        "there is no format of this name",
        where=name,
        expected="a name that `imprint data formats` lists",
        fix=f"write {like}" if like else "look for your columns in that list",
    )
