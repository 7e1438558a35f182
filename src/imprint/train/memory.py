"""What a run will need of memory, and how large its rows may be for that.

Three short passes tell what a token, a prediction and the model itself take while a row is computed: for
any architecture, with adapters or recomputed activations, as they are. What longer rows take follows,
because all of it grows in proportion to them.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from imprint.model.loss import chunks
from imprint.model.rowmodel import RowModel
from imprint.pack.row import Row
from imprint.track.words import size

UNIT = {"cpu": 32, "cuda": 512}  # tokens of a turn in the passes that are measured, by device
TURNS = 3  # in the longer of them
SHARE = 0.8  # of the free memory that a forecast may fill: it is one
MOMENTS = 2  # of AdamW, each as large as the weights that are trained
WORKSPACE = 200 << 20  # bytes of sums in between, and of what lies between blocks
KERNELS = 200 << 20  # bytes that oneDNN keeps of kernels for bfloat16, one for each shape, as measured (0017)


@dataclass(frozen=True)
class Need:
    """Bytes that computing a row takes beside weights, their gradients and the optimizer's state."""

    fixed: float
    token: float
    prediction: float  # of those whose logits exist at one time
    least: float = 0.0  # when the gradient of the embedding is made, which is as large whatever the row

    def of(self, tokens: int, at_once: int) -> float:
        return max(self.least, self.fixed + self.token * tokens + self.prediction * at_once)


@dataclass(frozen=True)
class Forecast:
    """What the largest row of a run will take, in bytes. `weights` are there already."""

    weights: int
    gradients: int
    optimizer: int
    row: int  # activations of the row, logits of a chunk, and what is made anew for each row
    row_tokens: int
    workspace: int
    free: int

    @property
    def more(self) -> int:
        """What is still to be asked of the machine."""
        return self.gradients + self.optimizer + self.row + self.workspace

    @property
    def fits(self) -> bool:
        return self.more <= SHARE * self.free

    def __str__(self) -> str:
        return (
            f"{size(self.more)} of the {size(self.free)} that are free: gradients {size(self.gradients)}, optimizer "
            f"{size(self.optimizer)}, a row of {self.row_tokens:,} tokens {size(self.row)}, kernels and the like "
            f"{size(self.workspace)}; weights, which are there: {size(self.weights)}"
        )


@dataclass(frozen=True)
class Sizes:
    """What a model takes by itself, and by the rows that it is given."""

    weights: int
    gradients: int
    optimizer: int
    need: Need
    at_once: Callable[[int], int]  # predictions whose logits exist at one time, of so many in a row
    workspace: int = WORKSPACE

    def forecast(self, tokens: int, free: int) -> Forecast:
        """For rows of so many tokens, each of which may be predicted from."""
        row = int(self.need.of(tokens, self.at_once(tokens)))
        return Forecast(self.weights, self.gradients, self.optimizer, row, tokens, self.workspace, free)

    def longest(self, most: int, free: int) -> int:
        """The longest row up to `most` tokens that is forecast to fit; 0 where none is."""
        low, high = 0, most
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self.forecast(middle, free).fits else (low, middle - 1)
        return low


def measure(model: RowModel, compute_type: torch.dtype, ranks: int = 1, moments: float = MOMENTS) -> Sizes:
    """Compute some rows and look at what that takes; gradients and random numbers are left as they were.

    `ranks` share out weights, gradients and the optimizer's state among them; that is `moments` times as large as
    what is trained.
    """
    device = next(model.parameters()).device
    vocab = model.base.get_input_embeddings().weight.shape[0]
    at_once = logits_at_once(model, vocab, compute_type)
    unit = min(UNIT.get(device.type, UNIT["cpu"]), max(2, (model.context or 10**9) // TURNS))
    few, many = unit // 2, unit * TURNS

    def seen(turns: int, predictions: int) -> Seen:
        row = probe(unit, turns, predictions, vocab, model.follows_end).to(device)
        return observe(model, row, compute_type)

    for (
        parameter
    ) in model.parameters():  # backward then only adds to them, as it does from a step's second row on
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    with torch.random.fork_rng(enabled=device.type != "mps"):  # dropout draws
        short, long, more = seen(1, few), seen(TURNS, few), seen(TURNS, many)
    model.zero_grad(set_to_none=True)
    token = max(0, long.kept - short.kept, long.early - short.early) / (unit * (TURNS - 1))
    growth = max(0, more.kept - long.kept, more.early - long.early)
    prediction = growth / max(1, at_once(many) - at_once(few))
    fixed = max(0.0, short.early - token * unit - prediction * at_once(few))
    weights = sum(p.numel() * p.element_size() for p in model.parameters()) // ranks
    trained = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad) // ranks
    need = Need(fixed, token, prediction, short.most)
    kernels = KERNELS if device.type == "cpu" and compute_type == torch.bfloat16 else 0
    return Sizes(weights, trained, int(moments * trained), need, at_once, WORKSPACE + kernels)


def logits_at_once(model: RowModel, vocab: int, compute_type: torch.dtype) -> Callable[[int], int]:
    """Of how many predictions of a row, where it has so many, the logits exist at one time."""
    head = model.head.matrix
    if model.own_head:
        return lambda predictions: predictions
    if head is None:
        return lambda predictions: min(predictions, chunks(predictions, vocab, 4, False)[1])
    trained, width = head[0].requires_grad, compute_type.itemsize
    return lambda predictions: chunks(predictions, vocab, width, trained)[1]


def probe(unit: int, turns: int, predictions: int, vocab: int, side_by_side: bool) -> Row:
    """A row of `turns` times `unit` tokens, turns beside one another where the model can take that.

    Its last tokens predict something: `predictions` of them.
    """
    size = unit * turns
    generator = torch.Generator().manual_seed(11)
    tokens, target = (torch.randint(vocab, (n,), generator=generator) for n in (size, predictions))
    length = unit if side_by_side else size
    end = (torch.arange(size) // length + 1) * length
    return Row(tokens, end, torch.arange(size - predictions, size), target, torch.ones(predictions))


class Seen(NamedTuple):
    """Bytes beyond those that were held before."""

    kept: int  # by the forward pass for the backward
    early: int  # at most, before the gradient of the embedding is made (on CUDA: at most)
    most: int


def observe(model: nn.Module, row: Row, compute_type: torch.dtype) -> Seen:
    """Forward and backward of a row as in a step, and what they held."""
    device = row.tokens.device

    def forward() -> Tensor:
        narrow = compute_type != torch.float32
        with torch.autocast(device.type, dtype=compute_type if narrow else None, enabled=narrow):
            loss: Tensor = model(row)
        return (row.weight * loss).sum()

    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        loss = forward()
        kept = torch.cuda.memory_allocated(device)
        loss.backward()
        most = torch.cuda.max_memory_allocated(device) - before
        return Seen(kept - before, most, most)
    with Held() as held:
        loss = forward()
        kept = held.now
        loss.backward()
    return Seen(kept, held.early or held.most, held.most)


class Held(TorchDispatchMode):
    """Counts the bytes of the tensors that are made inside: how many live now, and the most that ever did."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.most = self.early = 0
        self._seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {_place(x) for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        if func is torch.ops.aten.embedding_dense_backward.default:
            self.early = self.early or self.most
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor) and _place(tensor) not in given | self._seen:
                self._add(tensor)
        return out

    def _add(self, tensor: Tensor) -> None:
        storage, place = tensor.untyped_storage(), _place(tensor)
        num_bytes = storage.nbytes()
        self.now += num_bytes
        self.most = max(self.most, self.now)
        self._seen.add(place)
        weakref.finalize(storage, self._gone, place, num_bytes)

    def _gone(self, place: int, num_bytes: int) -> None:
        self.now -= num_bytes
        self._seen.discard(place)


def _place(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)
