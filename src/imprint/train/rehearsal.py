"""A rehearsal: all that a run will do, once and small, before its first step. Then all of it is undone.

The heaviest row of the run goes forward and backward and the optimizer steps, rows are validated, a prompt is
answered, a checkpoint is written, read back and removed, and so are the model and its exports. What will not fit
later fails here, in its first minute. What each part took tells how long the run will take, and how much of the disk.
Weights, optimizer and random numbers are afterwards what they were, bit for bit.
"""

from __future__ import annotations

import copy
import math
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from imprint.distributed.mesh import Mesh
from imprint.errors import RunError
from imprint.pack.cost import Cost
from imprint.pack.plan import Plan
from imprint.pack.row import Row
from imprint.render.turns import Turn
from imprint.track.words import duration, size
from imprint.train.budget import Budget, no_room
from imprint.train.checkpoint import Counters, load_checkpoint, save_checkpoint, trained_tensors
from imprint.train.data import Data
from imprint.train.loop import Watch, peak_bytes, seed_noise, tell
from imprint.train.optim import parts
from imprint.train.shortage import OutOfMemory, release
from imprint.train.step import TrainState, evaluate, train_step

SHORT = 120.0  # seconds of a run that needs no rehearsal
PART = 0.1  # of the predicted run that a rehearsal may take, where it could take less
LONGEST = 60.0  # seconds
TRIED = 8  # tokens of each answer that is tried
BESIDE = 0.2  # of the seconds that a checkpoint takes, training loses where it is written beside it
LOOKED_AT = 24  # steps that are searched for the heaviest row, beside that of the longest turn
TIMED = 4  # steps whose rows are computed to tell the time
CHECKPOINTS = (
    4  # that may lie on the disk at one time: the best, the last, one before them, one being written
)


@dataclass(frozen=True)
class Stages:
    """What is rehearsed beside the steps; each is what the run itself calls."""

    generate: Callable[[int], None] | None = None  # answers the fixed prompts with at most so many tokens
    sample_tokens: int = 1  # of the run's own answers, at most
    save_model: Callable[[Path], None] | None = None  # every rank calls it
    # by name: writes an export of a model folder into a new one; the bytes that lie beside it meanwhile
    exports: Mapping[str, Callable[[Path, Path], int]] = field(default_factory=dict)


@dataclass
class Rehearsed:
    """What a rehearsal found: seconds of each stage, and what follows for the run."""

    stages: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    predicted_seconds: float = 0.0
    peak_bytes: int = 0
    disk_bytes: int = 0
    free_disk: int = 0
    row_tokens: int = 0

    def __str__(self) -> str:
        return (
            f"rehearsed in {duration(self.seconds)}, everything once: the run will take about "
            f"{duration(self.predicted_seconds)}, {size(self.peak_bytes)} of memory at its peak and "
            f"{size(self.disk_bytes)} of the {size(self.free_disk)} that are free on the disk"
        )


def rehearse(
    state: TrainState, data: Data, plan: Plan, watch: Watch, counters: Counters, stages: Stages, folder: Path
) -> Rehearsed:
    """Do everything once and undo it; RunError or RunFailed where something would not fit later.

    Every rank calls this before the first step. `folder` is written into and removed; it must not exist.
    """
    assert state.step == 0, "a rehearsal comes before the first step"
    assert not state.optimizer.state, "what the optimizer holds would be lost"
    begun = time.perf_counter()
    made = Rehearsed()
    cost = data.cost or Cost()
    with undone(state):
        chosen = steps_to_look_at(data, plan)
        _rehearse_heaviest(state, data, plan, watch, counters, chosen, made)
        made.row_tokens = counters.row_tokens
        per_step = _time_steps(state, data, plan, counters, cost, begun, made)
        looks = _rehearse_looks(state, data, stages, made)
    with undone(state):
        saving = _rehearse_saving(state, counters, stages, folder, made)
    validations = 1 + math.ceil(plan.total_steps / watch.validate_every)
    saves = math.ceil(plan.total_steps / watch.save_every)
    made.predicted_seconds = (
        per_step * plan.total_steps + looks * validations + saving * ((saves - 1) * BESIDE + 1)
        + sum(seconds for name, seconds in made.stages.items() if name == "model" or name.startswith("export "))
    )  # fmt: skip
    made.peak_bytes = peak_bytes(state.device)
    made.seconds = time.perf_counter() - begun
    made.free_disk = shutil.disk_usage(folder.parent).free
    if state.mesh.any(made.disk_bytes > made.free_disk):
        raise no_disk(folder.parent, made.disk_bytes, made.free_disk)
    return made


def no_disk(folder: Path, needed: float, free: float) -> RunError:
    """The error where checkpoints and model would not fit on the disk."""
    return RunError(
        "the disk has no room for this run",
        where=str(folder),
        found=f"{size(free)} free",
        expected=f"{size(needed)}, for {CHECKPOINTS} checkpoints at the most, the model and its exports",
        fix="free some space, choose another output=…, or train adapters: method=lora",
    )


@contextmanager
def undone(state: TrainState) -> Iterator[None]:
    """Whatever is done inside, weights, optimizer, step and random numbers are afterwards what they were."""
    trained = [p for p in state.model.parameters() if p.requires_grad]
    kept = [p.detach().clone() for p in trained]
    rates = [group["lr"] for group in state.optimizer.param_groups]
    scale = copy.copy(state.loss_scale)
    step, training = state.step, state.model.training
    devices = [state.device] if state.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices, enabled=state.device.type != "mps"):
        try:
            yield
        finally:
            with torch.no_grad():
                for parameter, before in zip(trained, kept, strict=True):
                    parameter.copy_(before)
            state.optimizer.zero_grad(set_to_none=True)
            for optimizer in parts(state.optimizer):
                optimizer.state.clear()
            for group, rate in zip(state.optimizer.param_groups, rates, strict=True):
                group["lr"] = rate
            state.loss_scale = scale
            state.step = step
            state.model.train(training)
            release(state.device)


def steps_to_look_at(data: Data, plan: Plan) -> list[int]:
    """Steps spread over the run, and the first one that holds the longest turn."""
    spread = np.linspace(0, plan.total_steps - 1, min(LOOKED_AT, plan.total_steps))
    steps = {int(step) for step in spread}
    longest = max(
        range(len(data.train)), key=lambda i: max((len(turn) for turn in data.train[i]), default=0), default=0
    )
    for step in range(min(plan.steps_per_epoch, plan.total_steps)):
        if longest in plan.conversations(step):
            steps.add(step)
            break
    return sorted(steps)


def _rehearse_heaviest(
    state: TrainState,
    data: Data,
    plan: Plan,
    watch: Watch,
    counters: Counters,
    steps: Sequence[int],
    made: Rehearsed,
) -> None:
    """The row that takes most memory, and an update with it; where it has no room, rows become shorter."""
    begun = time.perf_counter()
    budget = Budget(watch.checkpoints / "rows.json", state.model, counters, data.row_tokens)
    mesh = state.mesh
    while True:
        found = [(row.num_tokens, number, index) for number, step in enumerate(steps)
                 for index, row in enumerate(_rows(data, plan, step, mesh, budget.row_tokens))]  # fmt: skip
        _, number, index = mesh.agree(max(found))
        step = steps[number]
        rows = _rows(data, plan, step, mesh, budget.row_tokens)[index : index + 1]
        seed_noise(plan.seed, 0, mesh.rank)
        try:
            train_step(state, rows)
            break
        except OutOfMemory as error:
            row, said = error.row, error.said
        state.optimizer.zero_grad(set_to_none=True)
        release(state.device)
        turns = _turns(data, plan, step)
        change = budget.lower(1, row.num_tokens, turns, data.layout)
        if change is None:
            raise no_room(step + 1, row, said, turns)
        tell(watch, change)
    made.stages["heaviest row"] = time.perf_counter() - begun


def _rows(data: Data, plan: Plan, step: int, mesh: Any, row_tokens: int) -> list[Row]:
    return data.rows(plan.conversations(step), plan.drawn(step), mesh.rank, mesh.size, row_tokens).rows


def _turns(data: Data, plan: Plan, step: int) -> list[Turn]:
    return data.turns(plan.conversations(step), plan.drawn(step))[0]


def _time_steps(
    state: TrainState,
    data: Data,
    plan: Plan,
    counters: Counters,
    cost: Cost,
    begun: float,
    made: Rehearsed,
) -> float:
    """Seconds of a mean update: some are made, and what they took is put in proportion to what all of them cost."""
    started = time.perf_counter()
    spread = [int(s) for s in np.linspace(0, plan.total_steps - 1, min(LOOKED_AT, plan.total_steps))]
    rows = {step: _rows(data, plan, step, state.mesh, counters.row_tokens) for step in dict.fromkeys(spread)}
    laying = (time.perf_counter() - started) / len(rows)
    costs = {step: sum(cost.of_row(row) for row in made_) for step, made_ in rows.items()}
    mean = sum(costs.values()) / len(costs)
    typical = sorted(costs, key=lambda step: costs[step])
    middle = typical[len(typical) // 2 :] + typical[: len(typical) // 2]
    timed: list[tuple[float, float]] = []
    for step in middle[:TIMED]:
        seed_noise(plan.seed, step, state.mesh.rank)
        stats = train_step(state, rows[step])
        timed.append((costs[step], stats.seconds))
        rate = sum(seconds for _, seconds in timed) / max(1.0, sum(c for c, _ in timed))
        limit = min(LONGEST / 2, PART * rate * mean * plan.total_steps)
        if state.mesh.any(time.perf_counter() - begun > limit):
            break
    made.stages["updates"] = time.perf_counter() - started
    return rate * mean + laying


def _rehearse_looks(state: TrainState, data: Data, stages: Stages, made: Rehearsed) -> float:
    """Seconds of one validation with its samples."""
    begun = time.perf_counter()
    total = 0.0
    for rows in (data.validation, data.held_out):
        if state.mesh.any(bool(rows)):
            some = sorted(rows, key=lambda row: -row.num_tokens)[:2]
            evaluate(state, some)
            share = sum(row.num_tokens for row in rows) / max(1, sum(row.num_tokens for row in some))
            total += (time.perf_counter() - begun) * share
            begun = time.perf_counter()
    made.stages["validation"] = total
    if stages.generate is not None:
        made.stages["samples"] = _seconds_of_samples(stages.generate, stages.sample_tokens)
        total += made.stages["samples"]
    return total


def _seconds_of_samples(generate: Callable[[int], None], tokens: int) -> float:
    """Seconds of the answers: their first token takes the prompts, and each other one as long as the next."""
    seconds = {}
    for tried in sorted({1, min(TRIED, tokens)}, reverse=True):
        begun = time.perf_counter()
        generate(tried)
        seconds[tried] = time.perf_counter() - begun
    most = max(seconds)
    each = max(0.0, seconds[most] - seconds[1]) / max(1, most - 1)
    return seconds[1] + each * (tokens - 1)


def _rehearse_saving(
    state: TrainState, counters: Counters, stages: Stages, folder: Path, made: Rehearsed
) -> float:
    """Seconds of a checkpoint; it is read back into the state, and the model is saved, all in `folder`."""
    mesh = state.mesh
    try:
        begun = time.perf_counter()
        for parameter in (p for p in state.model.parameters() if p.requires_grad):
            parameter.grad = torch.zeros_like(parameter)
        state.optimizer.step()  # its state is then as large as it will be
        state.optimizer.zero_grad(set_to_none=True)
        before = {name: value.clone() for name, value in trained_tensors(state.model).items()}
        path = save_checkpoint(folder / "checkpoints", state, counters, set())
        seconds = time.perf_counter() - begun
        load_checkpoint(path, state)
        after = trained_tensors(state.model)
        if mesh.any(any(not torch.equal(before[name], after[name]) for name in before)):
            raise RunError(
                "a checkpoint that was read back is not what was written",
                where=str(path),
                fix="check this disk: nothing that is saved on it can be relied on",
            )
        checkpoint = _bytes_in(path) if mesh.is_main else 0
        model = 0
        made.stages["checkpoint"] = time.perf_counter() - begun
        if stages.save_model is not None:
            begun = time.perf_counter()
            stages.save_model(folder / "model")
            made.stages["model"] = time.perf_counter() - begun
            model = _bytes_in(folder / "model") if mesh.is_main else 0
        exports = _rehearse_exports(stages, folder, mesh, made)
        made.disk_bytes = int(mesh.agree(CHECKPOINTS * checkpoint + model + exports))
        return seconds
    finally:
        mesh.wait()
        if mesh.is_main:
            shutil.rmtree(folder, ignore_errors=True)


def _rehearse_exports(stages: Stages, folder: Path, mesh: Mesh, made: Rehearsed) -> int:
    """Bytes of all exports, and of the most that lies beside one of them while it is made.

    The main process makes them; where it cannot, every rank raises what it met.
    """
    num_bytes, most = 0, 0
    for name, make in stages.exports.items():
        begun, fault, beside = time.perf_counter(), None, 0
        if mesh.is_main:
            try:
                beside = make(folder / "model", folder / name)
            except RunError as error:
                fault = error
        fault = mesh.agree(fault)
        if fault is not None:
            raise fault
        made.stages[f"export {name}"] = time.perf_counter() - begun
        if mesh.is_main:
            most = max(most, beside)
            num_bytes += _bytes_in(folder / name)
    return num_bytes + most


def _bytes_in(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
