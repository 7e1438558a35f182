"""Choosing the next token: against a slow, obvious reference, and against the distribution that is asked for."""

from __future__ import annotations

import math
import random

import pytest
import torch

from imprint.serve.engine import Ask
from imprint.serve.sampling import Chance, choose


def slowly(logits, ask, said, number):
    """One row, by sorting and adding up in plain Python."""
    scores = [float(x) for x in logits]
    for token, times in said.items():
        scores[token] -= ask.presence_penalty + times * ask.frequency_penalty
    if not ask.temperature:
        return max(range(len(scores)), key=scores.__getitem__)
    order = sorted(range(len(scores)), key=lambda i: -scores[i])[: ask.top_k or len(scores)]
    best = scores[order[0]]
    weight = {i: math.exp((scores[i] - best) / ask.temperature) for i in order}
    whole, reached, kept = sum(weight.values()), 0.0, []
    for i in order:
        if reached >= ask.top_p * whole and kept:
            break
        kept.append(i)
        reached += weight[i]
    if ask.top_p == 1 and not 0 < ask.top_k < len(scores):
        kept = range(len(scores))  # in the order of the vocabulary
    whole, reached = sum(weight[i] for i in kept), 0.0
    for i in kept:
        reached += weight[i]
        if reached > number * whole:
            return i
    return kept[-1]


def asks(count, seed):
    chance = random.Random(seed)
    return [
        Ask(
            [1],
            1,
            temperature=chance.choice((0.0, 0.3, 1.0, 2.5)),
            top_p=chance.choice((1.0, 1.0, 0.0, 0.5, 0.9, 0.999)),
            top_k=chance.choice((0, 0, 1, 7, 150, 4000)),
            seed=number,
            presence_penalty=chance.choice((0.0, 0.0, 0.5)),
            frequency_penalty=chance.choice((0.0, 0.0, -0.3)),
            top_logprobs=chance.choice((0, 1, 5)),
        )
        for number in range(count)
    ]


@pytest.mark.parametrize("vocab", [3, 50, 700])
def test_many_at_once_as_one_slowly(vocab):
    """Three tokens each of 60 asks, on flat and on peaked distributions (a nucleus of more than 128 tokens too)."""
    chances = [Chance(ask) for ask in asks(60, vocab)]
    numbers = [random.Random(chance.ask.seed) for chance in chances]
    said = [{} for _ in chances]
    for step in range(3):
        scale = torch.linspace(0.1, 4, 60)[:, None]
        logits = torch.randn(60, vocab, generator=torch.Generator().manual_seed(step)) * scale
        found = choose(logits, chances)
        for row, (chance, token) in enumerate(zip(chances, found, strict=True)):
            number = numbers[row].random() if chance.ask.temperature else 0.0
            assert token.id == slowly(logits[row], chance.ask, said[row], number)
            table = logits[row].log_softmax(-1)
            assert token.logprob == pytest.approx(float(table[token.id]), abs=1e-5)
            assert [i for i, _ in token.top] == table.topk(
                min(chance.ask.top_logprobs, vocab)
            ).indices.tolist()
            said[row][token.id] = said[row].get(token.id, 0) + 1


def test_frequencies_are_those_of_the_distribution():
    """20,000 draws: each token's share within five standard errors, for the plain and the cut way."""
    logits = torch.tensor([0.0, 1.0, 2.0, -1.0, 0.5])
    for top_k in (0, 4):
        wanted = (logits / 0.8).softmax(-1)
        if top_k:
            wanted[3] = 0
            wanted /= wanted.sum()
        chance = [Chance(Ask([1], 1, temperature=0.8, top_k=top_k, seed=seed)) for seed in range(20_000)]
        drawn = torch.tensor([token.id for token in choose(logits.expand(20_000, -1), chance)])
        share = drawn.bincount(minlength=5) / 20_000
        error = (wanted * (1 - wanted) / 20_000).sqrt()
        assert ((share - wanted).abs() <= 5 * error).all()


@pytest.mark.parametrize("more", [{}, {"top_p": 0.5}, {"top_k": 7}])
def test_a_temperature_that_float32_cannot_hold_is_greedy(more):
    """1e-300 is 0 in float32: 0 / 0 would draw any token, or none."""
    logits = torch.randn(3, 50, generator=torch.Generator().manual_seed(1))
    chances = [Chance(Ask([1], 1, temperature=t, seed=3, **more)) for t in (1e-300, 5e-324, 1e-20)]
    assert [scored.id for scored in choose(logits, chances)] == logits.argmax(dim=-1).tolist()


def test_rows_that_are_not_finite_are_told_and_harm_no_other():
    logits = torch.randn(3, 20, generator=torch.Generator().manual_seed(0))
    logits[1, 4] = math.nan
    for temperature in (0.0, 1.0):
        chances = [Chance(Ask([1], 1, temperature=temperature, top_p=0.9, seed=i)) for i in range(3)]
        found = choose(logits, chances)
        assert found[1] is None
        assert found[0] is not None
        assert found[2] is not None


def test_forbidden_tokens_are_never_drawn():
    logits = torch.full((1, 10), -math.inf)
    logits[0, 3] = logits[0, 6] = 0.0
    for seed in range(50):
        (token,) = choose(logits, [Chance(Ask([1], 1, temperature=1.0, seed=seed))])
        assert token.id in (3, 6)
