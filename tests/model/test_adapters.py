"""LoRA: what is trained, what is not, and that it is drawn by the seed."""

import re
from typing import Any

import pytest
import torch
from torch import nn

from imprint.distributed.mesh import Mesh
from imprint.errors import ModelError
from imprint.model.adapters import adapted_layers, add_lora
from imprint.pack.tree import build_rows
from imprint.train.optim import Schedule, adamw
from imprint.train.step import TrainState, train_step
from tiny import random_turns, row_gradients, row_model, tiny_model


def lora(model: Any, **changed: Any) -> Any:
    options: dict[str, Any] = dict(rank=4, alpha=8, dropout=0.0, targets="all-linear", seed=0)
    return add_lora(model, **(options | changed))


def trained(model: Any) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def update(model: Any, num_steps: int = 1) -> None:
    optimizer = adamw(model, weight_decay=0.1, betas=(0.9, 0.99), epsilon=1e-8)
    state = TrainState(row_model(model), optimizer, Schedule(1e-2, 10, "constant", 0), Mesh())
    for _ in range(num_steps):
        train_step(state, build_rows(random_turns(0), 10**6))


@pytest.mark.parametrize(
    ("kind", "targets", "suffixes"),
    [
        (
            "llama",
            "all-linear",
            {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"},
        ),
        ("llama", "attention", {"q_proj", "k_proj", "v_proj", "o_proj"}),
        ("llama", ["up_proj"], {"up_proj"}),
        ("gpt2", "all-linear", {"c_attn", "c_proj", "c_fc"}),
        ("gpt2", "attention", {"c_attn", "c_proj"}),
        ("gpt_neox", "attention", {"query_key_value", "dense"}),
        ("phi", "attention", {"q_proj", "k_proj", "v_proj", "dense"}),
        ("opt", "attention", {"q_proj", "k_proj", "v_proj", "out_proj"}),
        ("phi3", "attention", {"qkv_proj", "o_proj"}),
    ],
)
def test_only_adapters_are_trained(kind: str, targets: Any, suffixes: set[str]) -> None:
    model = lora(tiny_model(kind), targets=targets)
    names = trained(model)
    assert all("lora_A" in name or "lora_B" in name for name in names)
    assert {name.split(".lora_")[0].rpartition(".")[2] for name in names} == suffixes
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    update(model, 2)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) is (name not in names), name


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (["q_prj"], r"lora\.targets=\[q_proj\]"),
        (["q_proj", "upproj"], r"lora\.targets=\[up_proj\]"),
        (["embed"], "names among: .*q_proj"),
        (["zzz"], "all-linear"),
        ([], "no linear layer inside an attention module"),
    ],
)
def test_unknown_layers_are_refused(targets: list[str], message: str) -> None:
    with pytest.raises(ModelError, match="does not have") as caught:
        lora(tiny_model("llama"), targets=targets)
    assert re.search(message, str(caught.value), re.DOTALL)


def test_a_model_whose_attention_has_other_names() -> None:
    model = nn.ModuleDict({"mix": nn.Linear(2, 2)})
    with pytest.raises(ModelError, match="no linear layer inside an attention module") as caught:
        lora(model, targets="attention")
    assert "names among: mix" in str(caught.value)


def test_attention_of_gpt2_leaves_its_other_c_proj_alone() -> None:
    names = {name.split(".lora_")[0] for name in trained(lora(tiny_model("gpt2"), targets="attention"))}
    assert all(".attn." in name for name in names)


def test_what_was_adapted_is_told() -> None:
    told = adapted_layers(lora(tiny_model("llama"), targets=["q_proj"]))
    assert told.startswith("adapters on q_proj × 2; none on k_proj × 2")
    assert "lm_head" not in told
    assert "none on" not in adapted_layers(lora(tiny_model("llama")))


def test_layers_that_peft_refuses() -> None:
    with pytest.raises(ModelError, match="Mamba"):
        lora(tiny_model("mamba"), targets=["out_proj"])


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_new_tokens_are_trained_and_the_other_rows_are_not(kind: str, tied: bool) -> None:
    base = tiny_model(kind, tie_word_embeddings=tied)
    turns = random_turns(0)
    used = int(turns[0].completion[0])
    new = [used, 50]
    old = [i for i in range(97) if i not in new]

    def weights(model: Any) -> tuple[torch.Tensor, torch.Tensor]:
        copy = model.merge_and_unload() if hasattr(model, "merge_and_unload") else model
        parts = (copy.get_input_embeddings(), copy.get_output_embeddings())
        return tuple(part.weight.detach().clone() for part in parts)  # type: ignore[return-value]

    before = weights(base)
    model = lora(base, new_tokens=new)
    update(model)
    after = weights(model)
    for a, b in zip(after, before, strict=True):
        assert torch.equal(a[old], b[old])
        assert (a[new] != b[new]).any(dim=1).all()
    if tied:
        assert torch.equal(*after)


def test_adapters_begin_as_the_model_itself() -> None:
    rows = build_rows(random_turns(0), 10**6)
    plain = row_model(tiny_model("llama"))(rows[0])
    # to rounding: a head with rows of its own is called as it is, not multiplied chunk by chunk
    assert torch.allclose(row_model(lora(tiny_model("llama"), new_tokens=[5]))(rows[0]), plain, rtol=1e-5)


def test_the_seed_decides_the_first_factors() -> None:
    def factors(seed: int) -> dict[str, torch.Tensor]:
        return trained(lora(tiny_model("llama"), seed=seed))

    torch.manual_seed(1)
    a = factors(0)
    torch.manual_seed(2)
    b, c = factors(0), factors(1)
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert all(torch.equal(a[name], c[name]) is ("lora_B" in name) for name in a)
    assert all(not a[name].any() for name in a if "lora_B" in name)


def test_adding_adapters_does_not_disturb_the_random_state() -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    lora(tiny_model("llama"), seed=5)
    assert torch.equal(torch.rand(3), expected)


def test_rank_and_alpha_set_the_scale() -> None:
    model = lora(tiny_model("llama"), rank=2, alpha=6, targets=["q_proj"])
    layer = model.base_model.model.model.layers[0].self_attn.q_proj
    x = torch.randn(1, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        layer.lora_B["default"].weight.fill_(0.5)
        a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        assert a.shape == (2, 32)
        assert torch.allclose(layer(x), layer.base_layer(x) + 3 * x @ a.T @ b.T, atol=1e-6)


def test_dropout_acts_on_adapters_in_training_only() -> None:
    model = row_model(lora(tiny_model("llama"), dropout=0.5))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.1)
    (row,) = build_rows(random_turns(0), 10**6)
    model.eval()
    assert torch.equal(model(row), model(row))
    model.train()
    assert not torch.equal(model(row), model(row))


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_gradients_reach_only_the_adapters(kind: str) -> None:
    model = lora(tiny_model(kind), new_tokens=[5])
    _, found = row_gradients(row_model(model), build_rows(random_turns(0), 10**6))
    assert found.keys() == trained(model).keys()
