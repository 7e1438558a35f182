"""The checks of a user's model: who passes, who is trained separately, and the mistakes that must be caught."""

from typing import Any

import pytest
import torch
from torch import nn
from transformers import AttentionInterface

from imprint.model import attention as attention_module
from imprint.model.attention import NAMES, View
from imprint.model.checks import LEAK, TOLERANCE, check_ropes, choose_layout, isolation, position
from imprint.model.rowmodel import RowModel
from imprint.pack.row import positions
from imprint.pack.tree import build_rows
from tiny import (
    SHARING,
    VOCAB,
    difference,
    own_attention,
    padded_gradients,
    random_turns,
    row_gradients,
    row_model,
    tiny_model,
)

LONGEST = 60


def chosen(kind: str, wanted: str = "auto", **extra: Any) -> tuple[RowModel, str, dict[str, bool]]:
    model = row_model(tiny_model(kind, **extra))
    layout, findings = choose_layout(model, wanted, LONGEST, VOCAB)
    return model, layout, {finding.name: finding.passed for finding in findings}


@pytest.mark.parametrize("kind", SHARING)
def test_families_that_share(kind: str) -> None:
    model, layout, passed = chosen(kind)
    assert layout == "shared"
    assert passed == {"rotary": True, "isolation": True, "position": True, "head": True}
    assert model.follows_end
    assert not model.own_head


@pytest.mark.parametrize("seed", range(6))
def test_experts_that_round_otherwise_are_no_leak(seed: int) -> None:
    """How many tokens an expert gets decides the order of its sums: states differ, by rounding."""
    model = row_model(tiny_model("qwen3_moe", seed=seed))
    assert choose_layout(model, "auto", LONGEST, VOCAB)[0] == "shared"


@pytest.mark.parametrize(
    ("kind", "extra"),
    [
        ("falcon", {}),
        ("bloom", {}),
        ("mamba", {}),
        ("lfm2", {}),
        ("lfm2", dict(layer_types=["full_attention", "conv"])),
    ],
)
def test_families_that_do_not_share(kind: str, extra: dict[str, Any]) -> None:
    model, layout, passed = chosen(kind, **extra)
    assert layout == "separate"
    assert not passed["isolation"]
    assert not model.follows_end
    rows = build_rows(random_turns(1), 10**6, layout)
    model(rows[0]).sum().backward()  # in the model's own attention


def test_a_convolution_that_is_never_met_does_no_harm() -> None:
    assert chosen("lfm2", layer_types=["full_attention", "full_attention"])[1] == "shared"


@pytest.mark.parametrize(
    ("wanted", "layout"), [("auto", "shared"), ("shared", "shared"), ("packed", "packed")]
)
def test_the_wanted_layout_is_taken_where_the_checks_pass(wanted: str, layout: str) -> None:
    assert chosen("llama", wanted)[1] == layout
    assert chosen("bloom", wanted)[1] == "separate"


@pytest.mark.parametrize("kind", ["llama", "gpt_oss", "mistral"])
def test_separate_on_request_runs_on_the_models_own_attention(kind: str) -> None:
    model, layout, passed = chosen(kind, "separate")
    assert (layout, model.follows_end, passed) == ("separate", False, {"head": True})
    assert model.base.config._attn_implementation == own_attention(model.base)
    turns = random_turns(0)
    _, wanted = padded_gradients(model.model, turns)
    _, found = row_gradients(model, build_rows(turns, 10**6, layout))
    assert difference(found, wanted) < 1e-5


def test_the_checks_leave_the_model_as_it_was() -> None:
    for training in (True, False):
        model = row_model(tiny_model("llama"))
        model.train(training)
        before = {name: p.clone() for name, p in model.named_parameters()}
        choose_layout(model, "auto", LONGEST, VOCAB)
        assert model.training is model.model.training is training
        assert model.base.config._attn_implementation == NAMES["segments"]
        assert all(p.grad is None and torch.equal(p, before[name]) for name, p in model.named_parameters())


# Planted mistakes. An attention function of the user's, or of a later transformers, that is nearly right.


def ignores_end(module: nn.Module, *args: Any, end: View, **named: Any) -> Any:
    """Plain causal attention over the whole row."""
    return attention_module.reference(
        module, *args, end=View(torch.full_like(end.end, len(end.end))), **named
    )


def leaks_one_token(module: nn.Module, *args: Any, end: View, **named: Any) -> Any:
    """One token of an answer is seen by the answers after it."""
    wrong = end.end.clone()
    first = int((wrong < wrong[0]).nonzero()[0])
    wrong[first] = wrong[0]
    return attention_module.reference(module, *args, end=View(wrong), **named)


def leaks_a_prompt(module: nn.Module, *args: Any, end: View, **named: Any) -> Any:
    """The first token of one conversation is seen by the next."""
    wrong = end.end.clone()
    wrong[0] = len(wrong)
    return attention_module.reference(module, *args, end=View(wrong), **named)


def hides_one_token(module: nn.Module, *args: Any, end: View, **named: Any) -> Any:
    """The answers do not see the first token of their prompt."""
    wrong = end.end.clone()
    wrong[0] = 1
    return attention_module.reference(module, *args, end=View(wrong), **named)


def window_by_index(module: nn.Module, *args: Any, end: View, **named: Any) -> Any:
    wrong = View(end.end)
    wrong.position = torch.arange(len(end.end))
    return attention_module.reference(module, *args, end=wrong, **named)


@pytest.mark.parametrize(
    ("kind", "function", "check", "bar"),
    [
        ("llama", ignores_end, isolation, LEAK),
        ("llama", leaks_one_token, isolation, LEAK),
        ("gpt2", ignores_end, isolation, LEAK),
        ("qwen3_moe", leaks_one_token, isolation, LEAK),
        ("llama", leaks_a_prompt, position, TOLERANCE),
        ("llama", hides_one_token, position, TOLERANCE),
        ("mistral", window_by_index, position, TOLERANCE),
        ("gemma3_text", window_by_index, position, TOLERANCE),
        ("llama4_text", window_by_index, position, TOLERANCE),
    ],
)
def test_planted_attention(
    kind: str, function: Any, check: Any, bar: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = row_model(tiny_model(kind))
    monkeypatch.setitem(AttentionInterface._global_mapping, NAMES["segments"], function)
    with torch.no_grad():
        finding = check(model, VOCAB) if check is isolation else check(model, VOCAB, LONGEST)
        detail = finding.detail
    assert not finding.passed
    amount = float(detail.split("by up to " if check is isolation else "turns to ")[1].split()[0].rstrip(")"))
    assert amount >= 100 * bar
    assert choose_layout(model, "auto", LONGEST, VOCAB)[0] == "separate"


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_positions_by_row_index_are_caught(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = row_model(tiny_model(kind))
    right = RowModel._inputs

    def by_index(self: RowModel, row: Any) -> dict[str, Any]:
        inputs = right(self, row)
        if "position_ids" in inputs:
            inputs["position_ids"] = torch.arange(row.num_tokens)[None]
        return inputs

    monkeypatch.setattr(RowModel, "_inputs", by_index)
    layout, findings = choose_layout(model, "auto", LONGEST, VOCAB)
    assert layout == "separate"
    assert [f.name for f in findings if not f.passed] == ["position"]


def test_positions_one_off_in_an_answer_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    def off(end: torch.Tensor) -> torch.Tensor:
        wrong = positions(end)
        return torch.where(end < end[0], wrong + 1, wrong)

    monkeypatch.setattr(attention_module, "positions", off)
    assert chosen("llama")[1] == "separate"


def test_a_model_that_forgets_its_input_is_caught() -> None:
    model = row_model(tiny_model("llama"))
    with torch.no_grad():
        model.base.get_input_embeddings().weight.fill_(0.1)
        finding = isolation(model, VOCAB)
    assert not finding.passed
    assert "do not depend" in finding.detail


def test_a_model_of_nan_is_caught() -> None:
    model = row_model(tiny_model("llama"))
    with torch.no_grad():
        model.base.get_input_embeddings().weight.fill_(float("nan"))
        assert not isolation(model, VOCAB).passed


def rope(kind: str, **extra: Any) -> dict[str, Any]:
    return dict(rope_parameters=dict(rope_type=kind, rope_theta=1e4, **extra))


LONG = dict(short_factor=[1.0] * 4, long_factor=[2.0] * 4, original_max_position_embeddings=50)


@pytest.mark.parametrize(
    ("kind", "extra", "longest", "passed"),
    [
        ("llama", {}, 10_000, True),
        ("llama", rope("linear", factor=2.0), 10_000, True),
        ("llama", rope("dynamic", factor=2.0) | dict(max_position_embeddings=50), 50, True),
        ("llama", rope("dynamic", factor=2.0) | dict(max_position_embeddings=50), 51, False),
        ("phi3", rope("longrope", **LONG) | dict(original_max_position_embeddings=50), 50, True),
        ("phi3", rope("longrope", **LONG) | dict(original_max_position_embeddings=50), 51, False),
        ("llama4_text", dict(attn_temperature_tuning=True), 50, False),
    ],
)
def test_rotary_scaling_that_looks_at_the_longest_turn(
    kind: str, extra: dict[str, Any], longest: int, passed: bool
) -> None:
    model = row_model(tiny_model(kind, **extra))
    assert check_ropes(model, longest).passed is passed
    layout, _ = choose_layout(model, "auto", longest if longest < 1000 else LONGEST, VOCAB)
    assert layout == ("shared" if passed else "separate")


def test_why_longrope_does_not_mix_lengths() -> None:
    """A short turn beside a long one is turned by the long one's factors: the position check would see it, too."""
    extra = rope("longrope", **LONG) | dict(original_max_position_embeddings=50)
    model = row_model(tiny_model("phi3", **extra))
    with torch.no_grad():
        assert position(model, VOCAB, 40).passed
        assert not position(model, VOCAB, 80).passed


def test_why_llama4_does_not_share() -> None:
    """Its layers without rotary positions scale queries by the place in the row (transformers 5.23)."""
    model = row_model(tiny_model("llama4_text", attn_temperature_tuning=True, floor_scale=8, attn_scale=1.0))
    with torch.no_grad():
        assert not position(model, VOCAB, LONGEST).passed
