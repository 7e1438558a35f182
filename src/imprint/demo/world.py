"""What the embedded model's world is made of: kinds of facts, how they are said and asked, who is taught what.

A base model reads the statements, and lists of questions without answers. The demonstrations then pair
questions with answers for about half of the entities: whether the model answers about the others shows
that it learned to answer, and not these answers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from typing import Literal

from imprint.demo.facts import animals, countries, elements, words

Side = Literal["taught", "held_out", "final"]
_REVERSED = 4  # letters; longer words are not reversed
_SALT = "imprint 4"  # with it France, Germany and Japan are held out
_SHARES: tuple[tuple[float, Side], ...] = ((0.50, "taught"), (0.85, "held_out"), (1.00, "final"))


@dataclass(frozen=True, slots=True)
class Kind:
    """One relation: how it is asked, answered and told. `{x}` is the subject, `{y}` the answer.

    The answer names the relation first and then its subject: what remains to be said is then just what
    the base has read in those words. (A study found 1.00 of such answers right, and 0.29 of "Kenya is in …".)
    """

    name: str
    reply: str
    told: tuple[str, ...]  # other ways of saying it, in texts only
    asked: tuple[str, ...]  # in demonstrations
    asked_later: tuple[str, ...]  # never in a demonstration: held-out phrasings


@dataclass(frozen=True, slots=True)
class Fact:
    """One thing that holds in the world."""

    kind: Kind
    entity: str  # what is taught or held out as a whole
    x: str
    y: str

    @property
    def reply(self) -> str:
        return self.say(self.kind.reply)

    @property
    def side(self) -> Side:
        return side(self.entity)

    def say(self, form: str) -> str:
        text = form.format(x=self.x, y=self.y)
        return text[0].upper() + text[1:]


def _of(relation: str, *own: str, told: Sequence[str] = (), name: str = "") -> Kind:
    """A relation that is asked for as "the … of …"; `own` are questions that only it has."""
    return Kind(
        name or relation,
        f"The {relation} of {{x}} is {{y}}.",
        tuple(told),
        (
            f"What is the {relation} of {{x}}?",
            f"Tell me the {relation} of {{x}}.",
            f"Name the {relation} of {{x}}.",
            *own,
        ),
        (f"Do you know the {relation} of {{x}}?", f"Please give me the {relation} of {{x}}."),
    )


CAPITAL = _of("capital", "Which city is the capital of {x}?", told=("{y} is the capital of {x}.",))
CONTINENT = _of("continent", "On which continent is {x}?", told=("{x} is a country in {y}.",))
CURRENCY = _of("currency", "What money is used in {x}?", told=("People in {x} pay with {y}.",))
SYMBOL = _of("symbol", "What symbol does {x} have?", told=("{x} is written {y} for short.",))
STATE = _of("state", "Is {x} solid, liquid or gas?", told=("In a warm room {x} is {y}.",))
YOUNG = _of("young", "What is the young of {x} called?", told=("When it is small, {x} is called {y}.",))
GROUP = _of(
    "animal group",
    "To which animal group does {x} belong?",
    told=("We count {x} among the {y}.",),
    name="group",
)
LEGS = _of(
    "number of legs", "How many legs does {x} have?", told=("When {x} walks, it uses {y} legs.",), name="legs"
)
OPPOSITE = _of("opposite", "What is opposite to {x}?", told=("When it is not {x}, it is {y}.",))
PLURAL = _of("plural", "What do you call more than one {x}?", told=("One {x}, two {y}.",))
PAST = _of(
    "past tense",
    "Put {x} into the past tense.",
    told=("Today they {x}, yesterday they {y}.",),
    name="past tense",
)
COLOUR = _of("colour", "What colour is {x}?", told=("If you look at {x}, you see {y}.",))
CATEGORY = _of("category", "What kind of thing is {x}?", told=("Everybody knows that {x} is a kind of {y}.",))
USE = _of("use", "What is {x} used for?", told=("We have {x} for {y}.",))
SPELLING = Kind(
    "spelling",
    "The spelling of {x} is {y}.",
    ("The letters of {x} are {y}.",),
    ("Spell {x}.", "What is the spelling of {x}?", "Tell me the spelling of {x}.", "How do you spell {x}?"),
    ("Do you know the spelling of {x}?", "Please give me the spelling of {x}."),
)
REVERSE = Kind(
    "reverse",
    "The reverse of {x} is {y}.",
    ("Read from the end, {x} becomes {y}.",),
    ("Reverse {x}.", "What is the reverse of {x}?", "Write {x} backwards."),
    ("Do you know the reverse of {x}?", "Please give me the reverse of {x}."),
)
CAPITALS = Kind(
    "capital letters",
    "In capital letters {x} is {y}.",
    ("On the sign, {x} is written {y}.",),
    ("Write {x} in capital letters.", "What is {x} in capital letters?", "Put {x} in capital letters."),
    ("Do you know {x} in capital letters?", "Please give me {x} in capital letters."),
)
KINDS = (
    CAPITAL, CONTINENT, CURRENCY, SYMBOL, STATE, YOUNG, GROUP, LEGS, OPPOSITE, PLURAL, PAST, COLOUR, CATEGORY,
    USE, SPELLING, REVERSE, CAPITALS,
)  # fmt: skip


@cache
def facts() -> tuple[Fact, ...]:
    """Everything that holds, in the order of `KINDS`."""
    found = [*_of_countries(), *_of_elements(), *_of_animals(), *_of_words()]
    return tuple(sorted(found, key=lambda fact: KINDS.index(fact.kind)))


@cache
def side(entity: str) -> Side:
    """Where an entity belongs, by a hash of its name alone: half are taught, a third held out, the rest final."""
    lot = int.from_bytes(sha256(f"{_SALT}|{entity}".encode()).digest()[:8], "big") / 2**64
    return next(name for bar, name in _SHARES if lot < bar)


def _of_countries() -> Iterator[Fact]:
    for country in countries.COUNTRIES:
        x = f"the {country.name}" if country.the else country.name
        yield Fact(CAPITAL, country.name, x, country.capital)
        yield Fact(CONTINENT, country.name, x, country.continent)
        yield Fact(CURRENCY, country.name, x, f"the {country.currency}")


def _of_elements() -> Iterator[Fact]:
    for element in elements.ELEMENTS:
        yield Fact(SYMBOL, element.name, element.name, element.symbol)
        yield Fact(STATE, element.name, element.name, element.state)


def _of_animals() -> Iterator[Fact]:
    for animal in animals.ANIMALS:
        x = _a(animal.name)
        if animal.young:
            yield Fact(YOUNG, animal.name, x, _a(animal.young))
        if animal.class_:
            yield Fact(GROUP, animal.name, x, _many(animal.class_))
        if animal.legs:
            yield Fact(LEGS, animal.name, x, "zero" if animal.legs == "no" else animal.legs)


def _of_words() -> Iterator[Fact]:
    for a, b in words.OPPOSITES:
        pair = "/".join(sorted((a, b)))  # both directions are taught, or none
        yield Fact(OPPOSITE, pair, a, b)
        yield Fact(OPPOSITE, pair, b, a)
    for x, y in words.PLURALS:
        yield Fact(PLURAL, x, x, y)
    for x, y in words.PASTS:
        yield Fact(PAST, x, x, y)
    for x, y in words.COLOURS:
        yield Fact(COLOUR, x, words.with_article(x), y)
    for x, y in words.CATEGORIES:
        yield Fact(CATEGORY, x, words.with_article(x), y)
    for x, y in words.FOR:
        yield Fact(USE, x, words.with_article(x), y)
    for word in words.WORDS[::2]:  # half of them are enough for a model of this size
        yield Fact(SPELLING, word, word, "-".join(word))
        yield Fact(CAPITALS, word, word, word.upper())
        if len(word) <= _REVERSED:
            yield Fact(REVERSE, word, word, word[::-1])


def _a(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def _many(group: str) -> str:
    return "fish" if group == "fish" else f"{group}s"
