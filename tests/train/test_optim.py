"""Optimizers: what muon and eight bits do, held against their definitions, and what is kept of them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from imprint.distributed.mesh import Mesh
from imprint.errors import RecipeError
from imprint.model.adapters import add_lora
from imprint.pack.tree import build_rows
from imprint.train.checkpoint import Counters, load_checkpoint, save_checkpoint, trained_tensors
from imprint.train.optim import MOMENTUM, Schedule, adamw, adamw_8bit, muon, parts
from imprint.train.slots import slots_to_tensors
from imprint.train.step import TrainState, train_step
from tiny import random_turns, row_model, tiny_model

OPTIONS: dict[str, Any] = dict(weight_decay=0.1, betas=(0.9, 0.99), epsilon=1e-8)
KINDS = {"adamw": adamw, "adamw_8bit": adamw_8bit, "muon": muon}


def make_state(
    kind: str, lora: bool = False, seed: int = 0, model: str = "llama", **sizes: Any
) -> TrainState:
    inner = tiny_model(model, seed=seed, **sizes)
    if lora:
        inner = add_lora(inner, rank=64, alpha=4, dropout=0.0, targets="all-linear", new_tokens=[5])
    rows = row_model(inner).train()
    head = {"apart": list(rows.base.get_output_embeddings().parameters())} if kind == "muon" else {}
    return TrainState(rows, KINDS[kind](rows, **OPTIONS, **head), Schedule(1e-2, 20), Mesh())


def step(state: TrainState, count: int = 1) -> list[float]:
    return [train_step(state, build_rows(random_turns(), 64)).loss for _ in range(count)]


def weights(state: TrainState) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in trained_tensors(state.model).items()}


def test_muon_takes_matrices_and_adamw_the_rest() -> None:
    state = make_state("muon")
    names = {id(p): name for name, p in state.model.named_parameters()}
    of_muon, of_adamw = (
        {names[id(p)] for group in part.param_groups for p in group["params"]}
        for part in parts(state.optimizer)
    )
    assert of_muon
    assert all("proj" in name for name in of_muon)
    assert {"model.model.embed_tokens.weight", "model.lm_head.weight", "model.model.norm.weight"} <= of_adamw
    assert of_muon | of_adamw == set(names.values())
    assert not of_muon & of_adamw


def test_muon_leaves_blocks_of_experts_and_rows_of_tables_to_adamw() -> None:
    state = make_state("muon", model="mixtral")
    by_muon = {id(p) for group in parts(state.optimizer)[0].param_groups for p in group["params"]}
    blocks = [p for p in state.model.parameters() if p.dim() == 3]
    assert blocks
    assert not any(id(p) in by_muon for p in blocks)
    adapted = make_state("muon", lora=True)
    rows = [p for n, p in adapted.model.named_parameters() if "trainable_tokens" in n and p.requires_grad]
    by_muon = {id(p) for group in parts(adapted.optimizer)[0].param_groups for p in group["params"]}
    assert rows
    assert by_muon
    assert not any(id(p) in by_muon for p in rows)


def test_an_update_of_muon_is_orthogonal_and_as_large_as_adamws() -> None:
    layer = nn.Linear(48, 32, bias=False)
    optimizer = muon(layer, weight_decay=0.1, betas=(0.9, 0.99), epsilon=1e-8)
    before = layer.weight.detach().clone()
    layer.weight.grad = torch.randn(32, 48, generator=torch.Generator().manual_seed(0))
    for group in optimizer.param_groups:
        group["lr"] = 0.01
    optimizer.step()
    update = (before * (1 - 0.01 * 0.1) - layer.weight.detach()) / 0.01
    # Newton and Schulz' iteration leaves singular values between about 0.7 and 1.2
    values = torch.linalg.svdvals(update) / (0.2 * 48**0.5)
    assert 0.5 < float(values.min()) < float(values.max()) < 1.3
    u, _, v = torch.linalg.svd((1 - MOMENTUM) * layer.weight.grad, full_matrices=False)
    assert float((update * (u @ v)).sum() / update.norm() / (u @ v).norm()) > 0.95
    assert 0.1 < float(update.square().mean().sqrt()) < 0.3  # adamw's are about 0.2 in training


@pytest.mark.parametrize("kind", ["muon", "adamw_8bit"])
@pytest.mark.parametrize("lora", [False, True])
def test_loaded_is_saved(kind: str, lora: bool, tmp_path: Any) -> None:
    state = make_state(kind, lora, hidden_size=64, intermediate_size=128)
    step(state, 3)
    path = save_checkpoint(tmp_path, state, Counters(), set())
    kept = {name: tensor.clone() for name, tensor in weights(state).items()}
    losses = step(state, 3)
    other = make_state(kind, lora, hidden_size=64, intermediate_size=128)
    step(other, 1)  # another history: all of it must be replaced
    load_checkpoint(path, other)
    assert all(torch.equal(kept[name], tensor) for name, tensor in weights(other).items())
    assert step(other, 3) == losses
    assert all(torch.equal(tensor, weights(other)[name]) for name, tensor in weights(state).items())


def test_a_lost_slot_shows(tmp_path: Any) -> None:
    """The planted twin of the test above: without its moments, a run goes on otherwise."""
    state = make_state("muon")
    step(state, 3)
    path = save_checkpoint(tmp_path, state, Counters(), set())
    losses = step(state, 3)
    other = make_state("muon")
    load_checkpoint(path, other)
    for part in parts(other.optimizer):
        part.state.clear()
    assert step(other, 3) != losses


def test_eight_bits_follow_adamw_and_take_a_quarter_of_its_room() -> None:
    sizes = dict(hidden_size=64, intermediate_size=128)
    plain, small = make_state("adamw", **sizes), make_state("adamw_8bit", **sizes)
    begun = weights(plain)
    losses, theirs = step(plain, 6), step(small, 6)
    assert losses[-1] < losses[0] - 0.3
    assert all(abs(a - b) < 0.05 * abs(a) for a, b in zip(losses, theirs, strict=True))
    moved = sum(float((weights(plain)[n] - begun[n]).square().sum()) for n in begun) ** 0.5
    apart = sum(float((weights(plain)[n] - weights(small)[n]).square().sum()) for n in begun) ** 0.5
    assert 0 < apart < 0.3 * moved

    def room(state: TrainState) -> int:
        names = {id(p): name for name, p in state.model.named_parameters()}
        kept = slots_to_tensors(state.optimizer, names)
        return sum(t.nbytes for name, t in kept.items() if "gate_proj" in name and "qmap" not in name)

    assert room(small) < 0.3 * room(plain)


def test_eight_bits_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(RecipeError) as caught:
        make_state("adamw_8bit")
    assert "optimizer=adamw_8bit needs the package bitsandbytes" in str(caught.value)
    assert "pip install 'imprint-sft[qlora]'" in str(caught.value)


@pytest.mark.parametrize("fault", ["raises", "does nothing"])
def test_eight_bits_where_they_do_not_work(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import bitsandbytes

    def broken(self: Any) -> None:
        if fault == "raises":
            raise NotImplementedError("no kernel for this device")

    monkeypatch.setattr(bitsandbytes.optim.AdamW8bit, "step", broken)
    with pytest.raises(RecipeError, match="optimizer=adamw_8bit does not work on cpu") as caught:
        make_state("adamw_8bit")
    assert ("no kernel" if fault == "raises" else "moved a weight from 1 to 1.000") in str(caught.value)
