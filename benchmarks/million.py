"""A million short rows, read, split, rendered and tokenised from disk: peak memory and seconds.

    python benchmarks/million.py [--rows 1000000]

Each preparation runs in a process of its own: first anew, then from the cache. Goal: at most 2 GB
of resident memory at its peak, the libraries (torch, transformers) and mapped files included.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path
from typing import Any

from _common import SHARED, machine, write_result

GOAL = 2.0  # GB
CONFIG = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 512,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "intermediate_size": 1024,
    "max_position_embeddings": 2048,
    "vocab_size": 50304,
}


def write_rows(path: Path, count: int) -> None:
    """Sums in words: short rows, hardly two alike."""
    rng = random.Random(0)
    with path.open("w", encoding="utf-8") as file:
        for _ in range(count):
            a, b = rng.randrange(10_000), rng.randrange(10_000)
            row = {"prompt": f"What is {a} plus {b}?", "response": f"{a} plus {b} is {a + b}."}
            file.write(json.dumps(row) + "\n")


def write_model(folder: Path) -> None:
    """A model folder without weights: preparing needs none."""
    from imprint.demo.base import demonstrations
    from imprint.demo.tokenizer import train_tokenizer

    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    real = SHARED / "tokenizers/gpt_neox_20b/tokenizer.json"
    if real.is_file():
        shutil.copyfile(real, folder / "tokenizer.json")
    else:
        train_tokenizer([demonstrations().read_text(encoding="utf-8")], folder, vocab_size=512)


def prepare_here(model: str, data: str) -> dict[str, Any]:
    """What the child process does."""
    from imprint.prepare import prepare
    from imprint.samples import fixed_prompts
    from imprint.settings import resolve

    recipe = resolve(None, [f"model={model}", f"data={data}", "template=chatml"]).recipe
    started = time.perf_counter()
    prepared = prepare(recipe, Path(model), datetime(2026, 1, 1))
    seconds = time.perf_counter() - started
    samples = fixed_prompts(prepared)
    unit = 1 if sys.platform == "darwin" else 1024
    return {
        "taken_from_cache": prepared.origin.taken,
        "seconds": seconds,
        "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9,
        "train": len(prepared.train),
        "validation": len(prepared.validation),
        "tokens": prepared.train.sums.tokens,
        "samples": len(samples),
    }


def in_child(folder: Path) -> dict[str, Any]:
    command = [sys.executable, __file__, "--child", str(folder / "model"), str(folder / "rows.jsonl")]
    environment = {**os.environ, "IMPRINT_CACHE": str(folder / "cache"), "HF_HUB_OFFLINE": "1"}
    run = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        print(json.dumps(prepare_here(*given.child)))
        return 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_rows(folder / "rows.jsonl", given.rows)
        write_model(folder / "model")
        fresh, again = in_child(folder), in_child(folder)
        kept = sum(file.stat().st_size for file in (folder / "cache").rglob("*") if file.is_file())
        read = (folder / "rows.jsonl").stat().st_size
    assert (fresh["taken_from_cache"], again["taken_from_cache"]) == (False, True)
    result = {
        "benchmark": "million",
        "goal_gb": GOAL,
        "rows": given.rows,
        "data_gb": read / 1e9,
        "kept_gb": kept / 1e9,
        "anew": fresh,
        "from_cache": again,
        "machine": machine(),
    }
    print(json.dumps(result, indent=1))
    print(
        f"million: {fresh['peak_gb']:.2f} GB and {fresh['seconds']:.0f} s anew, {again['peak_gb']:.2f} GB and "
        f"{again['seconds']:.1f} s from the cache (goal: at most {GOAL:g} GB)"
    )
    write_result("million", result)
    return 0 if max(fresh["peak_gb"], again["peak_gb"]) <= GOAL else 1


if __name__ == "__main__":
    sys.exit(main())
