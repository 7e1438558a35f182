"""The end of a run: its weights chosen, its model saved, what it says frozen, its report written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from imprint.build import Built
from imprint.build_model import Say
from imprint.disk import is_valid, patiently
from imprint.distributed.mesh import Mesh
from imprint.errors import RunFailed
from imprint.evaluate.report import write_report
from imprint.folder import resume_command
from imprint.freeze import freeze
from imprint.prepare import Prepared
from imprint.save import save_model, type_on_disk
from imprint.signals import doing
from imprint.track import events
from imprint.train.checkpoint import load_weights
from imprint.train.loop import Outcome


def keeps_best(built: Built) -> bool:
    """Whether the run ends with the weights of its best validation."""
    return built.recipe.final == "best" and bool(built.data.validation)


def finish(prepared: Prepared, built: Built, path: Path, outcome: Outcome, log: events.EventLog) -> None:
    """Choose the weights, save the model, freeze what it says, log the end."""
    state, recipe, counters = built.state, built.recipe, outcome.counters
    best = keeps_best(built) and counters.best_step > 0
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
    doing("the model was saved", "every step is done and saved", resume_command(path))
    save_model(built.row_model, prepared.rendering, path / "model", prepared.folder, state.mesh, log.tell)
    for text in freeze(prepared, built, path, log.wait_for_room):
        log.log("note", text=text)
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


def leave(path: Path, log: events.EventLog, mesh: Mesh) -> None:
    """Everything that was logged is on the disk, and the report tells it."""
    log.sync()
    if mesh.is_main:
        save_report(path, log.wait_for_room)


def report_late(run: Path, say: Say) -> bool:
    """Write the report of a run that was killed, or found no room, between its end and its report."""
    report = run / "report.html"
    if report.is_file() and report.stat().st_mtime >= (run / "events.jsonl").stat().st_mtime:
        return False
    save_report(run, lambda write: patiently(write, say))
    return True


def save_report(path: Path, patient: Callable[[Callable[[], object]], object]) -> None:
    """Write the report, by what is `patient` where the disk is full; RunFailed where it stays so."""
    try:
        patient(lambda: write_report(path))
    except OSError as error:
        again = resume_command(path)
        raise RunFailed(
            "the report cannot be written; all else of the run is on the disk",
            where=str(path / "report.html"),
            found=str(error),
            fix=f"free some space; {again} writes it",
        ) from error
