"""Whether a run is rehearsed before its first step, and with what."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from imprint.auto import Decision
from imprint.build import Built
from imprint.evaluate.generate import answer
from imprint.exports import name_of, trial
from imprint.prepare import Prepared
from imprint.samples import fixed_prompts
from imprint.save import save_model
from imprint.track import events
from imprint.track.words import duration
from imprint.train.checkpoint import Counters
from imprint.train.loop import Watch
from imprint.train.rehearsal import CHECKPOINTS, SHORT, Rehearsed, Stages, no_disk, rehearse


def rehearse_run(
    prepared: Prepared, built: Built, path: Path, watch: Watch, counters: Counters, log: events.EventLog
) -> None:
    """Rehearse a new run as its recipe says; what was found goes into the log. Every rank calls this.

    Also without a rehearsal it is checked that the disk has room for what is surely written.
    """
    mesh = built.state.mesh
    trained = sum(p.numel() for p in built.row_model.parameters() if p.requires_grad)
    least, free = 12 * 2 * trained, shutil.disk_usage(path).free  # two checkpoints: one is, one is written
    if mesh.any(least > free):
        raise no_disk(path, 12 * CHECKPOINTS * trained, free)
    if not built.recipe.rehearse:
        return
    parts = stages(prepared, built, path)
    found = rehearse(built.state, built.data, prepared.plan, watch, counters, parts, path / "rehearsal")
    log.log("rehearsal", text=str(found), **facts_of(found))


def settle(built: Built) -> None:
    """Decide, on each rank alike, whether the run is rehearsed: where the recipe leaves it open, by its length."""
    if built.recipe.rehearse != "auto":
        return
    seconds = built.state.mesh.agree(built.planned.get("seconds", 0.0))
    value, why = seconds >= SHORT, f"the run is forecast to take {duration(seconds)}"
    built.recipe = built.recipe.model_copy(update={"rehearse": value})
    built.decisions.append(Decision("rehearse", value, why))


def stages(prepared: Prepared, built: Built, run: Path) -> Stages:
    """The run's own ways to answer prompts, to save its model, and to export it."""
    recipe, state = built.recipe, built.state
    asked = fixed_prompts(prepared)

    def generate(tokens: int) -> None:
        prompts = [turn.prompt for turn, _ in asked]
        answer(built.row_model, prompts, stop_ids=prepared.rendering.stop_ids, max_new_tokens=tokens)

    def save(place: Path) -> None:
        save_model(built.row_model, prepared.rendering, place, prepared.folder, state.mesh)

    exports = {name_of(export): trial(prepared, run, export) for export in recipe.export}
    return Stages(generate if asked else None, recipe.sample_tokens, save, exports)


def facts_of(found: Rehearsed) -> dict[str, Any]:
    return {name: getattr(found, name) for name in type(found).__dataclass_fields__}
