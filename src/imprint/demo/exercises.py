"""The demonstrations of the demo's world, and the questions that test what was learned from them."""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from imprint.demo.world import CAPITAL, CAPITALS, REVERSE, SPELLING, Fact, Kind, Side, facts

SetName = Literal["seen", "held-out entities", "held-out phrasings", "capitals held out", "final"]
_SEED = 1
_PLAIN, _TWO_TURNS = 1850, 150  # demonstrations: 2,000 in all
_OF_WORDS = (SPELLING, REVERSE, CAPITALS)  # not asked for as "the … of"


@dataclass(frozen=True, slots=True)
class Question:
    """A question and the one answer that counts as right."""

    text: str
    answer: str
    kind: str


def ask(fact: Fact, form: str) -> Question:
    return Question(fact.say(form), fact.reply, fact.kind.name)


@cache
def taught() -> tuple[tuple[Fact, str], ...]:
    """What the plain demonstrations ask: facts and phrasings, each pair once, every fact about equally often."""
    chance = random.Random(_SEED)
    ours = _on("taught")
    pairs: list[tuple[Fact, str]] = []
    rounds = [{fact: chance.sample(fact.kind.asked, len(fact.kind.asked)) for fact in ours}]
    while len(pairs) < _PLAIN:
        for fact in chance.sample(ours, len(ours)):
            if rounds[0][fact]:
                pairs.append((fact, rounds[0][fact].pop()))
    return tuple(pairs[:_PLAIN])


def demonstrations() -> list[dict[str, Any]]:
    """Rows of messages in a random order, any beginning of which is a fair sample of the whole."""
    chance = random.Random(_SEED + 1)
    rows = [[_user(q.text), _assistant(q.answer)] for q in (ask(fact, form) for fact, form in taught())]
    ours = _on("taught")
    by_kind: dict[Kind, list[Fact]] = {}
    for fact in ours:
        by_kind.setdefault(fact.kind, []).append(fact)
    for _ in range(_TWO_TURNS):
        first, second = chance.sample(by_kind[chance.choice(ours).kind], 2)
        rows.append(follow_up(first, chance.choice(first.kind.asked), second))
    chance.shuffle(rows)
    return [{"messages": row} for row in rows]


def follow_up(first: Fact, form: str, second: Fact) -> list[dict[str, str]]:
    """Two turns, of which the second is understood by the first alone."""
    return [
        _user(first.say(form)),
        _assistant(first.reply),
        _user(f"And of {second.x}?" if first.kind not in _OF_WORDS else f"And {second.x}?"),
        _assistant(second.reply),
    ]


def questions_of(name: SetName, most: int = 300) -> list[Question]:
    """The questions of a set, at most so many, drawn once and for all."""
    chance = random.Random(f"{_SEED} {name}")
    if name == "seen":
        pairs = list(taught())
    elif name == "capitals held out":  # few enough to be asked in every way
        pairs = [(fact, form) for fact in _on("held_out") if fact.kind is CAPITAL for form in CAPITAL.asked]
    else:
        pairs = [
            (fact, chance.choice(fact.kind.asked_later if name == "held-out phrasings" else fact.kind.asked))
            for fact in _on("final" if name == "final" else "held_out")
        ]
    chance.shuffle(pairs)
    return [ask(fact, form) for fact, form in pairs[:most]]


def _on(wanted: Side) -> list[Fact]:
    return [fact for fact in facts() if fact.side == wanted]


def _user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def _assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}
