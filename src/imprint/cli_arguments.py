"""What the verbs share: how settings are given, and where text goes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

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
