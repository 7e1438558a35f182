"""The exam asks through the template, in any order of lengths, and knows a question when it sees one."""

from pathlib import Path

import pytest

from conftest import build_model
from imprint.demo.exam import LONGEST, answers, begins_with_a_question, continuations, examine
from imprint.demo.exercises import questions_of
from imprint.demo.world import facts
from imprint.serve.chat import Speaker, load_speaker


@pytest.fixture(scope="module")
def speaker(tmp_path_factory: pytest.TempPathFactory) -> Speaker:
    folder = build_model(tmp_path_factory.mktemp("exam") / "tiny")
    return load_speaker(Path(folder), template="chatml")


def test_answers_come_in_the_order_of_the_questions(speaker):
    questions = ["Spell cat.", "What is the capital of the Central African Republic?", "Spell ox."]
    together = answers(speaker, questions)
    assert together == [answers(speaker, [question])[0] for question in questions]


def test_a_system_message_reaches_the_model(speaker):
    assert answers(speaker, ["Spell cat."], system="Answer with one word.") != answers(
        speaker, ["Spell cat."]
    )


def test_a_continuation_uses_no_template(speaker):
    assert continuations(speaker, ["Spell cat."], 8) != [text for text, _ in answers(speaker, ["Spell cat."])]


def test_a_model_that_knows_nothing_gets_no_marks(speaker):
    (marks,) = examine(speaker, ["capitals held out"], most=10)
    assert (marks.name, marks.asked, marks.right) == ("capitals held out", 10, 0)


def test_every_right_answer_is_short_enough(speaker):
    encoder = speaker.rendering.encoder
    most = max(len(encoder.encode([fact.reply])[0]) for fact in facts())
    assert most < LONGEST


def test_every_question_is_known_as_one():
    for name in ("seen", "held-out phrasings", "final"):
        assert all(begins_with_a_question(question.text) for question in questions_of(name))
        assert not any(begins_with_a_question(question.answer) for question in questions_of(name))
    assert begins_with_a_question("\nSpell cat. The capital")
    assert not begins_with_a_question(" and spell cat.")
    assert not begins_with_a_question("What is the capital of")
