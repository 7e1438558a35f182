"""Seconds from `imprint train` to its first step, on data that was prepared before.

    python benchmarks/first_step.py [--rounds 5] [--imprint KEY=VALUE …]

The command as a person types it, with the default layout, its checks of the model and everything else that
comes before training; GSM8K and the Llama of 19 M parameters. The clock starts before the process does and
stops when the first step begins, which its event tells: when it was logged, less the seconds that it took.
One run before those that are measured prepares the data and fills the disk's cache. Goal: at most 10 s.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

from _common import SHARED, write_result
from _run_sides import call, imprint
from _workloads import WORKLOADS, model_folder

GOAL = 10.0


def timed(folder: Path, arguments: list[str]) -> tuple[float, float]:
    """(seconds to the beginning of the first step, to its end) of one command."""
    run = folder / f"run-{time.monotonic_ns()}"
    started = time.time()
    imprint("train", *arguments, f"output={run}")
    lines = (run / "events.jsonl").read_text(encoding="utf-8").splitlines()
    step = next(event for event in map(json.loads, lines) if event["kind"] == "step")
    return step["time"] - step["seconds"] - started, step["time"] - started


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--imprint", action="append", default=[], metavar="KEY=VALUE", help="of the recipe")
    given = parser.parse_args()
    if not SHARED.is_dir():
        print("skipped: the data is not there")
        return 0
    call("_make_model.py")
    values = WORKLOADS["gsm8k"].settings(model_folder(), 1)
    arguments = [f"{key}={value}" for key, value in values.items()] + given.imprint
    with tempfile.TemporaryDirectory() as folder:
        timed(Path(folder), arguments)
        found = [timed(Path(folder), arguments) for _ in range(given.rounds)]
    seconds = statistics.median(begun for begun, _ in found)
    result = {
        "benchmark": "first_step",
        "goal": GOAL,
        "seconds": seconds,
        "ratio": seconds / GOAL,
        "step_done_seconds": statistics.median(done for _, done in found),
        "rounds": [begun for begun, _ in found],
        "machine": json.loads(call("_needed.py", 2).splitlines()[-1]),
    }
    print(json.dumps(result, indent=1))
    print(f"first step: begun after {seconds:.1f} s, {seconds / GOAL:.2f} x the goal of {GOAL:g} s")
    write_result("first_step", result)
    return 0 if seconds <= GOAL else 1


if __name__ == "__main__":
    sys.exit(main())
