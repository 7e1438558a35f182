"""The verb `show`: what will be trained, in a terminal, as a page or as JSON lines."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from imprint.cli_arguments import Arguments, console_for, resolved
from imprint.cli_left_out import LeftOutFile, kept_apart
from imprint.errors import RecipeError

if TYPE_CHECKING:
    from rich.console import Console

    from imprint.data.conversation import Place
    from imprint.errors import DataError
    from imprint.render.resolve import Rendering
    from imprint.show import Shown, View
    from imprint.show_row import Row

EPILOG = (
    "Examples: imprint show model=models/base data=train.jsonl template=chatml · "
    "imprint show recipe.yaml --row train.jsonl:317 · imprint show recipe.yaml --diff chatml · "
    "imprint show recipe.yaml --html shown.html · imprint show recipe.yaml --json"
)
TURNS, PAGE_TURNS = 3, 200  # shown where -n says nothing
CONTEXT = 600  # tokens of a context that are printed where no row is asked for


def show(
    arguments: Arguments = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a turn, all turns.")] = False,
    number: Annotated[
        int | None,
        typer.Option("-n", "--number", min=1, help="How many turns (3; 200 with --html; all with --json)."),
    ] = None,
    row: Annotated[
        str | None,
        typer.Option("--row", metavar="FILE:LINE", help="This row alone: its turns, or why it has none."),
    ] = None,
    diff: Annotated[
        str | None,
        typer.Option("--diff", metavar="TEMPLATE", help="The same under another template, and what differs."),
    ] = None,
    html: Annotated[
        Path | None,
        typer.Option("--html", metavar="FILE", help="Write a page to look through, that needs no network."),
    ] = None,
    left_out: LeftOutFile = None,
) -> None:
    """Show what will be trained, token by token. Needs a tokenizer, no weights.

    Formats that are recognised: messages, sharegpt, alpaca, instruction_output, prompt_response,
    prompt_completion, question_answer.
    """
    _check_options(as_json, diff, html)
    recipe = resolved(arguments).recipe
    from imprint.show import shown_turns
    from imprint.show_row import find_record, row_at

    place = None
    if row is not None:
        place, error = find_record(recipe, row)
        if error is not None:
            if as_json or diff is not None or html is not None:
                raise error
            return _print_refused(place, error)
        recipe = recipe.model_copy(update={"bad_rows": "leave_out"})  # only this row is asked for
    now = datetime.now()
    with kept_apart(left_out, recipe) as keep:
        shown = shown_turns(recipe, now)
        keep(shown.recipe, shown.rendering)
    found = None if place is None else row_at(shown, place)
    other = None
    if diff is not None:
        from imprint.show_diff import under_another

        other = under_another(shown, diff, now)
    if html is not None:
        _write_page(html, shown, other, found, number or PAGE_TURNS)
    elif other is not None:
        _print_diff(shown, other, found, number)
    elif as_json:
        _print_json(shown, found, number)
    else:
        _print_turns(shown, found, number)


def _check_options(as_json: bool, diff: str | None, html: Path | None) -> None:
    """RecipeError where one option would have no effect beside another."""
    for other, given in (("--html", html), ("--diff", diff)):
        if as_json and given is not None:
            raise RecipeError(
                f"--json and {other} exclude each other",
                expected="JSON lines, or what is made for a person",
                fix=f"leave out --json, or {other}",
            )


def _print_refused(place: Place, error: DataError) -> None:
    console = console_for()
    console.print(f"{place}  refused: it is no conversation", style="bold yellow", markup=False)
    console.print(str(error), markup=False, soft_wrap=True)


def _views(shown: Shown, row: Row | None, number: int | None) -> Iterator[View]:
    """The turns to show: of the row, or the first ones."""
    if row is None:
        return shown.all_views(number)
    return row.views(shown, number)


def _print_json(shown: Shown, row: Row | None, number: int | None) -> None:
    from imprint.render.preview import as_json

    for view in _views(shown, row, number):
        line = as_json(view.turn, view.number, (view.prompt, view.completion), view.owned.spans)
        typer.echo(json.dumps(line, ensure_ascii=False))
    if row is None:
        if shown.replay is not None:
            for view, apart in shown.replay.views(number):
                line = as_json(view.turn, view.number, (view.prompt, view.completion), view.owned.spans)
                line |= {"replay": "held out" if apart else "to draw from"}
                typer.echo(json.dumps(line, ensure_ascii=False))
        _print_notes(shown)
    else:
        _print_out(row, console_for(stderr=True))


def _print_turns(shown: Shown, row: Row | None, number: int | None) -> None:
    from imprint.render.preview import as_text, legend

    rendering = shown.rendering
    console = console_for()
    colour = console.color_system is not None
    if row is None or row.turns:
        console.print(legend(colour=colour))
    for view in _views(shown, row, number if row else number or TURNS):
        most = None if row else CONTEXT
        console.print(
            as_text(view.turn, view.number, rendering.encoder, rendering.stop_ids, colour=colour, most=most)
        )
    if row is not None:
        _print_out(row, console)
        return
    console.print(shown.account().tables())
    if shown.replay is not None:
        console.print(f"replay  {shown.replay.told()}", style="bold", markup=False, highlight=False)
        for view, apart in shown.replay.views(number or TURNS):
            console.print(
                as_text(
                    view.turn,
                    view.number,
                    rendering.encoder,
                    rendering.stop_ids,
                    colour=colour,
                    most=CONTEXT,
                    mark="replay, held out" if apart else "replay",
                )
            )
    _print_notes(shown)


def _print_out(row: Row, console: Console) -> None:
    """What of a row is not trained, and why."""
    if row.replay:
        console.print(row.replay, style="yellow")
    if row.held_out:
        console.print("this row is held out for validation, and not trained", style="yellow")
    for out in row.out:
        where = f"{out.place}" if out.message is None else f"{out.place}, message {out.message + 1}"
        console.print(f"{where}  {out.what} left out: {out.reason}", style="bold yellow", markup=False)
        if out.detail:
            console.print(f"  {out.detail}", markup=False, soft_wrap=True)


def _print_notes(shown: Shown) -> None:
    """What the run would say: the template, the stop set, the notes and the account of the data."""
    rendering, ledger = shown.rendering, shown.ledger
    notes = console_for(stderr=True)
    notes.print(f"template  {rendering.template.name}", markup=False)
    notes.print(f"stops     {stop_set(rendering)}", markup=False)
    for note in (*rendering.notes, *ledger.notes):
        notes.print(f"note      {note}", markup=False)
    notes.print(ledger.table())
    if shown.replay is not None:
        notes.print(shown.replay.shown.ledger.table("What becomes of replay"))
    for reason, detail in ledger.details.items():
        if detail:
            notes.print(f"{reason}: {detail}", markup=False, soft_wrap=True)


def stop_set(rendering: Rendering) -> str:
    """The stops as text and id, the one that the template writes first."""
    from imprint.render.preview import visible

    return ", ".join(f"{visible(rendering.encoder.decode([i]))} ({i})" for i in rendering.stop_ids)


def _print_diff(shown: Shown, other: Shown, row: Row | None, number: int | None) -> None:
    from imprint.render.compare import as_diff, verdict
    from imprint.show_diff import pairs

    conversations = shown.conversations if row is None else row.conversations
    console = console_for()
    colour = console.color_system is not None
    seen = Counter[str]()
    for pair in islice(pairs(shown, other, conversations), number if row else number or TURNS):
        console.print(as_diff(f"{pair.place}  reply {pair.number + 1}", pair.left, pair.right, colour=colour))
        seen[verdict(pair.left, pair.right)] += 1
    if row is not None:
        _print_out(row, console)
    told = ", ".join(f"{count:,} {said}" for said, count in seen.items())
    console.print(f"{sum(seen.values()):,} replies compared: {told or 'none'}")
    for mark, one in (("-", shown), ("+", other)):
        told = f"{one.ledger.turns.kept['trained']:,} of {one.ledger.turns.total:,} replies are trained"
        console.print(
            f"{mark} {one.rendering.template.name}: {told}; stops {stop_set(one.rendering)}", markup=False
        )
    notes = console_for(stderr=True)
    for note in (*shown.rendering.notes, *other.rendering.notes):
        notes.print(f"note      {note}", markup=False)
    if shown.recipe.template_options:
        notes.print("note      template_options are given to the first template alone")


def _write_page(path: Path, shown: Shown, other: Shown | None, row: Row | None, number: int) -> None:
    from imprint.show_page import write_page

    written = write_page(path, shown, other, row, number)
    console_for(stderr=True).print(written.told, markup=False)
    typer.echo(str(path))
