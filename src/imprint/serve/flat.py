"""Attention for a server: the new tokens of many asks lie end to end in one row, each seeing its own slot.

Every projection of a layer then multiplies all tokens at once. Only attention is done part by part: the
asks of a pool that go on by one token together, a stretch of a prompt alone. As in training
(model/attention.py) windows and chunks are measured in positions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface

from imprint.model.attention import Rule, no_mask, rules_of
from imprint.serve.slots import Place, Pool, Shape

NAME = "imprint_served"


@dataclass(frozen=True, slots=True)
class Stretch:
    """`count` tokens of one ask: positions begin … begin + count - 1."""

    place: Place
    begin: int
    count: int


@dataclass
class Part:
    """The tokens of a step that lie in one pool: rows start … stop - 1 of the step's row.

    The first rows are single tokens, ordered by slot; then come the stretches.
    """

    pool: Pool
    start: int
    slots: list[int]  # of the single tokens
    lengths: list[int]  # how many places each of them sees, its own included
    stretches: list[tuple[int, Stretch]]  # (first row, stretch)
    where: tuple[Tensor, Tensor]  # int64 [rows] each: slot and place of each token
    made: dict[Any, Any] = field(default_factory=dict)

    @property
    def stop(self) -> int:
        return self.start + len(self.where[0])

    def once(self, key: Any, make: Callable[[], Any]) -> Any:
        """What `make` makes, made for the first layer that asks for `key` and kept for the others."""
        if key not in self.made:
            self.made[key] = make()
        return self.made[key]

    @property
    def dense(self) -> bool:
        """Whether it is cheaper to go through all slots up to the last than to gather those that are needed."""
        return 2 * len(self.slots) > self.slots[-1]

    def index(self) -> Tensor:
        """The slots of the single tokens, int64 [n]."""
        index: Tensor = self.once("index", lambda: torch.tensor(self.slots, device=self.where[0].device))
        return index

    def single_mask(self, window: int | None, chunk: int | None, dtype: torch.dtype) -> Tensor:
        """[slots or n, 1, 1, longest]: 0 where a single token sees a place, -inf elsewhere."""

        def make() -> Tensor:
            size = self.slots[-1] + 1 if self.dense else len(self.slots)
            last = torch.zeros(
                size, dtype=torch.int64
            )  # who is not asked sees its first place: any finite thing
            last[self.slots if self.dense else slice(None)] = torch.tensor(self.lengths) - 1
            last = last.to(self.where[0].device)
            return _mask(last, max(self.lengths), window, chunk, dtype)[:, None, None]

        mask: Tensor = self.once(("single", window, chunk), make)
        return mask

    def stretch_mask(
        self, stretch: Stretch, window: int | None, chunk: int | None, dtype: torch.dtype
    ) -> Tensor | None:
        """[count, begin + count]; None where the plain causal triangle is meant."""
        end = stretch.begin + stretch.count
        if window is not None and window >= end:
            window = None
        if chunk is not None and chunk >= end:
            chunk = None
        if not stretch.begin and window is None and chunk is None:
            return None

        def make() -> Tensor:
            at = torch.arange(stretch.begin, end, device=self.where[0].device)
            return _mask(at, end, window, chunk, dtype)

        mask: Tensor = self.once((stretch.begin, stretch.count, window, chunk), make)
        return mask


def _mask(at: Tensor, size: int, window: int | None, chunk: int | None, dtype: torch.dtype) -> Tensor:
    """[queries, size]: what a query at a position sees of the places 0 … size - 1."""
    key = torch.arange(size, device=at.device)
    sees = key <= at[:, None]
    if window is not None:
        sees &= at[:, None] - key < window
    if chunk is not None:
        sees &= at[:, None] // chunk == key // chunk
    return torch.zeros(sees.shape, dtype=dtype, device=at.device).masked_fill_(~sees, -math.inf)


@dataclass
class Step:
    """One forward pass: tokens [1, T], positions [1, T], and the parts that the row is made of."""

    tokens: Tensor
    positions: Tensor
    parts: list[Part]
    rows: list[int]  # the last row of each piece of work, in the order in which it was given

    @classmethod
    def of(cls, work: Sequence[tuple[Stretch, Sequence[int]]], device: torch.device) -> Step:
        """Lay out stretches, each with its token ids."""
        by_pool: dict[int, list[int]] = {}
        for number, (stretch, _) in enumerate(work):
            by_pool.setdefault(id(stretch.place.pool), []).append(number)
        tokens: list[int] = []
        positions: list[int] = []
        rows = [0] * len(work)
        parts = []
        for numbers in by_pool.values():
            numbers.sort(key=lambda n: (work[n][0].count > 1, work[n][0].place.slot))
            pool, start = work[numbers[0]][0].place.pool, len(tokens)
            slots, stretches, rows_of = [], [], []
            for number in numbers:
                stretch, ids = work[number]
                if stretch.count == 1:
                    slots.append(stretch.place.slot)
                else:
                    stretches.append((len(tokens), stretch))
                rows_of += [stretch.place.slot] * stretch.count
                positions.extend(range(stretch.begin, stretch.begin + stretch.count))
                tokens.extend(ids)
                rows[number] = len(tokens) - 1
            lengths = [at + 1 for at in positions[start : start + len(slots)]]
            slot_of, place_of = torch.tensor([rows_of, positions[start:]], device=device)
            parts.append(Part(pool, start, slots, lengths, stretches, (slot_of, place_of)))
        return cls(
            torch.tensor([tokens], device=device), torch.tensor([positions], device=device), parts, rows
        )


class Probe:
    """Stands in for a Step while one sequence goes through the model: notes what each layer keeps."""

    def __init__(self) -> None:
        self.shapes: dict[int, Shape] = {}
        self.dtype: torch.dtype | None = None


def served(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    served: Step | Probe | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention as transformers calls it: query [1, H, T, D], key and value [1, heads, T, …] → [1, T, H, Dv]."""
    if served is None:
        raise RuntimeError("the server's attention was called without `served`: asks go through its engine")
    layer: Any = module.layer_idx
    window, chunk = rules_of(module, sliding_window)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    rule = Rule(scale, 0.0, window, chunk, softcap, s_aux)
    if isinstance(served, Probe):
        served.shapes[layer] = Shape(key.shape[1], key.shape[3], value.shape[3])
        served.dtype = key.dtype
        at = torch.arange(query.shape[2], device=query.device)
        mask = _mask(at, len(at), window, chunk, query.dtype)
        return _attend(query, key, value, mask, rule).transpose(1, 2), None
    made = [_part(part, layer, query, key, value, rule) for part in served.parts]
    return (made[0] if len(made) == 1 else torch.cat(made))[None], None


AttentionInterface.register(NAME, served)
AttentionMaskInterface.register(NAME, no_mask)


def _part(part: Part, layer: int, query: Tensor, key: Tensor, value: Tensor, rule: Rule) -> Tensor:
    """Write the part's keys and values into its pool, and attend: [rows, H, Dv]."""
    keys, values = part.pool.keys[layer], part.pool.values[layer]
    for kept, new in ((keys, key), (values, value)):
        kept.transpose(1, 2).index_put_(part.where, new[0, :, part.start : part.stop].transpose(0, 1))
    made = []
    if part.slots:
        stop = part.start + len(part.slots)
        made.append(_singles(part, query[0, :, part.start : stop].transpose(0, 1), keys, values, rule))
    for row, stretch in part.stretches:
        seen = slice(0, stretch.begin + stretch.count)
        k, v = (kept[None, stretch.place.slot, :, seen] for kept in (keys, values))
        mask = part.stretch_mask(stretch, rule.window, rule.chunk, query.dtype)
        out = _attend(query[:, :, row : row + stretch.count], k, v, mask, rule)
        made.append(out[0].transpose(0, 1))
    return made[0] if len(made) == 1 else torch.cat(made)


def _singles(part: Part, query: Tensor, keys: Tensor, values: Tensor, rule: Rule) -> Tensor:
    """query [n, H, D] of single tokens → [n, H, Dv]: the heads that share keys are queries beside each other."""
    n, heads = query.shape[0], keys.shape[1]
    query = query.reshape(n, heads, -1, query.shape[-1])
    longest = max(part.lengths)
    all_of_them = len(part.slots) == part.slots[-1] + 1
    if part.dense:
        size = part.slots[-1] + 1
        if not all_of_them:
            query = query.new_zeros(size, *query.shape[1:]).index_copy_(0, part.index(), query)
        k, v = (kept[:size, :, :longest] for kept in (keys, values))
    else:
        k, v = (kept[:, :, :longest].index_select(0, part.index()) for kept in (keys, values))
    mask = part.single_mask(rule.window, rule.chunk, query.dtype)
    out = _attend(query, k, v, mask, rule, grouped=True)
    if part.dense and not all_of_them:
        out = out.index_select(0, part.index())
    return out.reshape(n, -1, out.shape[-1])


def _attend(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, rule: Rule, grouped: bool = False
) -> Tensor:
    """query [B, H, q, D] → [B, H, q, Dv]; without a mask causal. Grouped: q are the heads that share keys."""
    if not grouped and query.shape[1] != key.shape[1]:
        groups = query.shape[1] // key.shape[1]
        key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
    if rule.softcap is None and rule.sinks is None:
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, is_causal=mask is None, scale=rule.scale
        )
    scores = query @ key.transpose(-1, -2) * rule.scale
    if rule.softcap is not None:
        scores = rule.softcap * torch.tanh(scores / rule.softcap)
    if mask is None:
        at = torch.arange(query.shape[2], device=query.device)
        mask = _mask(at, len(at), None, None, query.dtype)
    scores = scores + mask
    if rule.sinks is not None:
        sinks = rule.sinks.to(scores.dtype)
        shape = (1, key.shape[1], -1, 1) if grouped else (1, -1, 1, 1)
        scores = torch.cat([scores, sinks.view(shape).expand(*scores.shape[:-1], 1)], dim=-1)
    weights = scores.softmax(dim=-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(query.dtype)
    if rule.sinks is not None:
        weights = weights[..., :-1]
    return weights @ value
