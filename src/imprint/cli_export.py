"""The verb `imprint export`: a finished run, handed over in the form that another program takes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from imprint.cli_arguments import AsJson, console_for, speaker_on
from imprint.errors import RecipeError, UserError
from imprint.export.targets import KNOWN, available

if TYPE_CHECKING:
    from imprint.export_run import Exported

EPILOG = (
    "Examples: imprint export runs/base-train · imprint export runs/base-train --dtype float32 "
    "--out merged · imprint export runs/base-train --to hub me/my-model"
)


def told_targets() -> str:
    """`hf: a folder for …; gguf: …`, of those that are there."""
    return "; ".join(f"{name}: {KNOWN[name]}" for name in available()) + "."


def split(words: list[str], to: str) -> tuple[Path, str, dict[str, str]]:
    """(the run, the repository of --to hub, the settings of the target)."""
    plain = [word for word in words if "=" not in word or Path(word).is_dir()]
    if len(plain) != (2 if to == "hub" else 1):
        raise UserError(
            "the hub takes a run and a repository" if to == "hub" else "export takes one run",
            found=" ".join(plain) or "none",
            fix="imprint export RUN --to hub OWNER/NAME" if to == "hub" else "imprint export RUN --to TARGET",
        )
    given: dict[str, str] = {}
    for word in words:
        if word in plain:
            continue
        key, value = word.split("=", 1)
        if key in given:
            found = f"first as {key}={given[key]}"
            raise UserError(f"`{key}` is given twice", where=word, found=found, fix="remove one of them")
        given[key] = value
    return Path(plain[0]), plain[1] if to == "hub" else "", given


def export(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN [OWNER/NAME] [KEY=VALUE…]",
            help="The run folder; the repository, for the hub; settings of the target.",
        ),
    ],
    to: Annotated[str, typer.Option("--to", metavar="TARGET", help=told_targets())] = "hf",
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FOLDER", help="Where to (RUN/export/TARGET by default).")
    ] = None,
    base: Annotated[
        Path | None, typer.Option("--base", metavar="FOLDER", help="Where the base model is now.")
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(
            "--dtype", metavar="TYPE", help="float32, bfloat16 or float16 (the base model's by default)."
        ),
    ] = None,
    scale: Annotated[
        float,
        typer.Option(
            "--scale", metavar="NUMBER", min=0.0, max=1.0, help="Between the base (0) and the tuned model."
        ),
    ] = 1.0,
    adapter_only: Annotated[
        bool, typer.Option("--adapter-only", help="The adapter alone, as a PEFT folder, not merged.")
    ] = False,
    public: Annotated[
        bool, typer.Option("--public", help="With --to hub: anyone may see it (private by default).")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="With --to hub: send it, after a look without.")] = False,
    as_json: AsJson = False,
) -> None:
    """Hand a run over: merge it, write it, prove that it says the same.

    Adapters are merged in float32, tensor by tensor. What was made is asked
    the golden questions of the run; where it answers otherwise it is kept
    aside as FOLDER.failed, and the exit code is 1.
    """
    run, repository, options = split(words, to)
    from imprint.export_run import export as run_export
    from imprint.export_wanted import Wanted

    notes = console_for(stderr=True)
    wanted = Wanted(to, out, base, dtype, scale, adapter_only, options)
    if to == "hub":
        from imprint.export_hub import to_hub

        sent = to_hub(run, repository, wanted, public=public, yes=yes, say=speaker_on(notes))
        if as_json:
            typer.echo(json.dumps(to_json(sent.exported) | {"hub": sent.to_json()}))
        else:
            told(sent.exported)
            typer.echo("\n".join(sent.lines()))
        return
    if public or yes:
        raise RecipeError(
            f"{'--public' if public else '--yes'} has an effect with --to hub only", fix="leave it away"
        )
    done = run_export(run, wanted, speaker_on(notes))
    if as_json:
        typer.echo(json.dumps(to_json(done)))
    else:
        told(done)
        typer.echo(str(done.main))
    if done.proof.passed is False:
        raise typer.Exit(1)


def to_json(done: Exported) -> dict[str, Any]:
    return {
        "path": str(done.main),
        "folder": str(done.folder),
        "proof": {"passed": done.proof.passed, "line": done.proof.line},
        "notes": list(done.notes),
        "serve": done.serve,
    }


def told(done: Exported) -> None:
    """How it was made and what its proof says, on stderr."""
    notes = console_for(stderr=True)
    for note in done.notes:
        notes.print(f"note   {note}", markup=False, soft_wrap=True)
    notes.print(f"proof  {done.proof.line}", markup=False, soft_wrap=True)
    if done.serve:
        notes.print(f"serve  {done.serve}", markup=False, soft_wrap=True)
