"""The command line. A verb imports what it needs when it runs, so `imprint --help` is quick.

Exit codes: 0 done, 1 a run failed, 2 the user can mend the input, 130 interrupted (resumable).
`IMPRINT_DEBUG=1` shows the traceback of an error instead of its message.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from imprint import __version__
from imprint.errors import ImprintError, ModelError, RecipeError

if TYPE_CHECKING:
    from rich.console import Console

    from imprint.auto import Decision
    from imprint.settings import Origin, Resolved

app = typer.Typer(
    name="imprint",
    help="Teach a model to follow instructions: supervised fine-tuning, proven step by step.",
    rich_markup_mode="rich",
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
config = typer.Typer(no_args_is_help=True, rich_markup_mode="rich")
app.add_typer(config, name="config", help="See the settings of a run, and where each comes from.")

Arguments = Annotated[
    list[str] | None,
    typer.Argument(metavar="RECIPE|KEY=VALUE", help="A recipe file; settings that override it."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for a program to read.")]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb and return or exit with its code; an ImprintError becomes a message on stderr."""
    try:
        app(args=arguments, prog_name="imprint")
    except ImprintError as error:
        if os.environ.get("IMPRINT_DEBUG") == "1":
            raise
        _print_error(error)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    return 0


def split_arguments(arguments: Sequence[str] | None) -> tuple[Path | None, list[str]]:
    """The recipe file, which is the first argument without `=`, and all the others."""
    others = list(arguments or ())
    for place, argument in enumerate(others):
        if "=" not in argument:
            return Path(others.pop(place)), others
    return None, others


@app.callback(
    invoke_without_command=True, epilog="Example: imprint config show model=models/base data=train.jsonl"
)
def top(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.", is_eager=True)] = False,
) -> None:
    if version:
        typer.echo(f"imprint {__version__}")
    elif context.invoked_subcommand is None:
        typer.echo(context.get_help())


# ---- the verbs of a run: train, resume, show, chat, demo ----------------------------------------


# ---- config: the settings themselves ------------------------------------------------------------


@config.command("show", epilog="Example: imprint config show recipe.yaml lora.rank=8")
def config_show(arguments: Arguments = None, as_json: AsJson = False) -> None:
    """Print every setting: its value, and where it comes from."""
    resolved = _resolve(arguments)
    decisions, note = _decide(resolved)
    rows = [_row(key, resolved, decisions) for key in resolved.origin]
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
    console = _console()
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
    resolved = _resolve(arguments)
    keys = _keys_at(key, resolved)
    decisions, note = _decide(resolved)
    rows = [_explained(name, resolved, decisions) for name in keys]
    if as_json:
        typer.echo(json.dumps(rows[0] if keys == [key] else rows, indent=2))
        return
    console = _console()
    for row in rows:
        _print_reasons(console, row, note)


def _resolve(arguments: Sequence[str] | None) -> Resolved:
    from imprint.settings import resolve

    return resolve(*split_arguments(arguments))


def _decide(resolved: Resolved) -> tuple[dict[str, Decision], str]:
    """What the autos become on this machine; and a note where the recipe could not run here."""
    from imprint.auto import read_model_facts, resolve_auto

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


def _console(*, stderr: bool = False) -> Console:
    from rich.console import Console

    return Console(stderr=stderr, highlight=False, soft_wrap=False)


def _print_error(error: ImprintError) -> None:
    from rich.text import Text

    message = Text.assemble(("error ", "bold red"), str(error))
    _console(stderr=True).print(message, soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main())
