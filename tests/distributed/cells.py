"""What tests/distributed runs in one process and in several, and the process that runs it (`python cells.py OUT`).

Every cell takes three steps over shares that are as unequal as shares can be: the first rank has three
rows, the others have one between them, and empty rows.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
import torch.distributed as dist
from torch import Tensor

from imprint.distributed.mesh import Mesh, start_mesh, stop_mesh
from imprint.distributed.shard import copy_whole, shard, whole
from imprint.errors import RunFailed
from imprint.model.adapters import add_lora
from imprint.model.balance import Balance
from imprint.pack.row import Row, empty_row
from imprint.pack.tree import build_rows
from imprint.train.optim import adamw
from imprint.train.step import TrainState, evaluate, train_step
from tiny import VOCAB, random_turns, row_model, tiny_model

NUM_STEPS = 3
CLIP = 0.05  # below every gradient norm here
PROMPTS = torch.randint(3, VOCAB, (2, 6), generator=torch.Generator().manual_seed(0))


@dataclass(frozen=True)
class Cell:
    kind: str = "llama"
    dtype: torch.dtype = torch.float64
    adapted: bool = False
    tied: bool = False
    sgd: bool = False  # without clipping and scale-free moments, nothing hides a wrong factor
    own_head: bool = False
    balance_loss: float = 0.0


CELLS = {
    "full, untied": Cell(),
    "full, tied": Cell(tied=True),
    "full, untied, float32": Cell(dtype=torch.float32),
    "full, tied, float32": Cell(dtype=torch.float32, tied=True),
    "adapters, untied": Cell(adapted=True),
    "adapters, tied": Cell(adapted=True, tied=True),
    "adapters, tied, float32": Cell(adapted=True, tied=True, dtype=torch.float32),
    "gpt2": Cell("gpt2", tied=True),
    "gpt2, plain descent": Cell("gpt2", tied=True, sgd=True),
    "gpt2, adapters": Cell("gpt2", tied=True, adapted=True),
    "gpt_neox, plain descent": Cell("gpt_neox", sgd=True),
    "float32, plain descent": Cell(dtype=torch.float32, sgd=True),
    "adapters, float32, plain descent": Cell(dtype=torch.float32, sgd=True, adapted=True),
    "experts": Cell("qwen3_moe", sgd=True),
    "experts, balanced": Cell("qwen3_moe", sgd=True, balance_loss=0.5),
    "experts, balanced, adapters": Cell("mixtral", sgd=True, adapted=True, balance_loss=0.5),
    "own head": Cell("gemma2", own_head=True),
}


def share(step: int, rank: int, size: int) -> list[Row]:
    """The rows of a rank: three for the first, one for the last; all four where there is one."""
    rows = build_rows(random_turns(step, conversations=4), 10**6, "separate")[:8]
    merged = [rows[0], rows[1], rows[2], rows[3]]
    if size == 1:
        return merged
    mine = merged[:3] if rank == 0 else merged[3:] if rank == size - 1 else []
    return mine + [empty_row()] * (3 - len(mine))


def build(cell: Cell) -> Any:
    model = tiny_model(cell.kind, tie_word_embeddings=cell.tied)
    if cell.adapted:
        model = add_lora(
            model, rank=4, alpha=16, dropout=0.0, targets="all-linear", new_tokens=[5, 50], seed=1
        )
    rows_of = row_model(model.to(cell.dtype))
    rows_of.own_head = cell.own_head
    return rows_of


@dataclass(frozen=True)
class Selfish(Mesh):
    """A planted mistake: each rank balances its experts by its own share of the step."""

    def sum(self, value: Tensor) -> Tensor:
        return value * self.size if value.ndim == 2 else super().sum(value)


def run_cell(cell: Cell, mesh: Mesh) -> dict[str, Any]:
    """Losses, norms and whole weights after three steps; what an evaluation and a generation then give."""
    model = build(cell)
    shard(model, mesh)
    if cell.sgd:
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer: torch.optim.Optimizer = torch.optim.SGD(trained, lr=0.0)
    else:
        optimizer = adamw(model, weight_decay=0.1, betas=(0.9, 0.95), epsilon=1e-6)
    state = TrainState(model, optimizer, lambda step: 0.02, mesh, clip=None if cell.sgd else CLIP)
    if cell.balance_loss:
        state.balance, state.balance_weight = Balance(model), cell.balance_loss
    before = {name: whole(p.detach()).clone() for name, p in model.named_parameters() if p.requires_grad}
    stats = [train_step(state, share(step, mesh.rank, mesh.size)) for step in range(NUM_STEPS)]
    after = {name: whole(p.detach()).clone() for name, p in model.named_parameters() if p.requires_grad}
    generated = model.generate(
        input_ids=PROMPTS,
        attention_mask=torch.ones_like(PROMPTS),
        max_new_tokens=4,
        min_new_tokens=4,
        do_sample=False,
        pad_token_id=0,
    )
    return {
        "loss": [s.loss for s in stats],
        "norm": [s.grad_norm for s in stats],
        "computed": [s.computed_tokens for s in stats],
        "trained": [s.trained_tokens for s in stats],
        "balance": [s.balance or 0.0 for s in stats],
        "before": before,
        "after": after,
        "evaluated": evaluate(state, share(9, mesh.rank, mesh.size)),
        "generated": generated,
    }


@dataclass(frozen=True)
class Forgetful(Mesh):
    """A planted mistake: sums still go over all ranks, but the step does not make up for FSDP's average."""

    real_size: int = 1

    def sum(self, value: Tensor) -> Tensor:
        value = value.clone()
        dist.all_reduce(value)
        return value


def forgetful(mesh: Mesh) -> dict[str, Any]:
    cell = CELLS["gpt2, plain descent"]
    model = shard(build(cell), mesh)
    state = TrainState(
        model,
        torch.optim.SGD(model.parameters(), lr=0.0),
        lambda step: 0.02,
        Forgetful(mesh.rank, 1, mesh.device, mesh.size),
        clip=None,
    )
    stats = [train_step(state, share(step, mesh.rank, mesh.size)) for step in range(NUM_STEPS)]
    after = {name: whole(p.detach()).clone() for name, p in model.named_parameters()}
    return {"norm": [s.grad_norm for s in stats], "after": after}


def selfish(mesh: Mesh) -> dict[str, Any]:
    return run_cell(CELLS["experts, balanced"], Selfish(mesh.rank, mesh.size, mesh.device))


def talk(mesh: Mesh) -> dict[str, Any]:
    """What a mesh's own methods give on each rank."""
    value = torch.tensor([mesh.rank + 1.0, 10.0])
    total = mesh.sum(value)
    mesh.wait()
    return {
        "sum": total.tolist(),
        "untouched": value.tolist() == [mesh.rank + 1.0, 10.0],
        "agree": mesh.agree({"rank": mesh.rank}),
        "any": [mesh.any(False), mesh.any(mesh.rank == mesh.size - 1), mesh.any(True)],
        "is_main": mesh.is_main,
    }


def round_trip(mesh: Mesh) -> dict[str, Any]:
    """Whole tensors out of shards, changed, and put back."""
    model = shard(build(CELLS["full, tied"]), mesh)
    sharded, equal = 0, []
    with torch.no_grad():
        for parameter in model.parameters():
            value = whole(parameter) * 2 + 1
            copy_whole(parameter, value)
            equal.append(torch.equal(whole(parameter), value))
            local = parameter.to_local() if hasattr(parameter, "to_local") else parameter
            sharded += local.numel() < parameter.numel()
    return {"equal": all(equal), "sharded": sharded, "parameters": len(equal)}


def failure(mesh: Mesh) -> dict[str, Any]:
    """One rank's row is spoilt: what every rank then does."""
    model = shard(build(CELLS["full, tied"]), mesh)
    state = TrainState(
        model, adamw(model, weight_decay=0.0, betas=(0.9, 0.95), epsilon=1e-8), lambda step: 0.02, mesh
    )
    before = [whole(p.detach()).clone() for p in model.parameters()]
    rows = share(0, mesh.rank, mesh.size)
    if mesh.is_main:
        rows[0].weight[0] = float("nan")
    try:
        train_step(state, rows)
        said = ""
    except RunFailed as error:
        said = str(error)
    same = all(torch.equal(whole(p), q) for p, q in zip(model.parameters(), before, strict=True))
    return {"said": said, "same": same}


def main(out: Path) -> None:
    mesh = start_mesh("cpu")
    found: dict[str, Any] = {name: run_cell(cell, mesh) for name, cell in CELLS.items()}
    extras: dict[str, Callable[[Mesh], dict[str, Any]]] = dict(
        forgetful=forgetful, selfish=selfish, talk=talk, round_trip=round_trip, failure=failure
    )
    found |= {name: function(mesh) for name, function in extras.items()}
    torch.save(found, out / f"{mesh.rank}.pt")
    stop_mesh()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
