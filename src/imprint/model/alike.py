"""Tokens whose vectors are equal, or nothing: where these are frozen, a model can never tell them apart."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

NEAR = 1e-3  # of its length: vectors that differ by less are alike
NOTHING = 1e-2  # of the median length over all tokens: a vector that was never trained


@dataclass(frozen=True)
class Alike:
    """Frozen vectors that say nothing: groups of ids with the same one, and ids with none to speak of."""

    matrix: str  # "embedding" or "output"
    groups: list[list[int]]
    empty: list[int]


@torch.no_grad()
def alike_tokens(
    model: Any, control: Sequence[int], used: Collection[int], trained: Collection[int]
) -> list[Alike]:
    """What is alike among the `control` tokens, and between them and others `used`, in the frozen matrices.

    `trained` are ids whose vectors are trained after all. Only matrices with something to report are named.
    """
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    matrices = {"embedding": embedding.weight}
    if head is not None and head.weight is not embedding.weight:
        matrices["output"] = head.weight
    ours = sorted(set(control) - set(trained))
    others = sorted((set(used) | set(ours)) - set(trained))
    found = [_alike(name, matrix.detach(), ours, others) for name, matrix in matrices.items()]
    return [alike for alike in found if alike.groups or alike.empty]


def _alike(name: str, matrix: Tensor, control: list[int], used: list[int]) -> Alike:
    lengths = torch.cat([part.float().norm(dim=1) for part in matrix.split(1 << 14)])
    limit = NOTHING * float(lengths.median())
    empty = [token for token in control if lengths[token] <= limit]
    rest = [token for token in control if token not in empty]
    if not rest:
        return Alike(name, [], empty)
    others = torch.tensor([token for token in used if lengths[token] > limit])
    mine = torch.nn.functional.normalize(matrix[rest].float(), dim=1)
    theirs = torch.nn.functional.normalize(matrix[others].float(), dim=1)
    close = mine @ theirs.T > 1 - 1e-5  # rounding allows no more; the vectors themselves decide
    groups: dict[tuple[int, ...], list[int]] = {}
    for row, token in enumerate(rest):
        near = others[close[row]].tolist()
        same = [o for o in near if _distance(matrix, token, o) <= NEAR * float(lengths[token])]
        if len(same) > 1:
            groups[tuple(same)] = same
    return Alike(name, list(groups.values()), empty)


def _distance(matrix: Tensor, a: int, b: int) -> float:
    return float((matrix[a].double() - matrix[b].double()).norm())


def alike_note(found: Sequence[Alike], names: Callable[[int], str]) -> list[str]:
    """A line for the log that names the tokens and the remedy, if any; `names` turns an id into its text."""
    if not found:
        return []
    parts, concerned = [], set()
    for alike in found:
        for group in alike.groups:
            concerned |= set(group)
            parts.append(f"{' = '.join(map(names, group))} ({alike.matrix})")
        if alike.empty:
            concerned |= set(alike.empty)
            parts.append(f"{', '.join(map(names, alike.empty))} (nothing in the {alike.matrix})")
    tokens = json.dumps([names(token) for token in sorted(concerned)], ensure_ascii=False)
    return [
        f"tokens that the demonstrations need have equal or empty vectors, and adapters leave them frozen: "
        f"{'; '.join(parts)}. The model cannot tell them apart and will not learn to: "
        f"lora.train_tokens={tokens} trains their vectors too, as does method=full"
    ]
