"""The option `--left-out FILE` of `train`, `show` and `data check`."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from imprint.cli_arguments import console_for
from imprint.errors import DataError
from imprint.track.words import plural

if TYPE_CHECKING:
    from imprint.recipe import Recipe
    from imprint.render.resolve import Rendering

LeftOutFile = Annotated[
    Path | None,
    typer.Option(
        "--left-out",
        metavar="FILE",
        help="Write what is left out, with its rows: mend them, give FILE as data too.",
    ),
]


@contextmanager
def kept_apart(path: Path | None, recipe: Recipe) -> Iterator[Callable[[Recipe, Rendering | None], None]]:
    """What writes the file, to be called once the recipe is settled; where bad data ends the work before, so is it.

    Without a path it does nothing. Of several processes, the main one writes.
    """
    if path is None or os.environ.get("RANK", "0") != "0":
        yield lambda _recipe, _rendering: None
        return
    from imprint.data.write import refuse_existing

    refuse_existing(path)

    def keep(settled: Recipe, rendering: Rendering | None) -> None:
        from imprint.left_out import write_left_out

        console = console_for(stderr=True)
        for said in _told(path, *write_left_out(path, settled, rendering)):
            console.print(said, soft_wrap=True, markup=False)

    try:
        yield keep
    except DataError:
        if not path.exists():
            keep(recipe, None)
        raise


def _told(path: Path, whole: int, partly: int) -> Iterator[str]:
    """What was written: `whole` rows of which nothing is trained, and those of which only a part is not."""
    if not whole + partly:
        yield f"left out  nothing: {path} is empty"
        return
    parts = [plural(whole, "row")] if whole or not partly else []
    parts += [f"a part of {plural(partly, 'row')}"] if partly else []
    yield f"left out  {' and '.join(parts)}, written to {path}"
    if partly:
        yield "          of a row left out in part the other replies are trained: with both files"
        yield "          as data they are trained twice, so remove such rows from one of the two"
