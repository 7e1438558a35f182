"""Damaged files by the thousand: what becomes of each, and whether any of the properties of tests/data/oracle.py fails.

    python benchmarks/fuzz.py [--mutants 20000] [--seed 0]

Mutant n of a seed is always the same file (tests/data/mutants.py). They are examined in a process of their
own, so that a crash is counted and the next one goes on behind it. Goal: no violation, no crash, none slower
than the limit.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from _common import HERE, machine, write_result

sys.path.insert(0, str(HERE.parent / "tests"))

SHOWN = 20  # violations that the result names


def examine_all(seed: int, first: int, last: int) -> None:
    """One line of JSON for each mutant, at once: what a crash leaves is counted."""
    from data.mutants import mutant
    from data.oracle import TooSlow, examine

    with tempfile.TemporaryDirectory() as folder:
        for number in range(first, last):
            made = mutant(seed, number)
            started = time.process_time()
            fault = outcome = reason = ""
            try:
                outcome, reason = examine(made, Path(folder))
            except (Exception, TooSlow) as error:
                fault = f"{type(error).__name__}: {error}"[:300]
            seconds = time.process_time() - started
            facts = [number, made.name, made.written, made.done, outcome, reason, fault, seconds]
            print(json.dumps(facts), flush=True)


def results(seed: int, mutants: int) -> Iterator[list[Any]]:
    """The facts of every mutant; behind a crash a new process takes over."""
    first = 0
    while first < mutants:
        command = [sys.executable, __file__, "--seed", str(seed), "--range", str(first), str(mutants)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            for line in process.stdout:
                facts = json.loads(line)
                first = facts[0] + 1
                yield facts
        if process.returncode > 0:
            raise SystemExit(f"the process that examines ended with {process.returncode}")
        if process.returncode < 0:
            yield [first, "", "", [], "", "", f"the process died of signal {-process.returncode}", 0.0]
            first += 1


def summary(seed: int, mutants: int) -> dict[str, Any]:
    counts: dict[str, Counter[str]] = {
        name: Counter() for name in ("outcomes", "kinds", "damage", "refusals")
    }
    violations: list[str] = []
    slowest, total, number = (0.0, 0), 0.0, 0
    for number, name, written, done, outcome, reason, fault, seconds in results(seed, mutants):
        counts["outcomes"][outcome or "violation"] += 1
        counts["kinds"][written] += 1
        counts["damage"].update(done or ["none"])
        if reason:
            counts["refusals"][reason] += 1
        if fault:
            violations.append(f"mutant({seed}, {number}) {name} {', '.join(done)}: {fault}")
        slowest, total = max(slowest, (seconds, number)), total + seconds
    return {
        "seed": seed,
        "mutants": number + 1,
        "violations": len(violations),
        **{name: dict(counter.most_common()) for name, counter in counts.items()},
        "milliseconds_a_mutant": round(1000 * total / (number + 1), 2),
        "slowest": {"mutant": slowest[1], "seconds": round(slowest[0], 3)},
        "first_violations": violations[:SHOWN],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mutants", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--range", type=int, nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.range:
        examine_all(given.seed, *given.range)
        return 0
    started = time.perf_counter()
    found = summary(given.seed, given.mutants)
    found["seconds"] = round(time.perf_counter() - started, 1)
    write_result("fuzz", {"machine": machine(), **found})
    print(json.dumps(found, indent=1, ensure_ascii=False))
    return 1 if found["violations"] else 0


if __name__ == "__main__":
    sys.exit(main())
