"""The routers' balancing loss is that of the whole step, however it is cut; and shared rows route as separate ones."""

from collections.abc import Sequence
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from imprint.distributed.mesh import Mesh
from imprint.errors import ModelError
from imprint.model.adapters import add_lora
from imprint.model.balance import Balance, balance_loss, routers, routing_note
from imprint.model.checks import choose_layout
from imprint.model.rowmodel import RowModel
from imprint.pack.row import Row, empty_row
from imprint.pack.sides import share_out_by_side
from imprint.pack.tree import build_rows
from imprint.render.turns import Turn
from imprint.train.step import StepStats, TrainState, accumulate, measure_load, train_step
from tiny import (
    VOCAB,
    Gradients,
    difference,
    gradients,
    make_turn,
    own_attention,
    random_turns,
    row_model,
    tiny_model,
)

BALANCED = ("mixtral", "qwen3_moe", "gpt_oss", "llama4_text", "qwen2_moe", "olmoe", "granitemoe", "phimoe")
BY_BIAS = ("deepseek_v3", "glm4_moe")
COEFFICIENT = 0.5
BAR = 1e-6
TURNS = random_turns(0)
CELLS = [  # layout, row budget
    ("shared", 10**6),
    ("shared", 90),
    ("shared", 40),
    ("packed", 10**6),
    ("packed", 50),
    ("separate", 1),
]


def state_of(model: Any, coefficient: float = COEFFICIENT) -> TrainState:
    rows_of = row_model(model)
    balance = Balance(rows_of) if coefficient else None
    optimizer = torch.optim.SGD([p for p in rows_of.parameters() if p.requires_grad], lr=0.0)
    return TrainState(
        rows_of, optimizer, lambda step: 0.1, Mesh(), clip=None, balance=balance, balance_weight=coefficient
    )


def step_gradients(state: TrainState, rows: Sequence[Row]) -> Gradients:
    """Gradients of a step: those of the parameters of the model inside."""
    state.model.zero_grad()
    accumulate(state, rows, measure_load(state, rows))
    found = gradients(state.model.model)  # type: ignore[arg-type]
    state.model.zero_grad()
    return found


def scores_of(model: Any, ids: Tensor) -> list[Tensor]:
    """The scores [T, E] that each router gave, as transformers itself hands them out."""
    out = model.base_model(input_ids=ids[None], use_cache=False, output_router_logits=True)
    return [scores.reshape(-1, scores.shape[-1]) for scores in out.router_logits]


def separate_balance(kind: str, turns: Sequence[Turn]) -> tuple[Tensor, Gradients]:
    """(balancing loss, its gradients) of turns one by one in the model's own attention: the slow, obvious way."""
    model = tiny_model(kind, torch.float64)
    model.set_attn_implementation(own_attention(model))
    top = model.config.num_experts_per_tok
    total = sum(float(turn.weight.sum()) for turn in turns)
    chosen, probability = 0.0, 0.0
    for turn in turns:
        layers = scores_of(model, torch.from_numpy(turn.ids[:-1].astype("int64")))
        for scores in layers:
            scores = scores[len(turn.prompt) - 1 :]
            share = torch.from_numpy(turn.weight)[:, None] / total / len(layers)
            best = torch.zeros_like(scores).scatter_(1, scores.topk(top).indices, 1.0)
            chosen += (share * best.detach()).sum(0)
            probability += (share * scores.double().softmax(-1)).sum(0)
    loss = len(chosen) * (chosen * probability).sum()
    (COEFFICIENT * loss).backward()
    return loss.detach(), gradients(model)


@cache
def wanted(kind: str) -> tuple[float, Gradients]:
    """(balancing loss, gradients of loss and balancing loss together) of the separate turns."""
    value, of_balance = separate_balance(kind, TURNS)
    plain = step_gradients(state_of(tiny_model(kind, torch.float64), 0.0), build_rows(TURNS, 1, "separate"))
    return float(value), {
        name: plain.get(name, 0) + of_balance.get(name, 0) for name in {**plain, **of_balance}
    }


@pytest.mark.parametrize("kind", BALANCED)
def test_any_rows_give_the_gradient_of_the_separate_turns(kind: str) -> None:
    value, expected = wanted(kind)
    state = state_of(tiny_model(kind, torch.float64))
    for layout, budget in CELLS:
        rows = [*build_rows(TURNS, budget, layout, multiple=16), empty_row()]
        load = measure_load(state, rows)
        assert load is not None
        assert balance_loss(*load).item() == pytest.approx(value, rel=1e-6)
        off = difference(step_gradients(state, rows), expected)
        assert off <= BAR, f"{layout}, {budget} tokens: {off:.1e}"


@pytest.mark.parametrize("kind", ["mixtral", "qwen3_moe", "gpt_oss"])
def test_fractions_by_row_miss_the_bar(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The planted mistake: each row is balanced for itself, as trainers do with each of their small batches."""
    _, expected = wanted(kind)
    state = state_of(tiny_model(kind, torch.float64))
    total = sum(float(turn.weight.sum()) for turn in TURNS)

    def by_row(layout: str, budget: int) -> Gradients:
        state.model.zero_grad()
        for row in build_rows(TURNS, budget, layout):
            load = measure_load(state, [row])
            assert load is not None
            assert state.balance is not None
            with state.balance.reading() as read:
                part = (row.weight * state.model(row)).sum() / total
            share = row.weight.double() / total
            part = part + COEFFICIENT * balance_loss(load[0], read.probabilities(share, row.source))
            part.backward()
        return gradients(state.model.model)  # type: ignore[arg-type]

    for layout, budget in (("shared", 40), ("separate", 1)):
        assert difference(by_row(layout, budget), expected) >= 100 * BAR
    assert difference(by_row("shared", 10**6), expected) <= BAR  # with one row there is nothing to mistake


@pytest.mark.parametrize("kind", ["mixtral", "olmoe"])
def test_the_balancing_loss_matters(kind: str) -> None:
    plain = step_gradients(state_of(tiny_model(kind, torch.float64), 0.0), build_rows(TURNS, 10**6))
    assert difference(plain, wanted(kind)[1]) >= 0.01


@pytest.mark.parametrize("kind", ["mixtral", "qwen3_moe", "gpt_oss", "olmoe", "phimoe"])
def test_the_value_is_that_of_transformers(kind: str) -> None:
    model = tiny_model(kind, torch.float64)
    ids = torch.randint(3, VOCAB, (40,), generator=torch.Generator().manual_seed(3))
    turn = make_turn(ids[:1].tolist(), ids[1:].tolist())  # every token is predicted from
    state = state_of(model)
    load = measure_load(state, build_rows([turn], 100))
    assert load is not None
    model.set_attn_implementation(own_attention(model))
    config = model.config
    num_experts = getattr(config, "num_local_experts", None) or config.num_experts
    theirs = load_balancing_loss_func(
        tuple(scores_of(model, ids[:-1])), num_experts, config.num_experts_per_tok
    )
    assert balance_loss(*load).item() == pytest.approx(theirs.item(), rel=1e-6)
    assert config.num_experts_per_tok < balance_loss(*load).item() < num_experts  # uneven, and not all on one


def test_even_load_gives_the_number_of_experts_of_a_token() -> None:
    assert balance_loss(torch.full((8,), 2 / 8), torch.full((8,), 1 / 8)).item() == pytest.approx(2)


def test_ranks_are_summed_before_the_product() -> None:
    """Two ranks played one after the other: the sums that the mesh would make are made by hand."""
    state = state_of(tiny_model("mixtral", torch.float64))
    assert state.balance is not None
    ranks = share_out_by_side(TURNS, 40, 2, "shared", None)
    assert len(ranks[0]) == len(ranks[1])
    sums = sum(state.balance.measure(state.model, rows, torch.device("cpu")) for rows in ranks)
    total = sum(float(row.weight.sum()) for rows in ranks for row in rows)
    together = measure_load(state, [*ranks[0], *ranks[1]])
    assert isinstance(sums, Tensor)
    assert together is not None
    assert torch.allclose(sums / total, together, rtol=1e-12)
    alone = measure_load(state, ranks[0])
    assert alone is not None
    assert not torch.allclose(alone, together, rtol=1e-4)


@pytest.mark.parametrize("kind", ["mixtral", "llama4_text"])
def test_adapters_and_activation_checkpointing_change_nothing(kind: str) -> None:
    model = tiny_model(kind)
    found = []
    for recompute in (False, True):
        adapted = add_lora(
            tiny_model(kind), rank=4, alpha=8, dropout=0.0, targets="attention", seed=1
        ).double()
        for number, (name, parameter) in enumerate(adapted.named_parameters()):
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(number))
        state = state_of(adapted)
        state.model.train()
        if recompute:
            state.model.base.activation_checkpointing_enable({"use_reentrant": False})  # type: ignore[operator,union-attr]
        found.append([step_gradients(state, build_rows(TURNS, b, layout)) for layout, b in CELLS[1:4]])
    assert all("lora" in name for name in found[0][0])
    first = found[0][0]
    assert all(difference(other, first) <= BAR for cell in found for other in cell)
    without = step_gradients(state_of(model.double(), 0.0), build_rows(TURNS, 90))
    assert without.keys() != first.keys()


def test_noise_is_that_of_the_pass_for_the_gradients() -> None:
    model = tiny_model("mixtral", torch.float64)
    state = state_of(model)
    assert state.balance is not None
    for module in model.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.4
    state.model.train()
    row = build_rows(TURNS, 10**6, "packed")[0]

    def measured(seed: int) -> Tensor:
        assert state.balance is not None
        torch.manual_seed(seed)
        return state.balance.measure(state.model, [row], torch.device("cpu"))

    first = measured(5)
    with state.balance.reading() as read:  # goes on from the same seed
        state.model(row)
    assert torch.equal(read.loads(row.weight.double(), row.source), first[0])
    assert torch.allclose(read.probabilities(row.weight.double(), row.source), first[1], rtol=1e-12)
    assert not torch.equal(measured(6)[1], first[1])


def test_a_step_reports_the_balance_and_goes_towards_it() -> None:
    rows = build_rows(TURNS, 60)

    def trained(coefficient: float) -> list[StepStats]:
        model = tiny_model("gpt_oss")
        for layer in model.model.layers:
            layer.mlp.router.bias.data[0] = 2.0  # nearly every token goes to the first expert
        state = state_of(model, coefficient)
        state.optimizer = torch.optim.Adam(state.model.parameters())
        state.learning_rate = lambda step: 0.01
        return [train_step(state, rows) for _ in range(10)]

    balanced, barely, plain = trained(1.0), trained(1e-9), trained(0.0)
    assert balanced[0].balance == barely[0].balance
    assert balanced[-1].balance < balanced[0].balance - 0.3  # type: ignore[operator]
    assert barely[-1].balance > balanced[-1].balance + 0.2  # type: ignore[operator]
    assert plain[0].balance is None
    assert plain[0].loss == pytest.approx(balanced[0].loss, rel=1e-6), "the loss is that of the predictions"


def test_routers_are_not_read_outside() -> None:
    state = state_of(tiny_model("mixtral"))
    assert state.balance is not None
    row = build_rows(TURNS, 10**6)[0]
    with state.balance.reading() as read:
        pass
    state.model(row)
    with pytest.raises(AssertionError, match="no router"):
        read.loads(row.weight, row.source)


@pytest.mark.parametrize(
    ("kind", "what"),
    [
        ("llama", "no routers"),
        ("gpt2", "no routers"),
        ("mamba", "no routers"),
        ("deepseek_v3", "bias of its own"),
        ("glm4_moe", "bias of its own"),
    ],
)
def test_models_whose_routers_cannot_be_balanced(kind: str, what: str) -> None:
    with pytest.raises(ModelError, match=what) as caught:
        Balance(RowModel(tiny_model(kind)))
    assert caught.value.fix == "balance_loss=0"


def test_what_the_log_says() -> None:
    assert routing_note(tiny_model("llama"), 0.0) == []
    asked = tiny_model("mixtral", router_aux_loss_coef=0.02, output_router_logits=True)
    assert "not balanced (balance_loss=0), though the model's config names a coefficient of 0.02" in str(
        routing_note(asked, 0.0)
    )
    assert "one more forward pass" in str(routing_note(asked, 0.01))
    assert "though" not in str(routing_note(tiny_model("deepseek_v3"), 0.0))


def test_a_config_that_asks_for_balancing_changes_nothing() -> None:
    rows = build_rows(TURNS, 60)
    plain = tiny_model("mixtral", torch.float64)
    asked = tiny_model("mixtral", torch.float64, router_aux_loss_coef=0.5, output_router_logits=True)
    found = [step_gradients(state_of(model, 0.0), rows) for model in (plain, asked)]
    assert difference(*found) == 0


# Routing. A token is told by all that it sees, itself included.


def chosen_by_context(model: RowModel, row: Row) -> dict[tuple[int, ...], list[tuple[int, ...]]]:
    """The experts that each layer gives each token of a row."""
    seen: list[Tensor] = []

    def record(index: int) -> Any:
        def hook(module: Any, _: Any, output: Any) -> None:
            scores = output[index].reshape(-1, output[index].shape[-1])
            bias = getattr(module, "e_score_correction_bias", None)
            scores = scores if bias is None else scores.sigmoid() + bias
            seen.append(scores.topk(module.top_k, dim=-1).indices.sort(-1).values)

        return hook

    hooks = [module.register_forward_hook(record(index)) for module, index in routers(model.base)]
    with torch.no_grad():
        model(row)
    for hook in hooks:
        hook.remove()
    found = {}
    real = (~row.is_padding).nonzero().flatten().tolist()
    for i in real:
        path = [j for j in range(i + 1) if row.end[j] > i]
        found[tuple(row.tokens[path].tolist())] = [tuple(layer[i].tolist()) for layer in seen]
    return found


def leak(row: Row) -> Row:
    """The same row, with one token of an answer that the next answers see."""
    wrong = row.end.clone()
    wrong[int((row.end < row.num_tokens).nonzero()[0])] = row.num_tokens
    return Row(row.tokens, wrong, row.source, row.target, row.weight)


@pytest.mark.parametrize("kind", [*BALANCED, *BY_BIAS])
def test_shared_rows_route_each_token_as_separate_ones(kind: str) -> None:
    model = row_model(tiny_model(kind, torch.float64))
    own = row_model(tiny_model(kind, torch.float64))
    assert choose_layout(own, "separate", 60, VOCAB)[0] == "separate"  # in transformers' own attention
    separate: dict[tuple[int, ...], list[tuple[int, ...]]] = {}
    for row in build_rows(TURNS, 1, "separate"):
        separate |= chosen_by_context(own, row)
    assert len({experts for layers in separate.values() for experts in layers}) > 3, "the routers do choose"
    for layout, budget in CELLS[:-1]:
        found: dict[tuple[int, ...], list[tuple[int, ...]]] = {}
        for row in build_rows(TURNS, budget, layout, min_shared=4):
            found |= chosen_by_context(model, row)
        assert found == separate
    (row,) = build_rows(TURNS, 10**6)
    right = chosen_by_context(model, row)
    with (
        pytest.MonkeyPatch.context() as patch
    ):  # the twin: another token is routed where one is seen too many
        rows_of = RowModel._inputs
        patch.setattr(RowModel, "_inputs", lambda self, given: rows_of(self, leak(given)))
        wrong = chosen_by_context(model, row)
    assert right.keys() == wrong.keys()
    assert sum(right[context] != wrong[context] for context in right) >= 1
