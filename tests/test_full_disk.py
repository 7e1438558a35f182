"""A disk that fills while a run writes what it says of itself: it waits, goes on, or stops, and nothing is lost.

The room is of one file alone here (events.jsonl, say), so that it is certain which write finds none; in the last
tests a real file system is full. Checkpoints: train/test_full_disk.py, models: test_save.py.
"""

from __future__ import annotations

import json
import os
import signal
from io import FileIO
from pathlib import Path

import pytest

from conftest import events_of, losses, settings, tree
from imprint import disk
from imprint.disk import is_valid
from imprint.track import events

GIVEN = ("max_steps=6", "validation=0.2", "validate_every=2", "save_every=2", "learning_rate=1e-2", "samples=2",
         "sample_tokens=4", "rehearse=false")  # fmt: skip
FULL = (28, "No space left on device")


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    monkeypatch.setattr(disk, "PATIENCE", 0.3)
    monkeypatch.setattr(disk, "PAUSE", 0.05)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, tiny, rows):
    """The run that always found room."""
    from imprint.run import train
    from imprint.settings import resolve

    run = tmp_path_factory.mktemp("whole") / "run"
    train(resolve(None, settings(tiny, rows, run, *GIVEN)).recipe)
    return run


def said(run: Path) -> list[dict]:
    lines = (run / "samples.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "time"} for line in lines]


def same(run: Path, whole: Path) -> None:
    """The bytes, losses and samples of the run that always found room; nothing is told twice, nothing half."""
    assert tree(run / "model") == tree(whole / "model")
    assert losses(run) == losses(whole)
    assert said(run) == said(whole)
    assert len(events_of(run, "end")) == 1
    assert (run / "report.html").stat().st_mtime >= (run / "events.jsonl").stat().st_mtime
    assert not list(run.rglob("*.partial"))


class Room:
    """How many bytes may still be written, and how often none were left. None: as many as there are."""

    def __init__(self) -> None:
        self.left: int | None = None
        self.refused = 0
        self.until = 10**9  # so many refusals, and there is room
        self.when_full = lambda: None

    def take(self, wanted: int) -> int:
        if self.left is None or self.refused >= self.until:
            return wanted
        if self.left == 0:
            self.refused += 1
            self.when_full()
            raise OSError(*FULL)
        taken = min(wanted, self.left)
        self.left -= taken
        return taken


class Narrow(FileIO):
    room: Room

    def write(self, content) -> int:
        return super().write(content[: self.room.take(len(content))])


@pytest.fixture
def room(monkeypatch):
    """The room of the file of this name, from now on until the fixture's `left` is changed."""
    room, opened = Room(), events._open

    def narrow(path):
        opened(path).close()
        if path.name != room.name:
            return opened(path)
        file = Narrow(path, "ab")
        file.room = room
        return file

    original = disk.write_bytes

    def write(path, content):
        if path.name == room.name:
            room.take(len(content))
        original(path, content)

    monkeypatch.setattr(events, "_open", narrow)
    monkeypatch.setattr(disk, "write_bytes", write)
    return room


# The share of a file for which there is room: some of the run, and a part of a line.
PLACES = [("events.jsonl", 0.8), ("samples.jsonl", 0.8), ("report.html", 0)]


def room_for(share: float, file: Path) -> int:
    return int(share * file.stat().st_size)


@pytest.mark.parametrize(("name", "share"), [*PLACES, ("golden.json", None)])
def test_it_waits_and_goes_on(name, share, room, whole, tiny, rows, tmp_path, cli, monkeypatch):
    monkeypatch.setattr(disk, "PATIENCE", 60)
    run = tmp_path / "run"
    room.name, room.left, room.until = name, 0 if share is None else room_for(share, whole / name), 3
    given = ("golden=2",) if share is None else ()
    done = cli("train", *settings(tiny, rows, run, *GIVEN, *given))
    assert done.code == 0, done.err
    assert room.refused == 3
    assert (run / name).is_file()
    told = " ".join(done.err.split())
    assert told.count("the disk is full ([Errno 28] No space left on device): waiting up to") == 1
    assert told.count("there is room on the disk again") == 1
    same(run, whole)


STOPPED = """\
error {run}: the run cannot write its files
  found     [Errno 28] No space left on device: '{run}/{name}'
  expected  a disk with room for the model and for four checkpoints
  to fix    free some space, then go on from the last checkpoint: imprint resume {run}
"""
NO_REPORT = """\
error {run}/report.html: the report cannot be written; all else of the run is on the disk
  found     [Errno 28] No space left on device
  to fix    free some space; imprint resume {run} writes it
"""


@pytest.mark.parametrize(("name", "share"), PLACES)
def test_it_stops_and_resumes(name, share, room, whole, tiny, rows, tmp_path, cli):
    run = tmp_path / "run"
    room.name, room.left = name, room_for(share, whole / name)
    done = cli("train", *settings(tiny, rows, run, *GIVEN))
    assert done.code == 1, done.err
    golden = NO_REPORT if name == "report.html" else STOPPED
    assert done.err[done.err.index("error ") :] == golden.format(run=run, name=name)
    assert done.err.count("waiting up to") == 1, "once in a run is enough"
    saved = list((run / "checkpoints").glob("step-*"))
    assert saved
    assert all(map(is_valid, saved))
    events_of(run)  # every line is whole
    room.left = None
    done = cli("resume", run)
    if name == "report.html":
        assert done.code == 2
        assert "its report.html was missing, and is written now" in done.err
    else:
        assert done.code == 0, done.err
    same(run, whole)


INTERRUPTED = """\
error {run}: stopped while the disk is full; the last checkpoint is whole
  found     [Errno 28] No space left on device: '{run}/events.jsonl'
  to fix    free some space, then imprint resume {run}
"""


def test_who_is_told_to_stop_does_not_wait(room, whole, tiny, rows, tmp_path, cli, monkeypatch):
    monkeypatch.setattr(disk, "PATIENCE", 60)
    run = tmp_path / "run"
    room.name, room.left = "events.jsonl", room_for(0.8, whole / "events.jsonl")
    room.when_full = lambda: os.kill(os.getpid(), signal.SIGTERM) if room.refused == 1 else None
    done = cli("train", *settings(tiny, rows, run, *GIVEN))
    assert done.code == 130, done.err
    assert done.err[done.err.index("error ") :] == INTERRUPTED.format(run=run)
    assert all(map(is_valid, (run / "checkpoints").glob("step-*")))
    room.left = None
    assert cli("resume", run).code == 0
    same(run, whole)


def test_no_room_to_resume(whole, room, tiny, rows, tmp_path, cli):
    """The log is rewound to the checkpoint in one move, or not at all."""
    run = tmp_path / "run"
    room.name, room.left = "events.jsonl", room_for(0.8, whole / "events.jsonl")
    assert cli("train", *settings(tiny, rows, run, *GIVEN)).code == 1
    before = tree(run)
    room.left = 0
    done = cli("resume", run)
    assert done.code == 1, done.err
    assert f"imprint resume {run}" in done.err
    assert tree(run) == before
    room.left = None
    assert cli("resume", run).code == 0
    same(run, whole)


# ---- a real one


@pytest.fixture
def small(small_disk):
    return small_disk(8)


def fill(place: Path) -> None:
    """Not a byte is left for others."""
    with (place / "other").open("wb", buffering=0) as file:
        size = 1 << 20
        while size:
            try:
                file.write(bytes(size))
            except OSError:
                size //= 2


@pytest.mark.slow
@pytest.mark.parametrize("freed", [True, False])
@pytest.mark.parametrize("call", [1, 3, 4, 7])
def test_a_file_system_that_fills_before_a_step(
    call, freed, small, whole, tiny, rows, tmp_path, cli, monkeypatch
):
    """Before any step, or after the last: whatever is written next finds no room; then it is freed, or is not."""
    import imprint.ending
    import imprint.train.loop

    calls = 0

    def counted(original):
        def counted(*given, **named):
            nonlocal calls
            calls += 1
            if calls == call:
                fill(small)
            return original(*given, **named)

        return counted

    pauses = 0

    def pause(seconds, given_up):
        nonlocal pauses
        pauses += 1
        if freed and pauses == 3:
            (small / "other").unlink()

    run = small / "run"
    with monkeypatch.context() as patch:
        patch.setattr(disk, "PATIENCE", 60 if freed else 0.2)
        patch.setattr(disk, "pause", pause)
        patch.setattr(imprint.train.loop, "train_step", counted(imprint.train.loop.train_step))
        patch.setattr(imprint.ending, "save_model", counted(imprint.ending.save_model))
        done = cli("train", *settings(tiny, rows, run, *GIVEN))
    assert calls >= call
    if freed:
        assert done.code == 0, done.err
    else:
        assert done.code == 1, done.err
        assert done.err.count("\nerror ") == 1
        assert f"imprint resume {run}" in done.err
        assert all(map(is_valid, (run / "checkpoints").glob("step-*")))
        assert not list(run.rglob("*.partial"))
        (small / "other").unlink()
        assert cli("resume", run).code == 0
    same(run, whole)
