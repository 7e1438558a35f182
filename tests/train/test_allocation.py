"""What glibc is asked for, and that no number depends on it."""

import ctypes
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import environment
from imprint.train import allocation

SCRIPT = """
import sys
from imprint.train.allocation import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
import torch
def resident():
    return int(open("/proc/self/statm").read().split()[1]) >> 8
for _ in range(4):
    block = torch.ones(1 << 24)
    held = resident()
    del block
print(held - resident())
from imprint.distributed.mesh import Mesh
from imprint.pack.tree import build_rows
from imprint.train.step import TrainState, train_step
from tiny import random_turns, row_model, tiny_model
model = row_model(tiny_model("llama")).train()
state = TrainState(model, torch.optim.SGD(model.parameters()), lambda _: 0.1, Mesh())
print([train_step(state, build_rows(random_turns(s), 64)).loss.hex() for s in range(3)])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has glibc")
def test_freed_memory_stays_and_numbers_are_the_same():
    path = environment() | {"PYTHONPATH": f"{environment()['PYTHONPATH']}:{Path(__file__).parents[1]}"}
    told = [
        subprocess.run(
            [sys.executable, "-c", SCRIPT, how],
            env=path,
            capture_output=True,
            text=True,
            timeout=90,
            check=True,
        ).stdout.splitlines()
        for how in ("keep", "leave")
    ]
    kept, left = (int(lines[0]) for lines in told)
    assert kept < 8  # MiB that the system got back of 64
    assert left > 56
    assert told[0][1] == told[1][1]


def test_elsewhere_nothing_is_done(monkeypatch):
    monkeypatch.setattr(allocation.platform, "libc_ver", lambda: ("musl", "1.2"))
    monkeypatch.setattr(ctypes, "CDLL", lambda _: pytest.fail("nothing may be asked of another library"))
    assert not allocation.keep_freed_memory()
    monkeypatch.setattr(allocation.sys, "platform", "darwin")
    assert not allocation.keep_freed_memory()


@pytest.mark.parametrize(("given", "found"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_waiting_threads_give_their_core_away_unless_the_user_says_otherwise(given, found, tmp_path):
    """By the time that torch, and OpenMP with it, is loaded."""
    script = (
        "import os, sys\nfrom imprint.cli import main\n"
        "class Look:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'torch':\n"
        "            print(os.environ.get('OMP_WAIT_POLICY'))\n"
        "            sys.exit()\n"
        "sys.meta_path.insert(0, Look())\n"
        "main(['resume', sys.argv[1]])\n"
    )
    path = {key: value for key, value in environment().items() if key != "OMP_WAIT_POLICY"}
    path |= {"OMP_WAIT_POLICY": given} if given else {}
    command = [sys.executable, "-c", script, str(tmp_path)]
    done = subprocess.run(command, env=path, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == found
