"""The words of the demo's world: none is at odds with a rule, a list or another word."""

from collections import Counter

import pytest

from imprint.demo.facts.words import (
    CATEGORIES,
    COLOURS,
    FOR,
    OPPOSITES,
    PASTS,
    PLURALS,
    UNCOUNTED,
    WORDS,
    with_article,
)

PAIRS = {
    "opposites": OPPOSITES, "plurals": PLURALS, "pasts": PASTS, "colours": COLOURS,
    "categories": CATEGORIES, "for": FOR,
}  # fmt: skip


def listed(text: str) -> list[str]:
    return text.split()


def test_no_word_has_two_opposites():
    counted = Counter(word for pair in OPPOSITES for word in pair)
    assert [word for word in counted if counted[word] > 1] == []
    assert all(one < other for one, other in OPPOSITES)


def test_a_prefix_of_negation_makes_the_opposite():
    words = {word for pair in OPPOSITES for word in pair}
    found = [
        (word, prefix + word)
        for word in words
        for prefix in ("un", "in", "im", "il", "ir", "dis")
        if prefix + word in words
    ]
    opposite = dict(OPPOSITES) | {other: one for one, other in OPPOSITES}
    assert len(found) >= 15
    assert [(word, negated) for word, negated in found if opposite[word] != negated] == []


def regular_plural(noun: str) -> str:
    if noun.endswith(("s", "x", "ch", "sh")):
        return noun + "es"
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return noun[:-1] + "ies"
    return noun + "s"


def test_plurals_follow_the_rule_or_the_list_of_exceptions():
    unruly = {noun: plural for noun, plural in PLURALS if plural != regular_plural(noun)}
    assert unruly == {
        "calf": "calves", "child": "children", "crisis": "crises", "deer": "deer", "elf": "elves",
        "foot": "feet", "goose": "geese", "half": "halves", "hero": "heroes", "knife": "knives",
        "leaf": "leaves", "life": "lives", "loaf": "loaves", "louse": "lice", "man": "men",
        "mouse": "mice", "oasis": "oases", "ox": "oxen", "policeman": "policemen", "potato": "potatoes",
        "sheep": "sheep", "shelf": "shelves", "thief": "thieves", "tomato": "tomatoes",
        "tooth": "teeth", "wife": "wives", "wolf": "wolves", "woman": "women",
    }  # fmt: skip


def regular_past(verb: str) -> str:
    if verb.endswith("e"):
        return verb + "d"
    if verb.endswith("y") and verb[-2] not in "aeiou":
        return verb[:-1] + "ied"
    return verb + "ed"


def test_regular_pasts_are_those_of_regular_verbs():
    regular = listed("""answer arrive ask call carry clean climb close cook cry dance enjoy help hope jump laugh
    like listen live look love open paint play smile start stay study swell talk try wait walk want wash
    watch work""")
    assert [verb for verb, past in PASTS if past == regular_past(verb)] == regular
    doubled = {verb: past for verb, past in PASTS if past == verb + verb[-1] + "ed"}
    assert doubled == {
        "drop": "dropped", "plan": "planned", "stop": "stopped", "travel": "travelled",
    }  # fmt: skip
    unchanged = {verb for verb, past in PASTS if verb == past}
    assert unchanged == set(listed("beat cost cut hit hurt put shut split spread"))


def test_irregular_pasts_change_with_their_family():
    """Verbs that sound alike change alike; the others are written out a second time."""
    past = dict(PASTS)
    seen = {verb for verb in past if past[verb] in (verb, regular_past(verb), verb + verb[-1] + "ed")}
    families = {
        ("ow", "ew"): "blow grow know throw", ("ind", "ound"): "bind find grind",
        ("eep", "ept"): "creep keep sleep sweep weep", ("end", "ent"): "bend lend send spend",
        ("ing", "ung"): "cling fling sling sting swing", ("ell", "old"): "sell tell",
        ("ear", "ore"): "swear tear wear", ("ake", "ook"): "shake take", ("eed", "ed"): "bleed breed feed",
        ("eak", "oke"): "break speak", ("ing", "ang"): "ring sing", ("ive", "ave"): "forgive give",
        ("ome", "ame"): "become come", ("ide", "id"): "hide slide", ("et", "ot"): "forget get",
    }  # fmt: skip
    for (old, new), verbs in families.items():
        for verb in verbs.split():
            assert past[verb] == verb.removesuffix(old) + new, verb
            seen.add(verb)
    others = listed("""begin began bite bit bring brought build built buy bought catch caught choose chose deal
        dealt dig dug do did draw drew drink drank drive drove eat ate fall fell feel felt fight fought flee fled
        fly flew forbid forbade freeze froze go went have had hear heard hold held lead led leave left lose lost
        make made mean meant meet met pay paid ride rode rise rose run ran say said see saw seek sought shoot
        shot sit sat spin spun stand stood steal stole stick stuck swim swam teach taught think thought
        understand understood win won write wrote""")
    assert {verb: past[verb] for verb in past if verb not in seen} == dict(
        zip(others[::2], others[1::2], strict=True)
    )


def test_kinds_and_colours_are_few_and_shared():
    kinds, colours = Counter(dict(CATEGORIES).values()), Counter(dict(COLOURS).values())
    assert len(kinds) <= 12
    assert min(kinds.values()) >= 5
    assert set(colours) == set(listed("black blue brown green grey orange pink purple red white yellow"))
    assert min(colours.values()) >= 3


def test_words_to_spell_are_plain():
    assert all(word.isalpha() and word.islower() and 3 <= len(word) <= 6 for word in WORDS)


def test_with_article():
    named = {thing: with_article(thing) for thing in ("rose", "apple", "grass", "sky", "Mars", "oak")}
    assert list(named.values()) == ["a rose", "an apple", "grass", "the sky", "Mars", "an oak"]
    assert {name for name, _ in (*COLOURS, *CATEGORIES, *FOR)} >= UNCOUNTED


def test_a_thing_named_for_its_colour_has_it():
    colours = dict(COLOURS)
    for name in set(colours) & set(colours.values()):
        assert colours[name] == name
    for name, colour in COLOURS:
        for other in set(colours.values()) - {colour}:
            assert name != other + "berry", name
            assert not name.startswith(other + " "), name


# Written out a second time, apart from the tables.
@pytest.mark.parametrize(
    ("table", "name", "value"),
    [
        ("opposites", "cold", "hot"), ("opposites", "big", "small"), ("opposites", "day", "night"),
        ("plurals", "mouse", "mice"), ("plurals", "box", "boxes"), ("plurals", "city", "cities"),
        ("pasts", "go", "went"), ("pasts", "teach", "taught"), ("pasts", "swim", "swam"),
        ("pasts", "buy", "bought"), ("pasts", "eat", "ate"), ("pasts", "see", "saw"),
        ("pasts", "draw", "drew"), ("pasts", "fly", "flew"), ("pasts", "seek", "sought"),
        ("colours", "snow", "white"), ("colours", "grass", "green"), ("colours", "banana", "yellow"),
        ("colours", "coal", "black"), ("categories", "rose", "flower"), ("categories", "oak", "tree"),
        ("categories", "hammer", "tool"), ("categories", "carrot", "vegetable"), ("for", "knife", "cutting"),
        ("for", "umbrella", "keeping dry"), ("for", "kettle", "boiling water"),
    ],
)  # fmt: skip
def test_a_known_word(table, name, value):
    assert dict(PAIRS[table])[name] == value
