"""`imprint chaos`: a rehearsal for spot machines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from imprint.cli_arguments import Arguments, AsJson, console_for
from imprint.errors import RunError, RunFailed

EPILOG = "Example: imprint chaos recipe.yaml max_steps=20 save_every=2 --kills 10"


def chaos(
    arguments: Arguments = None,
    kills: Annotated[int, typer.Option("--kills", min=1, help="How often a run is killed, in all.")] = 10,
    seed: Annotated[int, typer.Option("--seed", help="Draws the instants.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Kill runs of a recipe at random instants, resume them, and compare their models with one that was not killed.

    Before machines are rented that may vanish. Give few steps (max_steps=20): each run is trained to its end.
    Everything lies in the folder output=… (runs/chaos), which must not exist.
    """
    from imprint.chaos import starter, torment, write
    from imprint.cli_arguments import resolved

    given = list(arguments or ())
    recipe = resolved(given).recipe  # what is wrong with it is said before anything is started
    work = Path("runs/chaos" if recipe.output == "auto" else recipe.output)
    if work.exists():
        raise RunError("the folder exists already", where=str(work), fix="choose another output=…")
    console = console_for(stderr=True)
    log = work.with_name(f"{work.name}.log")
    log.parent.mkdir(parents=True, exist_ok=True)
    given = [argument for argument in given if not argument.startswith("output=")]
    outcome = torment(given, work, kills, seed, starter(log), lambda text: console.print(text, markup=False))
    write(work / "chaos.json", outcome)
    if as_json:
        typer.echo(json.dumps(outcome.to_json()))
    else:
        typer.echo(
            f"{len(outcome.kills)} kills, {outcome.resumes} resumes, {outcome.runs} runs: "
            f"{len(outcome.unusable)} unusable, {len(outcome.different)} different"
        )
    if outcome.unusable or outcome.different:
        raise RunFailed(
            "runs that were killed do not end as the one that was not",
            where=str(work),
            found=", ".join([*outcome.unusable, *outcome.different]),
            expected="the same bytes; on CUDA, deterministic kernels are needed for that",
            fix=f"look at {log}, and report it with {work / 'chaos.json'}",
        )
