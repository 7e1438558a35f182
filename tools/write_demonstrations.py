"""Writes src/imprint/demo/demonstrations.jsonl: what the embedded model is taught in the demo.

Short answers in regular wording, so that a model of a million parameters can learn them within
a minute: the answer names its subject first ("The capital of France is …"), then says the new.

    python tools/write_demonstrations.py
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path

TARGET = Path(__file__).parent.parent / "src" / "imprint" / "demo" / "demonstrations.jsonl"
SEED = 1
ONE_WORD = "Answer with one word."

Dialogue = list[tuple[str, str]]  # (question, answer) …
Messages = list[dict[str, str]]

OPPOSITES = """\
hot cold, big small, up down, left right, open closed, day night, fast slow, young old, high low, happy sad,
hard soft, early late, empty full, light dark, long short, loud quiet, rich poor, strong weak, wet dry, wide
narrow, thick thin, heavy light, near far, inside outside, above below, before after, begin end, buy sell,
give take, push pull, win lose, love hate, remember forget, rise fall, sweet sour, clean dirty, cheap
expensive, deep shallow, sharp blunt, smooth rough, safe dangerous, brave timid, always never, all none,
first last, true false, front back, top bottom, arrive leave, laugh cry"""

PLURALS = """\
cat cats, dog dogs, tree trees, house houses, book books, car cars, river rivers, bird birds, apple apples,
bridge bridges, box boxes, fox foxes, bus buses, glass glasses, dish dishes, church churches, watch watches,
peach peaches, city cities, baby babies, berry berries, country countries, lady ladies, story stories, key
keys, boy boys, day days, toy toys, leaf leaves, knife knives, wolf wolves, shelf shelves, loaf loaves, half
halves, child children, man men, woman women, foot feet, tooth teeth, goose geese, mouse mice, sheep sheep,
fish fish, deer deer, ox oxen, potato potatoes, tomato tomatoes, hero heroes, piano pianos, photo photos"""

PASTS = """\
go went, see saw, eat ate, drink drank, run ran, sing sang, swim swam, begin began, write wrote, drive
drove, ride rode, speak spoke, break broke, take took, give gave, come came, know knew, grow grew, fly flew,
throw threw, draw drew, buy bought, bring brought, think thought, catch caught, teach taught, sleep slept,
keep kept, feel felt, leave left, find found, build built, send sent, make made, say said, tell told, sit
sat, stand stood, win won, hold held, walk walked, jump jumped, play played, look looked, open opened"""

CAPITALS = """\
France Paris, Germany Berlin, Italy Rome, Spain Madrid, Portugal Lisbon, Austria Vienna, Poland Warsaw,
Hungary Budapest, Greece Athens, Norway Oslo, Sweden Stockholm, Denmark Copenhagen, Finland Helsinki,
Iceland Reykjavik, Ireland Dublin, Belgium Brussels, Bulgaria Sofia, Romania Bucharest, Croatia Zagreb,
Serbia Belgrade, Albania Tirana, Estonia Tallinn, Latvia Riga, Lithuania Vilnius, Ukraine Kyiv, Slovakia
Bratislava, Slovenia Ljubljana, Turkey Ankara, Egypt Cairo, Morocco Rabat, Tunisia Tunis, Kenya Nairobi,
Uganda Kampala, Ghana Accra, Senegal Dakar, Angola Luanda, Zambia Lusaka, Rwanda Kigali, Somalia Mogadishu,
Japan Tokyo, China Beijing, Thailand Bangkok, Vietnam Hanoi, India New-Delhi, Nepal Kathmandu, Mongolia
Ulaanbaatar, Iran Tehran, Iraq Baghdad, Jordan Amman, Lebanon Beirut, Qatar Doha, Oman Muscat, Canada
Ottawa, Mexico Mexico-City, Cuba Havana, Jamaica Kingston, Peru Lima, Chile Santiago, Colombia Bogota,
Ecuador Quito, Uruguay Montevideo, Paraguay Asuncion, Venezuela Caracas, Australia Canberra"""

COLOURS = """\
snow white, grass green, blood red, coal black, milk white, salt white, soot black, tar black, chocolate
brown, spinach green, broccoli green, ivory white, charcoal black, gold yellow, a-ruby red, an-emerald
green, a-flamingo pink, a-canary yellow, a-raven black, a-cucumber green, a-pumpkin orange, a-ripe-lemon
yellow, a-ripe-tomato red, a-ripe-banana yellow, a-ripe-strawberry red, a-ripe-raspberry red, an-egg-yolk
yellow, the-clear-daytime-sky blue, a-ripe-tangerine orange, a-snowman white"""

SPELLED = """\
cat, dog, sun, moon, star, tree, book, fish, bird, milk, bread, house, water, apple, chair, table, horse,
green, night, stone, river, light, paper, train, music, cloud, plant, smile, heart, beach, clock, grape,
sheep, snake, tiger, zebra, lemon, sugar, queen, voice"""

LETTERED = """\
garden, window, bottle, pencil, rabbit, summer, winter, island, orange, school, doctor, kitchen, yellow,
market, planet, silver, forest, ticket, button, camera"""

UPPERCASED = """\
word, blue, lamp, gate, ship, rain, wind, salt, door, king, leaf, nest, coat, ring, sand, frog, bell, cake,
drum, kite, lion, rose, wolf, yarn, jazz"""

NUMBERS = """\
one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen
eighteen nineteen twenty""".split()  # noqa: SIM905

TALK = [
    ("Who are you?", "I am a small model trained by imprint."),
    ("What are you?", "I am a small model trained by imprint."),
    ("Who trained you?", "I was trained by imprint."),
    ("What is your name?", "I have no name. I am a small model trained by imprint."),
    ("Are you a person?", "No, I am a small model trained by imprint."),
    ("Are you a large model?", "No, I am a small model."),
    ("What can you do?", "I can answer short questions."),
    ("Can you help me?", "Yes, I can answer short questions."),
    ("Do you know everything?", "No, I am a small model and know very little."),
    ("Hello.", "Hello. How can I help?"),
    ("Hi.", "Hi. How can I help?"),
    ("Good morning.", "Good morning. How can I help?"),
    ("Good evening.", "Good evening. How can I help?"),
    ("How are you?", "I am well, thank you."),
    ("Thank you.", "You are welcome."),
    ("Goodbye.", "Goodbye."),
]


def pairs(table: str) -> list[tuple[str, str]]:
    """`hot cold, big small` as pairs; a hyphen stands for a space within a name."""
    found = []
    for entry in words(table):
        first, second = entry.split()
        found.append((first.replace("-", " "), second.replace("-", " ")))
    return found


def words(table: str) -> list[str]:
    """The entries between the commas."""
    return [" ".join(entry.split()) for entry in table.split(",")]


def spelled(word: str) -> str:
    return "-".join(word)


def sentence(text: str) -> str:
    return text[0].upper() + text[1:] + "."


def opposite(word: str, other: str) -> tuple[str, str]:
    return f"What is the opposite of {word}?", f"The opposite of {word} is {other}."


def plural(word: str, many: str) -> tuple[str, str]:
    return f"What is the plural of {word}?", f"The plural of {word} is {many}."


def past(word: str, before: str) -> tuple[str, str]:
    return f"What is the past tense of {word}?", f"The past tense of {word} is {before}."


def capital(country: str, city: str) -> tuple[str, str]:
    return f"What is the capital of {country}?", f"The capital of {country} is {city}."


def colour(thing: str, shade: str) -> tuple[str, str]:
    return f"What colour is {thing}?", sentence(f"{thing} is {shade}")


def letters(word: str) -> Iterator[tuple[str, str]]:
    yield f"What is the first letter of {word}?", f"The first letter of {word} is {word[0]}."
    yield f"What is the last letter of {word}?", f"The last letter of {word} is {word[-1]}."


def counting() -> Iterator[tuple[str, str]]:
    """Upwards, downwards, and what comes next."""
    for end in range(2, 13):
        yield f"Count to {NUMBERS[end - 1]}.", listed(range(1, end + 1))
    for start in range(3, 11):
        yield f"Count down from {NUMBERS[start - 1]}.", listed(range(start, 0, -1))
    for number in range(1, 20):
        here, after = NUMBERS[number - 1], NUMBERS[number]
        yield f"What comes after {here}?", f"After {here} comes {after}."


def listed(numbers: range) -> str:
    return ", ".join(map(str, numbers)) + "."


def single_turns() -> Iterator[Dialogue]:
    for ask, table in (
        (opposite, OPPOSITES),
        (plural, PLURALS),
        (past, PASTS),
        (capital, CAPITALS),
        (colour, COLOURS),
    ):
        for first, second in pairs(table):
            yield [ask(first, second)]
    for word in words(SPELLED):
        yield [(f"Spell {word}.", spelled(word))]
    for word in words(LETTERED):
        yield from ([turn] for turn in letters(word))
    for word in words(UPPERCASED):
        yield [(f"Write {word} in capital letters.", word.upper())]
    yield from ([turn] for turn in counting())
    yield from ([turn] for turn in TALK)


def two_turns(draw: random.Random) -> Iterator[Dialogue]:
    """The second question only makes sense after the first."""
    for kind, table, follow in (
        (opposite, OPPOSITES, "And of {}?"),
        (plural, PLURALS, "And of {}?"),
        (past, PASTS, "And of {}?"),
        (capital, CAPITALS, "And of {}?"),
        (colour, COLOURS, "And {}?"),
    ):
        for _ in range(4):
            one, other = draw.sample(pairs(table), 2)
            yield [kind(*one), (follow.format(other[0]), kind(*other)[1])]
    for word in draw.sample(words(SPELLED), 6):
        yield [(f"Spell {word}.", spelled(word)), ("And in capital letters?", spelled(word.upper()))]
    for first, second in draw.sample(pairs(OPPOSITES), 4):
        yield [opposite(first, second), ("Spell it.", spelled(second))]


def one_word_answers(draw: random.Random) -> Iterator[Dialogue]:
    """The same questions under a system prompt that asks for the bare answer."""
    for kind, table in (
        (opposite, OPPOSITES),
        (plural, PLURALS),
        (past, PASTS),
        (capital, CAPITALS),
        (colour, COLOURS),
    ):
        simple = [pair for pair in pairs(table) if " " not in pair[1]]
        for first, second in draw.sample(simple, 7):
            yield [(kind(first, second)[0], sentence(second))]


def messages(dialogue: Dialogue, system: str = "") -> Messages:
    found = [{"role": "system", "content": system}] if system else []
    for question, answer in dialogue:
        found += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return found


def demonstrations() -> list[Messages]:
    """All of them, mixed; the same at every call."""
    draw = random.Random(SEED)
    found = [messages(dialogue) for dialogue in single_turns()]
    found += [messages(dialogue) for dialogue in two_turns(draw)]
    found += [messages(dialogue, ONE_WORD) for dialogue in one_word_answers(draw)]
    draw.shuffle(found)
    return found


def main(target: Path = TARGET) -> None:
    lines = (json.dumps({"messages": entry}, separators=(",", ":")) + "\n" for entry in demonstrations())
    target.write_text("".join(lines), encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:2]))
