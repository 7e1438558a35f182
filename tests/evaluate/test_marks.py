"""Marks count what is right to the letter and ended; their interval is Wilson's; they come back from disk."""

import pytest

from imprint.evaluate.marks import Compared, mark, read_marks, wilson, write_marks


def test_right_is_what_equals_and_ended():
    given = [("a", True), ("b", False), ("c.", True), ("d", True), ("d", True)]
    marks = mark("letters", ["a", "b", "c", "d", "D"], given)
    assert (marks.asked, marks.right, marks.stopped, marks.different) == (5, 2, 4, 4)
    assert marks.share == 0.4
    assert marks.begun == 4  # "c." begins with "c"


def test_questions_about_one_thing_count_as_one_in_the_interval():
    many = mark("letters", ["a"] * 50 + ["b"] * 50, [("a", True)] * 50 + [("a", True)] * 50)
    assert many.interval == pytest.approx(wilson(1, 2))


def test_as_many_answers_as_questions():
    with pytest.raises(ValueError, match="zip"):
        mark("letters", ["a", "b"], [("a", True)])


@pytest.mark.parametrize(
    ("right", "asked", "low", "high"),
    [(0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (5, 10, 0.2366, 0.7634), (81, 263, 0.2553, 0.3662)],
)
def test_the_interval_is_the_one_of_the_books(right, asked, low, high):
    """The last is Newcombe's (1998) first example: 0.2553 to 0.3662."""
    assert wilson(right, asked) == pytest.approx((low, high), abs=2e-4)


def test_no_question_says_nothing():
    assert wilson(0, 0) == (0.0, 1.0)


def test_marks_come_back(tmp_path):
    compared = [Compared(mark("a", ["x"], [("y", True)]), mark("a", ["x"], [("x", True)]), "what it shows")]
    write_marks(tmp_path, compared)
    assert read_marks(tmp_path) == compared
    assert read_marks(tmp_path / "nowhere") == []
