"""What a row takes is foretold from short ones, for every kind of model; what is free is read from the system."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import imprint.train.free as free_module
from imprint.model.adapters import add_lora
from imprint.model.rowmodel import RowModel
from imprint.train.budget import recompute_activations
from imprint.train.free import free_bytes
from imprint.train.memory import MOMENTS, SHARE, WORKSPACE, Held, Need, Sizes, measure, observe, probe
from tiny import SEPARATE, VOCAB, row_model, tiny_model

CPU = torch.device("cpu")


def wide(kind: str = "llama", **more: Any) -> Any:
    """Wide enough that what a token takes is more than what a tensor does."""
    sizes: dict[str, Any] = dict(hidden_size=64, intermediate_size=160, max_position_embeddings=1024)
    return tiny_model(kind, **{**sizes, **more})


def check(model: Any, compute_type: torch.dtype = torch.float32, most: float = 0.15) -> Sizes:
    """Foretold and held by longer rows, within a share of it."""
    model.train()
    before = torch.random.get_rng_state()
    sizes = measure(model, compute_type)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(p.grad is None for p in model.parameters())
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    for turns, predictions in ((8, 100), (16, 400)):
        row = probe(32, turns, predictions, VOCAB, model.follows_end)
        held = observe(model, row, compute_type).most
        foretold = sizes.need.of(32 * turns, sizes.at_once(predictions))
        assert abs(foretold / held - 1) < most, f"{turns * 32} tokens: {foretold:,.0f} of {held:,}"
    return sizes


@pytest.mark.parametrize("kind", ["llama", "gemma2", "gpt_neox", "qwen3_moe", "phi3"])
def test_longer_rows_are_foretold(kind):
    sizes = check(row_model(wide(kind)), most=0.25 if kind == "qwen3_moe" else 0.15)
    assert sizes.weights == sizes.gradients == sizes.optimizer / MOMENTS


def test_with_adapters_and_in_bfloat16():
    plain = check(row_model(wide()))
    adapted = add_lora(wide(), rank=4, alpha=8, dropout=0.0, targets="all-linear", new_tokens=[], seed=0)
    lora = check(row_model(adapted))
    assert lora.gradients < 0.5 * plain.gradients
    narrow = check(row_model(wide()), torch.bfloat16)
    assert narrow.need.token < 0.9 * plain.need.token


def test_with_recomputed_activations():
    plain, again = row_model(wide(num_hidden_layers=6)), row_model(wide(num_hidden_layers=6))
    recompute_activations(again)
    assert check(again).need.token < 0.5 * check(plain).need.token


def test_more_layers_take_more_in_proportion():
    two, eight = (measure(row_model(wide(num_hidden_layers=n)).train(), torch.float32) for n in (2, 8))
    assert 2.5 < eight.need.token / two.need.token < 4.1
    assert eight.weights > two.weights


@pytest.mark.parametrize("kind", ["mamba", "lfm2"])
def test_models_that_take_one_turn_at_a_time(kind):
    assert kind in SEPARATE
    sizes = measure(RowModel(tiny_model(kind), follows_end=False).train(), torch.float32)
    assert sizes.need.token > 1000


def test_what_is_held_is_counted_by_storage():
    with Held() as held:
        a = torch.zeros(1000)
        b = a.view(10, 100)  # no memory of its own
        b.add_(1)
        assert held.now == 4000
        c = a + 1
        del a, b
        assert held.now == 4000
        del c
    assert (held.now, held.most) == (0, 8000)


def test_the_longest_row_that_fits():
    sizes = Sizes(0, 1000, 2000, Need(500.0, 10.0, 3.0), lambda n: min(n, 100))
    beside = WORKSPACE + 3500
    for tokens in (1, 99, 101, 4000):
        need = beside + 10 * tokens + 3 * min(tokens, 100)
        free = int(need / SHARE) + 1
        assert sizes.longest(65536, free) == tokens
        assert sizes.forecast(tokens, free).fits
        assert not sizes.forecast(tokens + 1, free).fits
    assert sizes.longest(64, 1 << 40) == 64
    assert sizes.longest(64, beside) == 0


# ---- what is free


def machine(folder: Path, groups: str, limits: dict[str, tuple[str, str, int]], version: int) -> Path:
    """A root with /proc and /sys as the kernel writes them; limits by folder: (most, used, cached)."""
    (folder / "proc/self").mkdir(parents=True)
    (folder / "proc/meminfo").write_text("MemTotal: 100 kB\nMemAvailable:   4000000 kB\n")
    (folder / "proc/self/cgroup").write_text(groups)
    names = (
        ("memory.max", "memory.current")
        if version == 2
        else ("memory.limit_in_bytes", "memory.usage_in_bytes")
    )
    for name, (most, used, cached) in limits.items():
        place = folder / "sys/fs/cgroup" / name
        place.mkdir(parents=True, exist_ok=True)
        (place / names[0]).write_text(f"{most}\n")
        (place / names[1]).write_text(f"{used}\n")
        (place / "memory.stat").write_text(f"anon 5\ninactive_file {cached}\n")
    return folder


@pytest.mark.parametrize(
    ("groups", "limits", "version", "free"),
    [
        ("0::/\n", {}, 2, 4096_000_000),
        ("0::/\n", {"": ("max", "0", 0)}, 2, 4096_000_000),
        ("0::/\n", {"": ("3000000000", "1000000000", 500_000_000)}, 2, 2_500_000_000),
        ("0::/a/b\n", {"a": ("900", "100", 0), "a/b": ("max", "0", 0)}, 2, 800),  # the parent's limit counts
        ("4:memory:/x\n2:cpu:/y\n", {"memory/x": ("700", "100", 10)}, 1, 610),
        ("4:memory:/x\n", {"memory/x": (str((1 << 63) - 4096), "1", 0)}, 1, 4096_000_000),
        ("4:memory:/x\n", {"memory/x": ("700", "900", 0)}, 1, 0),
    ],
)
def test_what_is_free_is_the_least_of_all_limits(groups, limits, version, free, tmp_path, monkeypatch):
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    root = machine(tmp_path, groups, limits, version)
    assert free_bytes(CPU, root) == free
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert free_bytes(CPU, root) == free // 2


def test_without_proc_half_of_what_the_machine_has(tmp_path, monkeypatch):
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    monkeypatch.setattr(free_module.os, "sysconf", {"SC_PHYS_PAGES": 1000, "SC_PAGE_SIZE": 4096}.__getitem__)
    assert free_bytes(CPU, tmp_path) == 2_048_000
