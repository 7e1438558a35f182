"""Where the time of an update goes: torch's profiler around the second step of a real run.

    python benchmarks/where.py [--size 100m] [--workload gsm8k] [--imprint KEY=VALUE …]

A Llama of 19 M parameters (or 110 M) on GSM8K, bfloat16, one thread, so that the shares of operations add up.
Operations are grouped by what they are part of: matrix products, attention (its own products and softmax),
the loss beside its products, and all else. Kept as benchmarks/results/where-SIZE.json.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from _common import SHARED, machine, write_result
from _run_sides import call, changed
from _workloads import WORKLOADS, model_folder

GROUPS = {
    "matrix products": ("aten::mm", "aten::addmm"),
    "products of attention": ("aten::bmm", "aten::baddbmm"),
    "softmax": ("aten::_softmax", "aten::_softmax_backward_data", "aten::amax"),
    "copies and casts": ("aten::copy_", "aten::cat", "aten::fill_", "aten::zero_"),
    "element by element": (
        "aten::mul", "aten::mul_", "aten::add", "aten::add_", "aten::sub_", "aten::div_", "aten::addcmul_",
        "aten::silu", "aten::silu_backward", "aten::rsqrt_", "aten::linalg_vector_norm", "aten::sum",
    ),
    "optimizer": ("aten::_fused_adamw_",),
}  # fmt: skip
PROFILED = 2  # the step: the first one warms up


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--size", default="19m", choices=["19m", "100m"])
    parser.add_argument("--workload", default="gsm8k", choices=list(WORKLOADS))
    parser.add_argument("--imprint", action="append", default=[], metavar="KEY=VALUE", help="of the recipe")
    given = parser.parse_args()
    if not SHARED.is_dir():
        print("skipped: the data is not there")
        return 0
    call("_make_model.py", given.size)
    import torch
    from torch.profiler import ProfilerActivity, profile

    import imprint
    import imprint.train.loop as loop

    torch.set_num_threads(1)
    step, profiled = loop.train_step, []

    def watched(state: Any, rows: Any) -> Any:
        if state.step + 1 != PROFILED:
            return step(state, rows)
        with profile(activities=[ProfilerActivity.CPU]) as found:
            stats = step(state, rows)
        profiled.append((found.key_averages(), stats))
        return stats

    loop.train_step = watched
    workload = WORKLOADS[given.workload]
    recipe = {
        **workload.settings(model_folder(given.size), PROFILED),
        "threads": 1,
        "precision": "bfloat16",
        **dict(map(changed, given.imprint)),
    }
    with tempfile.TemporaryDirectory() as folder:
        imprint.train(**recipe, output=str(Path(folder) / "run"))
    [(operations, stats)] = profiled
    own = {event.key: event.self_cpu_time_total / 1e6 for event in operations}
    total = sum(own.values())
    shares = {name: sum(own.get(key, 0.0) for key in keys) / total for name, keys in GROUPS.items()}
    shares["all else"] = 1 - sum(shares.values())
    most = sorted(own, key=lambda key: own[key], reverse=True)[:20]
    result = {
        "benchmark": "where",
        "size": given.size,
        "workload": given.workload,
        "seconds": total,
        "computed_tokens": stats.computed_tokens,
        "trained_tokens": stats.trained_tokens,
        "ratio": shares["matrix products"],
        "shares": shares,
        "operations": {key: own[key] for key in most},
        "machine": machine(),
    }
    print(json.dumps(result, indent=1))
    for name, share in shares.items():
        print(f"{name:24}{share:6.1%}")
    write_result(f"where-{given.size}", result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
