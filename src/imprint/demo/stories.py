"""Small stories: the general text of the embedded model's world, by which forgetting is measured.

A story is a chain of sentences from a few sets; names, things and places in it are drawn once and come again,
so that there is something to remember while reading.
"""

from __future__ import annotations

import random

NAMES = (
    "Anna", "Ben", "Clara", "David", "Emma", "Felix", "Grace", "Henry", "Ida", "Jonas", "Kate", "Leo", "Mia",
    "Nora", "Oscar", "Paula", "Ruth", "Simon", "Tom", "Vera", "Will", "Zoe", "Amir", "Lin", "Rosa", "Ivan",
)  # fmt: skip
JOBS = (
    "baker", "farmer", "teacher", "doctor", "driver", "painter", "singer", "tailor", "gardener", "sailor",
    "nurse", "cook", "builder", "miller", "shepherd", "fisher",
)  # fmt: skip
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
PLACES = (
    "the market", "the river", "the lake", "the station", "the school", "the harbour", "the old mill", "the park",
    "the library", "the beach", "the village", "the forest", "the bridge", "the castle",
)  # fmt: skip
THINGS = (
    "a basket", "a red kite", "a small boat", "a letter", "a warm coat", "an old map", "a new book", "a bicycle",
    "a silver ring", "a wooden box", "a lamp", "a pair of boots", "a drum", "a bag of nuts", "a clock", "a rope",
)  # fmt: skip
FOODS = ("soup", "bread", "rice", "fish", "apple cake", "cheese", "beans", "honey", "potatoes", "pancakes")
WEATHER = (
    "It was raining", "The sun was shining", "It was very cold", "A strong wind was blowing", "Snow was falling",
    "The sky was grey", "It was a warm day", "There was fog everywhere",
)  # fmt: skip
KIN = ("brother", "sister", "mother", "father", "uncle", "aunt", "friend", "neighbour", "cousin")
FEELINGS = ("happy", "tired", "proud", "hungry", "surprised", "afraid", "glad", "angry", "curious")
TIMES = (
    "In the morning",
    "At noon",
    "In the afternoon",
    "In the evening",
    "At night",
    "After lunch",
    "Before dinner",
)

OPENINGS = (
    "{name} is a {job} and lives near {place}.",
    "On {day} {name} went to {place} with {thing}.",
    "There once was a {job} who was called {name}.",
    "{weather} when {name} came to {place}.",
    "{name} had {thing} and wanted to sell it.",
    "Every {day} {name} walks to {place} to meet a {kin}.",
    "{name} and {other} have been friends since they were small.",
    "Nobody at {place} knew that {name} was a {job}.",
)  # fmt: skip
MIDDLES = (
    "{weather}, so {name} stayed at home and cooked {food}.",
    "{time} {other} came by and brought {thing}.",
    "{name} found {thing} under a tree at {place}.",
    "They talked about the {job} and laughed for a long time.",
    "{other} was {feeling}, because the way to {place} was long.",
    "{name} gave {thing} to {other} and said thank you.",
    "{time} they ate {food} together and told stories.",
    "{other} asked the {kin} of {name} for help.",
    "It took them until {day} to carry {thing} to {place}.",
    "{name} lost {thing} on the way, and that made {other} {feeling}.",
    "Then the two of them went to {place}, where they saw {third}.",
    "{third} had never eaten {food} before and asked for more.",
    "The {job} opened the door and let them in.",
    "At {place} everybody was {feeling} that day.",
    "{name} wrote a letter to {third} about it.",
    "{other} sang a song, and {third} played along.",
)  # fmt: skip
ENDINGS = (
    "In the end {name} was {feeling} and went to sleep.",
    "Since that {day} they meet at {place} every week.",
    "{other} still has {thing} and will never sell it.",
    "That is how {name} became a {job}.",
    "They went home, ate {food} and were {feeling}.",
    "Nobody saw {third} again until {day}.",
    "And {name} promised to come back to {place}.",
)  # fmt: skip


class Stories:
    """A teller of stories."""

    def __init__(self, chance: random.Random):
        self._chance = chance

    def tell(self) -> str:
        """A story of four to nine sentences."""
        chance = self._chance
        name, other, third = chance.sample(NAMES, 3)
        things, places = chance.sample(THINGS, 2), chance.sample(PLACES, 2)
        job, kin = chance.choice(JOBS), chance.choice(KIN)
        forms = [
            chance.choice(OPENINGS),
            *chance.sample(MIDDLES, chance.randint(2, 7)),
            chance.choice(ENDINGS),
        ]
        return " ".join(
            form.format(
                name=name,
                other=other,
                third=third,
                job=job,
                kin=kin,
                thing=chance.choice(things),
                place=chance.choice(places),
                day=chance.choice(DAYS),
                food=chance.choice(FOODS),
                weather=chance.choice(WEATHER),
                feeling=chance.choice(FEELINGS),
                time=chance.choice(TIMES),
            )
            for form in forms
        )
