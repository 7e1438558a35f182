"""The verb `plan`: will it fit, how long, what does it cost, what may be done with the result."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from imprint.cli_arguments import Arguments, AsJson, console_for, print_pairs, resolved
from imprint.errors import RecipeError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from imprint.planning.options import Option, Range
    from imprint.planning.outlook import Outlook

EPILOG = (
    "Examples: imprint plan model=models/base data=train.jsonl · imprint plan recipe.yaml --on 4090 --on H100 · "
    "imprint plan recipe.yaml --price 1.20 --json"
)
METHODS = ("full", "lora", "qlora")


def plan(
    arguments: Arguments = None,
    on: Annotated[
        list[str] | None,
        typer.Option("--on", metavar="MACHINE", help="This machine of the table; may be repeated."),
    ] = None,
    price: Annotated[
        float | None, typer.Option("--price", min=0.0, help="Dollars an hour, of your own.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say whether a run will fit, how long it takes, what it costs and under which licences. Loads no weights."""
    from pathlib import Path

    from imprint.hardware import MACHINES, find
    from imprint.licences import to_json
    from imprint.model_facts import read_model_facts
    from imprint.planning.outlook import outlook, without_weights

    recipe = resolved(arguments).recipe
    read_model_facts(recipe.model, recipe.revision)  # a misspelt folder is found before the hub is asked
    machines = [find(name) for name in on] if on else list(MACHINES)
    if price is not None and not price < float("inf"):
        raise RecipeError("a price is a number of dollars", where="--price", found=str(price))
    found = outlook(recipe, without_weights(Path(recipe.model), recipe), machines=machines, price=price)
    if as_json:
        facts = asdict(found) | {
            "recipe": found.recipe.model_dump(mode="json"),
            "licences": to_json(found.licences),
        }
        typer.echo(json.dumps(facts, indent=1))
        return
    print_plan(found, console_for(), chosen=bool(on))


def print_plan(found: Outlook, console: Console, *, chosen: bool) -> None:
    from imprint.track.words import count, size

    work, recipe = found.work, found.recipe
    shares = ", ".join(
        f"{method} trains {count(number)} ({number / found.parameters:.2g} of all)"
        if method != "full"
        else "full trains all"
        for method, number in found.trainable.items()
    )
    lengths = ", ".join(f"{name} {number:,}" for name, number in work.lengths.items())
    saved = work.tokens / max(1.0, work.computed_tokens)
    print_pairs(
        console,
        [
            ("model", f"{recipe.model}: {count(found.parameters)} parameters; {shares}"),
            (
                "data",
                f"{work.conversations:,} conversations, {count(work.tokens)} tokens over the run, "
                f"{count(work.trained_tokens)} of them trained; {count(work.computed_tokens)} are computed"
                + (f": {saved:.2g} times fewer, for what is shared" if saved > 1.05 else ""),
            ),
            (
                "lengths",
                f"{lengths} tokens a turn; the context is {found.context:,}" if found.context else lengths,
            ),
            ("steps", f"{work.steps:,} updates of {recipe.batch_size} conversations"),
            ("disk", f"{size(found.disk.low)} to {size(found.disk.high)} for the run folder"),
        ],
    )
    console.print()
    _print_here(found, console)
    console.print()
    _print_machines(found, console, chosen)
    console.print()
    _print_licences(found, console)
    for note in found.notes:
        console.print(f"note  {note}", markup=False)


def _print_here(found: Outlook, console: Console) -> None:
    from imprint.track.words import size

    here = found.here
    memory = here.memory
    parts = [
        ("this program", memory.process),
        ("weights", memory.weights),
        ("gradients", memory.gradients),
        ("optimizer", memory.optimizer),
        (f"a row of {here.row_tokens:,} tokens", memory.row),
        ("a checkpoint on its way to the disk", memory.snapshot),
        ("kernels and the like", memory.workspace),
    ]
    says = "fits" if here.fits else "may just fit" if here.tight else "does not fit"
    by = (
        f"corrected by {found.corrected_by} runs that were found"
        if found.corrected_by
        else "no run has corrected it yet"
    )
    print_pairs(
        console,
        [
            ("here", f"method={here.method} on {found.recipe.device}: {says} in {size(here.room)} ({by})"),
            (
                "memory",
                f"{_sizes(memory.total)}: " + ", ".join(f"{name} {size(n)}" for name, n in parts if n),
            ),
            ("time", _times(here.seconds)),
        ],
    )


def _print_machines(found: Outlook, console: Console, chosen: bool) -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 1, 0, 0))
    for name, width in (("on one", 20), *((m, 8) for m in METHODS), ("time", 15), ("dollars", 12)):
        table.add_column(name, no_wrap=True, min_width=width if console.width >= 80 else None)
    by_machine: dict[str, list[Option]] = {}
    for option in found.options:
        by_machine.setdefault(option.machine, []).append(option)
    for name, options in by_machine.items():
        best = next((o for o in options if o.fits), next((o for o in options if o.tight), None))
        time = f"{best.method}: {_duration(best.seconds.expected)}" if best else ""
        table.add_row(name, *map(_cell, options), time, _dollars(best))
    console.print(table)
    legend = (
        "expected peak in GB; c: with activation_checkpointing=true; ~ may just fit,\n"
        "✗ does not fit, – cannot run there; time and dollars of the first that fits"
    )
    console.print(legend, style="dim")
    if not chosen:
        console.print(
            "memory and time of other machines are not measured: from their data sheets", style="dim"
        )


def _cell(option: Option) -> Text:
    """The expected peak of a method on a machine, and whether that fits."""
    from rich.text import Text

    if option.note:
        return Text("–", "dim")
    peak = f"{option.memory.total.expected / 1e9:.3g}" + (" c" if option.recompute else "")
    if option.fits:
        return Text(peak)
    return Text(f"~ {peak}", "yellow") if option.tight else Text(f"✗ {peak}", "dim")


def _dollars(option: Option | None) -> str:
    if option is None or option.dollars is None:
        return ""
    low, high = (f"{dollars:.2f}" if dollars < 100 else f"{dollars:,.0f}" for dollars in option.dollars)
    return "below 0.01" if high == "0.00" else low if low == high else f"{low} – {high}"


def _print_licences(found: Outlook, console: Console) -> None:
    licences = found.licences
    pairs = [("licence", licences.sentence())]
    pairs += [(part.what, f"{part.name}: {part.licence} ({part.source})") for part in licences.parts]
    pairs += [("asks for" if place == 0 else "", duty) for place, duty in enumerate(licences.duties)]
    print_pairs(console, pairs)
    console.print("as their authors say it; no legal advice", style="dim")


def _sizes(range_: Range) -> str:
    from imprint.track.words import size

    return f"{size(range_.expected)} expected, {size(range_.low)} to {size(range_.high)}"


def _times(range_: Range) -> str:
    return f"{_duration(range_.expected)} expected, {_duration(range_.low)} to {_duration(range_.high)}"


def _duration(seconds: float) -> str:
    from imprint.track.words import duration

    return duration(seconds)
