"""A run: recipe in, built objects out, trained, and left in its folder."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import torch
from safetensors import SafetensorError

from imprint import settings
from imprint.build import Built, Say, build, start_facts
from imprint.distributed.mesh import Mesh, start_mesh, stop_mesh
from imprint.errors import Interrupted, RunError, RunFailed
from imprint.evaluate.generate import answer
from imprint.evaluate.report import write_report
from imprint.folder import (
    create_folder,
    differences,
    fingerprints,
    finished,
    is_finished,
    read_facts,
    refuse_existing,
    resume_command,
    working_on,
)
from imprint.model.load import find_model
from imprint.model_facts import read_model_facts
from imprint.prepare import Prepared, overview, prepare
from imprint.recipe import Recipe
from imprint.samples import describe_sample, fixed_prompts
from imprint.save import save_model, type_on_disk
from imprint.track import events
from imprint.track.progress import Progress
from imprint.train.checkpoint import Counters, is_valid, latest_checkpoint, load_checkpoint, load_weights
from imprint.train.loop import Outcome, Watch
from imprint.train.loop import train as run_loop

# What a person sees while a run goes on: made of the number of its steps, and told each event.
Display = Callable[[int], AbstractContextManager[events.Sink]]


@dataclass(frozen=True)
class Result:
    """What a finished run leaves: its folder, and how it ended."""

    run: Path
    model: Path
    outcome: Outcome
    is_main: bool = True


def train(
    recipe: Recipe,
    say: Say = lambda _: None,
    when_prepared: Callable[[Prepared], None] = lambda _: None,
    display: Display = Progress,
) -> Result:
    """Train what `recipe` describes into a new run folder; UserError before anything is written.

    `when_prepared` is called once, with the data as it will be trained.
    """
    refuse_existing(recipe)
    read_model_facts(recipe.model, recipe.revision)  # a misspelt folder is found before the hub is asked
    folder = find_model(recipe.model, recipe.revision)
    size = int(os.environ.get("WORLD_SIZE", "1"))
    now = datetime.now().replace(microsecond=0)
    prepared = prepare(recipe, folder, now, size)
    when_prepared(prepared)
    return _with_mesh(prepared, now, None, say, display)


def resume(run: Path, say: Say = lambda _: None, display: Display = Progress) -> Result:
    """Go on with a run from its newest valid checkpoint, to the bit as if it had not stopped."""
    facts = read_facts(run)
    if is_finished(run):
        if not (run / "report.html").is_file():  # killed between its end and its report
            write_report(run)
        raise finished(run)
    recipe = settings.load(run / "recipe.yaml")
    now = datetime.fromisoformat(facts["created"])
    folder = find_model(recipe.model, recipe.revision)
    prepared = prepare(recipe, folder, now, int(os.environ.get("WORLD_SIZE", "1")))
    found = fingerprints(prepared)
    changed = [key for key, value in facts["fingerprints"].items() if found[key] != value]
    if changed:
        raise RunError(
            f"the {' and the '.join(changed)} changed since this run began",
            where=str(run),
            expected="what the run began with, so that resumed equals uninterrupted",
            fix="put it back, or begin a new run",
        )
    return _with_mesh(prepared, now, run, say, display)


def _with_mesh(prepared: Prepared, now: datetime, run: Path | None, say: Say, display: Display) -> Result:
    recipe = prepared.recipe
    assert isinstance(recipe.threads, int)
    torch.set_num_threads(recipe.threads)
    mesh = start_mesh(recipe.device)
    try:
        refuse_differences(prepared, mesh)
        agreed = mesh.agree(now)
        if agreed != now and "strftime_now" in str(prepared.rendering.template.serving):
            prepared, now = prepare(recipe, prepared.folder, agreed, mesh.size), agreed
        speak: Say = say if mesh.is_main else lambda _: None
        for part in overview(prepared):
            speak(part)
        built = build(prepared, mesh, speak)
        return _execute(prepared, built, now, run, display)
    finally:
        stop_mesh()


def refuse_differences(prepared: Prepared, mesh: Mesh) -> None:
    """RunError on every process where one of them prepared something else than the main one."""
    mine = {**fingerprints(prepared), "plan": prepared.plan}
    theirs = mesh.agree(mine)
    names = [name for name in mine if mine[name] != theirs[name]]
    if mesh.any(bool(names)):
        raise RunError(
            "the processes of this run do not see the same things",
            found=f"on process {mesh.rank}, other than on process 0: {', '.join(names) or 'nothing'}",
            expected="the same data and the same model on every machine",
            fix="copy both anew to every machine, or keep them on a shared disk",
        )


def _execute(prepared: Prepared, built: Built, now: datetime, run: Path | None, display: Display) -> Result:
    """Create or reopen the run folder, and train in it."""
    recipe, mesh = built.recipe, built.state.mesh
    fresh = run is None
    path = Path(mesh.agree(str(recipe.output))) if run is None else run
    if mesh.is_main and fresh:
        create_folder(path, prepared, recipe, now)
    mesh.wait()
    with working_on(path, mesh.is_main):
        return _go(prepared, built, path, fresh, display)


def _go(prepared: Prepared, built: Built, path: Path, fresh: bool, display: Display) -> Result:
    """Train from the newest checkpoint, or from the beginning, to the model and the report."""
    state, mesh = built.state, built.state.mesh
    counters = Counters()
    checkpoint = None if fresh else latest_checkpoint(path / "checkpoints", keeps_best(built))
    if checkpoint is not None:
        counters = load_checkpoint(checkpoint, state)
    if mesh.is_main and not fresh:
        events.rewind(path / "events.jsonl", state.step if checkpoint else -1)
    mesh.wait()
    with _open_log(path, prepared, mesh, display) as log:
        try:
            if not any(event["kind"] == "start" for event in events.read(path / "events.jsonl")):
                log.log("start", **start_facts(prepared, built))
                for note in prepared.rendering.notes:
                    log.log("note", text=note)
            if not fresh:
                log.log("resume", step=state.step)
                for text in differences(path, mesh.size):
                    log.log("note", text=text)
            outcome = run_loop(state, built.data, prepared.plan, _watch(prepared, built, path, log), counters)
            _finish(prepared, built, path, outcome, log)
        except BaseException as error:
            with suppress(OSError):  # of two errors, the first is the one to tell
                _leave(path, log, mesh)
            raise explained(error, path) from (error if isinstance(error, OSError) else None)
        _leave(path, log, mesh)
    return Result(path, path / "model", outcome, mesh.is_main)


def _leave(path: Path, log: events.EventLog, mesh: Mesh) -> None:
    log.sync()
    if mesh.is_main:
        write_report(path)


def explained(error: BaseException, path: Path) -> BaseException:
    """What the user is told where a run broke off: as it was, or with how to go on."""
    again = resume_command(path)
    if isinstance(error, Interrupted):
        return Interrupted(error.what, where=str(path), fix=again)
    if isinstance(error, OSError | SafetensorError):
        return RunFailed(
            "the run cannot write its files",
            where=str(path),
            found=str(error),
            expected="a disk with room for the model and for two checkpoints",
            fix=f"free some space, then go on from the last checkpoint: {again}",
        )
    return error


@contextmanager
def _open_log(path: Path, prepared: Prepared, mesh: Mesh, display: Display) -> Iterator[events.EventLog]:
    """The event log with the display; on other ranks than the main one, a log of nothing."""
    if not mesh.is_main:
        with tempfile.TemporaryDirectory() as nowhere, events.EventLog(Path(nowhere) / "events.jsonl") as log:
            yield log
        return
    with (
        display(prepared.plan.total_steps) as shown,
        events.EventLog(path / "events.jsonl", [shown]) as log,
    ):
        yield log


def _watch(prepared: Prepared, built: Built, path: Path, log: events.EventLog) -> Watch:
    recipe = built.recipe
    assert isinstance(recipe.validate_every, int)
    assert isinstance(recipe.save_every, int)
    asked = fixed_prompts(prepared)

    def sample(step: int) -> None:
        replies = answer(
            built.row_model,
            [turn.prompt for turn, _ in asked],
            stop_ids=prepared.rendering.stop_ids,
            max_new_tokens=recipe.sample_tokens,
        )
        for (turn, conversation), (reply, stopped) in zip(asked, replies, strict=True):
            texts = describe_sample(prepared, turn, conversation, reply)
            log.log("sample", step=step, stopped=stopped, **texts)

    return Watch(
        log=log,
        checkpoints=path / "checkpoints",
        validate_every=recipe.validate_every,
        save_every=recipe.save_every,
        patience=recipe.patience,
        min_improvement=recipe.min_improvement,
        keep_best=keeps_best(built),
        sample=sample if asked else None,
    )


def keeps_best(built: Built) -> bool:
    """Whether the run ends with the weights of its best validation."""
    return built.recipe.final == "best" and bool(built.data.validation)


def _finish(prepared: Prepared, built: Built, path: Path, outcome: Outcome, log: events.EventLog) -> None:
    """Choose the weights, save the model, log the end."""
    state, recipe, counters = built.state, built.recipe, outcome.counters
    best = recipe.final == "best" and counters.best_step > 0
    if best and counters.best_step != state.step:
        chosen = path / "checkpoints" / f"step-{counters.best_step:06d}"
        if not is_valid(chosen):
            raise RunFailed(
                "the checkpoint of the best weights was damaged on the disk",
                where=str(chosen),
                fix=f"{resume_command(path)} makes it again",
            )
        load_weights(chosen, state.model)
    kept = type_on_disk(prepared.folder)
    if recipe.method == "full" and kept != torch.float32:
        name = str(kept).removeprefix("torch.")
        log.log("note", text=f"saved in {name}, the type of the base model: the last digits are rounded off")
    save_model(built.row_model, prepared.rendering, path / "model", prepared.folder, state.mesh)
    log.log(
        "end",
        step=state.step,
        seconds=counters.seconds,
        best_step=counters.best_step or None,
        best_loss=counters.best_loss,
        model_step=counters.best_step if best else state.step,
        **(
            {"replay": counters.replayed, "replay_weight": counters.replay_weight / max(1, state.step)}
            if prepared.plan.replay
            else {}
        ),
        reason=outcome.reason,
    )
