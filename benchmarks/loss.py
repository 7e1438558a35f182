"""The pair loss against all logits at once, against logits made twice, and against its matrix products alone.

`python benchmarks/loss.py [--full]` writes benchmarks/results/loss.json. Times are of one thread's own clock, all
forms in turn in one process, the best of a few; ratios are to the matrix products. Memory is what one
step adds to a fresh process, at P and at 2 P predictions.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from _common import machine, write_result
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from imprint.model.loss import pair_loss
from imprint.model.pairs import Head, Pairs

PREDICTIONS = 4096
TYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
CHUNK = 1024  # of the form in which logits are made twice
Cell = dict[str, Any]


class Bench:
    """One head, its states and predictions; each form is one forward and backward pass."""

    def __init__(self, vocab: int, width: int, dtype: str, trained: bool, predictions: int):
        torch.manual_seed(0)
        torch.set_num_threads(1)
        self.dtype, self.trained = TYPES[dtype], trained
        held = torch.float32 if trained else self.dtype  # as the trainer holds what is frozen
        self.linear = nn.Linear(width, vocab, bias=False, dtype=held).requires_grad_(trained)
        self.hidden = torch.randn(predictions, width).to(self.dtype).requires_grad_()
        self.target = torch.randint(vocab, (predictions,))
        self.share = torch.rand(predictions) / predictions

    def run(self, form: str) -> None:
        self.linear.weight.grad = self.hidden.grad = None
        if form == "products":
            return self.products()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.dtype == torch.bfloat16):
            loss = getattr(self, form)()
        (loss * self.share).sum().backward()
        return None

    def pairs(self) -> Tensor:
        pairs = Pairs.of(torch.arange(len(self.target)), self.target)
        return pair_loss(Head(self.linear), self.hidden, pairs, self.share)

    def part(self, hidden: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(self.linear(hidden).float(), target, reduction="none")

    def dense(self) -> Tensor:
        return self.part(self.hidden, self.target)

    def twice(self) -> Tensor:
        pieces = zip(self.hidden.split(CHUNK), self.target.split(CHUNK), strict=True)
        parts: list[Any] = [checkpoint(self.part, *piece, use_reentrant=False) for piece in pieces]
        return torch.cat(parts)

    def products(self) -> None:
        weight, hidden = self.linear.weight.detach().to(self.dtype), self.hidden.detach()
        logits = hidden.new_empty(CHUNK, len(weight))
        back, pull = hidden.new_empty(CHUNK, weight.shape[1]), torch.empty_like(weight)
        for part in hidden.split(CHUNK):
            torch.mm(part, weight.t(), out=logits)
            torch.mm(logits, weight, out=back)
            if self.trained:
                torch.mm(logits.t(), part, out=pull)


def times(cell: Cell, repeats: int) -> dict[str, float]:
    """Seconds of each form."""
    bench = Bench(**cell, predictions=PREDICTIONS)
    forms = ["products", "pairs", "twice"] + ["dense"] * (cell["vocab"] * PREDICTIONS < 1 << 29)
    taken: dict[str, list[float]] = {form: [] for form in forms}
    bench.run("pairs")  # the first products of a shape cost more
    for _ in range(repeats):
        for form in forms:
            taken[form].append(clocked(lambda form=form: bench.run(form)))  # type: ignore[misc]
    return {form: min(found) for form, found in taken.items()}


def clocked(work: Callable[[], None]) -> float:
    start = time.thread_time()
    work()
    return time.thread_time() - start


def memory(cell: Cell, form: str, predictions: int) -> float:
    """Megabytes that a step adds to this process beyond its weights, states and their gradients."""
    bench = Bench(**cell, predictions=predictions)
    warm = torch.ones(64, 64).to(bench.dtype)
    warm @ warm
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    bench.run(form)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    kept = [t.grad for t in (bench.linear.weight, bench.hidden) if t.grad is not None]
    return (after - before) / 1024 - sum(t.numel() * t.itemsize for t in kept) / 2**20


def apart(call: str, *arguments: Any) -> Any:
    """The result of a function of this file in a process of its own."""
    command = [sys.executable, __file__, "--call", json.dumps([call, *arguments])]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(run.stdout.splitlines()[-1])


def cells(full: bool) -> Iterator[Cell]:
    """float32 and the largest heads take minutes each: but for one of either, with --full."""
    for dtype in TYPES:
        for vocab in (32_768, 131_072) if full or dtype == "bfloat16" else (32_768,):
            for width in (384, 768, 2048):
                large = dtype == "float32" or vocab > 32_768 or width > 768
                for trained in (True, False):
                    if full or not large or (width == 768 and trained):
                        yield {"vocab": vocab, "width": width, "dtype": dtype, "trained": trained}


def main(full: bool) -> None:
    result: dict[str, Any] = {"machine": machine(), "predictions": PREDICTIONS, "times": []}
    for cell in cells(full):
        seconds = apart("times", cell, 3 if cell["vocab"] * cell["width"] < 1 << 26 else 1)
        ratios = {form: round(taken / seconds["products"], 3) for form, taken in seconds.items()}
        result["times"].append(cell | {"seconds": seconds, "over_products": ratios})
        write_result("loss", result)
        print(cell, ratios, flush=True)
    result["memory"] = memories()
    write_result("loss", result)


def memories() -> list[Cell]:
    """The memory of each form at P and at 2 P; all logits of the large vocabulary do not fit a laptop."""
    result: list[Cell] = []
    for vocab in (32_768, 131_072):
        for trained in (True, False):
            cell = {"vocab": vocab, "width": 768, "dtype": "bfloat16", "trained": trained}
            for form in ("pairs", "twice", "dense"):
                if form == "dense" and vocab > 32_768:
                    continue
                found = [round(apart("memory", cell, form, PREDICTIONS * n)) for n in (1, 2)]
                result.append(cell | {"form": form, "megabytes": found})
                print(cell, form, found, "MB at P and 2 P", flush=True)
    return result


if __name__ == "__main__":
    if "--call" in sys.argv:
        name, *given = json.loads(sys.argv[-1])
        print(json.dumps({"times": times, "memory": memory}[name](*given)))
    else:
        main("--full" in sys.argv)
