"""SIGKILL at random instants, saves included, over full and LoRA runs: no folder unusable, no byte different."""

from __future__ import annotations

import json
import os
import random
import time
from pathlib import Path

import pytest

from conftest import imprint, settings
from imprint.chaos import Instant, Outcome, Watched, Whole, equal, torment, write

STEPS = (
    "max_steps=30",
    "epochs=9",
    "validation=0.2",
    "validate_every=5",
    "save_every=1",
    "learning_rate=1e-2",
)
BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


class Forked:
    """What `torment` starts: a fork of a server that has imported everything, so that kills hit the run itself."""

    def __init__(self, running):
        self.running = running

    def poll(self):
        return self.running.process.exitcode

    def kill(self):
        self.running.process.kill()

    def wait(self):
        self.running.process.join()
        return self.running.process.exitcode

    def said(self):
        return self.running.output.read_text()


def kill_many(method: str, kills: int, seed: int, tiny, rows, tmp_path, start) -> Outcome:
    given = settings(tiny, rows, "-", *STEPS, f"method={method}")
    given = [argument for argument in given if not argument.startswith("output=")]
    return torment(given, tmp_path / "work", kills, seed, lambda arguments: Forked(start(*arguments)), print)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["full", "lora"])
def test_five_kills(method, tiny, rows, tmp_path, start):
    outcome = kill_many(method, 5, 1, tiny, rows, tmp_path, start)
    assert len(outcome.kills) == 5
    assert (outcome.unusable, outcome.different) == ([], [])


@pytest.mark.full
def test_two_hundred_kills(tiny, rows, tmp_path, start, monkeypatch):
    found = {}
    for method in ("full", "lora"):
        folder = tmp_path / method
        folder.mkdir()
        found[method] = kill_many(method, 100, 7, tiny, rows, folder, start)
    told = {method: outcome.to_json() for method, outcome in found.items()}
    if os.environ.get("IMPRINT_WRITE_RESULTS") == "1":
        monkeypatch.syspath_prepend(str(BENCHMARKS))
        from _common import machine, write_result

        write_result("chaos", {"machine": machine(), **told})
    for outcome in found.values():
        assert len(outcome.kills) == 100
        assert sum(kill.saving for kill in outcome.kills) >= 20
        assert sum(kill.new_steps > 0 for kill in outcome.kills) >= 50
        assert (outcome.unusable, outcome.different) == ([], [])


def test_what_is_other_is_found(tmp_path):
    """The comparison itself: a byte of the model, a loss, a file more."""
    for name in ("a", "b"):
        (tmp_path / name / "model").mkdir(parents=True)
        (tmp_path / name / "model" / "weights").write_bytes(b"same")
        (tmp_path / name / "events.jsonl").write_text('{"kind": "step", "step": 1, "loss": 2.0}\n')
    a, b = tmp_path / "a", tmp_path / "b"
    assert equal(a, b)
    (b / "model" / "weights").write_bytes(b"sane")
    assert not equal(a, b)
    (b / "model" / "weights").write_bytes(b"same")
    (b / "events.jsonl").write_text('{"kind": "step", "step": 1, "loss": 2.1}\n')
    assert not equal(a, b)


class Writing:
    """A process that has a log line written, or a checkpoint begun, at each look; it ends after ten."""

    def __init__(self, run, saves):
        self.run, self.saves, self.looks, self.killed = run, saves, 0, False
        (run / "checkpoints").mkdir(parents=True, exist_ok=True)

    def poll(self):
        self.looks += 1
        if self.saves:
            (self.run / "checkpoints" / f"step-{self.looks:06d}.partial").mkdir(exist_ok=True)
        else:
            with (self.run / "events.jsonl").open("a") as log:
                line = {"kind": "step", "time": time.time(), "step": self.looks, "loss": 1.0}
                log.write(json.dumps(line) + "\n")
        return 0 if self.looks > 10 else None

    def kill(self):
        self.killed = True

    def wait(self):
        return -9


def test_it_is_killed_at_the_instant_that_was_drawn(tmp_path):
    (tmp_path / "a").mkdir()
    old = {"kind": "step", "time": time.time() - 9, "step": 1, "loss": 1.0}
    (tmp_path / "a" / "events.jsonl").write_text(json.dumps(old) + "\n")
    kill = Watched(tmp_path / "a").kill(process := Writing(tmp_path / "a", saves=False), Instant(steps=4))
    assert process.killed
    assert (kill.step, kill.new_steps, kill.saving) == (4, 4, False), "what was logged before does not count"
    (tmp_path / "b" / "checkpoints" / "step-000009.partial").mkdir(parents=True)
    kill = Watched(tmp_path / "b").kill(process := Writing(tmp_path / "b", saves=True), Instant(saves=3))
    assert process.looks == 3, "what an earlier kill left half written does not count"
    assert kill.saving
    assert (
        Watched(tmp_path / "c").kill(process := Writing(tmp_path / "c", saves=False), Instant(steps=99))
        is None
    )
    assert not process.killed


def test_instants_are_drawn_over_all_of_a_run():
    whole, draw = Whole(steps=40, saves=10, seconds=9.0, step_seconds=0.1, save_seconds=0.2), random.Random(1)
    drawn = [whole.draw(draw, 0.5) for _ in range(300)]
    assert {instant.steps for instant in drawn} == set(range(11)), "up to half of what is left"
    assert {instant.saves for instant in drawn} == set(range(3))
    assert 8 < max(instant.seconds for instant in drawn) <= 9
    assert min(sum(i.steps > 0 for i in drawn), sum(i.saves > 0 for i in drawn)) > 80


def test_what_is_written(tmp_path):
    write(tmp_path / "chaos.json", Outcome(runs=2, different=["killed-1"]))
    told = json.loads((tmp_path / "chaos.json").read_text())
    assert (told["num_kills"], told["runs"], told["different"]) == (0, 2, ["killed-1"])


@pytest.mark.slow
def test_the_command(tiny, rows, tmp_path):
    given = settings(tiny, rows, tmp_path / "work", "max_steps=6", "save_every=1", "validation=0")
    done = imprint("chaos", *given, "--kills", "1", "--json", timeout=600)
    assert done.code == 0, done.err
    told = json.loads(done.out)
    assert (told["num_kills"], told["unusable"], told["different"]) == (1, [], [])
