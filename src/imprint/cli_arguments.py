"""What the verbs share: how settings are given, and where text goes."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from imprint.errors import ImprintError

if TYPE_CHECKING:
    from rich.console import Console

    from imprint.settings import Resolved

Arguments = Annotated[
    list[str] | None,
    typer.Argument(metavar="RECIPE|KEY=VALUE", help="A recipe file; settings that override it."),
]
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


@contextmanager
def said_plainly() -> Iterator[None]:
    """Errors of verbs that take data alone name its settings as they are given: format=…, not data.0.format=…"""
    try:
        yield
    except ImprintError as error:
        _speak_plainly(error)
        raise


def _speak_plainly(error: ImprintError) -> None:
    for name in ("what", "where", "found", "expected", "fix"):
        setattr(error, name, plainly(getattr(error, name)))
    for problem in getattr(error, "problems", ()):  # of several, each has its own words
        _speak_plainly(problem)


def plainly(text: str) -> str:
    return re.sub(r"\bdata\.\d+\.(?=[a-z])", "", text)
