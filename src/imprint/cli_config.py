"""The verbs of `imprint config`: every setting, its value, and where it comes from."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from imprint.cli_arguments import Arguments, AsJson, console_for, resolved
from imprint.errors import ModelError, RecipeError

if TYPE_CHECKING:
    from rich.console import Console

    from imprint.auto import Decision
    from imprint.settings import Origin, Resolved

config = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    epilog="Examples: imprint config show model=models/base data=train.jsonl · "
    "imprint config why learning_rate recipe.yaml",
)


@config.command("show", epilog="Example: imprint config show recipe.yaml lora.rank=8")
def config_show(arguments: Arguments = None, as_json: AsJson = False) -> None:
    """Print every setting: its value, and where it comes from."""
    found = resolved(arguments)
    decisions, note = _decide(found)
    rows = [_row(key, found, decisions) for key in found.origin]
    if as_json:
        typer.echo(json.dumps({"settings": {row["key"]: row for row in rows}, "note": note}, indent=2))
        return
    from rich.table import Table
    from rich.text import Text

    from imprint.schema import shown

    table = Table("setting", "value", "where it comes from", box=None, pad_edge=False, header_style="bold")
    for row in rows:
        style = "dim" if row["layer"] == "default" and not row["reason"] else ""
        source = f"auto: {row['reason']}" if row["reason"] else row["place"]
        table.add_row(Text(row["key"], style), Text(shown(row["value"]), style), Text(source, style))
    console = console_for()
    console.print(table)
    if note:
        console.print(Text(f"\n{note}", "yellow"))


@config.command("why", epilog="Example: imprint config why learning_rate recipe.yaml")
def config_why(
    key: Annotated[str, typer.Argument(help="The setting, as in lora.rank or data.0.path.")],
    arguments: Arguments = None,
    as_json: AsJson = False,
) -> None:
    """Tell why one setting has its value: what set it, and what that overrode."""
    found = resolved(arguments)
    keys = _keys_at(key, found)
    decisions, note = _decide(found)
    rows = [_explained(name, found, decisions) for name in keys]
    if as_json:
        typer.echo(json.dumps(rows[0] if keys == [key] else rows, indent=2))
        return
    console = console_for()
    for row in rows:
        _print_reasons(console, row, note)


def _decide(resolved: Resolved) -> tuple[dict[str, Decision], str]:
    """What the autos become on this machine; and a note where the recipe could not run here."""
    from imprint.auto import resolve_auto
    from imprint.model_facts import read_model_facts

    recipe, facts, notes = resolved.recipe, None, []
    try:
        facts = read_model_facts(recipe.model, recipe.revision)
    except ModelError as error:
        notes.append(str(error))
    try:
        _, decisions = resolve_auto(recipe, model_facts=facts)
    except RecipeError as error:
        decisions = []
        notes.append(str(error))
    return {decision.key: decision for decision in decisions}, "\n".join(notes)


def _row(key: str, resolved: Resolved, decisions: dict[str, Decision]) -> dict[str, Any]:
    from imprint.schema import leaves

    origin, decision = resolved.origin[key], decisions.get(key)
    value = (
        decision.value
        if decision
        else {".".join(path): found for path, found in leaves(resolved.recipe)}[key]
    )
    reason = decision.reason if decision else ""
    return {"key": key, "value": value, "layer": origin.layer, "place": origin.place, "reason": reason}


def _explained(key: str, resolved: Resolved, decisions: dict[str, Decision]) -> dict[str, Any]:
    from imprint.schema import lookup

    spot = lookup(tuple(key.split(".")))
    return {
        **_row(key, resolved, decisions),
        "chain": [_step(origin) for origin in resolved.origin[key].chain],
        "type": spot.words,
        "description": spot.description,
    }


def _step(origin: Origin) -> dict[str, Any]:
    return {"layer": origin.layer, "place": origin.place, "value": origin.value}


def _keys_at(key: str, resolved: Resolved) -> list[str]:
    """The setting of this name, or those of the group of this name."""
    from imprint.schema import UnknownKey, lookup, nearest_key

    if key in resolved.origin:
        return [key]
    below = [name for name in resolved.origin if name.startswith(f"{key}.")]
    if below:
        return below
    try:
        spot = lookup(tuple(key.split(".")))
    except UnknownKey as unknown:
        likely = nearest_key(unknown.path, unknown.known)
        fix = f"write `{likely}`" if likely else "imprint config show lists all settings"
        raise RecipeError(f"`{key}` is not a setting", fix=fix) from None
    raise RecipeError(f"`{key}` is not set in this recipe", expected=spot.words)


def _print_reasons(console: Console, row: dict[str, Any], note: str) -> None:
    from rich.table import Table
    from rich.text import Text

    from imprint.schema import shown

    console.print(Text(f"{row['key']} = {shown(row['value'])}", "bold"))
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 2))
    for number, step in enumerate(row["chain"]):
        place = "" if step["layer"] == "default" else step["place"]
        label = "set by" if number == 0 else "over"
        table.add_row(label, Text(step["layer"]), Text(shown(step["value"])), Text(place))
    console.print(table)
    facts = [("auto", row["reason"]), ("type", row["type"]), ("means", row["description"]), ("note", note)]
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 2))
    for label, text in facts:
        if text:
            table.add_row(label, Text(text))
    console.print(table)
