"""An imprint run's updates as token ids, for a peer: `python benchmarks/_steps.py RECIPE.json OUT.jsonl`.

Line s of OUT holds the conversations of step s as [{"ids": […], "prompt": length of the prompt}, …]: the
tokens that imprint renders, in the batches that its plan draws. Beyond the prompt every token is trained.
Runs as a process of its own, so that the one that measures stays small.
"""

from __future__ import annotations

import json
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

from imprint import make_recipe
from imprint.prepare import prepare


def updates_of(values: dict[str, Any]) -> list[list[dict[str, Any]]]:
    """The conversations of each step, their longest first, as a sampler that groups by length would hand them out."""
    recipe = make_recipe(**values)
    prepared = prepare(recipe, Path(recipe.model), datetime(2026, 1, 1))
    steps = []
    for step in range(prepared.plan.total_steps):
        rows = [one_row(prepared.train[index]) for index in prepared.plan.conversations(step)]
        if len(rows) != recipe.batch_size:
            raise SystemExit(
                f"step {step} holds {len(rows)} conversations: too few are there for these updates"
            )
        steps.append(sorted(rows, key=lambda row: -len(row["ids"])))
    return steps


def one_row(turns: Any) -> dict[str, Any]:
    if len(turns) != 1 or set(turns[0].weight.tolist()) != {1.0}:
        raise SystemExit("a conversation of a workload has one reply, whose tokens all weigh 1")
    return {"ids": turns[0].ids.tolist(), "prompt": len(turns[0].prompt)}


def main() -> None:
    values, out = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")), Path(sys.argv[2])
    out.write_text("".join(json.dumps(step) + "\n" for step in updates_of(values)), encoding="utf-8")


if __name__ == "__main__":
    main()
