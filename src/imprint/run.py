"""A run: recipe in, built objects out, trained, and left in its folder."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from imprint import exports
from imprint.build import Built, build, start_facts
from imprint.build_model import Say
from imprint.changes import (
    CHECKPOINTS,
    TakenUp,
    accept,
    changed_inputs,
    check_forced,
    other_inputs,
    refuse_to_begin_again,
    taken_up,
    told_changes,
)
from imprint.disk import is_full
from imprint.distributed.mesh import Mesh, start_mesh, stop_mesh
from imprint.ending import finish, keeps_best, leave, report_late
from imprint.errors import RecipeError, RunError, RunFailed
from imprint.evaluate.generate import answer
from imprint.folder import (
    about,
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
from imprint.mishaps import explained, is_lost, lost, passed_over, validated
from imprint.model.load import find_model
from imprint.model_facts import read_model_facts
from imprint.planning.outlook import planned
from imprint.prepare import Prepared, kept_together, overview, prepare
from imprint.recipe import Recipe
from imprint.rehearse import rehearse_run, settle
from imprint.result import ExportsFailed, Result
from imprint.samples import describe_sample, fixed_prompts
from imprint.settings import amend
from imprint.signals import Stopped, doing, stoppable
from imprint.track import events
from imprint.track.follow import following
from imprint.track.progress import Progress
from imprint.track.sinks import require
from imprint.train.allocation import keep_freed_memory
from imprint.train.checkpoint import Counters, latest_checkpoint, load_checkpoint
from imprint.train.loop import Outcome, Watch
from imprint.train.loop import train as run_loop

# What a person sees while a run goes on: made of the number of its steps, and told each event.
Display = Callable[[int], AbstractContextManager[events.Sink]]


def train(
    recipe: Recipe,
    say: Say = lambda _: None,
    when_prepared: Callable[[Prepared], None] = lambda _: None,
    display: Display = Progress,
) -> Result:
    """Train what `recipe` describes into a new run folder; UserError before anything is written.

    `when_prepared` is called once, with the data as it will be trained.
    """
    with stoppable():
        doing("the data was read and tokenised", "nothing was begun", "give the same command again")
        refuse_existing(recipe)
        require(recipe.track)
        exports.check(recipe.export)
        read_model_facts(recipe.model, recipe.revision)  # a misspelt folder is found before the hub is asked
        folder = find_model(recipe.model, recipe.revision)
        size = int(os.environ.get("WORLD_SIZE", "1"))
        now = datetime.now().replace(microsecond=0)
        prepared = prepare(recipe, folder, now, size)
        when_prepared(prepared)
        exports.foresee(prepared)
        return exported(_with_mesh(prepared, now, None, say, display), recipe, say)


def resume(
    run: Path,
    say: Say = lambda _: None,
    display: Display = Progress,
    given: Sequence[str] = (),
    force: Collection[str] = (),
) -> Result:
    """Go on with a run from its newest valid checkpoint, to the bit as if it had not stopped.

    `given` are settings (`key=value`) that it goes on with, `force` the keys of those that change the updates, and
    of inputs (data, replay, model, template) that may be other than they were. RunError for any other, and where
    none of its checkpoints verifies, unless `force` names `checkpoints`: then it begins again.
    """
    with stoppable():
        doing("the data was read and tokenised", "the run is as it was", resume_command(run))
        facts = read_facts(run)
        if is_finished(run):
            return _after_its_end(run, facts, say, changed=bool(given or force))
        check_forced(force)
        recipe, changes, kept = taken_up(run, given, force)
        require(recipe.track)
        try:
            exports.check(recipe.export)
        except RecipeError as error:  # a machine that lacks a tool can train all the same
            say(f"warning: {error}\nwarning: it goes on; what is missing at its end can be made afterwards")
        now = datetime.fromisoformat(facts["created"])
        folder = find_model(recipe.model, recipe.revision)
        prepared = prepare(recipe, folder, now, int(os.environ.get("WORLD_SIZE", "1")))
        found = fingerprints(prepared)
        if found != facts["fingerprints"]:
            differing = other_inputs(run, facts, prepared)
            changes += changed_inputs(run, facts, found, force, differing)
        return exported(
            _with_mesh(prepared, now, TakenUp(run, changes, kept, CHECKPOINTS in force), say, display),
            recipe,
            say,
        )


def _after_its_end(run: Path, facts: Mapping[str, Any], say: Say, changed: bool) -> Result:
    """What a run that was stopped after its end lacks: its report, its exports. RunError where it lacks nothing."""
    reported = report_late(run, say)
    recipe = amend(run / "recipe.yaml", facts.get("given", []))
    if changed or not exports.missing(run, recipe.export):
        raise finished(run, reported)
    end = next(event for event in events.read(run / "events.jsonl") if event["kind"] == "end")
    counters = Counters(end["best_loss"], end["best_step"] or 0, seconds=end["seconds"])
    is_main = os.environ.get("RANK", "0") == "0"
    return exported(Result(run, run / "model", Outcome(counters, end["reason"]), is_main), recipe, say)


def exported(result: Result, recipe: Recipe, say: Say) -> Result:
    """The same, when the exports that the recipe asks for are made; ExportsFailed where some are not."""
    if result.is_main and exports.missing(result.run, recipe.export):
        failed = exports.make_exports(result.run, recipe.export, say)
        if failed:
            raise ExportsFailed(result, failed)
    return result


def _with_mesh(prepared: Prepared, now: datetime, run: TakenUp | None, say: Say, display: Display) -> Result:
    recipe = prepared.recipe
    assert isinstance(recipe.threads, int)
    torch.set_num_threads(recipe.threads)
    if recipe.device == "cpu":
        keep_freed_memory()
    safe, again = _stands(run.path if run else None)
    doing("the model was loaded and checked", safe, again)
    mesh = start_mesh(recipe.device)
    try:
        refuse_differences(prepared, mesh)
        agreed = mesh.agree(now)
        if agreed != now and "strftime_now" in str(prepared.rendering.template.serving):
            prepared, now = prepare(recipe, prepared.folder, agreed, mesh.size), agreed
        speak: Say = say if mesh.is_main else lambda _: None
        for part in overview(prepared):
            speak(part)
        foretold = planned(prepared) if run is None and mesh.is_main else {}
        built = build(prepared, mesh, speak, fresh=run is None)
        built.planned = foretold
        if run is None:
            settle(built)
        return _execute(prepared, built, now, run, display)
    except RuntimeError as error:
        if is_lost(error):
            raise lost(error, again) from None
        raise
    finally:
        stop_mesh()


def _stands(run: Path | None) -> tuple[str, str]:
    """What stands where a run is stopped before it trains, and how to go on."""
    if run is None:
        return "nothing was begun", "give the same command again"
    return "the run is as it was", resume_command(run)


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


def _execute(
    prepared: Prepared, built: Built, now: datetime, run: TakenUp | None, display: Display
) -> Result:
    """Create or reopen the run folder, and train in it."""
    recipe, mesh = built.recipe, built.state.mesh
    fresh = run is None
    path = Path(mesh.agree(str(recipe.output))) if run is None else run.path
    if mesh.is_main and fresh:
        create_folder(path, prepared, recipe, now)
    mesh.wait()
    doing("the run was opened", "it is as it was, or at its beginning", resume_command(path))
    try:
        with working_on(path, mesh.is_main):
            return _go(prepared, built, path, run, display)
    except (OSError, SafetensorError) as error:
        raise explained(error, path) from error


def _go(prepared: Prepared, built: Built, path: Path, run: TakenUp | None, display: Display) -> Result:
    """Train from the newest checkpoint, or from the beginning, to the model and the report."""
    state, mesh, fresh = built.state, built.state.mesh, run is None
    counters = Counters()
    mine = about(path, prepared) if mesh.is_main or not fresh else {}
    folder = path / "checkpoints"
    checkpoint = None if fresh else latest_checkpoint(folder, keeps_best(built), mine)
    if checkpoint is not None:
        counters = load_checkpoint(checkpoint, state)
    elif run is not None:
        refuse_to_begin_again(run, passed_over(folder, None, mine).get("passed_over", {}))
    if run is not None and run.changes:
        accept(run, prepared, state, counters)
    if mesh.is_main and not fresh:
        events.rewind(path / "events.jsonl", state.step if checkpoint else -1)
    mesh.wait()
    with _open_log(path, prepared, mesh, display) as log:
        try:
            if not any(event["kind"] == "start" for event in events.read(path / "events.jsonl")):
                log.log("start", **start_facts(prepared, built))
                for note in (*prepared.rendering.notes, *built.notes, *kept_together(prepared.plan)):
                    log.log("note", text=note)
            if not fresh:
                log.log("resume", step=state.step, **validated(path), **passed_over(folder, checkpoint, mine))
                for text in (*differences(path, mesh.size), *told_changes(run)):
                    log.log("note", text=text)
            watch = _watch(prepared, built, path, log)
            if fresh:
                doing("it was rehearsed", "no weight has changed", resume_command(path))
                rehearse_run(prepared, built, path, watch, counters, log)
            doing("it trained", "the last checkpoint is whole", resume_command(path))
            outcome = run_loop(state, built.data, prepared.plan, watch, counters)
            finish(prepared, built, path, outcome, log)
        except BaseException as error:
            if not (isinstance(error, Stopped) and error.second):
                log.patient = log.patient and not is_full(error)  # it was waited for already
                with suppress(OSError, RunFailed):  # of two errors, the first is the one to tell
                    leave(path, log, mesh)
            raise explained(error, path) from (error if isinstance(error, OSError) else None)
        doing("the report was written", "the model is saved", resume_command(path))
        leave(path, log, mesh)
    return Result(path, path / "model", outcome, mesh.is_main)


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
        following(path, str(read_facts(path).get("id", path.name)), require(prepared.recipe.track), log),
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
        on_nonfinite=recipe.on_nonfinite,
        about=about(path, prepared) if built.state.mesh.is_main else {},
    )
