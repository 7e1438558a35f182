"""Windows, chunks and rotary scaling that bite: turns on both sides of a limit, in rows and one by one.

The reference is each turn alone, in transformers' own attention, in a model that has met no other turn:
dynamic scaling remembers the longest, and both it and longrope look at the longest position of a batch.
Here the same tokens go through as in a row, all but the last: it is only a target.
"""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from imprint.model.checks import choose_layout
from imprint.model.ropes import sides_of
from imprint.model.rowmodel import RowModel
from imprint.model.view import View
from imprint.pack.row import Row
from imprint.pack.sides import Sides, share_out_by_side
from imprint.pack.tree import build_rows
from tiny import (
    VOCAB,
    WINDOW,
    Gradients,
    difference,
    gradients,
    own_attention,
    random_turns,
    row_gradients,
    row_model,
    tiny_model,
)

LIMIT = 36
TURNS = random_turns(0, conversations=8, most=30)
LENGTHS = sorted(len(turn) - 1 for turn in TURNS)
BAR = 1e-6
CELLS = [("shared", 10**6), ("shared", 80), ("packed", 10**6), ("packed", 70), ("separate", 1)]


def rope(kind: str, **more: Any) -> dict[str, Any]:
    return dict(rope_parameters=dict(rope_type=kind, rope_theta=1e4, **more))


def two_ropes(whole: dict[str, Any], sliding: dict[str, Any]) -> dict[str, Any]:
    """gemma 3: one set for the layers that see all, one for those that see a window."""
    both = {"full_attention": whole, "sliding_attention": sliding}
    return dict(rope_parameters={name: {"rope_theta": 1e4, **part} for name, part in both.items()})


# transformers reads the limit of phi 3 in two places
LONG = dict(short_factor=[1.0, 1.2, 1.5, 2.0], long_factor=[2.0, 3.0, 5.0, 8.0], factor=4.0)
DEFAULT = dict(rope_type="default")


@dataclass(frozen=True)
class Family:
    """A model with a limit, and the same without it."""

    kind: str
    given: dict[str, Any]
    away: dict[str, Any]
    sides: Sides | None = None
    index_matters: bool = False  # a window or chunk that must be measured in positions


def longrope(limit: int) -> dict[str, Any]:
    return rope("longrope", original_max_position_embeddings=limit, **LONG) | dict(
        original_max_position_embeddings=limit
    )


FAMILIES = {
    "longrope": Family("phi3", longrope(LIMIT), longrope(256), Sides(LIMIT, alone=False), True),
    "longrope, by another family": Family(
        "llama",
        rope("longrope", original_max_position_embeddings=LIMIT, **LONG),
        {},
        Sides(LIMIT, alone=False),
    ),
    "dynamic": Family(
        "llama",
        rope("dynamic", factor=4.0) | dict(max_position_embeddings=LIMIT),
        {},
        Sides(LIMIT, alone=True),
    ),
    "dynamic, in a part of each head": Family(
        "gpt_neox",
        dict(
            rope_parameters=dict(rope_type="dynamic", rope_theta=1e4, factor=4.0, partial_rotary_factor=0.5),
            max_position_embeddings=LIMIT,
        ),
        dict(rope_parameters=dict(rope_type="default", rope_theta=1e4, partial_rotary_factor=0.5)),
        Sides(LIMIT, alone=True),
    ),
    "yarn": Family(
        "llama",
        rope("yarn", factor=4.0, original_max_position_embeddings=LIMIT)
        | dict(max_position_embeddings=4 * LIMIT),
        {},
    ),
    "llama 3": Family(
        "llama",
        rope(
            "llama3",
            factor=8.0,
            low_freq_factor=1.0,
            high_freq_factor=4.0,
            original_max_position_embeddings=LIMIT,
        ),
        {},
    ),
    "linear": Family("llama", rope("linear", factor=4.0), {}),
    "two ropes": Family(
        "gemma3_text",
        two_ropes(dict(rope_type="linear", factor=8.0, rope_theta=1e6), DEFAULT),
        two_ropes(DEFAULT, DEFAULT),
        index_matters=True,
    ),
    "two ropes, one of them long": Family(
        "gemma3_text",
        two_ropes(dict(rope_type="longrope", original_max_position_embeddings=LIMIT, **LONG), DEFAULT),
        two_ropes(dict(rope_type="longrope", original_max_position_embeddings=256, **LONG), DEFAULT),
        Sides(LIMIT, alone=False),
        True,
    ),
    "chunks": Family("llama4_text", {}, dict(attention_chunk_size=256), index_matters=True),
    "a window and yarn": Family("gpt_oss", {}, dict(sliding_window=256), index_matters=True),
}
SIDED = [name for name, family in FAMILIES.items() if family.sides]


def model_of(name: str, away: bool = False) -> Any:
    family = FAMILIES[name]
    return tiny_model(family.kind, torch.float64, **(family.away if away else family.given))


@cache
def alone(name: str, away: bool = False) -> tuple[float, Gradients]:
    """(loss, gradients) of the turns, each in a model that has met no other."""
    fresh = model_of(name, away)
    fresh.set_attn_implementation(own_attention(fresh))
    total, loss = sum(float(turn.weight.sum()) for turn in TURNS), 0.0
    sums: Gradients = {}
    for turn in TURNS:
        model = deepcopy(fresh)
        ids = torch.from_numpy(turn.ids.astype("int64"))
        logits = model(input_ids=ids[None, :-1], use_cache=False).logits[0, len(turn.prompt) - 1 :]
        nll = F.cross_entropy(logits, ids[len(turn.prompt) :], reduction="none")
        part = (torch.from_numpy(turn.weight) * nll).sum() / total
        part.backward()
        loss += part.item()
        for parameter, gradient in gradients(model).items():
            sums[parameter] = sums.get(parameter, 0) + gradient
    return loss, sums


def rows_of(model: Any, layout: str, budget: int) -> list[Row]:
    (rows,) = share_out_by_side(TURNS, budget, 1, layout, sides_of(model), multiple=16, min_shared=4)
    return rows


def test_turns_lie_on_both_sides_of_the_limit() -> None:
    assert sum(length <= LIMIT for length in LENGTHS) >= 4
    assert sum(length > LIMIT for length in LENGTHS) >= 4
    assert len({length for length in LENGTHS if length > LIMIT}) >= 3, "dynamic scaling differs between them"
    assert min(LENGTHS) > WINDOW


@pytest.mark.parametrize("attention", ["reference", "tiles"])
@pytest.mark.parametrize("name", FAMILIES)
def test_rows_equal_turns_alone_across_the_limit(name: str, attention: str) -> None:
    loss, wanted = alone(name)
    model = model_of(name)
    assert sides_of(model) == FAMILIES[name].sides
    for layout, budget in CELLS:
        rows = rows_of(model, layout, budget)
        for order in (rows, rows[::-1]):  # nothing is remembered of the rows before
            found_loss, found = row_gradients(row_model(model, attention), order)
            off = difference(found, wanted)
            assert off <= BAR, f"{layout}, {budget} tokens: {off:.1e}"
            assert found_loss == pytest.approx(loss, rel=1e-6)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_limit_bites(name: str) -> None:
    """Without it the loss and the gradients are others, a hundred times beyond their bars."""
    (loss, wanted), (without, other) = alone(name), alone(name, away=True)
    assert abs(loss - without) >= 100 * 1e-6 * loss
    assert difference(other, wanted) >= 100 * BAR


@pytest.mark.parametrize("name", SIDED)
def test_rows_of_both_sides_miss_the_bar(name: str) -> None:
    """The planted mistake: the limit is ignored where rows are made."""
    for layout, budget in (("shared", 10**6), ("packed", 10**6), ("packed", 100)):
        rows = build_rows(TURNS, budget, layout)
        assert any(int(View(row.end).position.max()) >= LIMIT for row in rows)
        _, found = row_gradients(row_model(model_of(name)), rows)
        assert difference(found, alone(name)[1]) >= 100 * BAR


def test_longer_turns_that_share_dynamic_scaling_miss_the_bar() -> None:
    far = [turn for turn in TURNS if len(turn) - 1 > LIMIT]
    model = row_model(model_of("dynamic"))
    _, right = row_gradients(model, build_rows(far, 1, "separate"))
    _, wrong = row_gradients(model, build_rows(far, 10**6, "packed"))
    assert difference(wrong, right) >= 100 * BAR


@pytest.mark.parametrize("name", ["dynamic", "dynamic, in a part of each head"])
def test_scaling_that_remembers_misses_the_bar(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As transformers leaves it: a turn behind a longer one is turned as that was, even in a row of its own."""
    monkeypatch.setattr("imprint.model.rowmodel.rotate_each_row_afresh", lambda base: None)
    model = model_of(name)
    rows = rows_of(model, "separate", 1)
    assert rows[0].num_tokens <= LIMIT
    far = sorted((row for row in rows if row.num_tokens > LIMIT), key=lambda row: -row.num_tokens)
    near = [row for row in rows if row.num_tokens <= LIMIT]
    _, wrong = row_gradients(row_model(model), [*near, *far])
    assert difference(wrong, alone(name)[1]) >= 100 * BAR


def measured_by_index(right: Callable[..., Any]) -> Callable[..., Any]:
    def wrong(self: View, *arguments: Any) -> Any:
        kept, self.position = self.position, torch.arange(len(self.end))
        try:
            return right(self, *arguments)
        finally:
            self.position = kept

    return wrong


@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if family.index_matters])
def test_windows_by_index_miss_the_bar(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for method in ("allowed", "tiles"):
        monkeypatch.setattr(View, method, measured_by_index(getattr(View, method)))
    model = model_of(name)
    for attention in ("reference", "tiles"):
        _, found = row_gradients(row_model(model, attention), rows_of(model, "shared", 10**6))
        assert difference(found, alone(name)[1]) >= 100 * BAR


@pytest.mark.parametrize("name", FAMILIES)
def test_the_checks_let_them_share(name: str) -> None:
    """In float32, as before a run: the layout is shared, and where turns must be kept apart that is said."""
    family = FAMILIES[name]
    model = row_model(tiny_model(family.kind, **family.given))
    layout, findings = choose_layout(model, "auto", LENGTHS[-1] + 1, VOCAB)
    assert layout == "shared"
    said = next(finding.detail for finding in findings if finding.name == "rotary")
    assert (f"turns of up to {LIMIT} tokens share rows" in said) == (family.sides is not None)


@pytest.mark.parametrize("name", ["dynamic", "longrope"])
def test_generation_goes_on_as_before(name: str) -> None:
    """The reset before each pass is what a model does that has met nothing: its text is the same."""
    ids = torch.from_numpy(TURNS[0].prompt.astype("int64"))[None]
    asked = dict(max_new_tokens=LIMIT, do_sample=False, pad_token_id=0, eos_token_id=-1)
    texts = []
    for model in (model_of(name), RowModel(model_of(name)).model):
        model.set_attn_implementation(own_attention(model))
        texts.append(model.generate(input_ids=ids, **asked).tolist())  # type: ignore[operator,union-attr]
    assert texts[0] == texts[1]
    assert len(texts[0][0]) > LIMIT


@pytest.mark.parametrize("name", ["dynamic", "longrope"])
def test_the_models_own_attention_turns_each_row_alike(name: str) -> None:
    """layout=separate: without `end`, too."""
    model = model_of(name)
    rows = build_rows(TURNS, 1, "separate")
    rows_model = row_model(model)
    choose_layout(rows_model, "separate", LENGTHS[-1], VOCAB)
    for order in (rows, rows[::-1]):
        assert difference(row_gradients(rows_model, order)[1], alone(name)[1]) <= BAR
