import io
import json
import random
import tracemalloc
from itertools import islice

import pytest

from imprint.data import parse_document
from imprint.data.parse_document import json_document
from imprint.data.text import Broken
from imprint.errors import DataError


def records(text, is_row=lambda value: False):
    data = text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
    return list(json_document(io.BytesIO(data), "a.json", is_row))


def some(rng, depth=3):
    """A random JSON value."""
    kind = rng.randrange(8 if depth else 6)
    if kind == 6:
        return [some(rng, depth - 1) for _ in range(rng.randrange(4))]
    if kind == 7:
        return {f'k{i}\n"é': some(rng, depth - 1) for i in range(rng.randrange(4))}
    text = 'é🎈\\"\n' * rng.randrange(9)
    return [None, True, rng.randrange(10**12), rng.random() * 1e9, text, "x" * rng.randrange(200)][kind]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 1000])
def test_pieces_of_any_size_give_the_same_rows(monkeypatch, size):
    monkeypatch.setattr(parse_document, "CHUNK", size)
    rng = random.Random(size)
    for trial in range(40):
        rows = [some(rng) for _ in range(rng.randrange(1, 12))]
        text = json.dumps(rows, indent=rng.choice((None, 0, 2)), ensure_ascii=rng.random() < 0.5)
        if trial % 3 == 0:
            text = f'{{"n": {{"x": 1}}, "data": {text}, "z": null}}'
        found = records(text)
        assert [record.value for record in found] == rows
        lines = text.split("\n")
        for record in found:
            if record.place.unit == "line":
                start = json.dumps(record.value, ensure_ascii=False)[:1]
                assert start in lines[record.place.line - 1]


@pytest.mark.parametrize("size", [1, 5, 1000])
def test_places_do_not_depend_on_the_pieces(monkeypatch, size):
    text = '\n[ {"a": 1}, {"a": 2},\n\n{"a":\n 3},\n{"a": 4}\n]\n'
    monkeypatch.setattr(parse_document, "CHUNK", size)
    assert [str(record.place) for record in records(text)][1:] == ["a.json:row 2", "a.json:4", "a.json:6"]


@pytest.mark.parametrize("size", [1, 5, 1000])
@pytest.mark.parametrize(
    ("text", "where", "says"),
    [
        ('[{"a": 1},\n {"a": 2}\n {"a": 3}]', "a.json:3:2", "add the comma"),
        ('[{"a": 1},\n {"a": "x', "a.json:2:8", "cut off"),
        ('[{"a": 1},\n {"a": tru}]', "a.json:2:8", "JSON value"),
        ('[\n{"a": 1}]\n]', "a.json:3:1", "nothing after"),
        ('[{"a": 1}', "a.json:1:10", "at the end"),
        ('[{"a": 1}, // two\n{"a": 2}]', "a.json:1:12", "remove the comment"),
        ('{"data": [1, 2], "more": [3]}', "a.json", "lists: data, more"),
        ('[{"a": "\x01"}, {"a": 2}]', "a.json:1:9", "remove the character U+0001"),
    ],
)
def test_errors_do_not_depend_on_the_pieces(monkeypatch, size, text, where, says):
    monkeypatch.setattr(parse_document, "CHUNK", size)
    with pytest.raises(DataError) as caught:
        records(text)
    assert caught.value.where == where
    assert says in str(caught.value)


@pytest.mark.parametrize("size", [1, 4, 1000])
def test_a_bad_byte_is_told_by_line_and_offset(monkeypatch, size):
    monkeypatch.setattr(parse_document, "CHUNK", size)
    data = '\ufeff[{"a": "é🎈"},\n{"a": "'.encode() + b'caf\xe9 au lait"}]'
    with pytest.raises(DataError) as caught:
        records(data)
    assert caught.value.where == "a.json:2"
    assert f"byte 0xE9 at byte offset {data.index(0xE9, 30)}" in caught.value.found
    with pytest.raises(DataError, match=f"at byte offset {len(data[:9]) + 0}"):
        records(data[:9] + b"\xc3")


def test_rows_that_can_be_read_but_not_used(monkeypatch):
    monkeypatch.setattr(parse_document, "CHUNK", 3)
    found = records('[{"a": 1},\n{"a": 1, "a": 2},\n{"a": "\\ud83d"},\n{"a": "\\ud83d\\ude00"}]')
    assert [isinstance(record.value, Broken) for record in found] == [False, True, True, False]
    assert [record.value.error.where for record in found[1:3]] == ["a.json:2", "a.json:3"]


def test_an_object_too_large_to_look_at_first(monkeypatch):
    monkeypatch.setattr(parse_document, "WHOLE", 50)
    monkeypatch.setattr(parse_document, "CHUNK", 16)
    rows = [{"a": i} for i in range(100)]
    whole = {"version": 1, "about": {"x": [1]}, "rows": rows, "end": "x" * 80}
    assert [record.value for record in records(json.dumps(whole))] == rows
    for bad, says in [
        ({"a": 1, "b": "x" * 90}, "lists: none"),
        ({"rows": rows, "others": [1]}, "lists: rows, others"),
    ]:
        with pytest.raises(DataError, match=says):
            records(json.dumps(bad))
    for text in ('{"rows": %s, 1: 2}', '{"rows": %s, "b" 2}', '{"rows": %s "b": 2}', '{"rows": %s, "b": 2'):
        with pytest.raises(DataError, match="not valid JSON"):
            records(text % json.dumps(rows))


class Rows(io.RawIOBase):
    """An array of many rows that is made while it is read."""

    def __init__(self, count):
        self.parts = self.make(count)
        self.rest = b""

    @staticmethod
    def make(count):
        yield b'{"data": [\n'
        for number in range(count):
            yield b'%s{"prompt": "%d", "response": "%s"}\n' % (b"," if number else b"", number, b"y" * 400)
        yield b"]}\n"

    def read(self, size=-1):
        while len(self.rest) < size and (part := b"".join(islice(self.parts, 500))):
            self.rest += part
        found, self.rest = self.rest[:size], self.rest[size:]
        return found


def test_memory_does_not_grow_with_the_rows(monkeypatch):
    monkeypatch.setattr(parse_document, "CHUNK", 1 << 16)
    monkeypatch.setattr(parse_document, "WHOLE", 1 << 18)
    peaks = []
    for count in (2_000, 20_000):
        tracemalloc.start()
        assert sum(1 for _ in json_document(Rows(count), "a.json", lambda _: False)) == count
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0]
    assert peaks[1] < 8 << 20


@pytest.mark.parametrize(
    ("text", "shown"), [(' "hello"\n', '"hello", a text'), ("42", "42, a number"), ("null", "null, null")]
)
def test_a_file_of_one_value_holds_no_row(text, shown):
    with pytest.raises(DataError) as raised:
        records(text)
    error = raised.value
    assert (error.what, error.where, error.found) == ("the file holds no row", "a.json:1", shown)
    assert error.fix == "write it as a text of such a row"


@pytest.mark.parametrize(
    ("text", "fix"),
    [
        ("prompt,response\na,b\n", "name it .csv"),
        ("// rows\n[]", "remove the comment"),
        ("\0[]", "put a JSON value here"),
    ],
)
def test_a_file_that_is_no_json_has_a_remedy_of_its_own(text, fix):
    with pytest.raises(DataError, match="not valid JSON") as raised:
        records(text)
    assert fix in raised.value.fix
