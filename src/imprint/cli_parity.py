"""The verb `imprint parity`: does what is served say what was trained?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from imprint.cli_arguments import AsJson, console_for
from imprint.errors import UserError

EPILOG = (
    "Examples: imprint parity runs/base-train · imprint parity runs/base-train runs/base-train/export/hf · "
    "imprint parity runs/base-train --url http://127.0.0.1:8000/v1"
)


def parity(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The run folder, with its golden.json.")],
    folder: Annotated[
        Path | None,
        typer.Argument(
            metavar="[FOLDER]", help="A folder for transformers (the run's own model by default)."
        ),
    ] = None,
    url: Annotated[
        str | None, typer.Option("--url", help="A server with OpenAI's API: http://127.0.0.1:8000/v1")
    ] = None,
    model: Annotated[str, typer.Option("--model", help="Which of the server's models.")] = "",
    kind: Annotated[
        str | None,
        typer.Option(
            "--weights",
            help="The type of the server's weights, which says how near it must be (float32 by default).",
        ),
    ] = None,
    device: Annotated[
        str | None, typer.Option("--device", help="Where a folder is loaded: cpu (by default) or cuda.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Ask a copy of the model what the trained one was asked, and compare: ids, probabilities, replies, stops.

    Exit code 1 where it does not say the same. A server's key is read from IMPRINT_API_KEY.
    """
    from imprint.export.verdict import BARS, in_words
    from imprint.parity_run import compare_endpoint, compare_folder

    if url is not None and folder is not None:
        raise UserError(
            "a folder or a server, not both", found=f"{folder} and --url {url}", fix="leave one away"
        )
    if url is None and model:
        raise UserError("--model names a model of a server", found="no --url", fix="give --url too")
    if url is None and kind is not None:
        raise UserError(
            "--weights is of a server: a folder's files say their type", found="no --url", fix="leave it away"
        )
    if url is not None and device is not None:
        raise UserError(
            "--device is of a folder: a server chooses its own", found=f"--url {url}", fix="leave it away"
        )
    if kind is not None and kind not in BARS:
        raise UserError("there is no such type", where="--weights", found=kind, expected=", ".join(BARS))
    if url is not None:
        found, written = compare_endpoint(run, url, model, kind or "float32"), None
    else:
        found, written = compare_folder(run, folder, device or "cpu")
    if as_json:
        typer.echo(json.dumps(found.to_json(), ensure_ascii=False))
    else:
        console = console_for()
        console.print(in_words(found), style=None if found.equal else "red", markup=False)
        for note in found.notes:
            console.print(f"note  {note}", markup=False, style="dim")
        if written is not None:
            console.print(f"written to {written}", markup=False, soft_wrap=True, style="dim")
    if not found.equal:
        raise typer.Exit(1)
