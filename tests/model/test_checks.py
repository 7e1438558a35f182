"""The checks of a user's model: who passes, who is trained separately, and the mistakes that must be caught."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AttentionInterface

from imprint.model import attention as attention_module
from imprint.model.attention import NAMES
from imprint.model.checks import LEAK, TOLERANCE, choose_layout, head, isolation, position
from imprint.model.rowmodel import RowModel
from imprint.model.view import View
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
        ("mpt", {}),
        ("mamba", {}),
        ("rwkv", {}),
        ("falcon_h1", {}),
        ("qwen3_next", {}),
        ("recurrent_gemma", {}),
        ("jamba", {}),
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


def test_attention_that_looks_at_positions_alone() -> None:
    """gpt_neo's takes no function of ours. transformers tells its turns apart by their positions, so
    that none sees another one, and none sees the prompt that it shares either."""
    _, layout, passed = chosen("gpt_neo")
    assert layout == "separate"
    assert passed["isolation"]
    assert not passed["position"]


class OwnSoftmax(nn.Module):
    """Attention of a model's own, as remote code brings it: it takes any keyword, and heeds none."""

    def __init__(self, hidden: int):
        super().__init__()
        self.mix = nn.Linear(hidden, 3 * hidden)

    def forward(self, hidden_states: torch.Tensor, **_: Any) -> tuple[torch.Tensor, None]:
        query, key, value = self.mix(hidden_states).chunk(3, dim=-1)
        scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
        hidden = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
        return scores.masked_fill(hidden, -torch.inf).softmax(-1) @ value, None


@pytest.mark.parametrize("layer", [0, 1])
def test_unknown_attention_in_one_layer(layer: int) -> None:
    model = row_model(tiny_model("llama"))
    torch.manual_seed(0)
    model.base.model.layers[layer].self_attn = OwnSoftmax(32)
    layout, findings = choose_layout(model, "auto", LONGEST, VOCAB)
    assert layout == "separate"
    assert [finding.name for finding in findings if not finding.passed] == ["isolation"]


def test_attention_that_refuses_the_keyword() -> None:
    class Strict(OwnSoftmax):
        def forward(self, hidden_states: torch.Tensor, position_embeddings: Any = None) -> Any:  # type: ignore[override]
            return super().forward(hidden_states)

    model = row_model(tiny_model("llama"))
    model.base.model.layers[0].self_attn = Strict(32)
    with torch.no_grad():
        finding = isolation(model, VOCAB)
    assert not finding.passed
    assert "does not take rows" in finding.detail


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
        assert model.base.config._attn_implementation == NAMES["tiles"]
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
    monkeypatch.setitem(AttentionInterface._global_mapping, NAMES["tiles"], function)
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

    monkeypatch.setattr("imprint.model.view.positions", off)
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


def test_a_soft_cap_that_is_hardly_reached_is_caught() -> None:
    """recurrent_gemma names its cap otherwise: its logits are taken from its own forward."""
    model, _, passed = chosen("recurrent_gemma")
    assert not passed["head"]
    assert model.own_head
    assert chosen("gemma2", final_logit_softcapping=30.0)[2]["head"]
    quiet = row_model(tiny_model("gemma2", final_logit_softcapping=300.0))
    head_of = RowModel.head.fget  # type: ignore[attr-defined]
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(RowModel, "head", property(lambda self: replace(head_of(self), cap=None)))
        assert not head(quiet, VOCAB).passed


def test_why_llama4_does_not_share() -> None:
    """Its layers without rotary positions scale queries by the place in the row (transformers 5.23)."""
    model = row_model(tiny_model("llama4_text", attn_temperature_tuning=True, floor_scale=8, attn_scale=1.0))
    with torch.no_grad():
        assert not position(model, VOCAB, LONGEST).passed
