"""Rotary scaling, windows and chunks: what the checks say of limits that a row or a probe does not show."""

from typing import Any

import pytest
import torch
from torch import nn
from transformers import AttentionInterface

from imprint.model import attention as attention_module
from imprint.model.attention import NAMES
from imprint.model.checks import TOLERANCE, check_ropes, choose_layout, position
from imprint.model.rowmodel import RowModel
from imprint.model.view import View
from tiny import VOCAB, row_model, tiny_model

LONGEST = 60


def window_by_index(module: nn.Module, *args: Any, end: View, **named: Any) -> Any:
    wrong = View(end.end)
    wrong.position = torch.arange(len(end.end))
    return attention_module.reference(module, *args, end=wrong, **named)


def rope(kind: str, **extra: Any) -> dict[str, Any]:
    return dict(rope_parameters=dict(rope_type=kind, rope_theta=1e4, **extra))


LONG = dict(short_factor=[1.0] * 4, long_factor=[2.0] * 4, original_max_position_embeddings=50)


def longrope(limit: int) -> dict[str, Any]:
    factors = {**LONG, "original_max_position_embeddings": limit}
    return rope("longrope", **factors) | dict(original_max_position_embeddings=limit)


@pytest.mark.parametrize(
    ("kind", "extra", "longest", "passed"),
    [
        ("llama", {}, 10_000, True),
        ("llama", rope("linear", factor=2.0), 10_000, True),
        ("llama", rope("dynamic", factor=2.0) | dict(max_position_embeddings=50), 51, True),
        ("llama", rope("dynamic", factor=2.0) | dict(max_position_embeddings=50), 52, "row of its own"),
        ("phi3", rope("longrope", **LONG) | dict(original_max_position_embeddings=50), 51, True),
        ("phi3", rope("longrope", **LONG) | dict(original_max_position_embeddings=50), 52, "other rows"),
        ("llama4_text", dict(attn_temperature_tuning=True), 50, False),
    ],
)
def test_rotary_scaling_that_looks_at_the_longest_turn(
    kind: str, extra: dict[str, Any], longest: int, passed: bool | str
) -> None:
    """`passed` is what is said of the turns beyond the limit. A turn's last token is only a target."""
    model = row_model(tiny_model(kind, **extra))
    finding = check_ropes(model, longest)
    assert finding.passed is bool(passed)
    assert ("share rows" in finding.detail) == isinstance(passed, str)
    assert not isinstance(passed, str) or passed in finding.detail
    layout, _ = choose_layout(model, "auto", longest if longest < 1000 else LONGEST, VOCAB)
    assert layout == ("shared" if passed else "separate")


# Limits beyond the probe. A probe of 512 tokens reaches no window of 4,096: it is tried shrunk.


FAR = dict(max_position_embeddings=2048)


@pytest.mark.parametrize(
    ("kind", "extra", "limit"),
    [
        ("mistral", dict(sliding_window=900), "sliding_window 900"),
        ("gemma3_text", dict(sliding_window=600), "sliding_window 600"),
        ("gpt_oss", dict(sliding_window=600), "sliding_window 600"),
        ("llama4_text", dict(attention_chunk_size=700), "attention_chunk_size 700"),
        ("phi3", longrope(600), "original_max_position_embeddings 600"),
    ],
)
def test_limits_beyond_the_probe_are_tried_shrunk(kind: str, extra: dict[str, Any], limit: str) -> None:
    model = row_model(tiny_model(kind, **{**FAR, **extra}))
    kept = repr(model.base.config)
    with torch.no_grad():
        finding = position(model, VOCAB, 1000)
        short = position(model, VOCAB, 500)  # where no turn reaches the limit, nothing is tried
    assert finding.passed
    assert limit in finding.detail
    assert "shrunk for the probe" in finding.detail
    assert "shrunk" not in short.detail
    assert repr(model.base.config) == kept, "the model is as it was"


@pytest.mark.parametrize("kind", ["mistral", "gemma3_text", "llama4_text"])
def test_a_far_window_by_index_is_caught(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    wide = dict(attention_chunk_size=900) if kind == "llama4_text" else dict(sliding_window=900)
    model = row_model(tiny_model(kind, **{**FAR, **wide}))
    monkeypatch.setitem(AttentionInterface._global_mapping, NAMES["tiles"], window_by_index)
    with torch.no_grad():
        assert position(model, VOCAB, 400).passed
        finding = position(model, VOCAB, 1000)
    assert not finding.passed
    assert float(finding.detail.rpartition(" ")[2]) >= 100 * TOLERANCE
    assert choose_layout(model, "auto", 1000, VOCAB)[0] == "separate"


def test_a_window_that_shrinking_does_not_reach_is_said_not_to_be_tried() -> None:
    model = row_model(tiny_model("llama", **FAR))
    model.base.config.sliding_window = 700  # of no effect in this family
    with torch.no_grad():
        finding = position(model, VOCAB, 1000)
    assert finding.passed
    assert "beyond 512 tokens was not tried" in finding.detail


def test_longrope_that_ignores_its_limit_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """A row's positions that are too small by far: the short factors would be taken for long turns."""
    model = row_model(tiny_model("phi3", **FAR, **longrope(600)))
    right = RowModel._inputs

    def short(self: RowModel, row: Any) -> dict[str, Any]:
        inputs = right(self, row)
        inputs["position_ids"] = inputs["position_ids"].clamp(max=7)
        return inputs

    with torch.no_grad():
        assert position(model, VOCAB, 1000).passed
        monkeypatch.setattr(RowModel, "_inputs", short)
        assert not position(model, VOCAB, 1000).passed


def test_why_longrope_does_not_mix_lengths(monkeypatch: pytest.MonkeyPatch) -> None:
    """A short turn beside a long one is turned by the long one's factors: the position check would see it."""
    model = row_model(tiny_model("phi3", **longrope(50)))
    with torch.no_grad():
        assert position(model, VOCAB, 40).passed
        assert position(model, VOCAB, 80).passed
        monkeypatch.setattr("imprint.model.checks.sides_of", lambda base: None)
        assert not position(model, VOCAB, 80).passed
