"""What the verbs share: how settings are given, and where text goes."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from imprint.errors import ImprintError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from imprint.settings import Resolved

Arguments = Annotated[
    list[str] | None,
    typer.Argument(metavar="RECIPE|KEY=VALUE", help="A recipe file; settings that override it."),
]
LABEL = 15  # columns of a label
_PART = re.compile(r"  (found|expected|to fix) | {12}")  # of an error's message: its text begins in column 12
_TO_COPY = re.compile(r"=\S| > | --?\w")
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for a program to read.")]


def split_arguments(arguments: Sequence[str] | None) -> tuple[Path | None, list[str]]:
    """The recipe file, which is the first argument without `=`, and all the others."""
    others = list(arguments or ())
    for place, argument in enumerate(others):
        if "=" not in argument:
            return Path(others.pop(place)), others
    return None, others


def resolved(arguments: Sequence[str] | None) -> Resolved:
    """The recipe that the arguments describe."""
    from imprint.settings import resolve

    return resolve(*split_arguments(arguments))


def console_for(*, stderr: bool = False) -> Console:
    """A console on stdout, or on stderr for what is not the verb's result."""
    from rich.console import Console

    return Console(stderr=stderr, highlight=False, soft_wrap=False)


def speaker_on(console: Console) -> Callable[[Any], None]:
    """Prints what a run says: text as it is (paths and tokens hold brackets), or what rich can print."""
    return partial(console.print, markup=False)


def listing(console: Console, *columns: tuple[str, int]) -> Table:
    """An empty table of at most 80 columns, each with its name and its share of the width; 0 for what it needs."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold", width=min(80, console.width))
    for name, ratio in columns:
        table.add_column(
            name, ratio=ratio or None, no_wrap=not ratio, overflow="fold" if ratio else "ellipsis"
        )
    return table


def print_pairs(console: Console, pairs: Iterable[tuple[str, str]]) -> None:
    """Labels with their texts, at most 80 columns wide; those without a text are left away."""
    from rich.table import Table
    from rich.text import Text

    table = Table(
        box=None, show_header=False, pad_edge=False, padding=(0, 1, 0, 2), width=min(80, console.width)
    )
    table.add_column(style="dim", width=LABEL, no_wrap=True)
    table.add_column(overflow="fold", ratio=1)
    for label, text in pairs:
        if text:
            table.add_row(label, Text(text))
    console.print(table)


@contextmanager
def said_plainly(*, several: bool = False) -> Iterator[None]:
    """Errors of verbs that take data alone name its settings as they are given: format=…, not data.0.format=…

    Of several sources, each has settings of its own: there the number stays.
    """
    try:
        yield
    except ImprintError as error:
        if not several:
            _speak_plainly(error)
        raise


def _speak_plainly(error: ImprintError) -> None:
    for name in ("what", "where", "found", "expected", "fix"):
        setattr(error, name, plainly(getattr(error, name)))
    for problem in getattr(error, "problems", ()):  # of several, each has its own words
        _speak_plainly(problem)


def plainly(text: str) -> str:
    return re.sub(r"\bdata\.\d+\.(?=[a-z])", "", text)


def wrapped(message: str, width: int) -> str:
    """An error's message with its long lines broken between words, under where their text begins.

    A remedy that holds something to copy, a command or a setting, stays in one line.
    """
    made, remedy = [], False
    for line in message.splitlines():
        remedy = line.startswith("  to fix") or (remedy and line.startswith(" " * 12))
        if len(line) <= width or (remedy and _TO_COPY.search(line)):
            made.append(line)
            continue
        indent = " " * (12 if _PART.match(line) else 4 if line.startswith("  ") else 2)
        start = line[: len(line) - len(line.lstrip())]
        made += textwrap.wrap(
            line.lstrip(),
            max(width, 40),
            initial_indent=start,
            subsequent_indent=indent,
            break_long_words=False,
            break_on_hyphens=False,
        )
    return "\n".join(made)
