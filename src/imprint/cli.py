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
from imprint.errors import ImprintError, ModelError, RecipeError, RunError

if TYPE_CHECKING:
    from rich.console import Console

    from imprint.auto import Decision
    from imprint.run import Result
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


@app.command("demo", epilog="Example: imprint demo")
def demo(
    folder: Annotated[
        Path | None, typer.Argument(metavar="[FOLDER]", help="Where to put it; imprint-demo by default.")
    ] = None,
) -> None:
    """The whole story on a small model, on a laptop, offline."""
    from imprint.demo.tell import free_folder, tell

    where = folder or free_folder()
    if where.exists():
        raise RunError(
            "the folder exists already", where=str(where), fix="choose another: imprint demo FOLDER"
        )
    tell(where, _console())


@app.command(
    "show",
    epilog="Examples: imprint show model=models/base data=train.jsonl template=chatml · "
    "imprint show recipe.yaml --json",
)
def show(
    arguments: Arguments = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a turn, all turns.")] = False,
    number: Annotated[
        int | None, typer.Option("-n", "--number", min=1, help="How many turns to show (3; all with --json).")
    ] = None,
) -> None:
    """Show what will be trained, token by token. Needs a tokenizer, no weights.

    Formats that are recognised: messages, sharegpt, alpaca, instruction_output, prompt_response,
    prompt_completion, question_answer.
    """
    from itertools import islice

    from imprint.render.preview import as_json as turn_as_json
    from imprint.render.preview import as_text, legend
    from imprint.show import shown_turns

    turns, rendering, ledger = shown_turns(_resolve(arguments).recipe)
    notes = _console(stderr=True)
    if as_json:
        for index, turn in islice(turns, number):
            typer.echo(json.dumps(turn_as_json(turn, index, rendering.encoder), ensure_ascii=False))
    else:
        console = _console()
        console.print(legend())
        for index, turn in islice(turns, number or 3):
            console.print(as_text(turn, index, rendering.encoder, rendering.stop_ids))
    for note in rendering.notes:
        notes.print(f"note  {note}", markup=False)
    notes.print(ledger.table())
    for reason, detail in ledger.details.items():
        if detail:
            notes.print(f"{reason}: {detail}", markup=False, soft_wrap=True)


@app.command(
    "train",
    epilog="Examples: imprint train model=models/base data=train.jsonl · "
    "imprint train recipe.yaml method=lora lora.rank=8",
)
def train(
    arguments: Arguments = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Train a model on demonstrations, into a new run folder.

    Every setting is a line of RECIPE or a KEY=VALUE; model=… and data=… are enough.
    `imprint config show` lists them all.
    """
    recipe = _resolve(arguments).recipe
    from imprint.run import train as run_train

    _print_result(run_train(recipe, _console(stderr=True).print), as_json)


@app.command("resume", epilog="Example: imprint resume runs/base-train")
def resume(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The run folder.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Go on with a run that was stopped or killed, to the bit as if it had not been."""
    from imprint.run import resume as run_resume

    _print_result(run_resume(run, _console(stderr=True).print), as_json)


@app.command(
    "chat",
    epilog="Examples: imprint chat runs/base-train · imprint chat runs/base-train --compare · "
    'imprint chat models/base --template chatml --prompt "Hello"',
)
def chat(
    model: Annotated[Path, typer.Argument(metavar="RUN|MODEL", help="A run folder or a model folder.")],
    compare: Annotated[bool, typer.Option("--compare", help="The base model beside the tuned one.")] = False,
    prompt: Annotated[str | None, typer.Option("--prompt", "-p", help="Ask this, print, and leave.")] = None,
    system: Annotated[str, typer.Option("--system", help="A system message.")] = "",
    template: Annotated[str, typer.Option("--template", help="For a model without a template.")] = "auto",
    max_tokens: Annotated[int, typer.Option("--max-tokens", min=1, help="Longest answer.")] = 512,
    temperature: Annotated[float, typer.Option("--temperature", min=0.0, help="0 is greedy.")] = 0.0,
    seed: Annotated[int | None, typer.Option("--seed", help="Seed of a temperature above 0.")] = None,
) -> None:
    """Talk to a model, as it will be served. Replies stream; /new begins anew, Ctrl-D leaves."""
    from imprint.serve.terminal import talk

    talk(
        model,
        _console(),
        compare=compare,
        prompt=prompt,
        system=system,
        template=template,
        max_new_tokens=max_tokens,
        temperature=temperature,
        seed=seed,
    )


def _print_result(result: Result, as_json: bool) -> None:
    """What a program, or the next command, needs: the run folder on stdout."""
    if not result.is_main:
        return
    counters = result.outcome.counters
    if as_json:
        facts = {
            "run": str(result.run),
            "model": str(result.model),
            "reason": result.outcome.reason,
            "best_loss": counters.best_loss,
            "best_step": counters.best_step,
            "seconds": counters.seconds,
        }
        typer.echo(json.dumps(facts))
        return
    notes = _console(stderr=True)
    notes.print(f"report  {result.run / 'report.html'}", soft_wrap=True)
    notes.print(f"talk    imprint chat {result.run}", soft_wrap=True)
    typer.echo(str(result.run))


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
