"""A disk that fills at any write: the last checkpoint is valid, each time, and the next save is whole."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from imprint import disk
from imprint.train import checkpoint
from imprint.train.checkpoint import Counters, latest_checkpoint, load_checkpoint, save_checkpoint
from imprint.train.optim import adamw
from states import equal, make_state, step, weights

TIMES = 50
POINTS = [
    (checkpoint, "save_file"),
    (checkpoint, "safe_open"),
    (disk, "file_hash"),
    (disk, "sync"),
    (disk.os, "replace"),
    (Path, "write_text"),
    (Path, "mkdir"),
]


@pytest.mark.slow
def test_wherever_a_write_finds_no_room(tmp_path, monkeypatch):
    """Fault injection, 50 times: each save ends at a random call of one of the functions that touch the disk."""
    draw, state, broken = random.Random(5), make_state(), 0
    step(state)
    save_checkpoint(tmp_path, state, Counters(), set())
    good = weights(state)
    for _ in range(TIMES):
        step(state)
        place, name = draw.choice(POINTS)
        call, calls, original = draw.randint(1, 4), 0, getattr(place, name)

        def full(*given, _original=original, _call=call, **named):
            nonlocal calls
            calls += 1
            if calls == _call:
                raise OSError(28, "No space left on device")
            return _original(*given, **named)

        with monkeypatch.context() as patch:
            patch.setattr(place, name, full)
            try:
                save_checkpoint(tmp_path, state, Counters(), set())
                good = weights(state)
            except OSError:
                broken += 1
        found = latest_checkpoint(tmp_path)
        other = make_state(seed=1)
        load_checkpoint(found, other)
        if found.name == f"step-{state.step:06d}":  # it broke after its name was given
            good = weights(state)
        assert equal(weights(other), good)
        assert not list(tmp_path.glob("*.partial"))
    assert broken >= TIMES // 3


@pytest.fixture
def small(small_disk):
    return small_disk(2)


@pytest.mark.slow
def test_a_file_system_that_is_full(small):
    """A real one, 50 times: other files leave less room than a checkpoint needs, by another amount each time."""
    draw, state, broken = random.Random(6), make_state(), 0
    state.optimizer = adamw(state.model, weight_decay=0.0, betas=(0.9, 0.99), epsilon=1e-8)
    step(state)
    folder = small / "checkpoints"
    path = save_checkpoint(folder, state, Counters(), set())
    size = sum(file.stat().st_size for file in path.iterdir())
    good = weights(state)
    for _ in range(TIMES):
        step(state)
        free = os.statvfs(small).f_bavail * os.statvfs(small).f_frsize
        left = draw.randint(0, int(1.2 * size))
        (small / "other").write_bytes(bytes(max(0, free - left)))
        try:
            save_checkpoint(folder, state, Counters(), set())
            good = weights(state)
        except Exception as error:
            if not disk.is_full(error):
                raise
            broken += 1
        other = make_state(seed=1)
        load_checkpoint(latest_checkpoint(folder), other)
        assert equal(weights(other), good)
        (small / "other").unlink()
    assert TIMES // 3 <= broken < TIMES
