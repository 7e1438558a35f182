"""The command line. A verb imports what it needs when it runs, so `imprint --help` is quick.

Exit codes: 0 done, 1 a run failed, 2 the user can mend the input, 130 interrupted (resumable),
141 nobody reads the output any more (`| head`).
`IMPRINT_DEBUG=1` shows the traceback of an error instead of its message.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated

import typer

from imprint import (
    __version__,
    cli_chaos,
    cli_export,
    cli_parity,
    cli_plan,
    cli_serve,
    cli_show,
    cli_track,
)
from imprint.cli_arguments import Arguments, console_for, resolved, speaker_on, wrapped
from imprint.cli_config import config
from imprint.cli_data import data
from imprint.cli_left_out import LeftOutFile, kept_apart
from imprint.errors import ImprintError, Interrupted, RunError
from imprint.redact import redactor
from imprint.signals import doing, stoppable

if TYPE_CHECKING:
    from imprint.result import Result

app = typer.Typer(
    name="imprint",
    help="Teach a model to follow instructions: supervised fine-tuning, proven step by step.",
    rich_markup_mode="rich",
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(config, name="config", help="See the settings of a run, and where each comes from.")
app.add_typer(data, name="data", help="Check data, convert it, find open sets.")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb and return or exit with its code; an ImprintError becomes a message on stderr."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # what matters of it, imprint says itself
    # read when torch loads OpenMP: threads that wait give their core away (docs/decisions/0018)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        app(args=arguments, prog_name="imprint")
    except ImprintError as error:
        if os.environ.get("IMPRINT_DEBUG") == "1":
            raise
        _print_error(error)
        return error.exit_code
    except SystemExit as leave:
        if isinstance(leave.__context__, BrokenPipeError):  # typer and rich would leave with 1
            return 141
        if leave.code == 130 and os.environ.get("RANK", "0") == "0":  # typer's for KeyboardInterrupt
            typer.echo("interrupted", err=True)
        raise
    return 0


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


@app.command(
    "demo",
    epilog="Examples: imprint demo · imprint demo --lessons · imprint demo --lessons replay epochs",
)
def demo(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="FOLDER|LESSON",
            help="Where to put it (imprint-demo, or imprint-lessons, by default); which lessons, of: masking, "
            "replay, how-many, noise, epochs, lora, template.",
        ),
    ] = None,
    lessons: Annotated[
        bool, typer.Option("--lessons", help="Small experiments, some minutes: what matters, and how much.")
    ] = False,
) -> None:
    """The whole story on a small model, on a laptop, offline."""
    given = words or []
    if lessons:
        from imprint.demo.teach import parse, teach

        teach(*parse(given), console_for())
        return
    if len(given) > 1:
        raise RunError("the demo takes one folder", found=" ".join(given), fix=f"imprint demo {given[0]}")
    from imprint.demo.lessons import LESSONS
    from imprint.demo.tell import free_folder, is_unfinished, tell

    if given and given[0] in {lesson.name for lesson in LESSONS}:
        raise RunError(
            f"{given[0]} is a lesson",
            expected="a folder, or --lessons",
            fix=f"imprint demo --lessons {given[0]}, or imprint demo ./{given[0]} for a folder of this name",
        )
    where = Path(given[0]) if given else free_folder()
    if where.exists() and not is_unfinished(where):
        raise RunError(
            "the folder exists already", where=str(where), fix="choose another: imprint demo FOLDER"
        )
    tell(where, console_for())


app.command("show", epilog=cli_show.EPILOG)(cli_show.show)
app.command("plan", epilog=cli_plan.EPILOG)(cli_plan.plan)


@app.command(
    "train",
    epilog="Examples: imprint train model=models/base data=train.jsonl · "
    "imprint train recipe.yaml method=lora lora.rank=8",
)
def train(
    arguments: Arguments = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
    left_out: LeftOutFile = None,
) -> None:
    """Train a model on demonstrations, into a new run folder.

    Every setting is a line of RECIPE or a KEY=VALUE; model=… and data=… are enough.
    `imprint config show` lists them all.
    """
    with stoppable():
        recipe = resolved(arguments).recipe
        from imprint.run import train as run_train

        with kept_apart(left_out, recipe) as keep, _told_all_the_same(as_json):
            result = run_train(
                recipe,
                speaker_on(console_for(stderr=True)),
                lambda prepared: keep(prepared.recipe, prepared.rendering),
            )
    _print_result(result, as_json)


@app.command(
    "resume",
    epilog="Examples: imprint resume runs/base-train · imprint resume runs/base-train save_every=10 · "
    "imprint resume runs/base-train learning_rate=1e-4 --force-changed learning_rate",
)
def resume(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The run folder.")],
    given: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Settings that it goes on with.")
    ] = None,
    force: Annotated[
        list[str] | None,
        typer.Option(
            "--force-changed",
            metavar="KEY",
            help="Accept that this changed, and with it the updates: a setting, "
            "or data, replay, model, template; checkpoints: begin again where none verifies.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Go on with a run that was stopped or killed, to the bit as if it had not been."""
    with stoppable():
        doing("imprint was starting", "the run is as it was", f"imprint resume {quote(str(run))}")
        from imprint.run import resume as run_resume

        speak = speaker_on(console_for(stderr=True))
        with _told_all_the_same(as_json):
            result = run_resume(run, speak, given=given or (), force=force or ())
    _print_result(result, as_json)


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
    """Talk to a model, as it will be served. Replies stream; /help lists what can be typed, Ctrl-D leaves."""
    from imprint.serve.terminal import talk

    talk(
        model,
        console_for(),
        compare=compare,
        prompt=prompt,
        system=system,
        template=template,
        max_new_tokens=max_tokens,
        temperature=temperature,
        seed=seed,
    )


app.command("export", epilog=cli_export.EPILOG)(cli_export.export)
app.command("parity", epilog=cli_parity.EPILOG)(cli_parity.parity)
app.command("serve", epilog=cli_serve.EPILOG)(cli_serve.serve)


app.command("track", epilog=cli_track.EPILOG)(cli_track.track)
app.command("chaos", epilog=cli_chaos.EPILOG)(cli_chaos.chaos)


@contextmanager
def _told_all_the_same(as_json: bool) -> Iterator[None]:
    """The result of a run that lacks nothing but exports is printed before the error that says so."""
    from imprint.result import ExportsFailed

    try:
        yield
    except ExportsFailed as error:
        _print_result(error.result, as_json)
        raise


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
    notes = console_for(stderr=True)
    notes.print(f"report  {result.run / 'report.html'}", soft_wrap=True)
    notes.print(f"talk    imprint chat {result.run}", soft_wrap=True)
    typer.echo(str(result.run))


def _print_error(error: ImprintError) -> None:
    """The message on stderr. Under torchrun the main process tells it all, the others a line each."""
    from rich.text import Text

    console, rank = console_for(stderr=True), os.environ.get("RANK", "0")
    if rank == "0":
        told = redactor()(f"error {error}")
        told = wrapped(told, console.width) if console.is_terminal else told
        message = Text.assemble(("error ", "bold red"), told.removeprefix("error "))
    elif isinstance(error, Interrupted):
        return
    else:
        where = f"{error.where}: " if error.where else ""
        message = Text(redactor()(f"process {rank}: {where}{error.what}"))
    console.print(message, soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main())
