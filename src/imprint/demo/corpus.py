"""What the embedded base model read: statements, questions without answers, and small stories.

Documents are drawn from decks that are shuffled and dealt without replacement, so that every fact is read
about equally often. No document holds a question beside its answer: to answer is what fine-tuning teaches.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Generic, TypeVar

from imprint.demo import stories
from imprint.demo.world import KINDS, Fact, facts

T = TypeVar("T")

# How often each sort of document comes.
SHARES = {
    "about one": 0.36,
    "about two": 0.10,
    "of one kind": 0.12,
    "about nothing": 0.08,
    "questions": 0.08,
    "questions of one kind": 0.05,
    "questions about one": 0.06,
    "story": 0.15,
}
# Texts without questions, and with few stories, which are long: what the demo mixes in, and measures.
TOLD = {"about one": 0.4, "about two": 0.2, "of one kind": 0.2, "about nothing": 0.1, "story": 0.1}
# A title, or a sentence that names what the rest is about: so the model learns to take up what was named before.
_OPENINGS = (
    "About {x}",
    "About {x}:",
    "On {x}",
    "Let us talk about {x}.",
    "Here is what we know of {x}.",
    "{name} has read of {x}.",
    "Today the teacher spoke about {x}.",
)
# What is said of things that do not exist: their names can only be taken from what stands before.
_UNKNOWN = (
    "The {relation} of {x} stands in no book.",
    "The {relation} of {x} was never found.",
    "Nobody has asked for the {relation} of {x}.",
)
_RELATIONS = tuple(
    kind.reply.split(" of {x}")[0].removeprefix("The ") for kind in KINDS if kind.reply.startswith("The ")
)
_BEGINNINGS = (
    "b", "br", "c", "ch", "cl", "d", "dr", "f", "fl", "g", "gr", "h", "j", "k", "l", "m", "n", "p",
    "pr", "qu", "r", "s", "sh", "sl", "st", "t", "tr", "v", "w", "z",
)  # fmt: skip
_VOWELS = ("a", "e", "i", "o", "u", "ai", "ea", "ia", "oo", "ou")
_ENDS = ("", "", "l", "m", "n", "nd", "r", "rk", "s", "st", "t", "x")


def documents(seed: int, shares: Mapping[str, float] = SHARES) -> Iterator[str]:
    """Documents without end, a pure function of the seed; `shares` says how often each sort comes."""
    chance = random.Random(seed)
    makers = _makers(chance)
    sorts, weights = list(shares), list(shares.values())
    while True:
        yield makers[chance.choices(sorts, weights)[0]]()


class Deck(Generic[T]):
    """Cards that are dealt in a random order, all of them before one comes again."""

    def __init__(self, cards: Sequence[T], chance: random.Random):
        self._cards, self._chance, self._left = list(cards), chance, list[T]()

    def deal(self) -> T:
        if not self._left:
            self._left = self._chance.sample(self._cards, len(self._cards))
        return self._left.pop()


def _makers(chance: random.Random) -> dict[str, Callable[[], str]]:
    of_subject: dict[str, list[Fact]] = {}
    for fact in facts():
        of_subject.setdefault(fact.x, []).append(fact)
    # A subject comes as often as it has facts, so that each fact is read as often as the others.
    subjects = Deck([told for told in of_subject.values() for _ in told], chance)
    everything = Deck(facts(), chance)
    of_kind = {kind.name: Deck([f for f in facts() if f.kind is kind], chance) for kind in KINDS}
    by_size = Deck([fact.kind.name for fact in facts()], chance)
    by_kind = Deck([kind.name for kind in KINDS], chance)

    def about_one() -> str:
        told = subjects.deal()
        chosen = _some(told, 2, chance)
        return _titled([chosen[0].x], [_tell(fact, chance) for fact in chosen], chance)

    def about_two() -> str:
        deck = of_kind[by_size.deal()]
        one, other = deck.deal(), deck.deal()
        told = chance.sample([one, other, *(chance.choice(of_subject[f.x]) for f in (one, other))], 4)
        return _titled([one.x, other.x], [_tell(fact, chance) for fact in told], chance)

    def of_one_kind() -> str:
        deck = of_kind[by_size.deal()]
        return _separator(chance).join(_tell(deck.deal(), chance) for _ in range(chance.randint(4, 8)))

    def about_nothing() -> str:
        x = _made_up(chance)
        relations = chance.choices(_RELATIONS, k=chance.randint(3, 5))
        told = [chance.choice(_UNKNOWN).format(relation=relation, x=x) for relation in relations]
        return _titled([x], told, chance)

    def questions() -> str:
        return _separator(chance).join(_ask(everything.deal(), chance) for _ in range(chance.randint(6, 14)))

    def questions_of_one_kind() -> str:
        deck = of_kind[by_kind.deal()]
        return _separator(chance).join(_ask(deck.deal(), chance) for _ in range(chance.randint(6, 14)))

    def questions_about_one() -> str:
        asked = [_ask(fact, chance) for _ in range(2) for fact in _some(subjects.deal(), 3, chance)]
        return _separator(chance).join([*asked, *(_ask(everything.deal(), chance) for _ in range(3))])

    return {
        "about one": about_one,
        "about two": about_two,
        "of one kind": of_one_kind,
        "about nothing": about_nothing,
        "questions": questions,
        "questions of one kind": questions_of_one_kind,
        "questions about one": questions_about_one,
        "story": stories.Stories(chance).tell,
    }


def _titled(subjects: Sequence[str], sentences: Sequence[str], chance: random.Random) -> str:
    """Sentences behind their title, where they have one."""
    between = _separator(chance)
    if chance.random() < 0.3:
        return between.join(sentences)
    opening = chance.choice(_OPENINGS).format(x=" and ".join(subjects), name=chance.choice(stories.NAMES))
    return opening + (between if opening.endswith(".") else "\n") + between.join(sentences)


def _made_up(chance: random.Random) -> str:
    """A name that stands for nothing: of a country, or of a thing."""
    syllables = chance.randint(1, 3)
    parts = [
        chance.choice(_BEGINNINGS) + chance.choice(_VOWELS) + chance.choice(_ENDS) for _ in range(syllables)
    ]
    name = "".join(parts)
    return chance.choice((name.capitalize(), name, f"a {name}"))


def _some(told: Sequence[Fact], least: int, chance: random.Random) -> list[Fact]:
    """Facts about one subject in a random order, again and again where there are few."""
    found: list[Fact] = []
    while len(found) < least:
        found += chance.sample(list(told), len(told))
    return found


def _separator(chance: random.Random) -> str:
    """What stands between the sentences of a document."""
    return chance.choice((" ", "\n"))


def _tell(fact: Fact, chance: random.Random) -> str:
    """A statement: half of the time in the words of the answer."""
    if chance.random() < 0.6 or not fact.kind.told:
        return fact.reply
    return fact.say(chance.choice(fact.kind.told))


def _ask(fact: Fact, chance: random.Random) -> str:
    return fact.say(chance.choice(fact.kind.asked + fact.kind.asked_later))
