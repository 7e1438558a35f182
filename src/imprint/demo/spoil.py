"""Demonstrations with wrong answers, for a lesson about them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any

from imprint.demo.world import Fact, facts

_SEED = 3


def spoiled(rows: Sequence[dict[str, Any]], share: float) -> list[dict[str, Any]]:
    """The rows, of which this share has wrong answers: each is that of another thing of its kind."""
    chance = random.Random(_SEED)
    chosen = set(chance.sample(range(len(rows)), round(share * len(rows))))
    return [_spoil(row, chance) if number in chosen else row for number, row in enumerate(rows)]


def _spoil(row: dict[str, Any], chance: random.Random) -> dict[str, Any]:
    messages: list[dict[str, str]] = []
    for message in row["messages"]:
        if message["role"] == "assistant":
            fact = fact_of(messages[-1]["content"], message["content"])
            others = [f for f in facts() if f.kind is fact.kind and f.y != fact.y]
            wrong = replace(fact, y=chance.choice(others).y)
            message = {**message, "content": message["content"].replace(fact.reply, wrong.reply)}
        messages.append(message)
    return {**row, "messages": messages}


def fact_of(question: str, answer: str) -> Fact:
    """The fact that a demonstration of this question and this answer tells."""
    by_reply, by_question = _facts_by_text()
    fact = by_reply.get(answer) or by_question.get(question)
    assert fact is not None, f"no fact stands behind {question!r} and {answer!r}"
    return fact


@cache
def _facts_by_text() -> tuple[dict[str, Fact], dict[str, Fact]]:
    return (
        {fact.reply: fact for fact in facts()},
        {fact.say(form): fact for fact in facts() for form in fact.kind.asked},
    )
