"""What a trained token costs in a run over a thousand conversations, ten thousand, a hundred thousand.

    python benchmarks/scale.py [--updates 6] [--sizes 1000,10000,100000]

GSM8K's conversations, again and again with a number before each question, so that none is like another.
The cost is the time from one step's event to the next, which holds the plan's draw, reading the turns,
making the rows and the step itself, over the tokens trained in it; the sizes run in turn, round by round.
Reading and rendering happen before the first step and are kept; their seconds are reported beside it.
`between_share` is the part of the time that lies between the steps: what a larger plan could make dearer.
The figure is the dearest size over the cheapest. Goal: flat, which is at most 1.15.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from _common import SHARED, write_result
from _run_sides import Sides, call
from _workloads import WORK, Workload, conversation, gsm8k, model_folder

GOAL = 1.15
ROUNDS = 3


def written(count: int) -> Path:
    """A file of so many conversations."""
    path = WORK / "peers" / f"scale-{count}.jsonl"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", encoding="utf-8") as file:
            for number, row in enumerate(islice(cycle(list(gsm8k())), count)):
                question, answer = (message["content"] for message in row["messages"])
                file.write(json.dumps(conversation(f"Problem {number}. {question}", answer)) + "\n")
    return path


def one_size(count: int, updates: int) -> tuple[Sides, dict[str, Any]]:
    """Everything ready to run over so many conversations, and how long the preparation took."""
    workload = Workload("scale", f"{count:,} conversations", 0, gsm8k, updates)
    started = time.perf_counter()
    sides = Sides(workload, model_folder(), 1 + updates, [f"data={written(count)}"])
    seconds = time.perf_counter() - started
    return sides, {"conversations": count, "prepare_seconds": seconds, "costs": [], "between_share": []}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--updates", type=int, default=6, help="measured in each run, after one to warm up")
    parser.add_argument("--sizes", default="1000,10000,100000")
    given = parser.parse_args()
    if not SHARED.is_dir():
        print("skipped: the data is not there")
        return 0
    call("_make_model.py")
    sizes = [one_size(int(size), given.updates) for size in given.sizes.split(",")]
    for _ in range(ROUNDS):
        for sides, found in sizes:
            run = sides.ours()
            found["costs"].append(1e6 / run["trained_per_second"])
            between = sum(run["seconds"]) - sum(run["step_seconds"])
            found["between_share"].append(between / sum(run["seconds"]))
            print(
                f"{found['conversations']:8,} conversations: {found['costs'][-1]:.0f} µs a trained token, "
                f"{found['between_share'][-1]:.1%} of it between the steps",
                flush=True,
            )
    for sides, found in sizes:
        found["microseconds_per_trained_token"] = statistics.median(found["costs"])
        sides.close()
    costs = [found["microseconds_per_trained_token"] for _, found in sizes]
    result = {
        "benchmark": "scale",
        "goal": GOAL,
        "ratio": max(costs) / min(costs),
        "updates": given.updates,
        "sizes": [found for _, found in sizes],
        "machine": json.loads(call("_needed.py", 2).splitlines()[-1]),
    }
    print(json.dumps(result, indent=1))
    print(f"scale: the dearest size costs {result['ratio']:.2f} x the cheapest (goal: at most {GOAL:g})")
    write_result("scale", result)
    return 0 if result["ratio"] <= GOAL else 1


if __name__ == "__main__":
    sys.exit(main())
