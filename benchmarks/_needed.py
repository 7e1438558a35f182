"""What an update needs at least, whoever makes it: tokens, operations; and what the machine's matrices do.

`python benchmarks/_needed.py THREADS` prints the machine and its rates as JSON, from a process of its own: torch
in the process that measures would count as its children's memory.

Counted on the ideal prefix tree of the update: every token that several conversations begin with is needed
once. The last token of a reply is only a target, so it is not fed.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Needed:
    """Of some conversations, as an ideal prefix tree."""

    tokens: int
    pairs: int  # (token, token that it sees)
    separate: int  # tokens of the conversations one by one
    trained: int
    longest: int  # tokens of the longest conversation, its last one included


def needed(step: Sequence[dict[str, Any]]) -> Needed:
    """Of an update's conversations, each {"ids": …, "prompt": length of its prompt}."""
    fed = sorted(row["ids"][:-1] for row in step)
    tokens = pairs = 0
    before: list[int] = []
    for ids in fed:
        length = min(len(ids), len(before))
        different = np.nonzero(np.asarray(ids[:length]) != np.asarray(before[:length]))[0]
        shared = int(different[0]) if len(different) else length
        tokens += len(ids) - shared
        pairs += (len(ids) * (len(ids) + 1) - shared * (shared + 1)) // 2
        before = ids
    trained = sum(len(row["ids"]) - row["prompt"] for row in step)
    return Needed(tokens, pairs, sum(map(len, fed)), trained, 1 + max(map(len, fed)))


def operations(update: Needed, config: dict[str, Any], lora_rank: int = 0) -> float:
    """Floating-point operations that one update of a Llama needs; a multiplication and an addition are two.

    Matrices: 6 N for a token, 2 forward and 4 backward, N the weights of the layers' linear maps (Kaplan et
    al. 2020, arXiv:2001.08361, section 2.1). Attention: 4 · width for a layer and a pair forward (scores and
    mixture) and twice that backward (Chowdhery et al. 2022, arXiv:2204.02311, appendix B, which counts the full
    square; here only pairs that are seen count). The head: 6 · width · vocabulary for a trained token. With
    adapters, a frozen matrix has no gradient of its own: 4 N, and 6 for each weight of the adapters.
    Norms, rotation, softmax and the optimizer count as nothing, as is usual.
    """
    width, inner, layers = config["hidden_size"], config["intermediate_size"], config["num_hidden_layers"]
    matrices = layers * (4 * width * width + 3 * width * inner)
    share = 4 if lora_rank else 6
    adapters = layers * lora_rank * (4 * 2 * width + 3 * (width + inner))
    head = share * width * config["vocab_size"] * update.trained
    return (
        (share * matrices + 6 * adapters) * update.tokens + 12 * layers * width * update.pairs + float(head)
    )


def matrix_rate(threads: int, size: int = 2048, rounds: int = 9) -> dict[str, float]:
    """Operations a second of a square product of `size` in float32 and bfloat16: the median of some rounds."""
    import torch

    torch.set_num_threads(threads)
    rates = {}
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        left, right = torch.randn(size, size).to(dtype), torch.randn(size, size).to(dtype)
        seconds = []
        for _ in range(rounds + 2):
            started = time.perf_counter()
            left @ right
            seconds.append(time.perf_counter() - started)
        rates[name] = 2 * size**3 / statistics.median(seconds[2:])
    return rates


def main() -> None:
    from _common import machine

    rates = matrix_rate(int(sys.argv[1]))
    flags = Path("/proc/cpuinfo").read_text().split() if Path("/proc/cpuinfo").is_file() else []
    wanted = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "amx_tile")
    facts = {**machine(), "flags": [flag for flag in wanted if flag in flags], "matrix_rate": rates}
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
