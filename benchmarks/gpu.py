"""An update on one GPU, in the shapes of real models with random weights: tokens/s, share of the matrix rate, memory.

    python benchmarks/gpu.py [--case lora-8b …] [--row 4096 …] [--updates 5] [--attention auto] [--peer]

Llama-3.1-8B with LoRA (r=16, all linear layers), Llama-3.2-1B and -3B in full, in bfloat16 with float32 weights
and AdamW, on rows of turns that share nothing, of 40 to 2,000 tokens. Needed operations are counted as in
`_needed.operations`, from the pairs that are seen; the rate is that of a square product of 8,192, measured
before and after. `--peer` trains the same turns by TRL's SFTTrainer in the same call, packed where flash-attn is
installed, padded where it is not. Goals: at least 0.60 of the matrix rate, and 1.3 × the peer's tokens/s.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from _common import machine, write_result
from transformers import AutoModelForCausalLM, LlamaConfig

from imprint.data.conversation import Place
from imprint.distributed.mesh import Mesh
from imprint.model.adapters import add_lora
from imprint.model.choose import choose_attention
from imprint.model.cuda import prepare_cuda
from imprint.model.rowmodel import RowModel
from imprint.pack.cost import num_pairs
from imprint.pack.ranks import share_out
from imprint.pack.row import Row
from imprint.render.turns import Turn
from imprint.train.optim import Schedule, adamw
from imprint.train.shortage import OutOfMemory, ran_out, release
from imprint.train.step import TrainState, train_step

GOAL, PEER_GOAL = 0.60, 1.3
RANK = 16
WARM = 2  # updates before the clock starts: kernels are compiled, memory is cut
STEP_TOKENS = 32_768


@dataclass(frozen=True)
class Case:
    """A model's shape, and whether it is trained by adapters."""

    width: int
    inner: int
    layers: int
    heads: int
    groups: int
    depth: int  # of a head
    tied: bool
    lora: bool
    vocabulary: int = 128_256

    def config(self) -> LlamaConfig:
        return LlamaConfig(
            vocab_size=self.vocabulary,
            hidden_size=self.width,
            intermediate_size=self.inner,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.groups,
            head_dim=self.depth,
            max_position_embeddings=131_072,
            tie_word_embeddings=self.tied,
        )

    def operations(self, tokens: int, pairs: int, predictions: int) -> float:
        """Needed by an update: see `_needed.operations`, here with grouped heads."""
        maps = [(self.width, self.heads * self.depth), (self.heads * self.depth, self.width)]
        maps += [(self.width, self.groups * self.depth)] * 2
        maps += [(self.width, self.inner)] * 2 + [(self.inner, self.width)]
        share = 4 if self.lora else 6
        matrices = self.layers * sum(a * b for a, b in maps)
        adapters = self.layers * RANK * sum(a + b for a, b in maps) if self.lora else 0
        seen = 12 * self.layers * self.heads * self.depth * pairs
        return (
            (share * matrices + 6 * adapters) * tokens
            + seen
            + share * self.width * self.vocabulary * predictions
        )


CASES = {
    "lora-8b": Case(4096, 14_336, 32, 32, 8, 128, tied=False, lora=True),
    "full-1b": Case(2048, 8192, 16, 32, 8, 64, tied=True, lora=False),
    "full-3b": Case(3072, 8192, 28, 24, 8, 128, tied=True, lora=False),
    "tiny": Case(64, 128, 2, 4, 2, 16, tied=False, lora=True, vocabulary=512),  # to try this script anywhere
}


def make_turns(total: int, vocabulary: int, seed: int = 0) -> list[Turn]:
    """Random turns of about `total` tokens, lengths like those of chats: most short, some long."""
    rng = np.random.default_rng(seed)
    turns, held = [], 0
    while held < total:
        size = int(np.clip(rng.lognormal(6.0, 0.8), 40, 2000))
        ids = rng.integers(0, vocabulary, size).astype(np.int32)
        cut = size // 2
        weight = np.ones(size - cut, np.float32)
        turns.append(Turn(ids[:cut], ids[cut:], weight, Place("random", len(turns) + 1), 0, 1))
        held += size
    return turns


def make_model(case: Case, device: torch.device) -> Any:
    torch.manual_seed(0)
    with torch.device(device):
        model: Any = AutoModelForCausalLM.from_config(case.config(), dtype=torch.float32)
    model.config.use_cache = False
    return model


def lora(model: Any) -> Any:
    return add_lora(model, rank=RANK, alpha=32, dropout=0.0, targets="all-linear")


def checkpointed(model: Any) -> None:
    model.gradient_checkpointing_enable({"use_reentrant": False})


def ours(
    case: Case, turns: list[Turn], row: int, given: argparse.Namespace, checkpointing: bool
) -> dict[str, Any]:
    """Updates by imprint's own step, on the same turns again and again."""
    device = torch.device(given.device)
    base = make_model(case, device)
    if checkpointing:
        checkpointed(base)
    model = RowModel(lora(base) if case.lora else base).to(device)
    begun = time.perf_counter()
    choice = choose_attention(model, given.attention, torch.bfloat16)
    chosen = time.perf_counter() - begun
    model.hold_frozen(torch.bfloat16)
    model.train()
    optimizer = adamw(model, weight_decay=0.0, betas=(0.9, 0.999), epsilon=1e-8)
    state = TrainState(model, optimizer, Schedule(1e-5, 1000), Mesh(device=device), torch.bfloat16)
    rows = share_out(turns, row, 1, "packed", multiple=128)[0]
    seconds, peak = clocked(lambda: train_step(state, rows), given.updates, device)
    return {
        **figures(case, rows, seconds),
        "peak_gib": peak / 2**30,
        "attention": choice._asdict(),
        "seconds_choosing": chosen,
        "rows": len(rows),
    }


def clocked(update: Callable[[], Any], updates: int, device: torch.device) -> tuple[list[float], int]:
    """(seconds of each update after WARM, most bytes on the device meanwhile)."""
    seconds = []
    for number in range(WARM + updates):
        if number == WARM and device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        begun = time.perf_counter()
        update()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - begun)
    return seconds[WARM:], torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0


def figures(case: Case, rows: list[Row], seconds: list[float]) -> dict[str, Any]:
    tokens = sum(row.num_tokens - row.num_padding for row in rows)
    pairs = sum(num_pairs(row) - row.num_padding for row in rows)
    needed = case.operations(tokens, pairs, sum(row.num_predictions for row in rows))
    median = statistics.median(seconds)
    return {
        "tokens": tokens,
        "seconds": seconds,
        "tokens_per_second": tokens / median,
        "needed_tflops": needed / median / 1e12,
    }


def peer(
    case: Case, turns: list[Turn], row: int, given: argparse.Namespace, checkpointing: bool
) -> dict[str, Any]:
    """The same turns by TRL."""
    from _peer_gpu import trained

    model = make_model(case, torch.device(given.device))
    seconds, peak, layout = trained(
        lora(model) if case.lora else model,
        [(t.ids.tolist(), len(t.prompt)) for t in turns],
        row=row,
        updates=given.updates,
        warm=WARM,
        checkpointing=checkpointing,
    )
    tokens = sum(len(turn) - 1 for turn in turns)
    rate = tokens / statistics.median(seconds)
    return {"seconds": seconds, "tokens_per_second": rate, "peak_gib": peak / 2**30, "layout": layout}


def matrix_rate(device: torch.device, size: int = 8192, rounds: int = 20) -> float:
    """Operations a second of a square product in bfloat16 on random numbers: the median."""
    size = size if device.type == "cuda" else 512
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    seconds, _ = clocked(lambda: a @ b, rounds, device)
    return 2 * size**3 / statistics.median(seconds)


def with_room(measure: Callable[..., dict[str, Any]], *args: Any) -> dict[str, Any]:
    """Without activation checkpointing where memory suffices, else with it."""
    device = torch.device(args[-1].device)
    for checkpointing in (False, True):
        said = ""
        try:
            return {"checkpointing": checkpointing, **measure(*args, checkpointing)}
        except (OutOfMemory, RuntimeError, MemoryError) as error:
            if not isinstance(error, OutOfMemory) and not ran_out(error):
                raise
            said = " ".join(str(error).split())[:200]
        finally:
            gc.collect()
            release(device)
    return {"checkpointing": True, "out_of_memory": said}


def measured(name: str, row: int, given: argparse.Namespace) -> dict[str, Any]:
    case = CASES[name]
    turns = make_turns(STEP_TOKENS if name != "tiny" else 2 * row, case.vocabulary)
    before = matrix_rate(torch.device(given.device))
    found: dict[str, Any] = {"case": name, "row": row, "ours": with_room(ours, case, turns, row, given)}
    rate = statistics.mean([before, matrix_rate(torch.device(given.device))])
    found["matrix_tflops"] = rate / 1e12
    if "needed_tflops" in found["ours"]:
        found["ratio"] = found["ours"]["needed_tflops"] * 1e12 / rate
    if given.peer and importlib.util.find_spec("trl"):
        found["peer"] = with_room(peer, case, turns, row, given)
        if "tokens_per_second" in found["peer"] and "ratio" in found:
            found["ahead"] = found["ours"]["tokens_per_second"] / found["peer"]["tokens_per_second"]
    print(json.dumps(found), flush=True)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--case", action="append", choices=CASES, help="again for more; else all but tiny")
    parser.add_argument("--row", action="append", type=int, help="tokens of a row; else 4,096 and 16,384")
    parser.add_argument("--updates", type=int, default=5, help=f"after {WARM} to warm up")
    parser.add_argument("--attention", default="auto")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--peer", action="store_true", help="also TRL, where it is installed")
    given = parser.parse_args()
    if given.device == "cuda" and not torch.cuda.is_available():
        print("skipped: there is no CUDA device")
        return 0
    if given.device == "cuda":
        prepare_cuda()
    cases = given.case or [name for name in CASES if name != "tiny"]
    found = [measured(name, row, given) for name in cases for row in given.row or (4096, 16_384)]
    on = torch.cuda.get_device_name() if given.device == "cuda" else "cpu"
    ratios = [one.get("ratio", 0.0) for one in found]
    ahead = [one["ahead"] for one in found if "ahead" in one]
    print(
        f"gpu: {', '.join(f'{ratio:.1%}' for ratio in ratios)} of the bfloat16 matrix rate (goal: {GOAL:.0%})"
    )
    if given.device == "cuda":
        facts = {"benchmark": "gpu", "goal": GOAL, "peer_goal": PEER_GOAL, "device": on}
        write_result("gpu", {**facts, "found": found, "machine": machine()})
        return 0 if min(ratios) >= GOAL and all(a >= PEER_GOAL for a in ahead) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
