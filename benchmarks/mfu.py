"""How much of the processor's bfloat16 matrix rate an update reaches, counting only what it needs.

    python benchmarks/mfu.py [--updates 3] [--threads 2] [--imprint KEY=VALUE …]

A Llama of 110 M parameters, GSM8K in batches that hold at least 16,000 tokens each when every shared
prefix is counted once, one process, optimizer included: the time from one step's event to the next. Needed
operations are those of `_needed.operations`; the rate is that of a square product of 2,048, measured just
before and just after. Goal: at least 0.55.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys

from _common import SHARED, write_result
from _run_sides import Sides, call
from _workloads import WORKLOADS, model_folder

GOAL = 0.55
BATCH = 88  # conversations: 17 thousand needed tokens and a little
LEAST = 16_000  # needed tokens of an update


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--updates", type=int, default=3, help="after one to warm up")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--imprint", action="append", default=[], metavar="KEY=VALUE", help="of the recipe")
    given = parser.parse_args()
    if not SHARED.is_dir():
        print("skipped: the data is not there")
        return 0
    call("_make_model.py", "100m")
    changes = [f"batch_size={BATCH}", f"threads={given.threads}", "precision=bfloat16", *given.imprint]
    before = json.loads(call("_needed.py", given.threads).splitlines()[-1])
    with Sides(WORKLOADS["gsm8k"], model_folder("100m"), 1 + given.updates, changes, given.threads) as sides:
        run = sides.ours()
        tokens = [one.tokens for one in sides.needed]
    if min(tokens) < LEAST:
        raise SystemExit(f"an update needs only {min(tokens):,} tokens: raise BATCH")
    after = json.loads(call("_needed.py", given.threads).splitlines()[-1])
    rate = statistics.mean(one["matrix_rate"]["bfloat16"] for one in (before, after))
    result = {
        "benchmark": "mfu",
        "goal": GOAL,
        "ratio": run["needed_flops"] / rate,
        "needed_gflops": run["needed_flops"] / 1e9,
        "matrix_gflops": rate / 1e9,
        "parameters": run["num_parameters"],
        "needed_tokens": statistics.mean(tokens),
        "smallest_update": min(tokens),
        "computed_over_needed": run["computed_over_needed"],
        "seconds_per_update": run["seconds_per_update"],
        "beyond_bytes": run["beyond_bytes"],
        "setting": run["setting"],
        "machine": before,
    }
    print(json.dumps(result, indent=1))
    print(f"mfu: {result['ratio']:.1%} of the bfloat16 matrix rate (goal: at least {GOAL:.0%})")
    write_result("mfu", result)
    return 0 if result["ratio"] >= GOAL else 1


if __name__ == "__main__":
    sys.exit(main())
