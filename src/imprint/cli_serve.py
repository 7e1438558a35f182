"""The verb `imprint serve`: a model behind OpenAI's interface."""

from __future__ import annotations

import ipaddress
import os
import signal
from enum import StrEnum
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import typer

from imprint.cli_arguments import LABEL, console_for
from imprint.errors import RunError

EPILOG = (
    "Examples: imprint serve runs/base-train · imprint serve models/base --template chatml --port 0 · "
    "IMPRINT_TOKEN=… imprint serve runs/base-train --host 0.0.0.0"
)
TOKEN = "IMPRINT_TOKEN"
_NEEDED = ("fastapi", "uvicorn", "prometheus_client")


class Control(StrEnum):
    """What becomes of control tokens in the text of a request."""

    refuse = "refuse"
    escape = "escape"
    keep = "keep"


def serve(
    model: Annotated[Path, typer.Argument(metavar="RUN|MODEL", help="A run folder or a model folder.")],
    port: Annotated[
        int, typer.Option("--port", min=0, max=65535, help="0: a free one, which is told.")
    ] = 8000,
    host: Annotated[
        str, typer.Option("--host", help="Others than this machine's own need a token.")
    ] = "127.0.0.1",
    name: Annotated[str | None, typer.Option("--name", help="The model's name (its folder's).")] = None,
    adapter: Annotated[
        list[str] | None,
        typer.Option("--adapter", metavar="NAME=FOLDER", help="A LoRA adapter beside it; may be repeated."),
    ] = None,
    template: Annotated[str, typer.Option("--template", help="For a model without a template.")] = "auto",
    device: Annotated[str, typer.Option("--device", help="cpu, cuda, cuda:1 …")] = "auto",
    dtype: Annotated[
        str,
        typer.Option(
            "--dtype", help="auto (float32 on cpu, else bfloat16), float32, bfloat16, float16, int8."
        ),
    ] = "auto",
    max_running: Annotated[
        int, typer.Option("--max-running", min=1, help="Requests that are computed at once.")
    ] = 64,
    max_waiting: Annotated[
        int, typer.Option("--max-waiting", min=1, help="Requests that may wait; more get 429.")
    ] = 256,
    max_tokens: Annotated[
        int, typer.Option("--max-tokens", min=1, help="Longest reply where a request names no length.")
    ] = 4096,
    time_limit: Annotated[
        float, typer.Option("--time-limit", min=0.1, help="Seconds that a request may take.")
    ] = 600.0,
    drain: Annotated[
        float, typer.Option("--drain", min=0, help="Seconds that requests may go on after Ctrl-C.")
    ] = 30.0,
    token_env: Annotated[
        str | None,
        typer.Option("--token-env", metavar="NAME", help=f"Variable that holds the token ({TOKEN})."),
    ] = None,
    allow_origin: Annotated[
        list[str] | None, typer.Option("--allow-origin", help="A web page that may ask (CORS).")
    ] = None,
    control_tokens: Annotated[
        Control | None,
        typer.Option("--control-tokens", help="Those in the text of a request: as in training by default."),
    ] = None,
    log_requests: Annotated[
        bool, typer.Option("--log-requests", help="A line for each request; never its text.")
    ] = False,
) -> None:
    """Serve a model as OpenAI's API does, exactly as it was trained."""
    _need_extra()
    token, token_name = _token(token_env)
    adapters = _adapters(adapter or [])
    for origin in allow_origin or []:
        _refuse_no_origin(origin)

    import torch

    from imprint.serve import server
    from imprint.serve.api import make_app
    from imprint.serve.hosted import Limits
    from imprint.serve.hosting import host_of, told

    opened = server.open_port(host, port)
    try:
        if token is None and not ipaddress.ip_address(opened.getsockname()[0]).is_loopback:
            raise RunError(
                "this address is open to other machines, and there is no token",
                where=f"--host {host}",
                expected=f"a token in the environment: {TOKEN}, or the variable of --token-env",
                fix=f"export {TOKEN}=$(openssl rand -hex 24)",
            )
        console = console_for()
        console.print(f"loading {model} …", style="dim", markup=False)
        hosted = host_of(
            model,
            name=name,
            adapters=adapters,
            template=template,
            control_tokens=control_tokens.value if control_tokens else None,
            limits=Limits(seconds=time_limit, reply=max_tokens),
            device=("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device,
            dtype=dtype,
            max_running=max_running,
            max_waiting=max_waiting,
        )
    except BaseException:
        opened.close()
        raise

    def ready() -> None:
        for label, text in told(hosted, server.url_of(opened), token_name):
            # soft: a command that is broken into lines cannot be copied
            console.print(f"{label:<{LABEL - 5}} {text}", markup=False, soft_wrap=True)
        console.print("Ctrl-C stops it", style="dim")

    app = make_app(hosted, token=token, origins=allow_origin or [])
    ended_by = server.run(app, hosted, opened, drain=drain, on_ready=ready, log_requests=log_requests)
    if ended_by == signal.SIGINT:
        raise typer.Exit(130)


def _need_extra() -> None:
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        raise RunError(
            "serving needs packages that are not installed",
            found=f"no {', '.join(missing)}",
            fix="pip install 'imprint-sft[web]'",
        )


def _token(variable: str | None) -> tuple[str | None, str | None]:
    """(the token, the variable that holds it); none where no variable was named and there is none of the usual name."""
    value = os.environ.get(variable or TOKEN)
    if value is None and variable is None:
        return None, None
    if not (value and value.strip() and value.isascii() and value.isprintable()):
        raise RunError(
            "the token cannot be used",
            where=f"the environment variable {variable or TOKEN}",
            found="nothing" if not value else "characters that no HTTP header can hold, or blanks alone",
            expected="letters, digits and signs",
            fix=f"export {variable or TOKEN}=$(openssl rand -hex 24)",
        )
    return value.strip(), variable or TOKEN


def _refuse_no_origin(given: str) -> None:
    """RunError where no browser would send this as a page's origin: the option would have no effect."""
    parts = urlsplit(given)
    host = f"{parts.scheme}://{parts.netloc}".lower()
    if given not in ("*", "null") and (not (parts.scheme and parts.netloc) or given != host):
        raise RunError(
            "this is no origin of a web page",
            where=f"--allow-origin {given}",
            expected="scheme, host and port alone, as browsers send it: http://localhost:3000; or * for any page",
            fix=f"--allow-origin {host if parts.netloc else 'http://' + given.lower().strip('/')}",
        )


def _adapters(given: list[str]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for one in given:
        name, equals, folder = one.partition("=")
        if not (name and equals and folder):
            raise RunError(
                "an adapter needs a name", found=f"--adapter {one}", expected="--adapter NAME=FOLDER"
            )
        if name in found:
            raise RunError("two adapters of one name", found=f"--adapter {one}", fix="give it another name")
        found[name] = Path(folder)
    return found
