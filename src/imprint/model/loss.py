"""The loss of predictions, and its gradient, without their logits ever existing all at once.

A prediction is a pair: a hidden state and the token to predict from it. The logits of some
states are made, their gradient is written over them and handed on to the states and to the
head, and the next ones take their place. That happens in the forward pass, where the logits
are at hand anyway, so nothing is made twice.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from imprint.model.pairs import PLAIN, Head, Objective, Pairs, dense_loss, sums, wide_type

BUFFER = 64 << 20  # bytes of logits that exist at one time
TRAINED = (
    1024  # states at one time, at least, where the head is trained: each time costs a pass over its gradient
)
MULTIPLE = 64  # states; each new shape of a product costs time
SCRATCH = 4 << 20  # bytes of wide logits at one time on a processor: they stay in its cache
HEAD_ROWS = 2048  # rows of the head's gradient that are made, and added, at one time: for the cache, too
PROPORTIONAL = 64  # units of rounding: 8e-6 in float32


def pair_loss(
    head: Head, hidden: Tensor, pairs: Pairs, share: Tensor, objective: Objective = PLAIN
) -> Tensor:
    """Loss of each prediction, in nats: float32 (or the model's wider type) [P].

    hidden [S, H] are the states at `pairs.sources`, and share [P] what each prediction will count
    for: the gradient is made for Σ share · loss, which backward scales. It may be asked for another
    sum, or twice: then it is made anew, and is as exact.
    """
    if head.matrix is None:
        return pairs.spread(_through_module(head, hidden, pairs, objective))
    weight, bias = head.matrix
    kind = hidden.device.type
    cast = torch.is_autocast_enabled(kind) and hidden.dtype != torch.float64
    task = _Task(
        head.multiplier, head.cap, objective, torch.get_autocast_dtype(kind) if cast else hidden.dtype
    )
    with torch.autocast(kind, enabled=False):
        if torch.is_grad_enabled():
            loss: Tensor = _PairLoss.apply(hidden, weight, bias, share, pairs, task)  # type: ignore[no-untyped-call]
            return loss
        return pairs.spread(_sweep(task, hidden, weight, bias, pairs, None, (False,) * 3).loss)


def _through_module(head: Head, hidden: Tensor, pairs: Pairs, objective: Objective) -> Tensor:
    """Loss [U] where the head is more than a matrix: its logits are made again in the backward pass."""

    def part(states: Tensor, slot: Tensor, target: Tensor) -> Tensor:
        return dense_loss(head.logits(states), slot, target, objective)

    size = len(hidden)
    rows = max(MULTIPLE, BUFFER // (4 * head.vocab))
    starts = list(range(0, max(size, 1), rows))  # without predictions once, for the zeros of its gradient
    edges = torch.searchsorted(pairs.slot, torch.tensor([*starts, size], device=hidden.device)).tolist()
    parts = []
    for number, start in enumerate(starts):
        mine = slice(edges[number], edges[number + 1])
        piece = (hidden[start : start + rows], pairs.slot[mine] - start, pairs.target[mine])
        again = len(starts) > 1 and torch.is_grad_enabled()
        parts.append(checkpoint(part, *piece, use_reentrant=False) if again else part(*piece))
    return torch.cat(parts)


class _Task(NamedTuple):
    """What is computed: the head's scaling, the objective, and the type of the matrix products."""

    multiplier: float
    cap: float | None
    objective: Objective
    compute: torch.dtype


class _Made(NamedTuple):
    """Loss [U], and the gradients that were wanted."""

    loss: Tensor
    hidden: Tensor | None
    weight: Tensor | None
    bias: Tensor | None


class _PairLoss(torch.autograd.Function):
    """The gradient of Σ share · loss is made in the forward pass, given away in the backward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        share: Tensor,
        pairs: Pairs,
        task: _Task,
    ) -> Tensor:
        wants = ctx.needs_input_grad[:3]
        made = _sweep(
            task, hidden, weight, bias, pairs, pairs.gather(share.to(wide_type(task.compute))), wants
        )
        ctx.save_for_backward(hidden, weight, bias, share)
        ctx.pairs, ctx.task, ctx.made = pairs, task, made
        return pairs.spread(made.loss)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, share = ctx.saved_tensors
        made, ctx.made = ctx.made, None  # given away once: what takes them may write over them
        factor = proportion(gradient, share)
        if made is None or factor is None:
            with torch.autocast(hidden.device.type, enabled=False):
                gathered = ctx.pairs.gather(gradient)
                made = _sweep(ctx.task, hidden, weight, bias, ctx.pairs, gathered, ctx.needs_input_grad[:3])
            factor = 1.0
        found = []
        for given, tensor in zip(made[1:], (hidden, weight, bias), strict=True):
            scaled = given if given is None else given.to(tensor.dtype)
            found.append(scaled.mul_(factor) if scaled is not None and factor != 1 else scaled)
        return (*found, None, None, None)


def proportion(gradient: Tensor, share: Tensor) -> float | None:
    """c where gradient = c · share, both [P], to rounding; None where there is no such number."""
    tolerance = PROPORTIONAL * torch.finfo(gradient.dtype).eps
    if torch.equal(gradient, share.to(gradient.dtype)):
        return 1.0
    wide = torch.float32 if gradient.device.type == "mps" else torch.float64
    gradient, share = gradient.to(wide), share.to(wide)
    square = (share * share).sum()
    factor = (gradient * share).sum() / torch.where(square > 0, square, 1)
    fits = (gradient - factor * share).abs() <= tolerance * (factor * share).abs()
    return float(factor) if bool(fits.all()) else None


def chunks(states: int, vocab: int, itemsize: int, trained: bool) -> tuple[int, int]:
    """(number of chunks, states in each) for so many states: all chunks alike, and the last one filled up."""
    most = max(BUFFER // (vocab * itemsize), TRAINED if trained else MULTIPLE)
    number = -(-states // most)
    each = -(-states // max(number, 1))
    return number, -(-each // MULTIPLE) * MULTIPLE


def _sweep(
    task: _Task,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    pairs: Pairs,
    share: Tensor | None,
    wants: tuple[bool, ...],
) -> _Made:
    """Loss of the distinct predictions, and the gradients of Σ share · loss (share [U]), chunk by chunk."""
    size, vocab = len(hidden), len(weight)
    number, rows = chunks(size, vocab, task.compute.itemsize, wants[1])
    matrix = weight.detach().to(task.compute)
    states = F.pad(hidden.detach().to(task.compute), (0, 0, 0, number * rows - size))
    wide = wide_type(weight.dtype)
    made = _Made(
        states.new_empty(len(pairs.slot), dtype=wide_type(task.compute)),
        torch.empty_like(states) if wants[0] else None,
        (torch.empty_like if number else torch.zeros_like)(weight, dtype=wide) if wants[1] else None,
        weight.new_zeros(vocab, dtype=wide) if wants[2] else None,
    )
    logits = states.new_empty(rows, vocab)
    chunk = _Chunk(task, pairs, share if any(wants) else None, made, logits, number)
    for index in range(number):
        start = index * rows
        part = states[start : start + rows]
        if bias is None:
            torch.mm(part, matrix.t(), out=logits)
        else:
            torch.addmm(bias.detach().to(task.compute), part, matrix.t(), out=logits)
        chunk.differentiate(start)
        if made.hidden is not None:
            torch.mm(logits, matrix, out=made.hidden[start : start + rows])
        if made.weight is not None:
            _add_product(made.weight, logits, part, first=index == 0)
    return made._replace(hidden=None if made.hidden is None else made.hidden[:size])


class _Chunk:
    """A chunk of logits, which is looked at block by block in the wide type, and written over."""

    def __init__(
        self, task: _Task, pairs: Pairs, share: Tensor | None, made: _Made, logits: Tensor, number: int
    ):
        self.task, self.pairs, self.share, self.made, self.logits = task, pairs, share, made, logits
        rows, vocab = logits.shape
        wide = wide_type(task.compute)
        most = rows if logits.device.type == "cuda" else max(1, SCRATCH // (vocab * wide.itemsize))
        self.block = min(rows, most)
        self.scratch = logits.new_empty(self.block, vocab, dtype=wide) if wide != task.compute else None
        self.chances = logits.new_empty(self.block, vocab, dtype=wide)
        edges = torch.searchsorted(pairs.slot, torch.arange(number * rows + 1, device=logits.device))
        self.counts = edges.diff()
        self.edges: list[int] = edges.tolist()  # the predictions of slot i are edges[i] to edges[i + 1]

    def differentiate(self, start: int) -> None:
        """Turn the logits of the slots from `start` into their gradient; their losses are kept."""
        for first in range(0, len(self.logits), self.block):
            block = self.logits[first : first + self.block]
            mine = slice(self.edges[start + first], self.edges[start + first + len(block)])
            if mine.start == mine.stop:  # what fills the chunk up
                block.zero_()
            else:
                self._block(block, start + first, mine)

    def _block(self, block: Tensor, first: int, mine: slice) -> None:
        """The same for logits [n, V], where `mine` are the predictions."""
        task, (size, vocab) = self.task, block.shape
        objective, scratch = task.objective, self.scratch
        x = block if scratch is None else scratch[:size].copy_(block)
        if task.multiplier != 1:
            x.mul_(task.multiplier)
        if task.cap:
            x.div_(task.cap).tanh_().mul_(task.cap)
        slot = self.pairs.slot[mine] - first
        at = slot * vocab + self.pairs.target[mine]
        chances = torch.softmax(x, 1, out=self.chances[:size])
        top, rest = x.amax(1), -chances.amax(1).log()  # log Σ exp x = top + rest
        plain = loss = (top[slot] - x.view(-1)[at]) + rest[slot]
        if objective.label_smoothing:
            smooth = (top - x.mean(1)) + rest
            loss = (1 - objective.label_smoothing) * loss + objective.label_smoothing * smooth[slot]
        trust = torch.exp(-plain) if objective.loss == "dft" else None
        if trust is not None:
            loss = loss * trust
        if objective.z_loss:
            loss = loss + objective.z_loss * (top + rest).square()[slot]
        self.made.loss[mine] = loss
        if self.share is None:
            return
        share, counts = self.share[mine], self.counts[first : first + size]
        own = share if trust is None else share * trust
        total = sums(own, counts)
        scale = total
        if objective.z_loss:
            scale = total + 2 * objective.z_loss * (top + rest) * sums(share, counts)
        chances.mul_((scale * task.multiplier)[:, None])
        if objective.label_smoothing:
            chances.sub_((total * (objective.label_smoothing * task.multiplier / vocab))[:, None])
        chances.view(-1).index_add_(0, at, own, alpha=(objective.label_smoothing - 1) * task.multiplier)
        if task.cap:
            chances.mul_(x.div_(task.cap).square_().neg_().add_(1))
        if self.made.bias is not None:
            self.made.bias.add_(chances.sum(0))
        block.copy_(chances)


def _add_product(total: Tensor, logits: Tensor, states: Tensor, first: bool) -> None:
    """total [V, H] += logits.T [V, n] @ states [n, H]; the first product is written, not added."""
    if total.dtype == states.dtype:
        total.addmm_(logits.t(), states, beta=0 if first else 1)  # beta 0 does not read it
        return
    made = states.new_empty(HEAD_ROWS, total.shape[1])
    for rows in range(0, len(total), HEAD_ROWS):
        part = total[rows : rows + HEAD_ROWS]
        torch.mm(logits[:, rows : rows + HEAD_ROWS].t(), states, out=made[: len(part)])
        part.copy_(made[: len(part)]) if first else part.add_(made[: len(part)])
