"""Checkpoints: whole or not there, verified before they are read, and never of another model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from imprint import disk
from imprint.disk import is_valid, write_text
from imprint.errors import RunError, RunFailed
from imprint.train import checkpoint
from imprint.train.checkpoint import (
    Counters,
    checkpoints,
    latest_checkpoint,
    load_checkpoint,
    load_weights,
    rotate,
    save_checkpoint,
)
from imprint.train.optim import adamw
from imprint.train.step import TrainState
from states import equal, make_state, step, steps_in, weights


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
    path = save_checkpoint(tmp_path, state, Counters(), set(), {"run": "a"})
    manifest = json.loads((path / "manifest.json").read_text())
    files = {file.name for file in path.iterdir()} - {"manifest.json"}
    assert files == set(manifest["files"]) == {"weights.safetensors", "optimizer.safetensors", "state.json"}
    for name, facts in manifest["files"].items():
        assert facts == {"bytes": (path / name).stat().st_size, "sha256": disk.file_hash(path / name)}
    assert {key: manifest[key] for key in ("run", "step", "best_step")} == {
        "run": "a",
        "step": 1,
        "best_step": 0,
    }


POINTS = [
    (checkpoint, "save_file", 1),
    (checkpoint, "save_file", 2),
    (checkpoint, "safe_open", 2),
    (checkpoint, "seal", 1),
    (disk, "file_hash", 2),
    *((disk, "sync", call) for call in range(1, 6)),
    (disk.os, "replace", 1),
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
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000002", "step-000003"]
    assert steps_in(tmp_path) == [2, 3]


def test_rotation_keeps_the_best_and_the_last(tmp_path):
    state = make_state()
    # and the newest before both that is its own best: of [1, 2, 3, 4], 4 would need 2
    for best, kept in [(1, [1]), (2, [1, 2]), (2, [1, 2, 3]), (2, [1, 2, 4]), (5, [2, 5])]:
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
        patch.setattr(disk.os, "replace", fails)
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


# ---- whose they are, and how new


def test_rotation_is_its_own_runs_and_by_number(tmp_path):
    """An old checkpoint-1000 of another run beside a new checkpoint-10 (transformers#25129): neither by name."""
    mine, other = {"run": "mine"}, {"run": "other"}
    state = make_state()
    step(state)
    state.step = 1000
    save_checkpoint(tmp_path, state, Counters(), set(), other)
    for number in (9, 10, 11):
        state.step = number
        path = save_checkpoint(tmp_path, state, Counters(), set(), mine)
    assert steps_in(tmp_path) == [10, 11, 1000]
    assert latest_checkpoint(tmp_path, about=mine) == path == tmp_path / "step-000011"
    assert dict(checkpoints(tmp_path, mine))[tmp_path / "step-001000"] == "it belongs to another run"


def test_what_another_run_left_is_moved_aside(tmp_path):
    state = make_state()
    step(state)
    theirs = save_checkpoint(tmp_path, state, Counters(tokens=7), set(), {"run": "other"})
    before = (theirs / "state.json").read_text()
    save_checkpoint(tmp_path, state, Counters(tokens=8), set(), {"run": "mine"})
    assert json.loads((theirs / "state.json").read_text())["counters"]["tokens"] == 8
    assert (tmp_path / "step-000001.of-another-run-1" / "state.json").read_text() == before


def test_the_manifest_says_how_new_one_is_not_the_name(tmp_path):
    state = make_state()
    for _ in range(2):
        step(state)
        save_checkpoint(tmp_path, state, Counters(), set())
    (tmp_path / "step-000001").rename(tmp_path / "step-000099")
    assert latest_checkpoint(tmp_path) == tmp_path / "step-000002"


def test_a_damaged_manifest_is_noticed(tmp_path):
    """The step in it, not only the hashes: it decides what is kept."""
    state = make_state()
    step(state)
    path = save_checkpoint(tmp_path, state, Counters(), set())
    text = (path / "manifest.json").read_text()
    (path / "manifest.json").write_text(text.replace('"step": 1', '"step": 7'))
    assert disk.fault_of(path) == "its manifest.json is missing or damaged"


def test_one_that_is_damaged_is_named(tmp_path):
    state = make_state()
    step(state)
    path = save_checkpoint(tmp_path, state, Counters(), set())
    flip(path / "weights.safetensors")
    assert disk.fault_of(path) == "weights.safetensors is damaged: it has another hash"
    (path / "weights.safetensors").write_bytes(b"short")
    assert "weights.safetensors has 5 bytes, not" in disk.fault_of(path)
    (path / "weights.safetensors").unlink()
    assert disk.fault_of(path) == "weights.safetensors is missing"


def test_weights_that_are_not_finite_are_never_saved(tmp_path):
    """The run that made them keeps the checkpoint before, however often it would save."""
    state = make_state()
    step(state)
    save_checkpoint(tmp_path, state, Counters(), set())
    state.step = 2
    with torch.no_grad():
        next(iter(state.model.parameters())).view(-1)[3] = float("inf")
    with pytest.raises(RunFailed, match="are not finite after step 2"):
        save_checkpoint(tmp_path, state, Counters(), set())
    assert steps_in(tmp_path) == [1]
    assert [path.name for path in tmp_path.iterdir()] == ["step-000001"]


@pytest.mark.parametrize("portion", [1, checkpoint.PORTION], ids=["tensor by tensor", "at once"])
def test_what_the_disk_made_of_it_is_read_back(portion, tmp_path, monkeypatch):
    """A disk that takes a byte and gives another: the old one stays, the new one gets no name."""
    monkeypatch.setattr(checkpoint, "PORTION", portion)
    state = make_state()
    step(state)
    save_checkpoint(tmp_path, state, Counters(), set())
    step(state)
    original = checkpoint.save_file

    def spoils(tensors, file, **named):
        original(tensors, file, **named)
        flip(file)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_file", spoils)
        with pytest.raises(OSError, match="what was read back is not what was written"):
            save_checkpoint(tmp_path, state, Counters(), set())
    assert [path.name for path in tmp_path.iterdir()] == ["step-000001"]


def test_a_removed_one_is_never_half_of_one(tmp_path, monkeypatch):
    """Killed while it is removed: what is left of it is no checkpoint."""
    state = make_state()
    for _ in range(3):
        step(state)
        state.step += 10
        path = save_checkpoint(tmp_path, state, Counters(), {11, 22, 33})

    def killed(path, **_):
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        rotate(tmp_path, 33, set(), {})
    assert steps_in(tmp_path) == [22, 33]
    assert latest_checkpoint(tmp_path) == path
