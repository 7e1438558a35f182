"""Which token is predicted where, how a family makes its logits, and what is minimised."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Objective:
    """What is minimised, per prediction of a token t from logits x [V], with lse = log Σ exp x.

    nll              lse - x[t]
    label_smoothing  ε: (1 - ε) of that, and ε of its mean over all tokens
    z_loss           z: adds z · lse² (PaLM, arXiv 2204.02311, section 5)
    dft              each prediction's loss times its own probability, which counts as a constant (Dynamic
                     Fine-Tuning, "On the Generalization of SFT: A Reinforcement Learning Perspective with
                     Reward Rectification", arXiv 2508.05629); the z-loss is not multiplied
    """

    loss: Literal["nll", "dft"] = "nll"
    label_smoothing: float = 0.0
    z_loss: float = 0.0

    def __str__(self) -> str:
        parts: list[str] = [self.loss]
        if self.label_smoothing:
            parts.append(f"label smoothing {self.label_smoothing:g}")
        if self.z_loss:
            parts.append(f"z-loss {self.z_loss:g}")
        return ", ".join(parts)


PLAIN = Objective()


@dataclass(frozen=True)
class Head:
    """How a family makes logits of hidden states: `output`, times `multiplier`, softly capped at ± `cap`."""

    output: nn.Module
    multiplier: float = 1.0
    cap: float | None = None

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits [..., V] of hidden states [..., H]."""
        logits: Tensor = self.output(hidden)
        if self.multiplier != 1:
            logits = logits * self.multiplier
        return torch.tanh(logits / self.cap) * self.cap if self.cap else logits

    @property
    def matrix(self) -> tuple[Tensor, Tensor | None] | None:
        """Weight [V, H] and bias [V] where `output` is no more: no low-rank adapter, no quantisation, no hook."""
        output = self.output
        if output._forward_hooks or output._forward_pre_hooks:
            return None
        if type(output) is nn.Linear:
            return output.weight, output.bias
        rows: Any = getattr(
            output, "token_adapter", None
        )  # PEFT's, where some rows of the matrix are trained
        if rows is None or type(rows.base_layer) is not nn.Linear or rows.base_layer.bias is not None:
            return None
        if not rows.merged and not rows.disable_adapters:
            made: Tensor = rows.get_merged_weights(rows.active_adapters)  # once for all predictions
            return made, None
        return None

    @property
    def vocab(self) -> int:
        """Logits of a state, about: only to size chunks where the head is more than a matrix."""
        linear = [module for module in self.output.modules() if isinstance(module, nn.Linear)]
        return max((module.out_features for module in linear), default=1 << 17)


@dataclass(frozen=True)
class Pairs:
    """P predictions of a row, of which U are distinct, at S distinct places.

    sources  int64 [S]  the places, ascending
    slot     int64 [U]  which of them; ascending
    target   int64 [U]  the token to predict there
    number   int64 [P]  which of the U a prediction is
    """

    sources: Tensor
    slot: Tensor
    target: Tensor
    number: Tensor

    @classmethod
    def of(cls, source: Tensor, target: Tensor) -> Pairs:
        """The distinct ones of predictions given as source [P] and target [P]."""
        distinct, number = torch.unique((source << 32) | target, return_inverse=True)
        sources, slot = torch.unique_consecutive(distinct >> 32, return_inverse=True)
        return cls(sources, slot, distinct & 0xFFFFFFFF, number)

    def spread(self, values: Tensor) -> Tensor:
        """[U] to [P]: every prediction gets the value of the distinct one that it is."""
        return values.index_select(0, self.number)

    def gather(self, values: Tensor) -> Tensor:
        """[P] to [U]: sums of what `spread` gave to each; always in the same order."""
        order = self.number.argsort(stable=True)
        counts = torch.bincount(self.number, minlength=len(self.slot))
        return sums(values[order], counts)


def nll(logits: Tensor, target: Tensor) -> Tensor:
    """Negative log-likelihood [P] of `target` [P] under `logits` [P, V], in float32 or wider."""
    return F.cross_entropy(logits.to(wide_type(logits.dtype)), target, reduction="none")


def dense_loss(logits: Tensor, slot: Tensor, target: Tensor, objective: Objective = PLAIN) -> Tensor:
    """Loss [U] of each prediction of `target` [U] from logits[slot], logits [S, V]: the obvious way."""
    logits = logits.to(wide_type(logits.dtype))
    scores = F.log_softmax(logits, -1)
    plain = loss = -scores[slot, target]
    if objective.label_smoothing:
        smooth = -scores.mean(-1)[slot]
        loss = (1 - objective.label_smoothing) * loss + objective.label_smoothing * smooth
    if objective.loss == "dft":
        loss = loss * torch.exp(-plain.detach())
    if objective.z_loss:
        loss = loss + objective.z_loss * logits.logsumexp(-1).square()[slot]
    return loss


def sums(values: Tensor, counts: Tensor) -> Tensor:
    """Sums of the first counts[0] values, of the next counts[1], …; always in the same order."""
    if values.device.type == "mps":  # it has no segment_reduce
        index = torch.arange(len(counts), device=values.device).repeat_interleave(counts)
        return values.new_zeros(len(counts)).index_add_(0, index, values)
    return torch.segment_reduce(values, "sum", lengths=counts, unsafe=True)


def wide_type(dtype: torch.dtype) -> torch.dtype:
    """float32, or `dtype` where that is wider."""
    return torch.promote_types(dtype, torch.float32)
