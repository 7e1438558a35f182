"""Nothing is lost: a run that is killed at any instant ends as if it had not been, to the byte.

The kills are real: SIGKILL ends a process of its own. Most happen at an exact instant, before the
n-th call of a function; some come from outside, when something appears in the run folder.
"""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import (
    ROWS,
    SMALL,
    SOURCE,
    Ended,
    build_model,
    environment,
    events_of,
    imprint,
    losses,
    signal_when,
    start,
    tree,
    weights_of,
    write_rows,
)

# 9 steps, saved after 2, 4, 6, 8, 9, and after 3, 6, 9 where the validation is the best so far
STEPS = ("max_steps=9", "validation=0.2", "validate_every=3", "save_every=2")
SAMPLED = (*SMALL, *STEPS, "samples=2", "sample_tokens=4", "learning_rate=1e-2")
VARIANTS = {
    "full": (),
    "lora": ("method=lora", "lora.rank=4"),
    "dropout": ("dropout=0.2", "method=lora", "lora.dropout=0.3", "lora.rank=4"),
    "last": ("final=last",),
}
SHARED = SOURCE.parents[1] / "shared" / "data"

DIE = """
import importlib, os, signal, sys
from imprint.cli import main

def die_before(path, number):
    module, _, name = path.rpartition(".")
    module = importlib.import_module(module)
    original, calls = getattr(module, name), 0
    def counted(*arguments, **named):
        nonlocal calls
        calls += 1
        if calls == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*arguments, **named)
    setattr(module, name, counted)

die_before(sys.argv[1], int(sys.argv[2]))
sys.exit(main(sys.argv[3:]))
"""


def killed_before(function: str, call: int, *arguments: object) -> None:
    """`imprint …` in a process that is killed before the n-th call of a function."""
    command = [sys.executable, "-c", DIE, function, str(call), *map(str, arguments)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=120)
    assert done.returncode == -signal.SIGKILL, done.stderr


def same(run: Path, reference: Path) -> None:
    """The run ended as the reference did: bytes, losses, samples; and nothing is told twice."""
    assert tree(run / "model") == tree(reference / "model")
    for kind in ("step", "validation"):
        told = [[(e["step"], e["loss"]) for e in events_of(folder, kind)] for folder in (run, reference)]
        assert told[0] == told[1], kind
    for kind in ("start", "end", "note"):
        assert len(events_of(run, kind)) == len(events_of(reference, kind)), kind
    saved = [event["step"] for event in events_of(run, "checkpoint")]
    assert len(saved) == len(set(saved))
    said = [
        [(s["step"], s["prompt"], s["reply"]) for s in map(json.loads, (folder / "samples.jsonl").open())]
        for folder in (run, reference)
    ]
    assert said[0] == said[1]
    assert counted(run) == counted(reference)
    assert (run / "report.html").stat().st_size > 1000
    assert not [path for path in run.rglob("*") if path.suffix in (".partial", ".new")]


def counted(run: Path) -> dict[str, float]:
    """The counters of the last checkpoint, but the time that it took."""
    (last,) = sorted((run / "checkpoints").glob("step-*9"))
    counters = json.loads((last / "state.json").read_text())["counters"]
    return {key: value for key, value in counters.items() if key != "seconds"}


def settings(tiny: Path, rows: Path, variant: str) -> list[str]:
    return [f"model={tiny}", f"data={rows}", *SAMPLED, *VARIANTS[variant]]


@pytest.fixture(scope="module")
def references(tmp_path_factory, tiny, rows):
    """Uninterrupted runs, each made once."""
    from imprint.run import train
    from imprint.settings import resolve

    folder = tmp_path_factory.mktemp("references")

    def reference(variant: str) -> Path:
        if not (folder / variant).exists():
            arguments = [*settings(tiny, rows, variant), f"output={folder / variant}"]
            train(resolve(None, arguments).recipe)
        return folder / variant

    return reference


# ---- killed


@pytest.mark.parametrize(
    ("variant", "function", "call"),
    [
        ("full", "imprint.run.run_loop", 1),  # the folder is there, and nothing else
        ("full", "imprint.train.loop.train_step", 2),  # before the first checkpoint
        ("full", "imprint.train.loop.train_step", 6),  # between checkpoints
        ("full", "imprint.train.checkpoint.save_file", 4),  # the weights are written, the optimizer is not
        ("full", "os.replace", 3),  # all is written, and has no name yet
        ("full", "imprint.train.checkpoint.shutil.rmtree", 8),  # saved, and the older ones still there
        ("full", "imprint.run.save_model", 1),  # all steps done
        ("full", "imprint.save.seal", 1),  # the model is written, and has no name yet
        ("lora", "imprint.train.loop.train_step", 6),
        ("lora", "imprint.save.seal", 1),
        ("dropout", "imprint.train.loop.train_step", 6),
        ("last", "imprint.train.loop.train_step", 8),
    ],
)
def test_killed_and_resumed_is_uninterrupted(variant, function, call, references, tiny, rows, tmp_path, cli):
    run = tmp_path / "run"
    killed_before(function, call, "train", *settings(tiny, rows, variant), f"output={run}")
    assert not (run / "model").exists()
    done = cli("resume", run)
    assert done.code == 0, done.err
    same(run, references(variant))
