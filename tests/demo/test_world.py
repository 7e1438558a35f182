"""The demo's world: what is taught, what is held out, and what the base model may read."""

from itertools import islice

import pytest

from imprint.demo.corpus import documents
from imprint.demo.exercises import demonstrations, questions_of
from imprint.demo.world import CAPITAL, KINDS, facts, side

SETS = ("seen", "held-out entities", "held-out phrasings", "capitals held out", "final")


def asked(rows):
    return [m["content"] for row in rows for m in row["messages"] if m["role"] == "user"]


def replies(rows):
    return [m["content"] for row in rows for m in row["messages"] if m["role"] == "assistant"]


def test_every_question_has_one_answer():
    answers = {}
    for fact in facts():
        for form in fact.kind.asked + fact.kind.asked_later:
            assert answers.setdefault(fact.say(form), fact.reply) == fact.reply


def test_about_half_of_the_entities_of_each_kind_are_taught():
    for kind in KINDS:
        sides = [fact.side for fact in facts() if fact.kind is kind]
        assert 0.35 <= sides.count("taught") / len(sides) <= 0.65, kind.name
        assert sides.count("held_out") >= 20, kind.name
        assert sides.count("final") >= 5, kind.name


def test_france_germany_and_japan_are_held_out():
    assert {side(name) for name in ("France", "Germany", "Japan")} == {"held_out"}


def test_no_demonstration_speaks_of_an_entity_that_is_not_taught():
    rows = demonstrations()
    said = set(replies(rows))
    for fact in facts():
        assert (fact.reply in said) <= (fact.side == "taught")


def test_no_demonstration_asks_in_a_held_out_phrasing():
    later = {fact.say(form) for fact in facts() for form in fact.kind.asked_later}
    assert not later & set(asked(demonstrations()))


def test_the_test_sets_ask_what_they_say():
    known = {q.text: q.answer for name in SETS for q in questions_of(name)}
    by_question = {
        fact.say(form): (fact, form) for fact in facts() for form in fact.kind.asked + fact.kind.asked_later
    }
    for name in SETS:
        questions = questions_of(name)
        assert len(questions) == len(set(questions)) >= 40
        for question in questions:
            fact, form = by_question[question.text]
            assert known[question.text] == fact.reply == question.answer
            assert (form in fact.kind.asked_later) == (name == "held-out phrasings")
            assert fact.side == {"seen": "taught", "final": "final"}.get(name, "held_out")
            assert fact.kind is CAPITAL or name != "capitals held out"
    assert {q.text for q in questions_of("seen")} <= set(asked(demonstrations()))


def test_every_beginning_of_the_demonstrations_holds_all_kinds():
    first = set(asked(demonstrations()[:500]))
    for kind in KINDS:
        forms = {fact.say(form) for fact in facts() if fact.kind is kind for form in kind.asked}
        assert forms & first, kind.name


@pytest.fixture(scope="module")
def texts():
    return list(islice(documents(0), 20_000))


def test_no_document_holds_a_question_with_its_answer(texts):
    """Nor does any other text answer: what follows a question is a question."""
    questions = {fact.say(form) for fact in facts() for form in fact.kind.asked + fact.kind.asked_later}
    statements = {fact.say(form) for fact in facts() for form in (fact.kind.reply, *fact.kind.told)}
    mixed = with_questions = 0
    for text in texts:
        has_question = any(question in text for question in _openings(text, questions))
        with_questions += has_question
        mixed += has_question and any(statement in text for statement in _openings(text, statements))
    assert not mixed
    assert 0.15 < with_questions / len(texts) < 0.3


def _openings(text, sentences):
    """The sentences of a set that stand in a text, found by where sentences begin."""
    starts = [0] + [i + 1 for i in range(len(text) - 1) if text[i] in " \n"]
    ends = [i + 1 for i in range(len(text)) if text[i] in ".?"]
    return [text[a:b] for a in starts for b in ends if a < b <= a + 120 and text[a:b] in sentences]


def test_every_fact_is_read_about_equally_often(texts):
    forms = {fact.say(form): fact for fact in facts() for form in (fact.kind.reply, *fact.kind.told)}
    read = dict.fromkeys(facts(), 0)
    for text in texts:
        for sentence in _openings(text, forms):
            read[forms[sentence]] += 1
    counts = sorted(read.values())
    middle = counts[len(counts) // 2]
    assert middle >= 10
    assert counts[0] >= middle / 3
    assert counts[-1] <= middle * 3


def test_the_same_seed_tells_the_same(texts):
    assert list(islice(documents(0), 100)) == texts[:100]
    assert list(islice(documents(1), 100)) != texts[:100]
