"""What `imprint data sets` prints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

    from imprint.data.sets import OpenSet


def print_sets(console: Console, sets: Sequence[OpenSet]) -> None:
    """A table of all sets: name, rows, origin, languages, licence; a star where that has a catch."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold", width=min(80, console.width))
    table.add_column("name", no_wrap=True)
    table.add_column("rows", no_wrap=True)
    table.add_column("written by", ratio=5, overflow="fold")
    table.add_column("in", ratio=2, overflow="fold")
    table.add_column("licence", ratio=3, overflow="fold")
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
    console.print("This is no legal advice: read the set's own page before you rely on its licence.")


def print_set(console: Console, one: OpenSet) -> None:
    """All that is known of one set, and the line that trains on it."""
    from rich.table import Table
    from rich.text import Text

    console.print(Text(one.name, "bold cyan"))
    table = Table(
        box=None, show_header=False, pad_edge=False, padding=(0, 1, 0, 2), width=min(80, console.width)
    )
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold", ratio=1)
    split = f"{one.split}" + (f" of configuration {one.config}" if one.config else "")
    facts = [
        ("good for", one.good_for), ("rows", f"{one.rows}, split {split}"), ("written by", one.origin),
        ("languages", one.languages), ("licence", one.licence), ("catch", one.catch), ("format", one.format),
        ("note", one.note), ("hub", f"{one.hub}: https://huggingface.co/datasets/{one.hub}"),
        ("use it", f"imprint train model=FOLDER data={one.name}"),
        ("offline", f"hf download --repo-type dataset {one.hub}, on a machine with a network; then give the files"),
    ]  # fmt: skip
    for label, text in facts:
        if text:
            table.add_row(label, Text(text))
    console.print(table)
