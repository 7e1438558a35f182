"""The loss scale of float16: the update does not depend on it, and what overflows is made again."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from imprint.distributed.mesh import Mesh
from imprint.pack.tree import build_rows
from imprint.train import step as step_module
from imprint.train.checkpoint import Counters, load_checkpoint, save_checkpoint, trained_tensors
from imprint.train.optim import Schedule, adamw
from imprint.train.scaler import FIRST, LEAST, LossScale
from imprint.train.step import TrainState, accumulate, evaluate, train_step
from tiny import difference, gradients, random_turns, row_model, tiny_model

ROWS = build_rows(random_turns(), 64)


def make_state(
    scale: LossScale | None, compute: torch.dtype = torch.float16, dropout: float = 0.0
) -> TrainState:
    model = tiny_model("llama", attention_dropout=dropout)
    rows = row_model(model).train()
    optimizer = adamw(rows, weight_decay=0.0, betas=(0.9, 0.99), epsilon=1e-8)
    state = TrainState(rows, optimizer, Schedule(1e-2, 40), Mesh(), compute)
    state.loss_scale = scale
    return state


def weights(state: TrainState) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in trained_tensors(state.model).items()}


def gradients_of(state: TrainState) -> dict[str, torch.Tensor]:
    """Divided by the scale again."""
    accumulate(state, ROWS)
    scale = state.loss_scale.scale if state.loss_scale else 1.0
    found = {name: gradient / scale for name, gradient in gradients(state.model).items()}
    state.model.zero_grad()
    return found


def test_small_gradients_need_the_scale() -> None:
    """Against float32: with the scale float16 is as near as rounding lets it, without one small gradients are lost."""
    exact = gradients_of(make_state(None, torch.float32))
    shrunk = [row.to(torch.device("cpu")) for row in ROWS]
    scaled = difference(gradients_of(make_state(LossScale(2.0**10))), exact)
    assert scaled < 0.02
    tiny = LossScale(2.0**-12)
    assert difference(gradients_of(make_state(tiny)), exact) > 5 * scaled
    assert shrunk


def test_an_update_does_not_depend_on_the_scale() -> None:
    """Powers of two: gradients differ only where float16 has no digits left."""
    found = [gradients_of(make_state(LossScale(2.0**power))) for power in (8, 12)]
    assert difference(*found) < 2e-3


def test_an_overflow_is_made_again_with_half_the_scale() -> None:
    state, smaller = make_state(LossScale(2.0**40)), None
    stats = train_step(state, ROWS)
    scaler = state.loss_scale
    assert scaler is not None
    assert stats.overflows == scaler.overflows > 5
    assert stats.loss_scale == scaler.scale == 2.0 ** (40 - scaler.overflows)
    assert state.step == 1
    smaller = make_state(LossScale(scaler.scale))  # as if it had begun there
    assert train_step(smaller, ROWS).overflows == 0
    assert all(torch.equal(tensor, weights(smaller)[name]) for name, tensor in weights(state).items())


def test_each_pass_draws_the_same_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[float] = []
    original = step_module.accumulate

    def spy(*arguments: Any) -> Any:
        drawn.append(float(torch.rand(())))
        return original(*arguments)

    monkeypatch.setattr(step_module, "accumulate", spy)
    torch.manual_seed(3)
    stats = train_step(make_state(LossScale(2.0**40)), ROWS)
    assert len(drawn) == stats.overflows + 1 > 2
    assert len(set(drawn)) == 1


def test_where_nothing_helps_the_step_fails_and_no_weight_changes() -> None:
    state = make_state(LossScale(LEAST * 4))
    with torch.no_grad():
        state.model.base.model.layers[0].mlp.down_proj.weight.fill_(1e8)
    before = weights(state)
    from imprint.errors import RunFailed

    with pytest.raises(RunFailed, match="not finite"):
        train_step(state, ROWS)
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights(state).items())
    assert state.step == 0


def test_the_scale_grows_again_and_is_in_the_checkpoint(tmp_path: Any) -> None:
    state = make_state(LossScale(2.0**8, patience=3))
    for _ in range(4):
        train_step(state, ROWS)
    path = save_checkpoint(tmp_path, state, Counters(), set())
    told = [train_step(state, ROWS) for _ in range(4)]
    assert [stats.loss_scale for stats in told] == [2.0**9, 2.0**9, 2.0**10, 2.0**10]
    other = make_state(LossScale(FIRST, patience=3))
    load_checkpoint(path, other)
    again = [train_step(other, ROWS) for _ in range(4)]
    assert [(s.loss, s.loss_scale) for s in again] == [(s.loss, s.loss_scale) for s in told]
    assert all(torch.equal(tensor, weights(other)[name]) for name, tensor in weights(state).items())


def test_validation_is_not_scaled() -> None:
    state = make_state(LossScale())
    plain = make_state(None, torch.float32)
    assert abs(evaluate(state, ROWS)[0] - evaluate(plain, ROWS)[0]) < 0.02
