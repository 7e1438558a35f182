"""Which attention a run takes, and the trial on the model's own layers that it depends on."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import flex_attention as torch_flex

from imprint.errors import RunError
from imprint.model import attention, choose
from imprint.model.attention import NAMES, for_transformers, reference
from imprint.model.choose import best, choose_attention, layers, trial
from imprint.model.view import View
from tiny import WINDOW, row_model, tiny_model

pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")


@pytest.fixture
def _gradients_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_flex, "_validate_device", lambda *_: None)


def test_layers_are_noted_by_kind() -> None:
    plain = layers(row_model(tiny_model("llama")))
    assert [(x.heads, x.groups, x.width, x.value_width) for x in plain] == [(4, 2, 8, 8)]
    sunk = layers(row_model(tiny_model("gpt_oss")))
    assert [x.rule.window for x in sunk] == [WINDOW, None]
    assert all(x.rule.sinks is not None and not x.rule.sinks.requires_grad for x in sunk)
    assert [x.rule.chunk for x in layers(row_model(tiny_model("llama4_text")))] == [WINDOW, None]
    assert {x.rule.softcap for x in layers(row_model(tiny_model("gemma2")))} == {2.0}
    deep = layers(row_model(tiny_model("deepseek_v3")))
    assert [(x.width, x.value_width) for x in deep] == [(16, 8)]


def test_noting_leaves_the_model_as_it_was() -> None:
    model = row_model(tiny_model("llama"), "tiles")
    layers(model)
    assert model.base.config._attn_implementation == NAMES["tiles"]


def test_a_model_without_attention_has_no_layers() -> None:
    assert layers(row_model(tiny_model("mamba"))) == []


@pytest.mark.usefixtures("_gradients_on_the_cpu")
@pytest.mark.parametrize("kind", ["gemma2", "gpt_oss", "llama4_text", "deepseek_v3"])
@pytest.mark.parametrize("compute", [torch.float32, torch.bfloat16])
def test_a_right_attention_passes_its_trial(kind: str, compute: torch.dtype) -> None:
    assert trial(row_model(tiny_model(kind)), "flex", compute) == ""


def by_index(query: Tensor, key: Tensor, value: Tensor, view: View, rule: Any) -> Tensor:
    wrong = View(view.end)
    wrong.position = torch.arange(len(view.end))
    return reference.compute(query, key, value, wrong, rule)


def one_end(query: Tensor, key: Tensor, value: Tensor, view: View, rule: Any) -> Tensor:
    end = view.end.clone()
    end[99] = 180
    return reference.compute(query, key, value, View(end), rule)


def no_cap(query: Tensor, key: Tensor, value: Tensor, view: View, rule: Any) -> Tensor:
    return reference.compute(query, key, value, view, choose.replace(rule, softcap=None))


@pytest.mark.parametrize("wrong", [by_index, one_end, no_cap])
def test_a_wrong_attention_does_not(wrong: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = row_model(tiny_model("gemma2"))
    assert trial(model, "tiles", torch.bfloat16) == ""
    monkeypatch.setattr(attention, "flex", for_transformers(wrong))
    assert trial(model, "flex", torch.bfloat16).startswith("it is off by")


def test_a_cpu_takes_tiles() -> None:
    model = row_model(tiny_model("llama"), "reference")
    assert choose_attention(model, "auto", torch.float32) == ("tiles", "computes only what is seen")
    assert model.base.config._attn_implementation == NAMES["tiles"]
    assert choose_attention(model, "reference", torch.float32).name == "reference"
    assert best(torch.device("mps")) == "tiles"


def test_what_does_not_work_falls_back_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    model = row_model(tiny_model("llama"))
    monkeypatch.setattr(choose, "best", lambda _: "flex")  # as on CUDA; here torch refuses its gradients
    name, reason = choose_attention(model, "auto", torch.float32)
    assert name == "tiles"
    assert reason.startswith("computes only what is seen; flex does not work here: ")
    assert model.base.config._attn_implementation == NAMES["tiles"]


def test_what_was_asked_for_and_does_not_work_is_an_error() -> None:
    with pytest.raises(RunError, match="attention=flex does not work") as caught:
        choose_attention(row_model(tiny_model("llama")), "flex", torch.float32)
    assert "attention=auto" in str(caught.value)
