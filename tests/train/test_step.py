"""One step: its loss is the weighted mean over the examples, its update depends on them alone."""

import math
from typing import Any

import pytest
import torch

from imprint.distributed.mesh import Mesh
from imprint.errors import RunFailed
from imprint.pack.row import Row, empty_row
from imprint.pack.tree import build_rows
from imprint.train.optim import LearningRate, Schedule, adamw
from imprint.train.step import TrainState, accumulate, clip_gradients, evaluate, train_step
from tiny import difference, gradients, make_turn, padded_gradients, random_turns, row_model, tiny_model

TURNS = random_turns(0)


def state_of(
    model: Any, rate: LearningRate = lambda step: 0.01, sgd: bool = False, **options: Any
) -> TrainState:
    rows_of = row_model(model)
    optimizer: torch.optim.Optimizer = (
        torch.optim.SGD(rows_of.parameters(), lr=0.0)
        if sgd
        else adamw(rows_of, weight_decay=0.1, betas=(0.9, 0.95), epsilon=1e-8)
    )
    return TrainState(rows_of, optimizer, rate, Mesh(), **options)


def weights(state: TrainState) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in state.model.named_parameters()}


@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen3_moe"])
@pytest.mark.parametrize(
    ("layout", "budget"), [("shared", 10**6), ("shared", 40), ("packed", 70), ("separate", 1)]
)
def test_a_step_is_the_weighted_mean_of_the_padded_examples(kind: str, layout: str, budget: int) -> None:
    model = tiny_model(kind, torch.float64)
    loss, wanted = padded_gradients(model, TURNS)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    state = state_of(model, lambda step: 0.5, sgd=True, clip=None)
    stats = train_step(state, build_rows(TURNS, budget, layout))
    assert stats.loss == pytest.approx(loss, rel=1e-7)
    assert stats.grad_norm == pytest.approx(
        math.sqrt(sum(float((g**2).sum()) for g in wanted.values())), rel=1e-6
    )
    moved = {name: (before[name] - p.detach()) / 0.5 for name, p in model.named_parameters()}
    assert difference({n: moved[n] for n in wanted}, wanted) < 1e-6
    assert (state.step, stats.learning_rate) == (1, 0.5)
    assert all(p.grad is None for p in model.parameters())


def test_what_a_step_reports() -> None:
    rows = [*build_rows(TURNS, 40), empty_row()]
    stats = train_step(state_of(tiny_model("llama")), rows)
    assert stats.computed_tokens == sum(row.num_tokens for row in rows[:-1])
    assert stats.trained_tokens == sum(len(turn.completion) for turn in TURNS)
    assert stats.seconds > 0


def test_weights_of_tokens_are_shares_not_scales() -> None:
    heavy = [make_turn(t.prompt.tolist(), t.completion.tolist(), (t.weight * 4).tolist()) for t in TURNS]
    losses = [
        train_step(state_of(tiny_model("llama")), build_rows(turns, 100)).loss for turns in (TURNS, heavy)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


@pytest.mark.parametrize("share", [0.25, 0.999, 1.001, 4.0])
def test_clipping_by_the_norm(share: float) -> None:
    state = state_of(tiny_model("llama", torch.float64))
    accumulate(state, build_rows(TURNS, 10**6))
    before = gradients(state.model)
    norm = math.sqrt(sum(float((g**2).sum()) for g in before.values()))
    found = clip_gradients(state.model.parameters(), norm * share, Mesh())
    assert float(found) == pytest.approx(norm, rel=1e-12)
    factor = min(1.0, share)
    for name, gradient in gradients(state.model).items():
        assert torch.allclose(gradient, before[name] * factor, rtol=1e-4, atol=0)
    if share > 1:
        assert all(torch.equal(g, before[n]) for n, g in gradients(state.model).items())


def test_no_limit_no_clipping() -> None:
    state = state_of(tiny_model("llama"))
    accumulate(state, build_rows(TURNS, 10**6))
    before = gradients(state.model)
    clip_gradients(state.model.parameters(), None, Mesh())
    assert all(torch.equal(g, before[n]) for n, g in gradients(state.model).items())


def test_weight_decay_acts_on_matrices_only() -> None:
    model = tiny_model("gpt2")  # it has biases, norms and embeddings
    optimizer = adamw(model, weight_decay=0.5, betas=(0.9, 0.95), epsilon=1e-8)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for group in optimizer.param_groups:
        group["lr"] = 0.1
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in model.named_parameters():
        kept = 0.95 if parameter.dim() >= 2 else 1.0
        assert torch.allclose(parameter, before[name] * kept), name
    assert {len(p.shape) for p in optimizer.param_groups[1]["params"]} == {1}


def test_adamw_takes_trainable_parameters_only() -> None:
    model = tiny_model("llama")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("mlp" in name)
    optimizer = adamw(model, weight_decay=0.1, betas=(0.9, 0.95), epsilon=1e-8)
    assert sum(len(group["params"]) for group in optimizer.param_groups) == 6


@pytest.mark.parametrize("where", ["loss", "gradient"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_step_that_is_not_finite_changes_nothing(where: str, value: float) -> None:
    state = state_of(tiny_model("llama"))
    rows = build_rows(TURNS, 60)
    train_step(state, rows)
    bad = state.model.model.model.layers[0].mlp.up_proj.weight  # type: ignore[union-attr]
    before, moments = weights(state), state.optimizer.state[bad]["exp_avg"].clone()
    if where == "loss":
        spoilt = [
            *rows[:-1],
            Row(
                *(getattr(rows[-1], n) for n in ("tokens", "end", "source", "target")),
                rows[-1].weight * value,
            ),
        ]
        with pytest.raises(RunFailed, match="not finite at step 2"):
            train_step(state, spoilt)
    else:
        hook = bad.register_hook(lambda gradient: gradient * value)
        with pytest.raises(RunFailed, match="not finite at step 2") as caught:
            train_step(state, rows)
        assert "gradient norm" in caught.value.found
        hook.remove()
    assert all(torch.equal(p, before[name]) for name, p in state.model.named_parameters())
    assert torch.equal(state.optimizer.state[bad]["exp_avg"], moments)
    assert state.step == 1
    untouched = state_of(tiny_model("llama"))
    for _ in range(2):
        train_step(untouched, rows)
    train_step(state, rows)  # nothing of the broken step is left behind
    assert all(
        torch.equal(p, q) for p, q in zip(state.model.parameters(), untouched.model.parameters(), strict=True)
    )


def test_a_step_that_was_broken_off_can_be_repeated_in_smaller_rows() -> None:
    state, whole = state_of(tiny_model("llama", torch.float64)), state_of(tiny_model("llama", torch.float64))
    accumulate(state, build_rows(TURNS, 10**6))  # as if memory ran out before the update
    a, b = train_step(state, build_rows(TURNS, 50)), train_step(whole, build_rows(TURNS, 10**6))
    assert a.grad_norm == pytest.approx(b.grad_norm, rel=1e-7)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_evaluation_does_not_depend_on_the_rows(kind: str) -> None:
    model = tiny_model(kind, torch.float64)
    loss, _ = padded_gradients(model, TURNS)
    state = state_of(model)
    state.model.train()
    for layout, budget in (("shared", 10**6), ("shared", 40), ("packed", 70), ("separate", 1)):
        found, count = evaluate(state, [*build_rows(TURNS, budget, layout), empty_row()])
        assert found == pytest.approx(loss, rel=1e-7)
        assert count == sum(len(turn.completion) for turn in TURNS)
    assert state.model.training
    assert all(p.grad is None for p in model.parameters())


def test_evaluation_without_dropout_and_without_rows() -> None:
    model = tiny_model("gpt2")
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    state = state_of(model)
    state.model.train()
    rows = build_rows(TURNS, 10**6)
    assert evaluate(state, rows) == evaluate(state, rows)
    assert math.isnan(evaluate(state, [])[0])
    assert math.isnan(evaluate(state, [empty_row()])[0])


def test_the_loss_is_summed_in_float64() -> None:
    state = state_of(tiny_model("llama"))
    assert accumulate(state, build_rows(TURNS, 40)).dtype == torch.float64


def test_bfloat16_computes_in_half_and_keeps_float32() -> None:
    exact = train_step(state_of(tiny_model("llama")), build_rows(TURNS, 60))
    state = state_of(tiny_model("llama"), compute_type=torch.bfloat16)
    half = train_step(state, build_rows(TURNS, 60))
    assert half.loss == pytest.approx(exact.loss, rel=1e-2)
    assert half.loss != exact.loss
    assert {p.dtype for p in state.model.parameters()} == {torch.float32}
    assert {slot.dtype for slots in state.optimizer.state.values() for slot in slots.values()} == {
        torch.float32
    }


def test_training_lowers_the_loss() -> None:
    state = state_of(tiny_model("llama"))
    losses = [train_step(state, build_rows(TURNS, 100)).loss for _ in range(30)]
    assert losses[-1] < losses[0] / 2
    assert state.step == 30


# Schedules, by hand.


@pytest.mark.parametrize(
    ("shape", "warmup", "expected"),
    [
        ("constant", 0, [1, 1, 1, 1]),
        ("linear", 0, [1, 0.75, 0.5, 0.25]),
        ("cosine", 0, [1, 0.5 + 0.5 * math.sqrt(0.5), 0.5, 0.5 - 0.5 * math.sqrt(0.5)]),
        ("linear", 2, [1 / 3, 2 / 3, 1, 0.5]),
        ("constant", 0.5, [1 / 3, 2 / 3, 1, 1]),
        ("cosine", 2, [1 / 3, 2 / 3, 1, 0.5]),
        ("linear", 0.01, [0.5, 1, 2 / 3, 1 / 3]),  # a share is rounded up to whole steps
    ],
)
def test_schedules(shape: Any, warmup: float, expected: list[float]) -> None:
    schedule = Schedule(2.0, 4, shape, warmup)
    assert [schedule(step) / 2 for step in range(4)] == pytest.approx(expected)


@pytest.mark.parametrize("shape", ["linear", "cosine", "constant"])
@pytest.mark.parametrize("warmup", [0, 0.03, 0.5, 0.99, 1, 7, 100])
@pytest.mark.parametrize("total", [1, 2, 10, 1000])
def test_every_step_learns_something_and_none_beyond_the_peak(shape: Any, warmup: float, total: int) -> None:
    rates = [Schedule(1e-3, total, shape, warmup)(step) for step in range(total)]
    assert all(0 < rate <= 1e-3 for rate in rates)
    top = rates.index(max(rates))
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)


def test_the_rate_of_a_step_is_used() -> None:
    state = state_of(tiny_model("llama"), Schedule(1e-2, 4, "linear", 0))
    rates = [train_step(state, build_rows(TURNS, 100)).learning_rate for _ in range(4)]
    assert rates == pytest.approx([1e-2, 7.5e-3, 5e-3, 2.5e-3])
    assert state.optimizer.param_groups[0]["lr"] == rates[-1]
