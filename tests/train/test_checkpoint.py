"""Checkpoints: whole or not there, verified before they are read, and never of another model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from imprint.distributed.mesh import Mesh
from imprint.errors import RunError
from imprint.model.adapters import add_lora
from imprint.pack.tree import build_rows
from imprint.train import checkpoint
from imprint.train.checkpoint import (
    Counters,
    is_valid,
    latest_checkpoint,
    load_checkpoint,
    load_weights,
    save_checkpoint,
    write_text,
)
from imprint.train.optim import Schedule, adamw
from imprint.train.step import TrainState, train_step
from tiny import random_turns, row_model, tiny_model


def make_state(lora: bool = False, seed: int = 0, **sizes: int) -> TrainState:
    model = tiny_model("llama", seed=seed, **sizes)
    if lora:
        model = add_lora(model, rank=2, alpha=4, dropout=0.0, targets="all-linear")
    rows = row_model(model).train()
    optimizer = adamw(rows, weight_decay=0.1, betas=(0.9, 0.99), epsilon=1e-8)
    return TrainState(rows, optimizer, Schedule(1e-2, 20), Mesh())


def step(state: TrainState, count: int = 1) -> list[float]:
    rows = build_rows(random_turns(), 64)
    return [train_step(state, rows).loss for _ in range(count)]


def weights(state: TrainState) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in checkpoint.trained_tensors(state.model).items()}


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def steps_in(folder: Path) -> list[int]:
    return sorted(int(path.name[5:]) for path in folder.glob("step-*") if is_valid(path))


@pytest.mark.parametrize("lora", [False, True])
def test_loaded_is_saved(lora, tmp_path):
    state = make_state(lora)
    step(state, 3)
    counters = Counters(best_loss=1.5, best_step=2, waited=1, seconds=3.5, tokens=7, stopped="why")
    path = save_checkpoint(tmp_path, state, counters, set())
    after = step(state, 2)

    other = make_state(lora, seed=1)
    step(other)  # another history: all of it must be replaced
    assert load_checkpoint(path, other) == counters
    assert other.step == 3
    assert step(other, 2) == (after if not lora else step_after(path))
    if not lora:
        assert equal(weights(other), weights(state))


def step_after(path: Path) -> list[float]:
    """What the adapters of `path` do on the base of seed 1: adapters alone are in a LoRA checkpoint."""
    state = make_state(True, seed=1)
    load_checkpoint(path, state)
    return step(state, 2)


def test_a_lora_checkpoint_holds_adapters_alone(tmp_path):
    state = make_state(lora=True)
    step(state)
    path = save_checkpoint(tmp_path, state, Counters(), set())
    from safetensors.torch import load_file

    names = load_file(path / "weights.safetensors")
    assert names
    assert all("lora_" in name for name in names)


def test_the_manifest_names_every_file(tmp_path):
    state = make_state()
    step(state)
    path = save_checkpoint(tmp_path, state, Counters(), set())
    manifest = json.loads((path / "manifest.json").read_text())
    files = {file.name for file in path.iterdir()} - {"manifest.json"}
    assert files == set(manifest) == {"weights.safetensors", "optimizer.safetensors", "state.json"}
    for name, facts in manifest.items():
        assert facts == {
            "bytes": (path / name).stat().st_size,
            "sha256": checkpoint.file_hash(path / name),
        }


POINTS = [
    (checkpoint, "save_file", 1),
    (checkpoint, "save_file", 2),
    (checkpoint, "seal", 1),
    (checkpoint, "file_hash", 2),
    *((checkpoint, "sync", call) for call in range(1, 6)),
    (checkpoint.os, "replace", 1),
    (checkpoint.json, "dumps", 1),
    (checkpoint.json, "dumps", 2),
    (Path, "write_text", 1),
    (Path, "write_text", 2),
    (Path, "mkdir", 2),
]


@pytest.mark.parametrize(("place", "name", "call"), POINTS)
def test_a_save_that_breaks_leaves_the_one_before(place, name, call, tmp_path, monkeypatch):
    state = make_state()
    step(state, 2)
    save_checkpoint(tmp_path, state, Counters(tokens=2), set())
    before = weights(state)
    step(state)
    original, calls = getattr(place, name), 0

    def breaks(*arguments, **named):
        nonlocal calls
        calls += 1
        if calls == call:
            raise OSError("no space left on device")
        return original(*arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(place, name, breaks)
        with pytest.raises(OSError, match="no space"):
            save_checkpoint(tmp_path, state, Counters(tokens=3), set())
    path = latest_checkpoint(tmp_path)
    assert path == tmp_path / "step-000002"
    other = make_state(seed=1)
    assert load_checkpoint(path, other).tokens == 2
    assert equal(weights(other), before)

    save_checkpoint(tmp_path, state, Counters(tokens=3), set())  # and the next save cleans up
    assert [path.name for path in tmp_path.iterdir()] == ["step-000003"]
    assert steps_in(tmp_path) == [3]


def test_rotation_keeps_the_best_and_the_last(tmp_path):
    state = make_state()
    for best, kept in [(1, [1]), (2, [2]), (2, [2, 3]), (2, [2, 4]), (5, [5])]:
        step(state)
        keep = {best}
        save_checkpoint(tmp_path, state, Counters(best_step=best), keep)
        assert steps_in(tmp_path) == kept


def test_rotation_touches_nothing_else(tmp_path):
    state = make_state()
    step(state)
    (tmp_path / "notes").mkdir()
    (tmp_path / "step-0001").mkdir()  # not our name: five digits or fewer
    save_checkpoint(tmp_path, state, Counters(), set())
    assert {path.name for path in tmp_path.iterdir()} == {"notes", "step-0001", "step-000001"}


def test_a_valid_checkpoint_is_not_written_again(tmp_path):
    state = make_state()
    step(state)
    path = save_checkpoint(tmp_path, state, Counters(), set())
    times = {file: file.stat().st_mtime_ns for file in path.iterdir()}
    save_checkpoint(tmp_path, state, Counters(), set())
    assert {file: file.stat().st_mtime_ns for file in path.iterdir()} == times
    (path / "state.json").write_text("{}")
    save_checkpoint(tmp_path, state, Counters(), set())
    assert is_valid(path)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: flip(path / "weights.safetensors"),
        lambda path: flip(path / "optimizer.safetensors"),
        lambda path: (path / "state.json").unlink(),
        lambda path: (path / "manifest.json").unlink(),
        lambda path: (path / "manifest.json").write_text("[]"),
        lambda path: (path / "manifest.json").write_text('{"state.json": 3}'),
        lambda path: (path / "weights.safetensors").write_bytes(b""),
    ],
)
def test_damage_is_noticed(damage, tmp_path):
    state = make_state()
    step(state)
    save_checkpoint(tmp_path, state, Counters(), {1})
    step(state)
    path = save_checkpoint(tmp_path, state, Counters(), {1})
    assert latest_checkpoint(tmp_path) == path
    damage(path)
    assert latest_checkpoint(tmp_path) == tmp_path / "step-000001"
    damage(tmp_path / "step-000001")
    assert latest_checkpoint(tmp_path) is None


def test_the_newest_with_a_best_that_can_be_read(tmp_path):
    state = make_state()
    for best in (0, 2, 2):
        step(state)
        save_checkpoint(tmp_path, state, Counters(best_step=best), {1, 2, 3})
    assert latest_checkpoint(tmp_path, with_best=True) == tmp_path / "step-000003"
    flip(tmp_path / "step-000002" / "weights.safetensors")
    assert latest_checkpoint(tmp_path, with_best=True) == tmp_path / "step-000001"
    assert latest_checkpoint(tmp_path) == tmp_path / "step-000003"


def test_no_checkpoint_at_all(tmp_path):
    assert latest_checkpoint(tmp_path / "nothing") is None
    (tmp_path / "step-000001.partial").mkdir()
    assert latest_checkpoint(tmp_path) is None


@pytest.mark.parametrize("other", [{"hidden_size": 16}, {"num_hidden_layers": 3}, {"vocab_size": 98}])
def test_another_models_weights_are_refused(other, tmp_path):
    state = make_state()
    step(state)
    path = save_checkpoint(tmp_path, state, Counters(), set())
    wrong = make_state(**other)
    before = weights(wrong)
    with pytest.raises(RunError, match="does not belong to this model") as caught:
        load_weights(path, wrong.model)
    assert str(path) in str(caught.value)
    assert equal(weights(wrong), before), "not a weight was touched"


def test_text_is_replaced_in_one_move(tmp_path, monkeypatch):
    path = tmp_path / "facts.json"
    write_text(path, "one")

    def fails(*_):
        raise OSError("power")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.os, "replace", fails)
        with pytest.raises(OSError, match="power"):
            write_text(path, "two")
    assert path.read_text() == "one"
    write_text(path, "two")
    assert [file.name for file in tmp_path.iterdir()] == ["facts.json"]
    shutil.rmtree(tmp_path)


def test_a_parameter_without_gradient_does_not_hinder_a_resume(tmp_path):
    """Gemma 3's vision tower, for one: text does not reach it, and AdamW keeps no moments of it."""

    def with_idle() -> TrainState:
        state = make_state()
        state.model.idle = torch.nn.Parameter(torch.ones(3, 3))
        state.optimizer = adamw(state.model, weight_decay=0.1, betas=(0.9, 0.99), epsilon=1e-8)
        return state

    whole, first, second = with_idle(), with_idle(), with_idle()
    expected = step(whole, 4)
    told = step(first, 2)
    path = save_checkpoint(tmp_path, first, Counters(), set())
    load_checkpoint(path, second)
    assert told + step(second, 2) == expected
    assert equal(weights(second), weights(whole))
    assert torch.equal(second.model.idle, torch.ones(3, 3))


def test_every_file_may_be_read_by_those_who_may_read_the_others(tmp_path):
    state = make_state()
    step(state)
    path = save_checkpoint(tmp_path, state, Counters(), set())
    assert len({file.stat().st_mode for file in path.iterdir()}) == 1
