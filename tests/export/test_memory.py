"""Merging takes less memory than the largest shard and the adapter together, with a fifth on top."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import environment

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "merge.py"


@pytest.mark.slow
@pytest.mark.skipif(
    not os.access("/proc/self/clear_refs", os.W_OK), reason="peaks are read from Linux's /proc"
)
@pytest.mark.skipif(not BENCHMARK.is_file(), reason="benchmarks/ is not there")
def test_merging_is_bounded_by_a_shard_and_the_adapter():
    command = [sys.executable, str(BENCHMARK), "--megabytes", "240", "--shard", "60", "--print"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment())
    assert done.returncode == 0, done.stderr + done.stdout
    found = json.loads(done.stdout)
    assert found["peak_over_bar"] < 1
    assert found["peft"]["peak_bytes"] > found["bar_bytes"]  # the whole model in memory would not pass
