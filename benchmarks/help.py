"""How long `imprint --help` takes, whole process, against a Python that imports typer and rich alone.

    python benchmarks/help.py [--rounds 9]

The two in turn; medians, and the median of the paired ratios. Goal: at most 0.5 seconds on two cores.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time

from _common import machine, write_result

GOAL = 0.5
OURS = (sys.executable, "-m", "imprint.cli", "--help")
REFERENCE = (sys.executable, "-c", "import typer, rich.console")


def seconds(command: tuple[str, ...]) -> float:
    """Wall seconds of one run of a command."""
    started = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - started


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    rounds = parser.parse_args().rounds
    seconds(OURS), seconds(REFERENCE)  # warm up
    pairs = [(seconds(OURS), seconds(REFERENCE)) for _ in range(rounds)]
    ours = statistics.median(a for a, _ in pairs)
    result = {
        "benchmark": "help",
        "goal_seconds": GOAL,
        "ours_seconds": ours,
        "reference_seconds": statistics.median(b for _, b in pairs),
        "ratio": statistics.median(a / b for a, b in pairs),
        "rounds": rounds,
        "machine": machine(),
    }
    print(json.dumps(result, indent=1))
    print(f"help: {ours:.2f} s (goal: at most {GOAL:g} s), {result['ratio']:.1f} x typer and rich alone")
    write_result("help", result)
    return 0 if ours <= GOAL else 1


if __name__ == "__main__":
    sys.exit(main())
