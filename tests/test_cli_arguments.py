"""What the verbs share: here, how errors are broken into lines."""

from __future__ import annotations

from imprint.cli_arguments import wrapped
from imprint.errors import DataError, RecipeError
from imprint.settings import SeveralProblems


def test_long_lines_are_broken_between_words_under_their_text():
    error = DataError(
        "the columns are of no known format, " + "and that is said at length " * 3,
        where="a.jsonl:1",
        found="columns " + ", ".join(f"column_{n}" for n in range(20)) + "\n" + "second " * 20,
        expected="short",
        fix="rename the columns, one after the other, to what the list of formats says that they are called",
    )
    told = wrapped(str(error), 60)
    lines = told.splitlines()
    assert max(map(len, lines)) <= 60
    assert told.split() == str(error).split()
    found = lines.index(next(line for line in lines if line.startswith("  found")))
    assert all(line.startswith(" " * 12) for line in lines[found + 1 : lines.index("  expected  short")])
    assert lines[-1].startswith(" " * 12)
    assert wrapped(str(error), 10_000) == str(error)


def test_what_is_copied_stays_in_one_line():
    command = f"iconv -f GB18030 -t UTF-8 {'x' * 80} > NEW"
    told = wrapped(str(DataError("a", fix=f"save it as UTF-8, so that it can be read: {command}")), 60)
    assert told.splitlines()[1].endswith(command)
    setting = f"say which column is which, by their names: fields.prompt={'y' * 60} fields.response=z"
    assert wrapped(str(DataError("a", fix=setting)), 60).splitlines()[1].endswith(setting)


def test_several_problems_keep_their_lines():
    problems = SeveralProblems([RecipeError("one"), RecipeError("two " * 30), RecipeError("three")])
    told = wrapped(str(problems), 60).splitlines()
    assert told[-1] == "  three"
    assert [line for line in told if line.startswith("    two")]
