"""The pair loss: value and gradient are those of all logits at once, however few of them exist at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from imprint.model import loss as losses
from imprint.model.adapters import add_lora
from imprint.model.loss import chunks, pair_loss, proportion
from imprint.model.pairs import PLAIN, Head, Objective, Pairs, dense_loss, nll, sums
from imprint.pack.row import empty_row
from imprint.pack.tree import build_rows
from tiny import (
    VOCAB,
    difference,
    gradients,
    random_turns,
    row_gradients,
    row_model,
    tiny_model,
)

STATES, WIDTH, WORDS, NUM_PAIRS = 60, 16, 301, 150

OBJECTIVES = {
    "plain": PLAIN,
    "smoothed": Objective(label_smoothing=0.1),
    "z-loss": Objective(z_loss=0.01),
    "dft": Objective("dft"),
    "all": Objective("dft", 0.2, 0.05),
}
HEADS: dict[str, dict[str, Any]] = {
    "plain": {},
    "bias": dict(bias=True),
    "multiplied": dict(multiplier=0.25),
    "capped": dict(cap=2.0),
    "all": dict(bias=True, multiplier=1.5, cap=3.0),
}


class Case:
    """A head, states, and predictions of which some share a state, and some are there twice."""

    def __init__(self, dtype: torch.dtype = torch.float64, bias: bool = False, **scaling: Any):
        generator = torch.Generator().manual_seed(0)

        def draw(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

        linear = nn.Linear(WIDTH, WORDS, bias=bias, dtype=dtype)
        with torch.no_grad():
            for parameter in linear.parameters():
                parameter.copy_(draw(*parameter.shape))
        self.head = Head(linear, **scaling)
        self.all_hidden = draw(STATES + 9, WIDTH)
        source = torch.randint(STATES, (NUM_PAIRS,), generator=generator)
        target = torch.randint(WORDS, (NUM_PAIRS,), generator=generator)
        source[-30:], target[-20:] = 7, 5  # one state with many targets; one prediction twenty times
        self.source, self.target = source, target
        self.share = torch.rand(NUM_PAIRS, generator=generator)
        self.share[::7] = 0

    def ours(self, objective: Objective = PLAIN, pull: Tensor | None = None) -> dict[str, Tensor]:
        """Loss [P] and gradients of Σ pull · loss by `pair_loss`; pull is 0.3 · share where not given."""
        hidden = self.all_hidden.clone().requires_grad_()
        pairs = Pairs.of(self.source, self.target)
        states = hidden.index_select(0, pairs.sources)
        loss = pair_loss(self.head, states, pairs, self.share, objective)
        return self._differentiated(loss, hidden, pull)

    def reference(
        self, objective: Objective = PLAIN, pull: Tensor | None = None, forget_cap: bool = False
    ) -> dict[str, Tensor]:
        """The same by autograd on every logit, from the definitions."""
        hidden = self.all_hidden.clone().requires_grad_()
        x = self.head.output(hidden[self.source]) * self.head.multiplier
        if self.head.cap:
            capped = self.head.cap * torch.tanh(x / self.head.cap)
            x = x + (capped - x).detach() if forget_cap else capped
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        lse = torch.logsumexp(x, 1)
        own = lse - x.gather(1, self.target[:, None])[:, 0]
        spread = (lse[:, None] - x).mean(1)
        loss = (1 - objective.label_smoothing) * own + objective.label_smoothing * spread
        if objective.loss == "dft":
            loss = loss * torch.exp(-own).detach()
        return self._differentiated(loss + objective.z_loss * lse**2, hidden, pull)

    def _differentiated(self, loss: Tensor, hidden: Tensor, pull: Tensor | None) -> dict[str, Tensor]:
        self.head.output.zero_grad()
        (loss * (0.3 * self.share if pull is None else pull)).sum().backward()
        found = {n: p.grad.clone() for n, p in self.head.output.named_parameters() if p.grad is not None}
        assert hidden.grad is not None
        return {"loss": loss.detach(), "hidden": hidden.grad, **found}


def off(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> float:
    """The largest relative difference of the loss and of each gradient."""
    assert found.keys() == wanted.keys()
    return max(
        float((found[n].double() - wanted[n].double()).norm() / wanted[n].double().norm()) for n in wanted
    )


@pytest.fixture(params=[7, 64], ids=["many chunks", "one chunk"])
def chunked(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = request.param
    monkeypatch.setattr(losses, "chunks", lambda states, *_: (-(-states // rows), rows))
    monkeypatch.setattr(losses, "SCRATCH", 3 * WORDS * 8)  # three rows of float64, six of float32
    monkeypatch.setattr(losses, "HEAD_ROWS", 100)


# ---- the same as all logits at once


@pytest.mark.usefixtures("chunked")
@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize(("dtype", "bar"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_value_and_gradient_are_those_of_all_logits(
    dtype: torch.dtype, bar: float, head: str, objective: str
) -> None:
    case = Case(dtype, **HEADS[head])
    found = case.ours(OBJECTIVES[objective])
    assert found["loss"].dtype == dtype
    assert off(found, case.reference(OBJECTIVES[objective])) < bar


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_planted_mistakes_miss_the_bar(dtype: torch.dtype) -> None:
    bar = {torch.float64: 1e-12, torch.float32: 1e-5}[dtype]
    case = Case(dtype, bias=True, multiplier=1.5, cap=3.0)
    everything = OBJECTIVES["all"]
    wanted = case.reference(everything)
    lost = case.share * 0.3
    lost[1] = 0
    assert off(case.ours(everything, pull=lost), wanted) > 100 * bar
    assert off(case.ours(Objective("dft", 0.0, 0.05)), wanted) > 100 * bar
    assert off(case.ours(Objective("dft", 0.2, 0.0)), wanted) > 100 * bar
    assert off(case.ours(Objective("nll", 0.2, 0.05)), wanted) > 100 * bar
    assert off(case.ours(everything), case.reference(everything, forget_cap=True)) > 100 * bar
    multiplier = Case(dtype, bias=True, multiplier=1.4, cap=3.0)
    assert off(multiplier.ours(everything), wanted) > 100 * bar


@pytest.mark.usefixtures("chunked")
@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("head", HEADS)
def test_bfloat16_is_as_near_to_float32_as_all_logits_are(head: str, objective: str) -> None:
    case = Case(torch.float32, **HEADS[head])
    exact = case.reference(OBJECTIVES[objective])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, dense = case.ours(OBJECTIVES[objective]), case.reference(OBJECTIVES[objective])
    for name in exact:
        ours, theirs = ({"x": side[name]} for side in (found, dense))
        assert off(ours, {"x": exact[name]}) < 1.3 * off(theirs, {"x": exact[name]}) + 1e-6, name
    assert found["loss"].dtype == torch.float32
    assert found["weight"].dtype == torch.float32


def test_weights_in_bfloat16_get_gradients_in_bfloat16() -> None:
    case = Case(torch.bfloat16, bias=True)
    exact = Case(torch.float32, bias=True)
    with torch.no_grad():
        for narrow, wide in zip(case.head.output.parameters(), exact.head.output.parameters(), strict=True):
            wide.copy_(narrow)
    exact.all_hidden = case.all_hidden.float()
    found = case.ours()
    assert {name: tensor.dtype for name, tensor in found.items()} == {
        "loss": torch.float32, "hidden": torch.bfloat16, "weight": torch.bfloat16, "bias": torch.bfloat16,
    }  # fmt: skip
    assert off(found, exact.reference()) < 0.01


def test_very_unlikely_tokens_have_a_finite_loss() -> None:
    head = Head(nn.Linear(2, 3, bias=False))
    with torch.no_grad():
        head.output.weight.copy_(torch.tensor([[500.0, 0], [-500.0, 0], [0, 1]]))  # type: ignore[union-attr,operator]
    pairs = Pairs.of(torch.tensor([0, 0]), torch.tensor([0, 1]))
    loss = pair_loss(head, torch.tensor([[1.0, 0]]), pairs, torch.ones(2))
    assert loss.tolist() == [0.0, 1000.0]


# ---- what may be asked of backward


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_another_sum_than_announced_is_differentiated_exactly(objective: str) -> None:
    case = Case(bias=True, cap=3.0)
    for pull in (torch.rand(NUM_PAIRS), case.share**2, torch.ones(NUM_PAIRS), -torch.randn(NUM_PAIRS)):
        assert proportion(pull, case.share) is None
        wanted = case.reference(OBJECTIVES[objective], pull)
        assert off(case.ours(OBJECTIVES[objective], pull), wanted) < 1e-12


def test_a_sum_is_differentiated_twice() -> None:
    case = Case()
    pairs = Pairs.of(case.source, case.target)
    hidden = case.all_hidden[pairs.sources].requires_grad_()
    loss = (pair_loss(case.head, hidden, pairs, case.share) * case.share).sum()
    once = torch.autograd.grad(loss, hidden, retain_graph=True)[0]
    again = torch.autograd.grad(loss, hidden, retain_graph=True)[0]
    third = torch.autograd.grad(2 * loss, hidden)[0]
    assert torch.allclose(again, once, rtol=1e-12, atol=0)
    assert torch.allclose(third, 2 * once, rtol=1e-12, atol=0)


def test_proportion() -> None:
    share = torch.tensor([1.0, 0.5, 0.0, 2.0])
    assert proportion(share, share) == 1
    assert proportion(share.double(), share) == 1
    assert proportion(share * -3, share) == pytest.approx(-3)
    assert proportion(share * 0, share) == 0
    assert proportion(share * 0, share * 0) == 1
    assert proportion(share[:0], share[:0]) == 1
    assert proportion(share, share * 0) is None
    assert proportion(share + torch.tensor([0, 0, 1e-6, 0]), share) is None  # a weight of 0 stays one
    assert proportion(share * torch.tensor([1, 1, 1, 1.001]), share) is None
    assert proportion(share * torch.tensor([1, 1, 1, 1 + 1e-6]), share) == pytest.approx(1)
    assert proportion(share * torch.nan, share) is None


def test_without_gradients_the_numbers_are_the_same() -> None:
    for head in HEADS.values():
        case = Case(torch.float32, **head)
        with torch.no_grad():
            pairs = Pairs.of(case.source, case.target)
            found = pair_loss(case.head, case.all_hidden[pairs.sources], pairs, case.share)
        assert not found.requires_grad
        assert torch.equal(found, case.ours()["loss"])


# ---- what is computed


class Watched(TorchDispatchMode):
    """Keeps the name and the size of what every operation gives."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, int]] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self.seen.append((function.overloadpacket.__name__, result.numel()))
        return result

    def products(self) -> int:
        return sum(name in ("mm", "addmm", "addmm_") for name, _ in self.seen)


def watched(states: int, words: int, width: int, trained: bool = True) -> Watched:
    linear = nn.Linear(width, words, bias=False).requires_grad_(trained)
    hidden = torch.randn(states, width, requires_grad=True)
    pairs = Pairs.of(torch.arange(states), torch.zeros(states, dtype=torch.int64))
    share = torch.ones(states)
    with Watched() as watch:
        (pair_loss(Head(linear), hidden, pairs, share) * share).sum().backward()
    assert (linear.weight.grad is not None) == trained
    return watch


def test_memory_is_that_of_a_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses, "BUFFER", 64 * 1000 * 4)
    monkeypatch.setattr(losses, "TRAINED", 64)
    few, many = (max(size for _, size in watched(states, 1000, 4).seen) for states in (128, 1280))
    assert few == many == 64 * 1000


def test_nothing_is_computed_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses, "chunks", lambda states, *_: (states // 64, 64))
    assert watched(256, 50, 8).products() == 4 * 3
    assert watched(256, 50, 8, trained=False).products() == 4 * 2


def test_a_place_is_computed_once() -> None:
    pairs = Pairs.of(torch.full((500,), 3), torch.arange(500) % 100)
    assert pairs.sources.tolist() == [3]
    assert len(pairs.target) == 100
    source, target = torch.tensor([5, 2, 5, 9, 2]), torch.tensor([1, 4, 0, 4, 4])
    pairs = Pairs.of(source, target)
    assert torch.equal(pairs.sources[pairs.slot][pairs.number], source)
    assert torch.equal(pairs.target[pairs.number], target)
    assert pairs.slot.tolist() == [0, 1, 1, 2]
    assert pairs.gather(torch.tensor([1.0, 2, 4, 8, 16])).tolist() == [18, 4, 1, 8]


def test_sums_of_neighbours() -> None:
    values = torch.tensor([1.0, 2, 4, 8])
    assert sums(values, torch.tensor([0, 3, 0, 1, 0])).tolist() == [0, 7, 0, 8, 0]


@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize("words", [100, 32_000, 256_000])
def test_chunks_are_alike_and_hardly_filled_up(words: int, trained: bool) -> None:
    for states in (1, 63, 64, 500, 1024, 1025, 5000, 30_000):
        number, rows = chunks(states, words, 2, trained)
        assert states <= number * rows < states + 64 * number
        assert rows % losses.MULTIPLE == 0
        most = max(losses.BUFFER // (2 * words), losses.TRAINED if trained else losses.MULTIPLE)
        assert rows < most + losses.MULTIPLE
    assert chunks(0, words, 2, trained)[0] == 0


@pytest.fixture
def restored_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("restored_threads")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_threads_and_repeated_places_change_no_bit(dtype: torch.dtype) -> None:
    case = Case(torch.float32, bias=True)
    case.source = torch.cat([torch.full((500,), 7), torch.arange(STATES)])
    case.target = torch.arange(500 + STATES) % 37
    case.share = torch.rand(500 + STATES, generator=torch.Generator().manual_seed(1))
    found = []
    for threads in (1, 1, 2, 2):
        torch.set_num_threads(threads)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
            found.append(case.ours())
    for other in found[1:]:
        assert all(torch.equal(other[name], found[0][name]) for name in found[0])
    order = torch.randperm(len(case.source), generator=torch.Generator().manual_seed(2))
    loss = found[0]["loss"][order]
    case.source, case.target, case.share = case.source[order], case.target[order], case.share[order]
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        assert torch.equal(case.ours()["loss"], loss)


# ---- heads that are more than a matrix


class Doubled(nn.Linear):
    def forward(self, hidden: Tensor) -> Tensor:
        return 2 * super().forward(hidden)


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("rows", [7, 1000])
def test_any_module_may_be_the_head(rows: int, objective: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(bias=True, cap=3.0)
    linear = case.head.output
    doubled = Doubled(WIDTH, WORDS, dtype=torch.float64)
    doubled.load_state_dict(linear.state_dict())
    case.head = Head(doubled, cap=3.0)
    assert case.head.matrix is None
    monkeypatch.setattr(losses, "MULTIPLE", rows)
    monkeypatch.setattr(losses, "BUFFER", 1)
    with Watched() as watch:
        found = case.ours(OBJECTIVES[objective])
    assert max(size for _, size in watch.seen) <= max(min(rows, STATES) * WORDS, WORDS * WIDTH)
    assert off(found, case.reference(OBJECTIVES[objective])) < 1e-12


def test_a_head_with_a_hook_is_called() -> None:
    linear = nn.Linear(WIDTH, WORDS)
    assert Head(linear).matrix is not None
    linear.register_forward_hook(lambda module, inputs, output: output * 2)
    assert Head(linear).matrix is None


@pytest.mark.parametrize(
    ("options", "tied"),
    [
        (dict(targets=["q_proj", "lm_head"]), False),
        (dict(targets="all-linear", new_tokens=[5, 50]), False),
        (dict(targets="all-linear", new_tokens=[5, 50]), True),
    ],
    ids=["adapter on the head", "token rows", "token rows, tied"],
)
def test_adapted_heads_are_trained_as_by_all_logits(
    options: dict[str, Any], tied: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model: Any = tiny_model("llama", torch.float64, tie_word_embeddings=tied)
    model = add_lora(model, rank=2, alpha=4, dropout=0.0, **options)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.1)
    rows_of = row_model(model)
    rows = build_rows(random_turns(0), 10**6)
    assert (rows_of.head.matrix is None) == ("lm_head" in options["targets"])  # no logits are made twice
    assert rows_of.head.vocab == VOCAB
    monkeypatch.setattr(losses, "MULTIPLE", 16)
    monkeypatch.setattr(losses, "BUFFER", 1)
    loss, found = row_gradients(rows_of, rows)
    rows_of.own_head = True
    wanted_loss, wanted = row_gradients(rows_of, rows)
    assert loss == pytest.approx(wanted_loss, rel=1e-12)
    assert difference(found, wanted) < 1e-12


# ---- in the model


@pytest.mark.parametrize("own_head", [False, True])
def test_training_minimises_the_objective_and_validation_measures_the_plain_loss(own_head: bool) -> None:
    model = row_model(tiny_model("gemma2", torch.float64))
    model.objective, model.own_head = OBJECTIVES["all"], own_head
    (row,) = build_rows(random_turns(0), 10**6)
    plain = row_model(tiny_model("gemma2", torch.float64))(row)
    assert torch.allclose(model.eval()(row), plain, rtol=1e-12)
    logits = model.logits(model.hidden(row))[0]
    wanted = dense_loss(logits, row.source, row.target, model.objective)
    assert not torch.allclose(wanted, plain, rtol=1e-3)
    assert torch.allclose(model.train()(row), wanted, rtol=1e-10)


def test_a_row_without_predictions_gives_zeros() -> None:
    model = row_model(tiny_model("llama")).train()
    model.objective = OBJECTIVES["all"]
    row = empty_row()
    (model(row) * row.weight).sum().backward()
    assert all(not gradient.any() for gradient in gradients(model).values())
    assert "model.lm_head.weight" in gradients(model)


def test_the_objective_is_told_in_words() -> None:
    assert str(PLAIN) == "nll"
    assert str(OBJECTIVES["all"]) == "dft, label smoothing 0.2, z-loss 0.05"


def test_dense_loss_and_nll_are_cross_entropy() -> None:
    logits = torch.randn(6, 11, generator=torch.Generator().manual_seed(0))
    slot, target = torch.tensor([0, 0, 3, 5]), torch.tensor([1, 2, 3, 10])
    wanted = F.cross_entropy(logits[slot], target, reduction="none", label_smoothing=0.3)
    found = dense_loss(logits, slot, target, Objective(label_smoothing=0.3))
    assert torch.allclose(found, wanted)
    assert torch.equal(nll(logits[slot], target), F.cross_entropy(logits[slot], target, reduction="none"))
