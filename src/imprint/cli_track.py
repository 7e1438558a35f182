"""The verb `imprint track`: a run that was trained, sent to a tracker afterwards."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from imprint.cli_arguments import AsJson
from imprint.errors import RunError, UserError, nearest

EPILOG = "Examples: imprint track runs/base-train --to tensorboard · imprint track runs/base-train --to wandb --again"


def track(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The run folder.")],
    to: Annotated[str, typer.Option("--to", help="tensorboard, wandb, mlflow or trackio.")],
    again: Annotated[
        bool, typer.Option("--again", help="Also where the run is there already: as one of its own.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Send what a run logged to a tracker: the same that `track=…` sends while it trains.

    Secrets are taken out of it. Each tracker is set up by its own variables: WANDB_MODE, MLFLOW_TRACKING_URI, …
    """
    from imprint.track.follow import replay
    from imprint.track.sinks import PACKAGES, require

    if to not in PACKAGES:
        likely = nearest(to, list(PACKAGES))
        fix = f"--to {likely}" if likely else ""
        raise UserError(
            "there is no such tracker", where="--to", found=to, expected=", ".join(PACKAGES), fix=fix
        )
    if not (run / "run.json").is_file():
        raise RunError(
            "this is not a run folder",
            where=str(run),
            expected="a folder made by imprint train",
            fix="give the folder that imprint train printed",
        )
    require(to)
    found = replay(run, to, again)
    if as_json:
        typer.echo(json.dumps({"run": str(run), "tracker": to, "id": found}))
    else:
        typer.echo(f"{to}: {run / found if to == 'tensorboard' else found}")
