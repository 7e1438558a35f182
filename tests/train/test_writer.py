"""Checkpoints in the background: copies, one at a time, nothing lost, and no error swallowed."""

from __future__ import annotations

import threading
import time

import pytest
import torch

from imprint import disk
from imprint.distributed.mesh import Mesh
from imprint.train import checkpoint, writer
from imprint.train.checkpoint import Counters, latest_checkpoint, load_checkpoint, snapshot
from imprint.train.writer import Writer
from states import equal, make_state, step, steps_in, weights


class Told:
    def __init__(self) -> None:
        self.events: list[dict] = []

    def log(self, kind: str, **fields) -> None:
        self.events.append({"kind": kind, **fields})


def make_writer(folder, about=None) -> Writer:
    return Writer(folder, about or {}, Told(), Mesh())


@pytest.fixture
def gate(monkeypatch):
    """Holds every write up until it is opened."""
    opened = threading.Event()
    original = writer.write_checkpoint

    def held(*given):
        assert opened.wait(30)
        return original(*given)

    monkeypatch.setattr(writer, "write_checkpoint", held)
    yield opened
    opened.set()


@pytest.mark.parametrize("lora", [False, True])
def test_what_is_written_is_what_was_when_it_was_saved(lora, tmp_path, gate):
    """Training goes on while the file is written: not a number of it may get in."""
    state, saving = make_state(lora), make_writer(tmp_path)
    step(state, 2)
    before = weights(state)
    saving.save(state, Counters(tokens=2), set())
    step(state, 3)  # in place, all of them: weights and moments
    assert not equal(weights(state), before)
    assert steps_in(tmp_path) == []
    gate.set()
    saving.finish()
    path = latest_checkpoint(tmp_path)
    assert path.name == "step-000002"
    other = make_state(lora)
    assert load_checkpoint(path, other).tokens == 2
    assert equal(weights(other), before)
    step(other, 3)
    assert equal(weights(other), weights(state)), "the optimizer is that of step 2 as well"


def test_a_snapshot_shares_no_memory_with_what_is_trained():
    state = make_state()
    step(state)
    taken = snapshot(state, Counters())
    live = [*state.model.parameters(), *(v for s in state.optimizer.state.values() for v in s.values())]
    places = {tensor.untyped_storage().data_ptr() for tensor in live}
    copied = [*taken.weights.values(), *taken.optimizer.values()]
    assert copied
    assert not places & {tensor.untyped_storage().data_ptr() for tensor in copied}
    assert taken.num_bytes == sum(tensor.nbytes for tensor in copied)
    trained = sum(p.numel() for p in state.model.parameters() if p.requires_grad)
    assert 12 * trained <= taken.num_bytes < 12 * trained + 4 * len(copied) + 1, "three numbers a parameter"


def test_training_does_not_wait_for_the_disk(tmp_path, gate):
    state, saving = make_state(), make_writer(tmp_path)
    step(state)
    saving.save(state, Counters(), set())
    assert not gate.is_set()
    saving.look()
    assert saving.log.events == []
    gate.set()
    saving.finish()
    (event,) = saving.log.events
    assert (event["kind"], event["step"], event["path"]) == ("checkpoint", 1, "step-000001")
    assert event["bytes"] > 0
    assert event["waited"] < 5


def test_one_write_at_a_time(tmp_path, monkeypatch):
    running, most = 0, 0
    original = writer.write_checkpoint

    def counted(*given):
        nonlocal running, most
        running += 1
        most = max(most, running)
        time.sleep(0.02)
        original(*given)
        running -= 1

    monkeypatch.setattr(writer, "write_checkpoint", counted)
    state, saving = make_state(), make_writer(tmp_path)
    for _ in range(4):
        step(state)
        saving.save(state, Counters(), {1, 2, 3, 4})
    saving.finish()
    assert most == 1
    assert steps_in(tmp_path) == [1, 2, 3, 4]
    assert [event["step"] for event in saving.log.events] == [1, 2, 3, 4]


@pytest.mark.parametrize("noticed", ["step", "save", "finish"])
def test_an_error_of_the_thread_is_raised_at_the_next_call(noticed, tmp_path, monkeypatch):
    state, saving = make_state(), make_writer(tmp_path)
    step(state)
    saving.save(state, Counters(), set())
    saving.finish()

    def breaks(*_, **__):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(checkpoint, "save_file", breaks)
    step(state)
    saving.save(state, Counters(), set())
    saving._thread.join()
    assert saving.failed
    calls = {
        "step": lambda: saving.check(saving.failed),
        "save": lambda: saving.save(state, Counters(), set()),
        "finish": saving.finish,
    }
    with pytest.raises(OSError, match="Input/output error"):
        calls[noticed]()
    assert steps_in(tmp_path) == [1]
    assert not saving.failed, "it is told once"


# ---- a full disk


def full_for(monkeypatch, times: float):
    """Every write finds the disk full, `times` times."""
    monkeypatch.setattr(disk, "PAUSE", 0.01)
    left, original = [times], checkpoint.save_file

    def full(tensors, file, **named):
        if left[0] > 0:
            left[0] -= 1
            file.write_bytes(b"a part of it")
            raise OSError(28, "No space left on device")
        return original(tensors, file, **named)

    monkeypatch.setattr(checkpoint, "save_file", full)


def test_a_full_disk_is_waited_for(tmp_path, monkeypatch):
    state, saving = make_state(), make_writer(tmp_path)
    step(state)
    full_for(monkeypatch, 5)
    saving.save(state, Counters(), set())
    expected = weights(state)
    step(state)
    saving.finish()
    texts = [event["text"] for event in saving.log.events if event["kind"] == "note"]
    assert [text.split(" (")[0] for text in texts] == [
        "the disk is full",
        "there is room on the disk again, after 0 s",
    ]
    assert "waiting up to 10 minutes for room" in texts[0]
    other = make_state(seed=1)
    load_checkpoint(latest_checkpoint(tmp_path), other)
    assert equal(weights(other), expected), "what was to be written was held meanwhile"


def test_a_disk_that_stays_full_ends_it_with_the_one_before(tmp_path, monkeypatch):
    state, saving = make_state(), make_writer(tmp_path)
    step(state)
    saving.save(state, Counters(), set())
    saving.finish()
    monkeypatch.setattr(disk, "PATIENCE", 0.1)
    full_for(monkeypatch, float("inf"))
    step(state)
    saving.save(state, Counters(), set())
    with pytest.raises(OSError, match="No space left"):
        saving.finish()
    assert [path.name for path in tmp_path.iterdir()] == ["step-000001"], (
        "no room is taken by half a checkpoint"
    )
    assert steps_in(tmp_path) == [1]


def test_who_is_about_to_end_waits_for_no_room(tmp_path, monkeypatch):
    state, saving = make_state(), make_writer(tmp_path)
    step(state)
    full_for(monkeypatch, float("inf"))
    saving.save(state, Counters(), set())
    saving.abandon()
    begun = time.monotonic()
    saving.wait()
    assert time.monotonic() - begun < 5
    assert saving.failed


def test_how_a_full_disk_is_said():
    """safetensors and the system say it each in their way, and other errors are none of it."""
    from safetensors import SafetensorError

    for error in (
        OSError(28, "No space left on device"),
        OSError(122, "Disk quota exceeded"),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
        RuntimeError("[enforce fail at inline_container.cc:603] . unexpected pos, No space left on device"),
    ):
        assert disk.is_full(error)
    for error in (OSError(5, "Input/output error"), SafetensorError("invalid header"), ValueError("28")):
        assert not disk.is_full(error)


def test_the_copy_is_made_on_the_cpu_in_its_own_type(tmp_path):
    state = make_state()
    state.model.to(torch.bfloat16)
    step(state)
    taken = snapshot(state, Counters())
    assert {tensor.dtype for tensor in taken.weights.values()} == {torch.bfloat16}
    assert {tensor.device.type for tensor in taken.weights.values()} == {"cpu"}
