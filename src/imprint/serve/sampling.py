"""The next token of many asks at once, each chosen as its ask says."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from imprint.serve.engine import Ask, Scored

FIRST_LOOK = 128  # likeliest tokens that a nucleus is sought in, before all are sorted


@dataclass
class Chance:
    """The state of one ask's choices: its own random numbers, and what it has said so far."""

    ask: Ask
    random: random.Random = field(init=False)
    said: Counter[int] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.random = random.Random(self.ask.seed)  # None: from the system's own chance


def choose(logits: Tensor, chances: Sequence[Chance]) -> list[Scored | None]:
    """The next token of each row of logits [B, V], float32; None where a row is not finite.

    Penalties first (taken once and a time for each time a token was said, as OpenAI defines them), then
    temperature, the top_k likeliest, the smallest set with top_p of the probability; of what is left one
    token by a number that is the ask's own, u in [0, 1): the first at which the cumulative probability
    exceeds u. The log-probability that is told is the model's own, before all that.
    """
    table = logits.log_softmax(dim=-1)
    scores = _penalised(logits, chances)
    chosen = scores.argmax(dim=-1)
    drawing = [row for row, chance in enumerate(chances) if chance.ask.temperature > 0]
    if drawing:
        index = torch.tensor(drawing, device=logits.device)
        chosen[index] = _draw(scores[index], [chances[row] for row in drawing])
    logprob = table.gather(1, chosen[:, None])[:, 0]
    tops = top_logprobs(table, [chance.ask.top_logprobs for chance in chances])
    found: list[Scored | None] = []
    for chance, token, value, top in zip(chances, chosen.tolist(), logprob.tolist(), tops, strict=True):
        if chance.ask.presence_penalty or chance.ask.frequency_penalty:
            chance.said[token] += 1
        found.append(Scored(token, value, top) if math.isfinite(value) else None)
    return found


def top_logprobs(table: Tensor, counts: Sequence[int]) -> list[tuple[tuple[int, float], ...]]:
    """The likeliest tokens of each row of log-probabilities [B, V], as many as `counts` says."""
    most = min(max(counts, default=0), table.shape[-1])
    if not most:
        return [()] * len(counts)
    rows = [row for row, count in enumerate(counts) if count]
    values, ids = table[torch.tensor(rows, device=table.device)].topk(most, dim=-1)
    found: list[tuple[tuple[int, float], ...]] = [()] * len(counts)
    for row, ids_of, values_of in zip(rows, ids.tolist(), values.tolist(), strict=True):
        found[row] = tuple(zip(ids_of, values_of, strict=True))[: counts[row]]
    return found


def _penalised(logits: Tensor, chances: Sequence[Chance]) -> Tensor:
    rows: list[int] = []
    ids: list[int] = []
    less: list[float] = []
    for row, chance in enumerate(chances):
        for token, times in chance.said.items():
            rows.append(row)
            ids.append(token)
            less.append(chance.ask.presence_penalty + times * chance.ask.frequency_penalty)
    if not rows:
        return logits
    device = logits.device
    places = (torch.tensor(rows, device=device), torch.tensor(ids, device=device))
    return logits.index_put(places, -torch.tensor(less, device=device), accumulate=True)


def _draw(scores: Tensor, chances: Sequence[Chance]) -> Tensor:
    """One token of each row of scores [n, V], int64 [n]."""
    device, vocab = scores.device, scores.shape[-1]
    # float32 would make 0 of what is smaller, and nothing is divided by 0
    least = torch.finfo(torch.float32).tiny
    temperature = torch.tensor([max(chance.ask.temperature, least) for chance in chances], device=device)
    scores = (scores - scores.amax(dim=-1, keepdim=True)) / temperature[:, None]
    number = torch.tensor([chance.random.random() for chance in chances], dtype=torch.float64, device=device)
    chosen = torch.empty(len(chances), dtype=torch.int64, device=device)
    cut = [chance.ask.top_p < 1 or 0 < chance.ask.top_k < vocab for chance in chances]
    if not all(cut):
        rows = torch.tensor([row for row, is_cut in enumerate(cut) if not is_cut], device=device)
        chosen[rows] = _pick(scores[rows].exp(), number[rows])
    if any(cut):
        rows = torch.tensor([row for row, is_cut in enumerate(cut) if is_cut], device=device)
        asks = [chance.ask for chance, is_cut in zip(chances, cut, strict=True) if is_cut]
        chosen[rows] = _nucleus(scores[rows], asks, number[rows])
    return chosen


def _nucleus(scores: Tensor, asks: Sequence[Ask], number: Tensor) -> Tensor:
    """As `_draw` for rows that leave something out; the likeliest come first in the cumulative sum."""
    device, vocab = scores.device, scores.shape[-1]
    top_p = torch.tensor([ask.top_p for ask in asks], dtype=torch.float64, device=device)[:, None]
    top_k = torch.tensor([ask.top_k or vocab for ask in asks], device=device)[:, None]
    look = min(vocab, max([FIRST_LOOK, *(ask.top_k for ask in asks)]))
    chosen = torch.empty(len(asks), dtype=torch.int64, device=device)
    rest = torch.arange(len(asks), device=device)
    while len(rest):
        part = scores[rest]
        values, ids = part.topk(look, dim=-1)
        weight = values.double().exp()
        weight = weight.masked_fill(torch.arange(look, device=device) >= top_k[rest], 0.0)
        # where top_k leaves nothing out of sight, the nucleus is a share of all, else of those k
        whole = torch.where(
            top_k[rest] <= look,
            weight.sum(dim=-1, keepdim=True),
            part.double().exp().sum(dim=-1, keepdim=True),
        )
        reached = weight.cumsum(dim=-1)
        done = (reached[:, -1:] >= top_p[rest] * whole) | (top_k[rest] <= look) | (look == vocab)
        done = done[:, 0]
        kept = weight.masked_fill(reached - weight >= top_p[rest] * whole, 0.0)
        kept[:, 0] = weight[:, 0]  # top_p 0 leaves the likeliest
        place = _pick(kept, number[rest])
        found = ids.gather(1, place[:, None])[:, 0]
        chosen[rest[done]] = found[done]
        rest, look = rest[~done], vocab
    return chosen


def _pick(weight: Tensor, number: Tensor) -> Tensor:
    """The first place of each row of weights [n, k] at which their cumulative share exceeds `number` [n]."""
    reached = weight.double().cumsum(dim=-1)
    place = torch.searchsorted(reached, (number * reached[:, -1])[:, None], right=True)[:, 0]
    # rounding at the very end: the last with any weight
    last = (weight > 0).long().mul_(torch.arange(weight.shape[-1], device=weight.device)).amax(dim=-1)
    return torch.minimum(place, last)
