"""JSON that is sound but not one row per line: what is read all the same, and the remedies, which are tried."""

import json
import shutil
import subprocess

import pytest

from imprint.data.layout import not_rows
from imprint.data.readers import read
from imprint.data.text import Broken
from imprint.errors import DataError
from imprint.recipe import DataSource

ROWS = [{"prompt": f"q{n}", "response": f"a\u00fc{n}\n"} for n in range(3)]
TALKS = [[{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]] * 2
TREE = [{"message_id": "m", "role": "prompter", "text": "x"}]


@pytest.fixture
def said(records, write):
    """The error of a file that holds no row, whether it stops or is of its only record."""

    def said(name, content):
        try:
            (record,) = records(write(name, content))
        except DataError as error:
            return error
        assert isinstance(record.value, Broken)
        return record.value.error

    return said


def by_jq(fix, path):
    """The file that a remedy of jq leaves, as JSON lines."""
    if shutil.which("jq") is None:
        pytest.skip("jq is not installed")
    command = fix[fix.index("jq ") :].replace("OLD > NEW", str(path))
    made = subprocess.run(command, shell=True, capture_output=True, text=True, check=True).stdout
    new = path.with_name("new.jsonl")
    new.write_text(made, encoding="utf-8")
    return [record.value for record in read(DataSource(path=str(new)))]


# ---- lists of rows in one line


@pytest.mark.parametrize("name", ["a.jsonl", "a.ndjson", "a.jsonl.gz"])
@pytest.mark.parametrize("rows", [ROWS, ROWS[:1], TALKS, TREE])
@pytest.mark.parametrize("before", ["", "\ufeff", "\n \n"])
@pytest.mark.parametrize("behind", ["", "\n\n"])
def test_a_single_line_that_is_an_array_of_rows_is_read(write, records, name, rows, before, behind):
    found = records(write(name, before + json.dumps(rows) + behind))
    assert [record.value for record in found] == rows
    assert [str(record.place) for record in found][1:] == [f"{name}:row {n}" for n in range(2, len(rows) + 1)]


def test_a_single_line_longer_than_what_is_looked_at_first(write, records, monkeypatch):
    monkeypatch.setattr("imprint.data.open.CHUNK", 50)
    assert [record.value for record in records(write("a.jsonl", json.dumps(ROWS)))] == ROWS


@pytest.mark.parametrize("text", [json.dumps(TALKS[0]), "[]", "[[]]", "[{}]", '["a", "b"]', "[1]"])
def test_a_list_of_messages_is_one_row_as_ever(write, records, text):
    (found,) = records(write("a.jsonl", text))
    assert found.value == json.loads(text)


def test_lists_of_rows_in_several_lines_say_so(write, records):
    path = write("a.jsonl", f"{json.dumps(ROWS)}\n{json.dumps(TALKS[0])}\n{json.dumps(ROWS[:1])}\n")
    first, talk, last = records(path)
    assert talk.value == TALKS[0]
    for record, line in ((first, 1), (last, 3)):
        error = record.value.error
        assert (error.what, error.where) == ("the line is a list of rows", f"a.jsonl:{line}")
    path.write_text(f"{json.dumps(ROWS[:2])}\n{json.dumps(ROWS[2:])}\n")
    assert by_jq(error.fix, path) == ROWS


# ---- columns


COLUMNS = {key: [row[key] for row in ROWS] for key in ROWS[0]}
PANDAS = {key: {str(at): value for at, value in enumerate(values)} for key, values in COLUMNS.items()}
SPLIT = {"columns": list(COLUMNS), "index": [0, 1, 2], "data": [list(row.values()) for row in ROWS]}
CHATS = {"id": ["x", "y"], "messages": TALKS}


@pytest.mark.parametrize("columns", [COLUMNS, PANDAS, SPLIT, CHATS, {"n": [1], "text": ["x"]}])
@pytest.mark.parametrize(
    ("name", "indent"), [("a.json", None), ("a.json", 1), ("a.jsonl", None), ("a.jsonl", 1)]
)
def test_columns_in_place_of_rows(said, columns, name, indent):
    error = said(name, json.dumps(columns, indent=indent))
    assert error.what == "the file holds columns, not rows"
    assert error.where.startswith(name)
    assert error.fix.startswith('write it by rows: FRAME.to_json(NEW, orient="records", lines=True)\n')


@pytest.mark.parametrize("columns", [COLUMNS, PANDAS, SPLIT])
def test_the_remedy_for_columns_gives_the_rows(said, tmp_path, columns):
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    expression = said("a.json", json.dumps(columns)).fix.rpartition("FRAME = ")[2]
    with (tmp_path / "a.json").open(encoding="utf-8") as file:
        names = {"pandas": pandas, "json": json, "open": lambda path: file, "OLD": "a.json"}
        frame = eval(expression, names)
    frame.to_json(tmp_path / "new.jsonl", orient="records", lines=True)
    assert [record.value for record in read(DataSource(path=str(tmp_path / "new.jsonl")))] == ROWS


def test_rows_under_their_numbers(said, tmp_path):
    error = said("a.json", json.dumps({str(at): row for at, row in enumerate(ROWS)}))
    assert error.what == "the file holds rows under their numbers"
    assert by_jq(error.fix, tmp_path / "a.json") == ROWS


@pytest.mark.parametrize(
    "row",
    [
        {"messages": TALKS[0], "tools": [{"name": "f"}, {"name": "g"}]},
        {"conversations": ["q", "a"], "tags": ["x", "y"]},
        {"input_ids": [1, 2], "labels": [1, 2], "tokens": ["a", "b"]},
        {"question": [[{"role": "user", "content": "q"}]], "function": [{"name": "f"}], "id": "x"},
        {"data": ["q", "a"]},
        {"prompt": {"a": "x"}, "response": {"a": "y"}},
        {"data": [ROWS[0]], "columns": ["a"], "info": 1},
        {"prompt": [], "response": []},
        {},
    ],
)
def test_what_is_no_table(row):
    assert not_rows(row, "a.json") is None


def test_of_several_lines_none_is_a_table(write, records):
    found = records(write("a.jsonl", [COLUMNS, COLUMNS]))
    assert [record.value for record in found] == [COLUMNS] * 2


# ---- several documents


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.ndjson"])
@pytest.mark.parametrize("row", [ROWS[0], {"x": 1}, {"rows": ROWS}])
def test_pretty_printed_objects_behind_each_other(said, tmp_path, name, row):
    error = said(name, "".join(json.dumps(one, indent=2) + "\n" for one in [row, *ROWS]))
    assert error.what == "the file holds several JSON documents, one behind the other"
    assert error.where == f"{name}:{len(json.dumps(row, indent=2).splitlines()) + 1}:1"
    assert by_jq(error.fix, tmp_path / name) == [row, *ROWS]


def test_arrays_behind_each_other(said, tmp_path):
    error = said("a.json", json.dumps(ROWS[:2], indent=1) + json.dumps(ROWS[2:], indent=1))
    assert by_jq(error.fix, tmp_path / "a.json") == ROWS


def test_a_row_that_goes_on_in_the_next_line(write, records, tmp_path):
    path = write("a.jsonl", "".join(json.dumps(row, indent=1).replace("{\n", "{") + "\n" for row in ROWS))
    error = records(path)[0].value.error
    assert (error.what, error.where) == ("not valid JSON", "a.jsonl:1:18")
    assert by_jq(error.fix.splitlines()[0], path) == ROWS
