"""Which parameters full fine-tuning trains, by patterns over their names."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

import torch
from torch import nn

from imprint.errors import RecipeError, nearest
from imprint.track.words import plural


def freeze(model: nn.Module, frozen: Sequence[str], only: Sequence[str] = ()) -> str:
    """Leave out of training what fits a pattern of `frozen`, and all that fits none of `only` (where given).

    A tied matrix has two names, and either may be given. What was done, in one line; RecipeError where a
    pattern fits no parameter, or nothing is left to train.
    """
    names: dict[str, nn.Parameter] = dict(model.named_parameters(remove_duplicate=False))
    chosen = _fitting("train_only", only, names) if only else {id(p) for p in names.values()}
    chosen -= _fitting("freeze", frozen, names)
    parameters = list(model.parameters())
    for parameter in parameters:
        parameter.requires_grad_(id(parameter) in chosen)
    kept = [p for p in parameters if not p.requires_grad]
    if len(kept) == len(parameters):
        raise RecipeError(
            "nothing is left to train",
            where=f"freeze={list(frozen)}" + (f" train_only={list(only)}" if only else ""),
            found="every parameter is frozen",
            fix="take a pattern out of freeze",
        )
    trained = sum(p.numel() for p in parameters) - sum(p.numel() for p in kept)
    return f"{plural(len(kept), 'parameter')} frozen, {trained:,} weights are trained"


def _fitting(key: str, patterns: Sequence[str], names: dict[str, nn.Parameter]) -> set[int]:
    """The ids of the parameters that fit one of the patterns, each of which has to fit some."""
    found: set[int] = set()
    for pattern in patterns:
        fitting = [name for name in names if fnmatchcase(name, pattern)]
        if not fitting:
            near = _near(pattern, names)
            raise RecipeError(
                f"a pattern of {key} fits no parameter of this model",
                where=f"{key}={pattern}",
                expected=f"a pattern over names like {', '.join(near)}",
                fix=f"{key}=[{_suggested(pattern, near[0])}]",
            )
        found |= {id(names[name]) for name in fitting}
    return found


def _near(pattern: str, names: Iterable[str]) -> list[str]:
    """A few names that may have been meant: the nearest, those with the same words, else the first ones."""
    known = list(names)
    words = [word for word in pattern.replace("*", ".").split(".") if len(word) > 2]
    scored = sorted(known, key=lambda name: -sum(word in name for word in words))
    first = nearest(pattern, known)
    return list(dict.fromkeys([*([first] if first else []), *scored]))[:3]


def _suggested(pattern: str, name: str) -> str:
    """The name itself; or with what the user wrote, open at both ends, where that would fit."""
    inner = pattern.strip("*")
    return f'"*{inner}*"' if inner and inner in name else f'"{name}"'


@torch.no_grad()
def fits_in(weight: torch.Tensor, dtype: torch.dtype) -> bool:
    """Whether every number of a matrix is one of `dtype`, so that it can be held in that without loss."""
    return all(torch.equal(part.to(dtype).to(part.dtype), part) for part in weight.split(1 << 12))
