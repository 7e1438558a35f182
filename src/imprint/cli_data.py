"""The verbs of `imprint data`: check it, convert it, find open sets."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from imprint.cli_arguments import AsJson, console_for, said_plainly
from imprint.cli_left_out import LeftOutFile, kept_apart
from imprint.errors import RecipeError

if TYPE_CHECKING:
    from imprint.recipe import Recipe

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
OF_RECIPE = ("bad_rows", "consecutive_replies", "seed")  # settings of a run that change what is read


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
    with said_plainly():
        recipe = _recipe(*_split(sources), model, template)
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
    paths, settings = _split(sources)
    if len(paths) < 2:
        raise RecipeError(
            "there is nothing to write to",
            found=f"one path: {', '.join(paths) or 'none'}",
            expected="what to read, and last the file to write",
            fix=f"imprint data convert {paths[0] if paths else 'SOURCE'} out.jsonl",
        )
    *inputs, out = paths
    with said_plainly():
        recipe = _recipe(inputs, settings, None, None)
        from imprint.data.convert import convert as convert_data

        ledger = convert_data(
            recipe.data, out, to=to, bad_rows=recipe.bad_rows, force=force, seed=recipe.seed
        )
    notes = console_for(stderr=True)
    notes.print(ledger.table())
    if out != "-":
        typer.echo(out)


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


def _split(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Paths, and settings; what is there is a path, whatever its name."""
    paths = [one for one in arguments if "=" not in one or Path(one).exists()]
    return paths, [one for one in arguments if one not in paths]


def _recipe(
    paths: Sequence[str], settings: Sequence[str], model: Path | None, template: str | None
) -> Recipe:
    """A recipe with these sources, each with these settings."""
    from imprint.recipe import DataSource
    from imprint.settings import resolve

    if not paths:
        raise RecipeError("no data is named", expected="a file, folder, glob or hub id", fix="name one")
    given = [f"model={json.dumps(str(model or 'none'))}", "validation=0"]
    given += [f"template={json.dumps(template)}"] if template else []
    for number, path in enumerate(paths):
        given.append(f"data.{number}.path={json.dumps(path)}")
    for setting in settings:
        key = setting.partition("=")[0].strip()
        if key in OF_RECIPE:
            given.append(setting)
            continue
        if key.split(".")[0] not in DataSource.model_fields or key == "path":
            raise _unknown(setting, key)
        given += [f"data.{number}.{setting}" for number in range(len(paths))]
    return resolve(None, given).recipe


def _unknown(setting: str, key: str) -> RecipeError:
    from imprint.errors import nearest
    from imprint.recipe import DataSource

    known = [*(name for name in DataSource.model_fields if name != "path"), *OF_RECIPE]
    like = nearest(key, known)
    return RecipeError(
        f"`{key}` is not a setting of data",
        where=f"argument {setting}",
        expected=", ".join(known),
        fix=f"write {like}={setting.partition('=')[2]}" if like else "remove it",
    )
