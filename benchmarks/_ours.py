"""One run of imprint, measured: `python benchmarks/_ours.py SPEC.json OUT.json`, a process of its own.

SPEC: {"recipe": …, "run": folder}. The run goes through `imprint.train`, and everything that is reported
comes from its events: the time from one step's event to the next holds whatever lies between them.
"""

from __future__ import annotations

import json
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any


def resident() -> int:
    """Bytes of this process that are in memory now."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmRSS"))


def main() -> None:
    spec = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    import imprint
    import imprint.run
    from imprint.track import events

    imported = resident()
    result = imprint.train(**spec["recipe"], output=spec["run"])
    log = events.read(result.run / "events.jsonl")
    start = next(event for event in log if event["kind"] == "start")
    steps = [event for event in log if event["kind"] == "step"]
    measured: dict[str, Any] = {
        "seconds": [b["time"] - a["time"] for a, b in pairwise(steps)],
        "first_seconds": steps[0]["seconds"],
        "step_seconds": [step["seconds"] for step in steps[1:]],
        "losses": [step["loss"] for step in steps],
        "computed_tokens": [step["computed_tokens"] for step in steps],
        "trained_tokens": [step["trained_tokens"] for step in steps],
        "imported_bytes": imported,
        "state_bytes": 4 * start["num_parameters"] + 12 * start["num_trainable"],
        "num_parameters": start["num_parameters"],
        "peak_bytes": steps[-1]["peak_bytes"],
        "setting": {
            key: start["recipe"].get(key) for key in ("precision", "layout", "attention", "row_tokens")
        },
        "versions": start["versions"],
    }
    Path(sys.argv[2]).write_text(json.dumps(measured), encoding="utf-8")


if __name__ == "__main__":
    main()
