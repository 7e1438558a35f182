"""The plan of a large run, and the rows of its steps: seconds, memory, and how much is laid more than once.

    python benchmarks/plan.py [--sizes 1000000 10000000] [--steps 1000]

Plans: for each size a process of its own makes the order of an epoch and draws steps of 32 from it; with
replay, and with four conversations to a prompt kept together. Goals: at most 10 seconds and 1 GB beside the libraries
for a million. Rows: steps of real conversations, laid under several budgets; of tokens laid, how many more there
are than if all of a step lay in one row, and the milliseconds that it takes.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import random
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from datetime import datetime
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any

from _common import SHARED, machine, write_result

BATCH = 32
GOAL_SECONDS, GOAL_GB = 10.0, 1.0  # of a million conversations
GOAL_LAYING = 0.2  # seconds to lay a thousand turns
BUDGETS = (1024, 2048, 4096)
SYSTEM = "Answer in short sentences, show each calculation, and end with the number alone. " * 20
Texts = list[list[dict[str, str]]]


def draw(kind: str, size: int, steps: int) -> dict[str, Any]:
    """What a child process does: one kind of plan, from nothing to the conversations of its steps."""
    import numpy as np

    from imprint.pack.plan import Plan
    from imprint.pack.replay import Replay
    from imprint.pack.together import groups_of

    marks = np.random.default_rng(0).integers(0, max(1, size // 4), size) if kind == "kept together" else None
    before = peak_gb()
    started = time.perf_counter()
    plan = Plan(
        size, BATCH, 2, 0, "benchmark",
        replay=Replay(size // 10, Fraction(1, 10), 0, "replay") if kind == "with replay" else None,
        groups=None if marks is None else groups_of(marks),
    )  # fmt: skip
    total = plan.total_steps
    first = time.perf_counter()
    drawn = len(plan.conversations(0))
    ordered = time.perf_counter()
    # spread over both epochs, forwards, as a run and its resumption would ask for them
    for step in range(0, total, max(1, total // steps)):
        drawn += len(plan.conversations(step)) + len(plan.drawn(step))
    ended = time.perf_counter()
    return {
        "kind": kind,
        "conversations": size,
        "seconds": ended - started,
        "seconds_first_step": ordered - started,
        "microseconds_a_step": (ended - ordered) / steps * 1e6,
        "seconds_groups": first - started,
        "added_gb": peak_gb() - before,
        "drawn": drawn,
    }


def peak_gb() -> float:
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def in_child(kind: str, size: int, steps: int) -> dict[str, Any]:
    command = [sys.executable, __file__, "--child", kind, str(size), str(steps)]
    run = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
    return found


def gsm8k(count: int) -> list[tuple[str, str]]:
    with gzip.open(SHARED / "sft/gsm8k_train.jsonl.gz", "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in islice(file, count)]
    return [(row["question"], row["answer"]) for row in rows]


def written(rows: Iterable[object], folder: Path, name: str) -> Path:
    path = folder / f"{name}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def four_answers(count: int) -> list[dict[str, str]]:
    ways = ("{0}", "Let us see.\n{0}", "So it is:\n{0}", "Step by step.\n{0}")
    return [
        {"prompt": question, "response": way.format(answer)}
        for question, answer in gsm8k(count)
        for way in ways
    ]


def workloads(folder: Path) -> dict[str, tuple[Path, str, bool]]:
    """File, template, and whether conversations stay in their order: as if those of a prompt were kept together."""
    sft, questions = SHARED / "sft", gsm8k(960)
    system = [{"system": SYSTEM, "prompt": q, "response": a} for q, a in questions]
    return {
        "gsm8k": (
            written([{"prompt": q, "response": a} for q, a in questions], folder, "gsm8k"),
            "chatml",
            False,
        ),
        "alpaca": (sft / "alpaca_5000.json", "alpaca", False),
        "system prompt": (written(system, folder, "system"), "chatml", False),
        "tools": (sft / "glaive_toolcall_en_demo.json", "chatml", False),
        "four answers": (written(four_answers(240), folder, "four"), "chatml", True),
        "trees": (sft / "oasst_en_100_trees.jsonl", "chatml", True),
    }


def conversations_of(path: Path, template: str) -> list[list[Any]]:
    """The turns of each conversation of a file."""
    from imprint.data.ledger import Ledger
    from imprint.data.load import load
    from imprint.recipe import DataSource
    from imprint.render.resolve import load_tokenizer, prepare_rendering
    from imprint.render.turns import Turn, render

    loaded = load(
        [DataSource(path=str(path))],
        validation=0.0,
        bad_rows="leave_out",
        consecutive_replies="merge",
        seed=0,
        ledger=Ledger(),
    )
    tokenizer = load_tokenizer(str(SHARED / "tokenizers/gpt_neox_20b"))
    rendering = prepare_rendering(tokenizer, template=template, now=datetime(2026, 1, 1))
    found: dict[int, list[Any]] = {}
    for item in render(loaded.train, rendering.template, rendering.encoder, max_length=2048):
        if isinstance(item, Turn):
            found.setdefault(item.conversation, []).append(item)
    return [found[number] for number in sorted(found)]


def laid(conversations: list[list[Any]], in_order: bool) -> list[dict[str, Any]]:
    """What is laid of up to 20 steps, for each budget."""
    from imprint.pack.tree import build_rows

    order = list(range(len(conversations)))
    if not in_order:
        random.Random(0).shuffle(order)
    starts = range(0, len(order) - BATCH + 1, BATCH)[:20]
    steps = [[turn for i in order[at : at + BATCH] for turn in conversations[i]] for at in starts]
    ideal = [sum(row.num_tokens for row in build_rows(turns, 10**9)) for turns in steps]
    found = []
    for budget in BUDGETS:
        seconds, tokens, rows = [], 0, 0
        for turns in steps:
            best = timed(lambda turns=turns, budget=budget: build_rows(turns, budget), 3)
            seconds.append(best)
            made = build_rows(turns, budget)
            tokens, rows = tokens + sum(row.num_tokens for row in made), rows + len(made)
        found.append(
            {
                "budget": budget,
                "laid_over_ideal": tokens / sum(ideal),
                "rows": rows / len(steps),
                "fewest_rows": sum(math.ceil(size / budget) for size in ideal) / len(steps),
                "turns": sum(map(len, steps)) / len(steps),
                "milliseconds": statistics.median(seconds) * 1e3,
            }
        )
    return found


def timed(work: Callable[[], object], rounds: int) -> float:
    """The shortest time of several."""
    times = []
    for _ in range(rounds):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return min(times)


def rows_of_steps() -> dict[str, Any]:
    import tempfile

    from imprint.pack.tree import build_rows

    if not (SHARED / "sft/gsm8k_train.jsonl.gz").is_file():
        print("rows: skipped, the real data is not there")
        return {}
    with tempfile.TemporaryDirectory() as name:
        found: dict[str, Any] = {}
        for title, (path, template, in_order) in workloads(Path(name)).items():
            conversations = conversations_of(path, template)
            found[title] = laid(conversations, in_order)
            for line in found[title]:
                print(
                    f"{title:14} {line['budget']:5,}: {line['laid_over_ideal']:.3f} x the tokens of one row, "
                    f"{line['rows']:.2f} rows (at least {line['fewest_rows']:.2f}), {line['milliseconds']:.2f} ms"
                )
            if title == "gsm8k":
                turns = [turn for turns in conversations for turn in turns]
                thousand = (turns * 2)[:1000]
                found["seconds_for_1000_turns"] = timed(lambda t=thousand: build_rows(t, 4096), 3)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[1_000_000, 10_000_000])
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        kind, size, steps = given.child
        print(json.dumps(draw(kind, int(size), int(steps))))
        return 0
    plans = []
    for size in given.sizes:
        for kind in ("plain", "with replay", "kept together"):
            plans.append(in_child(kind, size, given.steps))
            print(
                f"plan {kind:14} {size:12,}: {plans[-1]['seconds']:.2f} s for {given.steps:,} steps, "
                f"{plans[-1]['added_gb']:.2f} GB more"
            )
    rows = rows_of_steps()
    result = {
        "benchmark": "plan",
        "goals": {"seconds": GOAL_SECONDS, "gb": GOAL_GB, "seconds_for_1000_turns": GOAL_LAYING},
        "plans": plans,
        "rows": rows,
        "machine": machine(),
    }
    write_result("plan", result)
    million = [plan for plan in plans if plan["conversations"] <= 1_000_000]
    met = all(plan["seconds"] <= GOAL_SECONDS and plan["added_gb"] <= GOAL_GB for plan in million)
    return 0 if met and rows.get("seconds_for_1000_turns", 0.0) <= GOAL_LAYING else 1


if __name__ == "__main__":
    sys.exit(main())
