"""Where memory runs out, the same update is made with smaller rows, and a resumed run makes it so at the same step."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import imprint.train.step as step_module
from conftest import environment, events_of, losses, settings
from imprint.distributed.mesh import Mesh
from imprint.errors import RunFailed
from imprint.pack.plan import Plan
from imprint.pack.row import Row
from imprint.pack.tree import build_rows
from imprint.train.budget import longest_of, lowered, turns_in
from imprint.train.checkpoint import Counters, latest_checkpoint, load_checkpoint
from imprint.train.data import Data
from imprint.train.loop import Outcome, Watch, train
from imprint.train.optim import Schedule, adamw
from imprint.train.shortage import OutOfMemory, ran_out, room_for
from imprint.train.step import TrainState
from test_torchrun import finish, launch, two
from tiny import make_turn, random_turns, row_model, tiny_model

TURNS = random_turns(conversations=12)
LONGEST = longest_of(TURNS)
STEPS = 6


def from_step_3(state: TrainState) -> float:
    return 70 if state.step >= 2 else 999


class Told:
    """A log that keeps what it is told."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []

    def log(self, kind: str, **fields: Any) -> None:
        self.events.append({"kind": kind, **fields})

    def sync(self) -> None:
        pass

    def notes(self) -> list[tuple[int, int, bool]]:
        return [
            (event["step"], event["row_tokens"], event["activation_checkpointing"])
            for event in self.events
            if event["kind"] == "note"
        ]


def made(kind: str = "llama") -> TrainState:
    model = row_model(tiny_model(kind, torch.float64)).train()
    optimizer = adamw(model, weight_decay=0.1, betas=(0.9, 0.99), epsilon=1e-8)
    return TrainState(model, optimizer, Schedule(1e-2, STEPS), Mesh())


def run(
    folder: Path, state: TrainState, *, counters: Counters | None = None, row_tokens: int = 256, **given: Any
) -> tuple[Outcome, Told]:
    data = Data([[turn] for turn in TURNS], [], row_tokens=row_tokens, **given)
    plan = Plan(len(TURNS), 6, epochs=99, seed=0, fingerprint="x", max_steps=STEPS)
    told = Told()
    watch = Watch(told, folder, validate_every=99, save_every=2)
    return train(state, data, plan, watch, counters or Counters()), told


def weights(state: TrainState) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in state.model.named_parameters()}


def furthest(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    assert a.keys() == b.keys()
    return max(float((a[name] - b[name]).abs().max()) for name in a)


@contextlib.contextmanager
def memory_of(
    tokens: Callable[[TrainState], float], state: TrainState, where: str = "forward"
) -> Iterator[None]:
    """Rows beyond so many tokens have no room, in the forward pass or in the backward one, where half is done."""

    class Refuse(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, pull: Tensor) -> Tensor:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    def hook(module: Any, args: Any, kwargs: Any, output: Tensor) -> Tensor:
        if output.shape[1] <= tokens(state):
            return output
        if where == "forward":
            raise RuntimeError(
                "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried 1 bytes."
            )
        return Refuse.apply(output)  # type: ignore[no-any-return,no-untyped-call]

    layer = state.model.backbone.layers[1]  # type: ignore[union-attr]
    handle = layer.register_forward_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


# ---- what counts as running out


@pytest.mark.parametrize(
    ("error", "counts"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (MemoryError(), True),
        (RuntimeError("[enforce fail] err == 0. DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes."), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("out of memory"), False),
    ],
)  # fmt: skip
def test_how_it_is_said_that_memory_ran_out(error, counts):
    assert ran_out(error) is counts
    rows = build_rows(TURNS, 64)

    def compute() -> None:
        with room_for(rows) as hand:
            for i, _ in enumerate(hand):
                if i == 2:
                    raise error

    with pytest.raises(OutOfMemory if counts else type(error)) as caught:
        compute()
    if counts:
        assert caught.value.row is rows[2]


@pytest.mark.parametrize(
    ("budget", "tokens", "longest", "layout", "smaller"),
    [
        (4096, 4096, 100, "shared", 2048),
        (65536, 3000, 100, "shared", 1500),  # a step that fills less than a row: half of what it filled
        (4096, 4096, 3000, "packed", 3000),
        (4096, 1024, 1000, "shared", 1000),  # filled up with padding
        (3000, 3000, 3000, "shared", None),
        (512, 3000, 3000, "shared", None),  # a longer turn has a row of its own
        (4096, 4096, 100, "separate", None),
    ],
)
def test_how_far_rows_become_smaller(budget, tokens, longest, layout, smaller):
    assert lowered(budget, tokens, longest, layout) == smaller


# ---- in a run


@pytest.mark.parametrize("where", ["forward", "backward"])
@pytest.mark.parametrize("kind", ["llama", "qwen3_moe"])
def test_the_same_update_is_made_with_smaller_rows(kind, where, tmp_path):
    """Short of memory from step 3 on: equal to a run without that, and to the bit to one that resumes."""
    plain, short = made(kind), made(kind)
    run(tmp_path / "plain", plain)
    with memory_of(from_step_3, short, where):
        outcome, told = run(tmp_path / "short", short)
    steps, tokens, again = zip(*told.notes(), strict=True)
    assert set(steps) == {3}
    assert len(tokens) > 1
    assert list(tokens) == sorted(set(tokens), reverse=True)
    assert not any(again)
    texts = [event["text"] for event in told.events if event["kind"] == "note"]
    assert all("memory ran out in a row of" in text and "at step 3" in text for text in texts)
    assert f"rows hold at most {tokens[-1]} tokens" in texts[-1]
    assert outcome.counters.row_tokens == tokens[-1]
    assert [event["step"] for event in told.events if event["kind"] == "step"] == [1, 2, 3, 4, 5, 6]
    assert furthest(weights(short), weights(plain)) < 1e-6
    assert all(p.grad is None for p in short.model.parameters())
    assert short.optimizer.state[next(iter(short.model.parameters()))]["step"] == STEPS


def test_it_is_that_of_a_run_with_the_smaller_rows_from_that_step_on(tmp_path):
    """To the bit: nothing of the broken pass is left, in the weights, the optimizer or the counters."""
    short, twin = made(), made()
    with memory_of(from_step_3, short):
        outcome, _ = run(tmp_path / "short", short)
    (tmp_path / "twin").mkdir()
    tokens = outcome.counters.row_tokens
    change = {"step": 3, "row_tokens": tokens, "activation_checkpointing": False, "text": "planted"}
    (tmp_path / "twin" / "rows.json").write_text(json.dumps([change]))
    other, told = run(tmp_path / "twin", twin)
    assert told.notes() == [(3, tokens, False)]
    assert furthest(weights(short), weights(twin)) == 0
    ours, theirs = ({**vars(o.counters), "seconds": 0} for o in (outcome, other))
    assert ours == theirs


def test_dropout_is_drawn_anew(tmp_path):
    """The noise of a step is set again before it is repeated, so that it depends on the rows alone."""
    drawn: dict[int, list[float]] = {}
    state = made()

    def look(module: Any, args: Any) -> None:
        drawn.setdefault(state.step, []).append(float(torch.random.get_rng_state().double().sum()))
        torch.rand(1)

    state.model.register_forward_pre_hook(look)
    with memory_of(from_step_3, state):
        run(tmp_path, state)
    assert len(drawn[2]) > len(drawn[1])
    assert drawn[2][0] == drawn[2][1]  # the first pass, and the repeated one, begin with the same noise


def test_a_resumed_run_keeps_the_smaller_rows(tmp_path):
    """From behind the change by the checkpoint; from before it, at the same step, and it is told there."""
    state = made()
    with memory_of(from_step_3, state):
        first, told = run(tmp_path, state)
    whole, changed = weights(state), told.notes()
    for path, notes in ((tmp_path / "step-000006", []), (None, changed)):
        again = made()
        counters = load_checkpoint(path, again) if path else Counters()
        outcome, told = run(tmp_path, again, counters=counters)
        assert told.notes() == notes
        assert outcome.counters.row_tokens == first.counters.row_tokens == changed[-1][1]
        assert furthest(weights(again), whole) == 0


def test_the_change_is_on_the_disk_before_the_step_is_repeated(tmp_path, monkeypatch):
    seen: list[list[int]] = []
    original = step_module.accumulate

    def look(state: TrainState, rows: list[Row], *more: Any) -> Tensor:
        file = tmp_path / "rows.json"
        seen.append(
            [change["row_tokens"] for change in json.loads(file.read_text())] if file.exists() else []
        )
        return original(state, rows, *more)

    monkeypatch.setattr(step_module, "accumulate", look)
    state = made()
    with memory_of(from_step_3, state):
        _, told = run(tmp_path, state)
    tokens = [tokens for _, tokens, _ in told.notes()]
    assert len(tokens) == 2
    assert seen == [[], [], [], tokens[:1], tokens, *([tokens] * 3)]


def test_where_rows_cannot_be_shorter_activations_are_recomputed(tmp_path):
    """A model that has room only once its layers do not keep what they compute."""
    plain, short = made(), made()
    run(tmp_path / "plain", plain)

    def room(state: TrainState) -> float:
        layer: Any = state.model.backbone.layers[1]  # type: ignore[union-attr]
        return 999 if state.step < 2 or layer.gradient_checkpointing else 8

    with memory_of(room, short):
        outcome, told = run(tmp_path / "short", short)
    assert outcome.counters.activation_checkpointing
    steps, tokens, again = zip(*told.notes(), strict=True)
    assert set(steps) == {3}
    assert list(tokens) == sorted(tokens, reverse=True)
    assert again == (*([False] * (len(again) - 1)), True)
    assert tokens[-1] == tokens[-2]  # that is what is said to have changed last
    assert furthest(weights(short), weights(plain)) < 1e-6
    resumed = made()
    counters = load_checkpoint(latest_checkpoint(tmp_path / "short"), resumed)
    assert counters.activation_checkpointing
    run(tmp_path / "short", resumed, counters=counters)
    assert all(layer.gradient_checkpointing for layer in resumed.model.backbone.layers)  # type: ignore[union-attr]


def test_where_nothing_helps_the_row_is_named(tmp_path):
    state = made()
    before = weights(state)
    with memory_of(lambda state: 8, state), pytest.raises(RunFailed) as caught:
        run(tmp_path, state)
    said = str(caught.value)
    assert "at step 1 in a row that cannot be made smaller" in said
    assert caught.value.where == "x:1, message 1" or caught.value.where.startswith("x:1, message 1; ")
    assert "can't allocate memory" in said
    assert "max_length=" in said
    assert "method=lora" in said
    assert furthest(weights(state), before) == 0
    assert caught.value.exit_code == 1


def test_what_is_no_shortage_ends_the_run(tmp_path):
    state = made()

    def broken(module: Any, args: Any) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    state.model.register_forward_pre_hook(broken)
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        run(tmp_path, state)
    assert not (tmp_path / "rows.json").exists()


def test_a_shortage_in_the_optimizer_is_not_repeated(tmp_path):
    """Weights may have changed by then: an update must never be made twice."""
    state = made()

    def refuse(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    state.optimizer.step = refuse  # type: ignore[method-assign]
    with pytest.raises(torch.OutOfMemoryError):
        run(tmp_path, state)
    assert not (tmp_path / "rows.json").exists()


def test_which_turns_lie_in_a_row():
    turns = [*TURNS, make_turn([3, 4, 5], [6, 7])]
    rows = build_rows(turns, 60)
    assert len(rows) > 3
    found = [turns_in(row, turns) for row in rows]
    assert sum(map(len, found)) >= len(turns)  # a duplicate is found wherever its twin lies
    for row, inside in zip(rows, found, strict=True):
        targets = sorted(row.target.tolist())
        assert len(inside) > 0
        once = {turn.ids.tobytes(): turn for turn in inside}
        assert set(targets) == {t for turn in once.values() for t in turn.completion.tolist()}


def test_memory_that_really_runs_out_of_a_process(tmp_path):
    """No exception planted: the process may not have more memory than some rows need."""
    script = """
import resource, sys
import torch
from test_torchrun import finish, launch, two
from tiny import make_turn, row_model, tiny_model
from imprint.distributed.mesh import Mesh
from imprint.pack.tree import build_rows
from imprint.train.shortage import OutOfMemory, release
from imprint.train.step import TrainState, train_step

model = row_model(tiny_model("llama", max_position_embeddings=4096)).train()
state = TrainState(model, torch.optim.SGD(model.parameters()), lambda _: 0.1, Mesh())
turn = make_turn([3] * 2000, [4] * 2000)
train_step(state, build_rows([make_turn([3] * 9, [4] * 9)], 99))
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (16 << 20), resource.RLIM_INFINITY))
try:
    train_step(state, build_rows([turn], 4096))
except OutOfMemory as error:
    print("ran out:", error.row.num_tokens, error.said)
state.optimizer.zero_grad(set_to_none=True)
release(state.device)
print("then", train_step(state, build_rows([make_turn([3] * 9, [4] * 9)], 99)).computed_tokens, state.step)
"""
    if sys.platform != "linux":
        pytest.skip("only Linux limits the memory of a process so")
    path = environment() | {"PYTHONPATH": f"{environment()['PYTHONPATH']}:{Path(__file__).parents[1]}"}
    done = subprocess.run(
        [sys.executable, "-c", script], env=path, capture_output=True, text=True, timeout=90, check=True
    )
    first, second = done.stdout.splitlines()
    assert first.startswith("ran out: 3999 ")
    assert second == "then 17 2"


SHORT = """
import os, sys
import imprint.train.step as step
from imprint.cli import main
original = step.accumulate

def short(state, rows, *more):
    first = next(iter(rows))  # it is in hand now
    if state.step == 3 and state.mesh.rank == 1 and first.num_tokens > 60:
        raise MemoryError("planted")
    return original(state, rows, *more)

step.accumulate = short
sys.exit(main())
"""


@pytest.mark.slow
def test_of_several_processes_one_runs_out(tiny, rows, tmp_path):
    """It cannot enter the others' collectives again: the run ends, and resumed has the smaller rows."""
    run, whole = tmp_path / "run", tmp_path / "whole"
    given = (
        "max_steps=6",
        "validation=0",
        "save_every=1",
        "learning_rate=1e-2",
        "batch_size=8",
        "row_tokens=200",
    )
    assert two("train", *settings(tiny, rows, whole, *given)).code == 0
    script = tmp_path / "short.py"
    script.write_text(SHORT)
    done = finish(launch("train", *settings(tiny, rows, run, *given), script=script))
    assert done.code != 0
    assert (
        "process 1: memory ran out on process 1 at step 4; resumed, the run goes on with rows of at most"
        in done.err
    )
    assert losses(run)[-1][0] == 3
    done = two("resume", run)
    assert done.code == 0, done.err
    (note,) = [event for event in events_of(run, "note") if "row_tokens" in event]
    assert note["step"] == 4
    assert note["row_tokens"] < 200
    for (step, ours), (_, theirs) in zip(losses(run), losses(whole), strict=True):
        assert abs(ours - theirs) < 1e-4, step
