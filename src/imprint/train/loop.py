"""The loop: steps, validations, checkpoints, and a kind end whatever happens."""

from __future__ import annotations

import hashlib
import math
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple, Protocol

import torch

from imprint.errors import Interrupted, RunFailed
from imprint.pack.plan import Plan, share_out
from imprint.pack.replay import weighed
from imprint.pack.row import Row
from imprint.render.turns import Turn
from imprint.train.checkpoint import Counters, save_checkpoint
from imprint.train.step import TrainState, evaluate, train_step


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


@dataclass(frozen=True)
class Data:
    """What is trained on: the turns of each conversation, and this rank's validation rows.

    `replay` are the pieces that may be drawn, `held_out` this rank's rows of those that may not, and
    `replay_weight` the share of a step's weight that they get; None: what they have by themselves.
    """

    train: Sequence[Sequence[Turn]]
    validation: Sequence[Row]
    row_tokens: int
    layout: str = "shared"
    replay: Sequence[Sequence[Turn]] = ()
    held_out: Sequence[Row] = ()
    replay_weight: float | None = None

    def rows(self, conversations: Sequence[int], drawn: Sequence[int], rank: int, num_ranks: int) -> StepRows:
        """This rank's rows of a step with these conversations and these pieces of replay."""
        own = [turn for index in conversations for turn in self.train[index]]
        replayed, weight = weighed(
            own, [turn for index in drawn for turn in self.replay[index]], self.replay_weight
        )
        turns = own + replayed
        rows = share_out(turns, self.row_tokens, num_ranks, self.layout)[rank]
        return StepRows(rows, sum(len(turn) - 1 for turn in turns), weight)


class StepRows(NamedTuple):
    """A rank's rows of a step; of all ranks: tokens of the turns one by one, replay's share of the weight."""

    rows: list[Row]
    tokens: int
    replay_weight: float


@dataclass
class Outcome:
    """How a run ended."""

    counters: Counters
    reason: str = field(default="all steps done")


def train(state: TrainState, data: Data, plan: Plan, watch: Watch, counters: Counters) -> Outcome:
    """Train from `state.step` to the plan's last step, or until early stopping; Interrupted on a signal."""
    started = time.perf_counter() - counters.seconds
    with stop_signals() as stopping:
        if state.step == 0:
            look(state, data, watch, counters)
        while state.step < plan.total_steps and not counters.stopped:
            if state.step == 0 and state.mesh.any(bool(stopping)):
                raise interrupted(state, plan, watch, stopping)  # no weight has changed: nothing to save
            conversations, drawn = plan.conversations(state.step), plan.drawn(state.step)
            rows = data.rows(conversations, drawn, state.mesh.rank, state.mesh.size)
            seed_noise(plan.seed, state.step, state.mesh.rank)
            stats = train_step(state, rows.rows)
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
                peak_bytes=peak_bytes(state.device),
            )
            last = state.step == plan.total_steps
            if last or state.step % watch.validate_every == 0:
                look(state, data, watch, counters)
            stop = state.mesh.any(bool(stopping))
            counters.seconds = time.perf_counter() - started
            best = watch.keep_best and counters.best_step == state.step
            if stop or last or best or counters.stopped or state.step % watch.save_every == 0:
                watch.log.sync()  # a checkpoint never knows more than the log
                kept = {counters.best_step} if watch.keep_best else set()
                path = save_checkpoint(watch.checkpoints, state, counters, kept)
                watch.log.log("checkpoint", step=state.step, path=path.name)
            if stop and not last and not counters.stopped:
                raise interrupted(state, plan, watch, stopping)
    return Outcome(counters, counters.stopped or "all steps done")


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
            expected="a finite number; the last checkpoint is from before it",
            fix="look at the base model, or begin a new run with a lower learning_rate or precision=float32",
        )
    return found


@contextmanager
def stop_signals() -> Iterator[list[str]]:
    """Collects the names of SIGINT and SIGTERM as they come; a second one ends at once."""
    received: list[str] = []

    def receive(number: int, frame: FrameType | None) -> None:
        if received:
            raise KeyboardInterrupt
        received.append("Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name)

    try:
        before = {number: signal.signal(number, receive) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not the main thread: the program around us handles signals
        yield received
        return
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def peak_bytes(device: torch.device) -> int:
    """Most memory used so far: of the device, or of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def perplexity(loss: float) -> float:
    return math.exp(min(loss, 100.0))
