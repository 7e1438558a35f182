"""Two processes lose nothing: stopped or killed wherever they are, they end with the bytes of the two that were not.

Checkpoints are written in the background all the while (see train/writer.py). Each process is a fork of a
server that has torch loaded, and finds the other as torchrun's would: by the environment.
"""

from __future__ import annotations

import json
import signal
import socket
from pathlib import Path

import pytest

from conftest import Ended, events_of, losses, settings, tree

STEPS = ("epochs=25", "validation=0.2", "validate_every=30", "save_every=10", "learning_rate=1e-2", "samples=1",
         "sample_tokens=4", "rehearse=false")  # fmt: skip
VARIANTS = {
    "full": ("method=full",),
    "lora": ("method=lora", "lora.rank=4", "dropout=0.3", "lora.dropout=0.2"),
}
KILL, TERM = signal.SIGKILL, signal.SIGTERM
STEP = "imprint.train.loop.train_step"
WRITE = "imprint.train.checkpoint.save_file"  # in the writer's thread, of process 0 alone

# What each of the two does to itself: the n-th call of a function, and the signal before it.
Fate = tuple[str, int, int] | None


@pytest.fixture
def two(start):
    """Runs `imprint …` in two processes, and returns how each ended."""

    def two(*arguments: object, fates: tuple[Fate, Fate] = (None, None)) -> list[Ended]:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            port = str(listener.getsockname()[1])
        common = {
            "WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
            "GLOO_SOCKET_IFNAME": "lo",
        }
        started = [
            start(
                *arguments, signal_before=fate, environ=common | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            )
            for rank, fate in enumerate(fates)
        ]
        return [running.wait() for running in started]

    return two


def codes(ended: list[Ended]) -> list[int]:
    return [one.code for one in ended]


def counted(run: Path) -> dict[str, float]:
    """The counters of the last checkpoint, but the time that it took."""
    counters = json.loads((run / "checkpoints/step-000100/state.json").read_text())["counters"]
    return {key: value for key, value in counters.items() if key != "seconds"}


def same(run: Path, whole: Path) -> None:
    """Bytes, losses, samples and counters of the run that nothing happened to."""
    assert tree(run / "model") == tree(whole / "model")
    assert losses(run) == losses(whole)
    assert [step for step, _ in losses(run)] == list(range(1, 101))
    told = [[(e["step"], e["loss"]) for e in events_of(folder, "validation")] for folder in (run, whole)]
    assert told[0] == told[1]
    said = [
        [{k: v for k, v in json.loads(line).items() if k != "time"} for line in file.read_text().splitlines()]
        for file in (run / "samples.jsonl", whole / "samples.jsonl")
    ]
    assert said[0] == said[1]
    assert counted(run) == counted(whole)
    assert (run / "report.html").is_file()
    assert not [path for path in run.rglob("*") if path.suffix in (".partial", ".new")]


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_hundred_steps(variant, two, tiny, rows, tmp_path):
    whole = tmp_path / "whole"
    given = VARIANTS[variant]
    ended = two("train", *settings(tiny, rows, whole, *STEPS, *given))
    assert codes(ended) == [0, 0], ended

    # 25 + 25 + 25 + 25: one is told to stop, then the other; then both are killed
    run = tmp_path / "quarters"
    ended = two("train", *settings(tiny, rows, run, *STEPS, *given), fates=(None, (STEP, 25, TERM)))
    assert codes(ended) == [130, 130], ended
    assert "stopped by another process after step 25 of 100" in ended[0].out
    assert f"imprint resume {run}" in ended[0].out
    assert codes(two("resume", run, fates=((STEP, 25, TERM), None))) == [130, 130]
    assert [event["step"] for event in events_of(run, "interrupted")] == [25, 50]
    assert codes(two("resume", run, fates=((STEP, 26, KILL), (STEP, 26, KILL)))) == [-KILL, -KILL]
    assert codes(two("resume", run)) == [0, 0]
    assert [event["step"] for event in events_of(run, "resume")][:2] == [25, 50]
    assert events_of(run, "resume")[2]["step"] in (60, 70)  # the second may not have been whole yet
    same(run, whole)

    # 50 + 50: killed while the checkpoint of the fiftieth step is on its way to the disk
    run = tmp_path / "halves"
    ended = two("train", *settings(tiny, rows, run, *STEPS, *given), fates=((WRITE, 12, KILL), None))
    assert codes(ended) == [-KILL, 1], ended
    assert "another process of this run has ended" in " ".join(ended[1].out.split())
    assert codes(two("resume", run)) == [0, 0]
    same(run, whole)
