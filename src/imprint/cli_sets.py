"""What `imprint data sets` prints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from imprint.cli_arguments import listing, print_pairs

if TYPE_CHECKING:
    from rich.console import Console

    from imprint.data.sets import OpenSet


def print_sets(console: Console, sets: Sequence[OpenSet]) -> None:
    """A table of all sets: name, rows, origin, languages, licence; a star where that has a catch."""
    from rich.text import Text

    table = listing(console, ("name", 0), ("rows", 0), ("written by", 5), ("in", 2), ("licence", 3))
    for one in sets:
        name = Text(one.name, "cyan")
        if one.catch:
            name.append(" *", "bold yellow")
        table.add_row(name, one.rows, Text(one.origin), Text(one.languages), Text(one.licence))
    console.print(table)
    console.print(
        "\n* The licence has a catch: imprint data sets NAME tells it. Use a set: imprint train … data=NAME",
        markup=False,
    )
    console.print(
        "Sizes and licences are what their pages said when this list was made. This is no legal advice:\n"
        "read the set's own page before you rely on its licence.",
        markup=False,
    )


def print_set(console: Console, one: OpenSet) -> None:
    """All that is known of one set, and the line that trains on it."""
    from rich.text import Text

    from imprint.data.sets import download

    console.print(Text(one.name, "bold cyan"))
    split = f"{one.split}" + (f" of configuration {one.config}" if one.config else "")
    facts = [
        ("good for", one.good_for), ("rows", f"{one.rows}, split {split}"), ("written by", one.origin),
        ("languages", one.languages), ("licence", one.licence), ("catch", one.catch), ("format", one.format),
        ("note", one.note), ("hub", one.hub), ("page", f"https://hf.co/datasets/{one.hub}"),
        ("use it", f"imprint train model=FOLDER data={one.name}"),
        ("look at it", f"imprint data check {one.name}"),
        ("pin it", f"data.0.path={one.name} data.0.revision=COMMIT: the same rows, whatever its owner changes"),
        ("offline", download(one.hub, one.name)),
    ]  # fmt: skip
    print_pairs(console, facts)
