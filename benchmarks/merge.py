"""How much memory merging takes, and how long, beside PEFT's own merge.

    python benchmarks/merge.py [--megabytes 1200] [--shard 300] [--rank 16] [--no-peft]

A random Llama in bfloat16 of so many megabytes, in shards of at most so many, and an adapter on all linear layers.
Each side runs in a process of its own. Memory is the peak of the resident set over what it was before the merge began
(libraries loaded, a small model merged already). The bar is 1.2 × (the largest shard + the adapter); the figure is
imprint's peak over that bar, at most 1. PEFT's side is from_pretrained, merge_and_unload in float32, and
save_pretrained in bfloat16.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from _common import machine, write_result

BAR = 1.2
WIDTH, VOCABULARY = 1024, 16_000


def make(folder: Path, megabytes: int, shard: int, rank: int) -> None:
    """`folder`/base and `folder`/adapter; what is random in them has no effect on the figure."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    layer = 4 * WIDTH**2 + 3 * WIDTH * 4 * WIDTH
    layers = max(1, (megabytes * 500_000 - VOCABULARY * WIDTH) // layer)
    config = LlamaConfig(
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_hidden_layers=layers,
        num_attention_heads=8,
        vocab_size=VOCABULARY,
        tie_word_embeddings=True,
    )
    torch.set_default_dtype(torch.bfloat16)
    model = LlamaForCausalLM(config)
    model.save_pretrained(folder / "base", max_shard_size=f"{shard}MB")
    adapted = get_peft_model(
        model, LoraConfig(r=rank, target_modules="all-linear", init_lora_weights=False)
    ).float()
    adapted.save_pretrained(folder / "adapter", save_embedding_layers=False)


def resident(key: str) -> int:
    """Bytes of this process's memory: VmRSS now, VmHWM at most so far."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))


def merge_ours(base: Path, adapter: Path, out: Path, shard: int) -> None:
    from imprint.export.base import open_base
    from imprint.export.merge import plan_merge
    from imprint.export.tensors import write_model

    out.mkdir()
    write_model(out, plan_merge(open_base(base), adapter).tensors, shard * 1_000_000)


def merge_peft(base: Path, adapter: Path, out: Path, shard: int) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    merged = PeftModel.from_pretrained(model, adapter).merge_and_unload()
    merged.to(torch.bfloat16).save_pretrained(out, max_shard_size=f"{shard}MB")


def child(side: str, folder: Path, shard: int) -> None:
    """Merge a small model to load everything, then the large one; print its seconds and bytes."""
    merge = {"imprint": merge_ours, "peft": merge_peft}[side]
    small = folder / "small"
    merge(small / "base", small / "adapter", folder / f"{side}-small", shard)
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins anew
    started = time.perf_counter()
    merge(folder / "base", folder / "adapter", folder / side, shard)
    seconds = time.perf_counter() - started
    print(json.dumps({"seconds": seconds, "peak_bytes": resident("VmHWM") - before}))


def run(side: str, folder: Path, shard: int) -> dict[str, Any]:
    command = [sys.executable, __file__, "--child", side, "--folder", str(folder), "--shard", str(shard)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=1200)
    parser.add_argument("--shard", type=int, default=300, help="megabytes")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--no-peft", action="store_true")
    parser.add_argument("--print", action="store_true", help="print the result, and keep none")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        child(given.child, given.folder, given.shard)
        return 0
    folder = Path(tempfile.mkdtemp(prefix="imprint-merge-"))
    try:
        make(folder, given.megabytes, given.shard, given.rank)
        make(folder / "small", 1, given.shard, 2)
        largest = max(file.stat().st_size for file in (folder / "base").glob("*.safetensors"))
        adapter = (folder / "adapter" / "adapter_model.safetensors").stat().st_size
        ours = run("imprint", folder, given.shard)
        result: dict[str, Any] = {
            "machine": machine(),
            "megabytes": given.megabytes,
            "largest_shard_bytes": largest,
            "adapter_bytes": adapter,
            "bar_bytes": BAR * (largest + adapter),
            "imprint": ours,
            "peak_over_bar": ours["peak_bytes"] / (BAR * (largest + adapter)),
        }
        if not given.no_peft:
            result["peft"] = run("peft", folder, given.shard)
            result["memory_of_peft"] = ours["peak_bytes"] / result["peft"]["peak_bytes"]
            result["time_of_peft"] = ours["seconds"] / result["peft"]["seconds"]
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(json.dumps(result, indent=1))
    if not given.print:
        write_result("merge", result)
    return 0 if result["peak_over_bar"] <= 1 else 1


if __name__ == "__main__":
    raise SystemExit(main())
