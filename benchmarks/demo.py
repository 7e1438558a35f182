"""What the demo promises, measured: marks with three seeds, forgetting with and without replay, masks, time, memory.

    python benchmarks/demo.py [--seeds 3]

Each run is `imprint demo`'s own recipe; time and memory are those of the whole command, report included.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import mean
from typing import Any

from _common import machine, write_result

from imprint import run, settings
from imprint.demo.exam import SETS, examine
from imprint.demo.tell import recipe_of, write_materials
from imprint.serve.chat import load_speaker
from imprint.track import events

GOALS = {
    "seen": 0.97,
    "held-out entities": 0.90,
    "held-out phrasings": 0.93,
    "capitals held out": 0.95,
    "seconds": 90,
    "peak_gb": 1.5,
    "general_loss_with_replay": 0.15,
    "general_loss_without": 0.5,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        where = Path(folder)
        result: dict[str, Any] = {"goals": GOALS, "command": whole_command(where / "whole")}
        print(result["command"], flush=True)
        result["seeds"] = []
        for seed in range(given.seeds):
            replies = trained(where / f"replies{seed}", f"seed={seed}")
            every = trained(where / f"every{seed}", f"seed={seed}", "train_on=everything")
            result["seeds"].append({"seed": seed, "replies_only": replies, "every_token": every})
            print(result["seeds"][-1], flush=True)
        result["without_replay"] = trained(where / "without", "replay_share=0")
    name = "held-out entities"
    gains = [one["replies_only"][name] - one["every_token"][name] for one in result["seeds"]]
    result["masked_minus_unmasked"] = {"each": gains, "mean": mean(gains)}
    result["machine"] = machine()
    print({"masked_minus_unmasked": gains, "without_replay": result["without_replay"]})
    write_result("demo", result)


def whole_command(folder: Path) -> dict[str, float]:
    """Seconds and gigabytes of `imprint demo` as a process of its own."""
    started = time.monotonic()
    subprocess.run(
        [sys.executable, "-m", "imprint.cli", "demo", str(folder)], check=True, capture_output=True
    )
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6  # kilobytes on Linux
    return {"seconds": round(time.monotonic() - started, 1), "peak_gb": round(peak, 2)}


def trained(folder: Path, *changes: str) -> dict[str, Any]:
    """Shares of right answers after a run of the demo's recipe, and what it forgot."""
    write_materials(folder)
    path = run.train(settings.resolve(None, recipe_of(folder, *changes)).recipe).run
    losses = [event["loss"] for event in events.read(path / "events.jsonl") if event["kind"] == "replay_loss"]
    marks = examine(load_speaker(path), SETS)
    return {
        **{one.name: round(one.share, 4) for one in marks},
        "stopped": round(sum(one.stopped for one in marks) / sum(one.asked for one in marks), 4),
        "general_loss": {"before": round(losses[0], 4), "after": round(losses[-1], 4)},
    }


if __name__ == "__main__":
    main()
