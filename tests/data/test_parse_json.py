import json

import pytest

from imprint.data.readers import read
from imprint.data.text import Broken
from imprint.recipe import DataSource


@pytest.fixture
def fault(write):
    """What is wrong with the second of three lines; the others are read."""

    def fault(line):
        path = write(
            "a.jsonl", b'{"a": 1}\n' + (line.encode() if isinstance(line, str) else line) + b'\n{"a": 3}'
        )
        found = list(read(DataSource(path="a.jsonl"), path.parent))
        assert [record.value for record in found[::2]] == [{"a": 1}, {"a": 3}]
        assert [record.place.line for record in found] == [1, 2, 3]
        assert isinstance(found[1].value, Broken)
        return found[1].value.error

    return fault


@pytest.mark.parametrize(
    ("line", "column", "fix"),
    [
        ('{"a": 1,}', 9, "no comma before a closing brace"),
        ('{"a": [1,]}', 10, "JSON value"),
        ('{"a": 1},', 9, "remove the comma behind the row"),
        ('{"a": 1} // one', 10, "remove the comment"),
        ('# {"a": 1}', 1, "remove the comment"),
        ('{"a": /* one */ 1}', 7, "remove the comment"),
        ("{'a': 1}", 2, "json.dumps"),
        ('{"a": True}', 7, "write true"),
        ('{"a": False}', 7, "write false"),
        ('{"a": None}', 7, "write null"),
        ('{"a": nan}', 7, "write NaN"),
        ('{"a": "x\0y"}', 9, "remove the character U+0000"),
        ('{"a": "x\x7fy"', 12, "close what is open"),
        ('{"a": "x\ty"}', 9, "a tab as \\t"),
        ('{"a": "x', 7, "close the text"),
        ("\0\0\0\0", 1, "JSON value"),
    ],
)
def test_the_place_and_the_remedy_of_a_broken_line(fault, line, column, fix):
    error = fault(line)
    assert error.what == "not valid JSON"
    assert error.where == f"a.jsonl:2:{column}"
    assert fix in error.fix


def test_numbers_that_json_does_not_know_and_big_ones(write):
    path = write("a.jsonl", '{"a": [NaN, -Infinity, 1e999, -0.0, 123456789012345678901234567890]}\n')
    (record,) = read(DataSource(path="a.jsonl"), path.parent)
    assert str(record.value["a"]) == "[nan, -inf, inf, -0.0, 123456789012345678901234567890]"


@pytest.mark.parametrize(
    ("text", "half"),
    [
        (r'{"a": "\ud83d"}', "ud83d"),
        (r'{"a": "x\\\ude00"}', "ude00"),
        (r'{"a": "\uD83D\uD83D"}', "ud83d"),
        (r'{"a\udc00": 1}', "udc00"),
        ('{"a": "' + r"\n" * 20 + r"\udfff" + '"}', "udfff"),
    ],
)
def test_half_a_character_is_found_wherever_it_stands(fault, text, half):
    error = fault(text)
    assert error.what == "the text holds half a character"
    assert half in error.found


@pytest.mark.parametrize(
    "text", [r'{"a": "\ud83d\ude00"}', r'{"a": "\\ud83d"}', r'{"a": "\n\n\n\n\n\n\n\n\n\uD83D\uDE00"}']
)
def test_whole_characters_are_not_halves(write, text):
    path = write("a.jsonl", text + "\n")
    assert [r.value for r in read(DataSource(path="a.jsonl"), path.parent)] == [json.loads(text)]


def test_white_space_around_a_row_is_no_matter(write):
    path = write("a.jsonl", ' \t{"a": 1} \t \n\ufeff\n{"a": 2}\x0b\n{"a": 3}')
    found = [r.value for r in read(DataSource(path="a.jsonl"), path.parent)]
    assert found[0] == {"a": 1}
    assert found[-1] == {"a": 3}


def test_offsets_count_the_bytes_of_all_lines_before(write):
    first = '\ufeff{"a": "ü"}\r\n\n  \n{"b": broken}\n'.encode()
    path = write("a.jsonl", first + b'{"a": "\xff"}\n')
    *_, last = read(DataSource(path="a.jsonl"), path.parent)
    assert f"byte offset {len(first) + 7} " in last.value.error.found


@pytest.mark.parametrize(
    ("text", "fix"),
    [
        ("prompt,response", "name it .csv"),
        ("Once upon a time", "name it .txt"),
        ('\ufeff{"a": 1}', "perl -pe 's/^\\xEF\\xBB\\xBF//' OLD > NEW"),
        ("True", "write true"),
        ('{"a": b}', "put a JSON value here"),
    ],
)
def test_what_is_no_json_at_all_has_a_remedy_of_its_own(fault, text, fix):
    assert fix in fault(text).fix
