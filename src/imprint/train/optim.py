"""Optimizers, and the learning rate as a pure function of the step."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import nn

from imprint.errors import RecipeError
from imprint.extras import needs

MOMENTUM = 0.95  # of muon, as in its author's and in Moonshot's runs


@dataclass(frozen=True)
class Schedule:
    """Learning rate of each step: up during warm-up, then down to 0 (or not at all)."""

    peak: float
    total_steps: int
    shape: Literal["linear", "cosine", "constant"] = "cosine"
    warmup: float = 0.03  # a share of all steps below 1, a number of steps from 1

    @property
    def warmup_steps(self) -> int:
        return math.ceil(self.warmup * self.total_steps) if self.warmup < 1 else int(self.warmup)

    def __call__(self, step: int) -> float:
        """The rate of step `step` (from 0). The first is above 0, and so is the last."""
        warmup = min(self.warmup_steps, self.total_steps)
        if step < warmup:
            return self.peak * (step + 1) / (warmup + 1)
        if self.shape == "constant":
            return self.peak
        done = (step - warmup) / max(1, self.total_steps - warmup)
        left = 1 - done if self.shape == "linear" else 0.5 * (1 + math.cos(math.pi * done))
        return self.peak * left


class Optimizer(Protocol):
    """What a step and a checkpoint need of an optimizer."""

    @property
    def param_groups(self) -> list[dict[str, Any]]: ...
    @property
    def state(self) -> Any: ...
    def step(self) -> Any: ...
    def zero_grad(self, set_to_none: bool = True) -> None: ...


class Together:
    """Several optimizers, each with parameters of its own, as one."""

    def __init__(self, optimizers: Sequence[torch.optim.Optimizer]):
        self.optimizers = list(optimizers)

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return [group for optimizer in self.optimizers for group in optimizer.param_groups]

    @property
    def state(self) -> dict[Any, Any]:
        """What is kept for each parameter; to be read, not written."""
        return {key: slots for optimizer in self.optimizers for key, slots in optimizer.state.items()}

    def step(self) -> None:
        for optimizer in self.optimizers:
            optimizer.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=set_to_none)


def parts(optimizer: Any) -> list[Any]:
    """The torch optimizers that an optimizer consists of."""
    return optimizer.optimizers if isinstance(optimizer, Together) else [optimizer]


def groups_of(parameters: Sequence[nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
    """Parameter groups: decay on matrices only (norms and biases keep their scale)."""
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def _trained(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def adamw(
    model: nn.Module, *, weight_decay: float, betas: tuple[float, float], epsilon: float
) -> torch.optim.AdamW:
    """AdamW over the trainable parameters."""
    groups = groups_of(_trained(model), weight_decay)
    return torch.optim.AdamW(groups, lr=0.0, betas=betas, eps=epsilon, fused=True)


def adamw_8bit(
    model: nn.Module, *, weight_decay: float, betas: tuple[float, float], epsilon: float
) -> torch.optim.Optimizer:
    """AdamW with its moments in eight bits, by blocks of 256 (arXiv 2110.02861).

    Parameters of fewer than 4,096 numbers keep theirs in float32. RecipeError where bitsandbytes is missing, or
    cannot make such an update on the device of the parameters.
    """
    bitsandbytes = needs("bitsandbytes", "qlora", "optimizer=adamw_8bit")
    trained = _trained(model)
    device = trained[0].device
    probe = nn.Parameter(torch.ones(4096, device=device))
    probe.grad = torch.ones_like(probe)
    trial = bitsandbytes.optim.AdamW8bit([probe], lr=0.5, weight_decay=0.0)
    try:
        trial.step()
        moved = float(probe.detach().mean())
    except (RuntimeError, NotImplementedError, AttributeError) as error:
        moved, said = 1.0, f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    else:
        said = f"a first step of 0.5 moved a weight from 1 to {moved:.3f}"
    if not abs(moved - 0.5) < 0.05:
        raise RecipeError(
            f"optimizer=adamw_8bit does not work on {device.type}",
            found=f"bitsandbytes {bitsandbytes.__version__} on {device}: {said}",
            fix="optimizer=adamw",
        )
    made: torch.optim.Optimizer = bitsandbytes.optim.AdamW8bit(
        groups_of(trained, weight_decay), lr=0.0, betas=betas, eps=epsilon
    )
    return made


def muon(
    model: nn.Module,
    *,
    weight_decay: float,
    betas: tuple[float, float],
    epsilon: float,
    apart: Collection[nn.Parameter] = (),
) -> Together:
    """Muon for the trainable matrices, AdamW for the rest: embeddings, vectors, blocks of experts, and those `apart`.

    Each update of a matrix is made orthogonal and then scaled to the size of AdamW's, so that both
    take one learning rate: 0.2 · √max(rows, columns) (Moonshot, arXiv 2502.16982, section 2.2).
    """
    tables = [p for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters()]
    others = {id(p) for p in (*tables, *apart)} | {
        id(p)
        for name, p in model.named_parameters()
        if "trainable_tokens" in name  # rows of a table, by PEFT
    }
    matrices = [p for p in _trained(model) if p.dim() == 2 and id(p) not in others]
    kept = {id(p) for p in matrices}
    rest = [p for p in _trained(model) if id(p) not in kept]
    made: list[torch.optim.Optimizer] = []
    if matrices:
        made.append(
            torch.optim.Muon(
                matrices, lr=0.0, weight_decay=weight_decay, momentum=MOMENTUM, adjust_lr_fn="match_rms_adamw"
            )
        )
    if rest:
        groups = groups_of(rest, weight_decay)
        made.append(torch.optim.AdamW(groups, lr=0.0, betas=betas, eps=epsilon, fused=True))
    return Together(made)


LearningRate = Callable[[int], float]
