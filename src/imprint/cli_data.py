"""The verbs of `imprint data`: check it, convert it, list formats, find open sets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from imprint.cli_arguments import AsJson, console_for, said_plainly
from imprint.cli_left_out import LeftOutFile, kept_apart
from imprint.cli_sources import named_sources, recipe_of, split_sources
from imprint.errors import RecipeError

data = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    epilog="Examples: imprint data check train.jsonl · imprint data convert train.csv train.jsonl · "
    "imprint data sets",
)

Sources = Annotated[
    list[str],
    typer.Argument(metavar="SOURCE|KEY=VALUE", help="Files, folders, globs, hub ids, -; and their settings."),
]


@data.command(
    "check",
    epilog="Examples: imprint data check train.jsonl · imprint data check rows.csv fields.prompt=question "
    "fields.response=gold · imprint data check train.jsonl --model models/base --template chatml",
)
def check(
    sources: Sources,
    model: Annotated[
        Path | None,
        typer.Option("--model", metavar="FOLDER", help="Show the examples as this model sees them."),
    ] = None,
    template: Annotated[
        str | None, typer.Option("--template", help="With --model: a template other than its own.")
    ] = None,
    as_json: AsJson = False,
    left_out: LeftOutFile = None,
) -> None:
    """Tell what is in the data: formats, sizes, repetitions, bad rows.

    Ends with 2 where rows would be refused.
    """
    if template is not None and model is None:
        raise RecipeError("--template has no effect without --model", fix="give --model FOLDER too")
    paths, settings = named_sources(*split_sources(sources))
    with said_plainly(several=len(paths) > 1):
        recipe = recipe_of(paths, settings, model, template)
        from imprint.cli_check import print_check

        with kept_apart(left_out, recipe) as keep:
            usable = print_check(recipe, has_model=model is not None, as_json=as_json, keep=keep)
    if not usable:
        raise typer.Exit(2)


@data.command(
    "convert",
    epilog="Examples: imprint data convert train.csv train.jsonl · imprint data convert chats/ all.parquet · "
    "imprint data convert train.jsonl alpaca.json --to alpaca · imprint data convert rows.jsonl -",
)
def convert(
    sources: Annotated[
        list[str],
        typer.Argument(metavar="SOURCE|KEY=VALUE… OUT", help="What to read; last, the file to write."),
    ],
    to: Annotated[
        str, typer.Option("--to", metavar="FORMAT", help="Format of the rows that are written.")
    ] = "messages",
    force: Annotated[bool, typer.Option("--force", help="Write over a file that exists.")] = False,
) -> None:
    """Write data in another format, nothing lost and nothing invented.

    OUT is .jsonl, .json, .csv, .tsv (each also .gz), .parquet, or - for
    standard output. messages holds everything; sharegpt, alpaca, text,
    prompt_response and other pairs refuse a row that they cannot hold.
    """
    paths, settings = split_sources(sources)
    inputs, settings = named_sources(paths[:-1], settings)
    if not inputs:
        raise RecipeError(
            "there is nothing to write to",
            found=f"one path: {', '.join(paths) or 'none'}",
            expected="what to read, and last the file to write",
            fix=f"imprint data convert {paths[0] if paths else 'SOURCE'} out.jsonl",
        )
    out = paths[-1]
    with said_plainly(several=len(inputs) > 1):
        recipe = recipe_of(inputs, settings)
        from imprint.data.convert import convert as convert_data

        ledger = convert_data(
            recipe.data, out, to=to, bad_rows=recipe.bad_rows, force=force, seed=recipe.seed
        )
    notes = console_for(stderr=True)
    notes.print(ledger.table())
    for note in ledger.notes:
        notes.print(f"note  {note}", markup=False)
    if out != "-":
        typer.echo(out)


@data.command("formats", epilog="Examples: imprint data formats · imprint data formats alpaca")
def formats(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="Tell all that is known of one.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List the formats that rows may have, each with its columns and an example.

    A row's format is recognised; format=NAME says it where that fails.
    """
    from imprint.cli_formats import format_named, print_format, print_formats, to_json
    from imprint.data.catalogue import FORMATS

    found = [format_named(name)] if name else FORMATS
    if as_json:
        typer.echo(json.dumps([to_json(one) for one in found], indent=2, ensure_ascii=False))
    elif name:
        print_format(console_for(), found[0])
    else:
        print_formats(console_for(), found)


@data.command(
    "sets", epilog="Examples: imprint data sets · imprint data sets dolly · imprint train … data=dolly"
)
def sets(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="Tell all that is known of one.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List well-known open sets, whose short names can be given as data=NAME.

    They come from the Hugging Face hub. Read a set's own page before you rely on its licence.
    """
    from imprint.cli_sets import print_set, print_sets
    from imprint.data.sets import SETS, named

    if as_json:
        found = [named(name)] if name else SETS
        typer.echo(json.dumps([one._asdict() for one in found], indent=2, ensure_ascii=False))
    elif name:
        print_set(console_for(), named(name))
    else:
        print_sets(console_for(), SETS)
