"""Where an export goes, what killed ones left there, and the command that makes it."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from imprint.export_wanted import Wanted, command, is_running, partial_folder, remove_leftovers


@pytest.fixture
def ended():
    """The number of a process that is gone."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_only_what_dead_processes_left_is_removed(ended, tmp_path):
    out = tmp_path / "hf"
    mine = partial_folder(out).name
    head = mine.removesuffix(str(os.getpid()))
    dead = [f"{head}{ended}", f"{head}{ended}.merged", mine]  # in a container a number comes again
    kept = [
        f"{head}{os.getppid()}",  # another export goes on
        f"hf.partial-elsewhere-{ended}",  # of another machine on this disk
        f"hf2.partial-{ended}",
        f"{head}{ended}.copy",
        "hf.failed",
    ]
    for name in (*dead, *kept):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(b"x")
    assert {path.name for path in remove_leftovers(out)} == set(dead)
    assert {path.name for path in tmp_path.iterdir()} == set(kept)


def test_running(ended):
    assert is_running(os.getpid())
    assert is_running(1)  # another user's, perhaps
    assert not is_running(ended)


@pytest.mark.parametrize(
    "wanted",
    [
        Wanted(),
        Wanted(adapter_only=True),
        Wanted("gguf", Path("x y/small"), dtype="float16", options={"type": "f16", "name": "a b"}),
        Wanted(scale=0.5, base=Path("base")),
    ],
)
def test_the_command_asks_for_the_same(wanted, monkeypatch):
    from imprint import cli

    asked = []
    monkeypatch.setattr("imprint.export_run.export", lambda run, found, say: asked.append((run, found)))
    monkeypatch.setattr("imprint.cli_export.told", lambda done: 1 / 0)
    words = shlex.split(command(Path("my runs/a"), wanted))
    with pytest.raises(ZeroDivisionError):
        cli.main(words[1:])
    assert asked == [(Path("my runs/a"), wanted)]
