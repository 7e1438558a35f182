"""The cells of the invariance suite, and the process that runs some of them (`python matrix.py OUT`).

A cell is a way to compute one and the same update: how turns are laid into rows, how many rows a
backward pass takes, how attention and loss are computed, with how many processes. The model and what of it is
trained are given beside it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from torch import Tensor

from imprint.distributed.mesh import start_mesh, stop_mesh
from imprint.distributed.shard import shard, whole
from imprint.model import loss as loss_module
from imprint.model.adapters import add_lora
from imprint.model.fused import fuse
from imprint.model.load import use_attention
from imprint.model.pairs import dense_loss
from imprint.model.rowmodel import RowModel
from imprint.pack.plan import share_out
from imprint.pack.row import Row
from imprint.train.optim import adamw
from imprint.train.step import TrainState, accumulate
from tiny import Gradients, random_turns, tiny_model

ROWS = [("separate", 1), ("packed", 10**6), ("packed", 50), ("shared", 10**6), ("shared", 40)]
ATTENTION = (
    "reference",
    "tiles",
    "fused",
)  # fused: tiles, and the small operations of a layer in fewer passes
LOSS = ("dense", "chunked")
METHODS = ("full", "lora")
KIN: dict[str, dict[str, Any]] = {  # of lora
    "lora": {},
    "dora": {"dora": True},
    "pissa": {"init": "pissa", "scaling": "rslora"},
}
TURNS = random_turns(0)
WEIGHT = sum(float(turn.weight.sum()) for turn in TURNS)


class Cell(NamedTuple):
    layout: str
    budget: int
    attention: str
    loss: str
    together: bool = False  # one backward pass for all rows, not one for each


CELLS = [Cell(*rows, *rest) for rows, *rest in product(ROWS, ATTENTION, LOSS, (False, True))]
SHARED_OUT = [cell for cell in CELLS if not cell.together]


class DenseModel(RowModel):
    """The loss written out: logits of all predictions at once."""

    def forward(self, row: Row) -> Tensor:
        states = self.hidden(row)[0].index_select(0, row.source)
        return dense_loss(self.logits(states), torch.arange(len(states)), row.target)


def model_of(kind: str, method: str, dtype: torch.dtype, attention: str, loss: str) -> RowModel:
    model = tiny_model(kind, torch.float32 if method == "pissa" else dtype)  # PEFT decomposes no wider type
    if attention == "fused":
        fuse(model)
    use_attention(model, "reference" if attention == "reference" else "tiles")
    if method in KIN:
        options: dict[str, Any] = dict(rank=4, alpha=8, dropout=0.0, targets="all-linear", seed=1)
        model = add_lora(model, **options, new_tokens=[5, 9], **KIN[method]).to(dtype)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(len(name)))
    return DenseModel(model) if loss == "dense" else RowModel(model)


@contextmanager
def small_chunks() -> Iterator[None]:
    """The chunked loss takes several chunks, though the models are tiny."""
    kept = {name: getattr(loss_module, name) for name in ("BUFFER", "TRAINED", "MULTIPLE")}
    loss_module.BUFFER, loss_module.TRAINED, loss_module.MULTIPLE = 1, 8, 4
    try:
        yield
    finally:
        vars(loss_module).update(kept)


def update(
    model: RowModel, cell: Cell, mistake: Callable[[Row], None] | None = None
) -> tuple[float, Gradients]:
    """(loss, gradients) of the step's turns in one cell; `mistake` spoils each row a little."""
    (rows,) = share_out(TURNS, cell.budget, 1, cell.layout)
    for row in rows if mistake else ():
        mistake(row)
    model.zero_grad()
    total = 0.0
    with small_chunks():
        if cell.together:
            loss = sum((row.weight * model(row)).sum() for row in rows) / WEIGHT
            loss.backward()
            total = float(loss.detach())
        else:
            for row in rows:
                part = (row.weight * model(row)).sum() / WEIGHT
                part.backward()
                total += float(part.detach())
    found = {
        name: p.grad.detach().clone() for name, p in model.model.named_parameters() if p.grad is not None
    }
    model.zero_grad()
    return total, found


def main(out: Path) -> None:
    """The cells on two processes: each takes its share of the rows, and the step adds up."""
    mesh = start_mesh("cpu")
    found: dict[Any, Any] = {}
    kin = product(("llama",), ("dora", "pissa"), ("fused",), ("chunked",))
    for kind, method, attention, loss in (*product(("gpt2", "llama"), METHODS, ATTENTION, LOSS), *kin):
        model = model_of(kind, method, torch.float64, attention, loss)
        shard(model, mesh)
        state = TrainState(
            model, adamw(model, weight_decay=0.0, betas=(0.9, 0.9), epsilon=1e-8), lambda step: 0.0, mesh
        )
        for cell in SHARED_OUT:
            if (cell.attention, cell.loss) != (attention, loss):
                continue
            rows = share_out(TURNS, cell.budget, mesh.size, cell.layout)[mesh.rank]
            with small_chunks():
                lost = accumulate(state, rows)
            grads = {
                name.removeprefix(
                    "model.",
                ): whole(p.grad).clone()
                for name, p in model.named_parameters()
                if p.grad is not None
            }
            found[kind, method, tuple(cell)] = (lost.item(), grads)
            model.zero_grad()
    torch.save(found, out / f"{mesh.rank}.pt")
    stop_mesh()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
