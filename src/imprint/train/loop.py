"""The loop: steps, validations, checkpoints, and a kind end whatever happens."""

from __future__ import annotations

import hashlib
import math
import resource
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch

from imprint.disk import is_full
from imprint.errors import Interrupted, RunFailed
from imprint.pack.plan import Plan
from imprint.pack.sides import share_out_by_side
from imprint.render.turns import Turn
from imprint.signals import Stopped, stop_signals
from imprint.train.budget import NAMED, Budget, Change, no_room, others_wait
from imprint.train.checkpoint import Counters
from imprint.train.data import Data, StepRows
from imprint.train.shortage import OutOfMemory, release
from imprint.train.step import NotFinite, StepStats, TrainState, evaluate, train_step
from imprint.train.writer import Writer

MOST_ALONE = 1_000  # turns that are computed one by one, to find what is not finite in them
MOST_SKIPPED = 5  # updates, one after another, that are not finite and left out


class Log(Protocol):
    """Where the loop reports: the event log, and whatever follows it."""

    def log(self, kind: str, **fields: Any) -> None: ...
    def sync(self) -> None: ...


@dataclass(frozen=True)
class Watch:
    """When the loop looks up from its steps, and what it does then."""

    log: Log
    checkpoints: Path
    validate_every: int
    save_every: int
    patience: int | None = None
    min_improvement: float = 0.0
    keep_best: bool = True
    sample: Callable[[int], None] | None = None  # writes answers to the fixed prompts at a step
    on_nonfinite: str = "stop"  # or "skip"
    about: Mapping[str, Any] = field(default_factory=dict)  # what each checkpoint's manifest says of the run


@dataclass
class Outcome:
    """How a run ended."""

    counters: Counters
    reason: str = field(default="all steps done")


def train(state: TrainState, data: Data, plan: Plan, watch: Watch, counters: Counters) -> Outcome:
    """Train from `state.step` to the plan's last step, or until early stopping; Interrupted on a signal.

    However it ends, but by a second signal, what was to be written is then on the disk and verified.
    """
    writer = Writer(watch.checkpoints, watch.about, watch.log, state.mesh)
    try:
        with stop_signals() as stopping:
            outcome = steps(state, data, plan, watch, counters, writer, stopping)
            writer.finish()
            if state.mesh.any(bool(stopping)):  # in the last step: what is left to do may take long
                raise interrupted(state, plan, watch, stopping)
        return outcome
    except Stopped:
        writer.abandon()
        raise
    except BaseException as error:
        if is_full(error):  # long enough it was waited for room
            writer.abandon()
        writer.wait()  # of two errors, the first is the one to tell
        raise


def steps(
    state: TrainState,
    data: Data,
    plan: Plan,
    watch: Watch,
    counters: Counters,
    writer: Writer,
    stopping: Sequence[str],
) -> Outcome:
    """The steps of `train`; `stopping` fills when a signal comes."""
    started = time.perf_counter() - counters.seconds
    budget = Budget(watch.checkpoints / "rows.json", state.model, counters, data.row_tokens)
    if state.step == 0:
        look(state, data, watch, counters)
    while state.step < plan.total_steps and not counters.stopped:
        if state.step == 0 and state.mesh.any(bool(stopping)):
            raise interrupted(state, plan, watch, stopping)  # no weight has changed: nothing to save
        made = attempt(state, data, plan, watch, budget)
        if made is not None:
            tell_step(state, plan, watch, counters, *made)
        last = state.step == plan.total_steps
        if last or state.step % watch.validate_every == 0:
            look(state, data, watch, counters)
        stop, failed = state.mesh.any_of(bool(stopping), writer.failed)
        writer.check(failed)
        counters.seconds = time.perf_counter() - started
        best = watch.keep_best and counters.best_step == state.step
        if stop or last or best or counters.stopped or state.step % watch.save_every == 0:
            watch.log.sync()  # a checkpoint never knows more than the log
            writer.save(state, counters, {counters.best_step} if watch.keep_best else set())
        if stop:
            writer.finish()
            raise interrupted(state, plan, watch, stopping)
    return Outcome(counters, counters.stopped or "all steps done")


def scaled(stats: StepStats) -> dict[str, Any]:
    """What the log says of the loss scale of a step."""
    if stats.loss_scale is None:
        return {}
    return {"loss_scale": stats.loss_scale} | ({"overflows": stats.overflows} if stats.overflows else {})


def tell_step(
    state: TrainState, plan: Plan, watch: Watch, counters: Counters, rows: StepRows, stats: StepStats
) -> None:
    """Count and log the update that was made last."""
    conversations, drawn = plan.conversations(state.step - 1), plan.drawn(state.step - 1)
    counters.skipped_now = 0
    counters.conversations += len(conversations)
    counters.tokens += rows.tokens
    counters.computed_tokens += stats.computed_tokens
    counters.trained_tokens += stats.trained_tokens
    counters.replayed += len(drawn)
    counters.replay_weight += rows.replay_weight
    watch.log.log(
        "step",
        step=state.step,
        epoch=plan.epoch(state.step),
        loss=stats.loss,
        learning_rate=stats.learning_rate,
        grad_norm=stats.grad_norm,
        conversations=len(conversations),
        **({"replay": len(drawn), "replay_weight": rows.replay_weight} if plan.replay else {}),
        tokens=rows.tokens,
        computed_tokens=stats.computed_tokens,
        trained_tokens=stats.trained_tokens,
        seconds=stats.seconds,
        **({} if stats.balance is None else {"balance": stats.balance}),
        **scaled(stats),
        peak_bytes=peak_bytes(state.device),
    )


def attempt(
    state: TrainState, data: Data, plan: Plan, watch: Watch, budget: Budget
) -> tuple[StepRows, StepStats] | None:
    """Make the next update; None where it was left out, because it is not finite and `watch` says to skip.

    Then the step counts as done, and nothing else of it. Otherwise NotFinite, with the rows named.
    """
    counters = budget.counters
    try:
        return update(state, data, plan, watch, budget)
    except NotFinite as error:
        failed = error
    state.optimizer.zero_grad(set_to_none=True)
    turns, _ = data.turns(plan.conversations(state.step), plan.drawn(state.step))
    inside = not_finite(state, data, turns) or turns
    places = [f"{turn.source}, message {turn.turn}" for turn in inside]
    skip = watch.on_nonfinite == "skip" and counters.skipped_now < MOST_SKIPPED
    watch.log.log(
        "not_finite",
        step=state.step + 1,
        loss=failed.loss,
        grad_norm=failed.norm,
        rows=places,
        batch=sorted({str(turn.source) for turn in turns}),
        skipped=skip,
    )
    if not skip:
        more = f" and {len(places) - NAMED:,} more" if len(places) > NAMED else ""
        raise NotFinite(failed.step, failed.loss, failed.norm, "; ".join(places[:NAMED]) + more) from failed
    counters.skipped += 1
    counters.skipped_now += 1
    state.step += 1
    return None


def not_finite(state: TrainState, data: Data, turns: Sequence[Turn]) -> list[Turn]:
    """Those of a step's turns whose own loss is not finite, each computed alone; with several processes, none."""
    if state.mesh.size > 1 or len(turns) > MOST_ALONE:
        return []
    found = []
    for turn in turns:
        rows = share_out_by_side(
            [turn], data.row_tokens, 1, data.layout, data.sides, multiple=1, cost=data.cost
        )[0]
        if not math.isfinite(evaluate(state, rows)[0]):
            found.append(turn)
    return found


def update(
    state: TrainState, data: Data, plan: Plan, watch: Watch, budget: Budget
) -> tuple[StepRows, StepStats]:
    """Make the next update; where memory runs out, again with smaller rows, until it has room."""
    step, mesh = state.step + 1, state.mesh
    conversations, drawn = plan.conversations(state.step), plan.drawn(state.step)
    for change in budget.recorded(step):
        tell(watch, change)
    while True:
        rows = data.rows(conversations, drawn, mesh.rank, mesh.size, budget.row_tokens)
        seed_noise(plan.seed, state.step, mesh.rank)
        try:
            return rows, train_step(state, rows.rows)
        except OutOfMemory as error:
            row, said = error.row, error.said
        # here the exception, and with it all that the broken pass held, is gone
        state.optimizer.zero_grad(set_to_none=True)
        release(state.device)
        turns, _ = data.turns(conversations, drawn)
        made = budget.lower(step, row.num_tokens, turns, data.layout)
        if made is None:
            raise no_room(step, row, said, turns)
        tell(watch, made)
        watch.log.sync()
        if mesh.size > 1:
            raise others_wait(made, mesh.rank)


def tell(watch: Watch, change: Change) -> None:
    """Log that rows became smaller; the user is told."""
    watch.log.log("note", **asdict(change))


def interrupted(state: TrainState, plan: Plan, watch: Watch, stopping: Sequence[str]) -> Interrupted:
    """Log that the run was stopped; the error that says so."""
    watch.log.log("interrupted", step=state.step)
    by = stopping[0] if stopping else "another process"
    return Interrupted(f"stopped by {by} after step {state.step:,} of {plan.total_steps:,}")


def seed_noise(seed: int, step: int, rank: int) -> None:
    """Make the dropout of a step a pure function of (seed, step, rank), so that a resumed run draws the same."""
    digest = hashlib.sha256(f"noise/{seed}/{step}/{rank}".encode()).digest()
    torch.manual_seed(int.from_bytes(digest[:8], "big"))


def look(state: TrainState, data: Data, watch: Watch, counters: Counters) -> None:
    """Validate, answer the fixed prompts, and decide whether going on is worth it."""
    if data.validation:
        begun = time.perf_counter()
        loss, trained_tokens = finite(evaluate(state, data.validation), "validation loss", state.step)
        # before training is only compared with
        limit = math.inf if counters.best_loss is None else counters.best_loss - watch.min_improvement
        best = state.step > 0 and loss < limit
        if best:
            counters.best_loss, counters.best_step, counters.waited = loss, state.step, 0
        elif state.step > 0:
            counters.waited += 1
        seconds = time.perf_counter() - begun
        watch.log.log(
            "validation",
            step=state.step,
            loss=loss,
            trained_tokens=trained_tokens,
            seconds=seconds,
            best=best,
        )
        if watch.patience is not None and counters.waited >= watch.patience:
            counters.stopped = (
                f"no validation in {counters.waited} was better than the loss of {counters.best_loss:.4f} "
                f"at step {counters.best_step:,}"
            )
            watch.log.log("early_stop", step=state.step, reason=counters.stopped)
    if data.held_out:
        begun = time.perf_counter()
        loss, trained_tokens = finite(evaluate(state, data.held_out), "loss on replay", state.step)
        seconds = time.perf_counter() - begun
        watch.log.log(
            "replay_loss", step=state.step, loss=loss, trained_tokens=trained_tokens, seconds=seconds
        )
    if watch.sample is not None:
        watch.sample(state.step)


def finite(found: tuple[float, int], what: str, step: int) -> tuple[float, int]:
    """(loss, trained tokens) as they are; RunFailed where the loss is no number."""
    if not math.isfinite(found[0]):
        raise RunFailed(
            f"the {what} is not finite after step {step}",
            found=f"loss {found[0]}",
            expected="a finite number; no checkpoint is made of these weights, the last one is from before",
            fix="look at the base model, or begin a new run with a lower learning_rate or precision=float32",
        )
    return found


def peak_bytes(device: torch.device) -> int:
    """Most memory used so far: of the device, or of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def perplexity(loss: float) -> float:
    return math.exp(min(loss, 100.0))
