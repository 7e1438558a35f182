"""Runs a script in several processes that find each other, as torchrun does; a hang fails, and never blocks."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

LIMIT = 120  # seconds

Results = list[dict[str, Any]]


def launch(script: Path, size: int, out: Path) -> Results:
    """What each rank of `script` left in the folder `out` (its argument) as RANK.pt."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    root = Path(__file__).parents[1]
    common = os.environ | {
        "WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": str(root / "src"),
    }
    logs = [(out / f"{rank}.log").open("w") for rank in range(size)]
    ranks = [
        subprocess.Popen(
            [sys.executable, str(script), str(out)],
            env=common | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=logs[rank],
            stderr=subprocess.STDOUT,
        )
        for rank in range(size)
    ]
    deadline = time.monotonic() + LIMIT
    try:
        while any(rank.poll() is None for rank in ranks):
            if time.monotonic() > deadline or any(rank.poll() for rank in ranks):
                break
            time.sleep(0.05)
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
        for log in logs:
            log.close()
    if any(rank.returncode for rank in ranks):
        ends = "\n".join(f"rank {i}: {(out / f'{i}.log').read_text()[-3000:]}" for i in range(size))
        pytest.fail(f"the processes failed or took more than {LIMIT} s\n{ends}")
    return [torch.load(out / f"{rank}.pt", weights_only=False) for rank in range(size)]
