import csv
import io
import random
import re
import tracemalloc
from pathlib import Path

import pytest

from imprint.data.formats import converter
from imprint.data.ledger import Ledger
from imprint.data.parse_table import Table, csv_rows, dialect, looks_like_table
from imprint.data.readers import read
from imprint.data.text import Broken
from imprint.errors import DataError
from imprint.recipe import DataSource


@pytest.fixture
def rows(write):
    """The rows of a table with this content, each with the line where it begins."""

    def rows(content, name="a.csv", **source):
        path = write(name, content)
        found = read(DataSource(path=path.name, **source), path.parent)
        return [(record.value, record.place.line) for record in found]

    return rows


EXCEL = [
    ["prompt", "response"],
    ["one", 'two "quoted", lines\nand more'],
    ["ü;,\t", ""],
    ["x" * 200_000, "end"],
]


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", ["", "\ufeff", "sep", "\ufeffsep"])
@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.csv.gz"])
def test_tables_as_spreadsheets_write_them(rows, delimiter, end, mark, name):
    if name == "a.tsv" and delimiter != "\t" and "sep" not in mark:
        return  # its name says what is between the cells
    text = io.StringIO(newline="")
    csv.writer(text, delimiter=delimiter, lineterminator=end).writerows(EXCEL)
    first = f"sep={delimiter}{end}" if "sep" in mark else ""
    found = rows(mark.replace("sep", "") + first + text.getvalue(), name)
    assert [list(row.values()) for row, _ in found] == EXCEL[1:]
    start = 3 if first else 2
    assert [line for _, line in found] == [start, start + 2, start + 3]


def test_random_tables_read_as_the_csv_module_reads_them(rows):
    rng = random.Random(0)
    for _ in range(60):
        width, delimiter = rng.randrange(2, 5), rng.choice(",;\t")
        cells = [
            ["".join(rng.choice('ab "\n\r,;\té') for _ in range(rng.randrange(6))) for _ in range(width)]
            for _ in range(rng.randrange(1, 6))
        ]
        cells = [[f"name{i}" for i in range(width)], *cells]
        text = io.StringIO(newline="")
        csv.writer(text, delimiter=delimiter, quoting=csv.QUOTE_ALL).writerows(cells)
        assert [list(row.values()) for row, _ in rows(text.getvalue())] == cells[1:], text.getvalue()


def test_tabs_without_quotes(rows):
    found = rows('prompt\tresponse\n"Hi," she said.\tYes\n5" wide\t"Really"\n', "a.tsv")
    assert [list(row.values()) for row, _ in found] == [['"Hi," she said.', "Yes"], ['5" wide', '"Really"']]


def test_the_delimiter_is_the_one_by_which_rows_are_even(rows):
    found = rows("Well, what is it?;Yes, a test.\nNo?;No.\n")
    assert [row for row, _ in found] == [
        {"0": "Well, what is it?", "1": "Yes, a test."},
        {"0": "No?", "1": "No."},
    ]
    found = rows('"a, b";response\n1;2\n')
    assert [row for row, _ in found] == [{"a, b": "1", "response": "2"}]


@pytest.mark.parametrize(
    ("text", "columns"),
    [
        ("What is 1 + 1?,2\nAnd 2 + 2?,4\n", ["0", "1"]),
        ("prompt,What?\n1,2\n", ["prompt", "What?"]),
        ("question text,gold answer\n1,2\n", ["question text", "gold answer"]),
        (",instruction,output\n0,a,b\n", ["", "instruction", "output"]),
        ("1,2\n3,4\n", ["0", "1"]),
    ],
)
def test_whether_the_first_row_is_a_header(rows, text, columns):
    found = rows(text)
    assert list(found[0][0]) == columns
    assert len(found) == text.count("\n") - (columns[0] != "0")
    assert found[0][1] == (1 if columns[0] == "0" else 2)


def test_names_given_by_the_recipe_are_known(rows):
    text = "What is asked?,What is told?\n1,2\n"
    assert rows(text)[0][0] == {"0": "What is asked?", "1": "What is told?"}
    fields = {"prompt": "What is asked?", "response": "What is told?"}
    assert rows(text, fields=fields) == [({"What is asked?": "1", "What is told?": "2"}, 2)]


def test_rows_of_another_width_without_a_header(rows):
    found = rows("What?,Yes.\nOne.\nAnd?,No.\n")
    assert isinstance(found[1][0], Broken)
    error = found[1][0].error
    assert (error.where, error.expected) == ("a.csv:2", "2, as in the first row")


@pytest.mark.parametrize(("name", "by"), [("a.csv", ","), ("a.csv", ";"), ("a.tsv", "\t"), ("a.csv.gz", ",")])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_a_header_that_stands_again_is_no_row(rows, name, by, mark):
    header = mark + f"instruction{by}output\n"
    found = rows(f"{header}a{by}b\n{header}output{by}instruction\nc{by}output\n", name)
    assert [row for row, _ in found[::2]] == [
        {"instruction": "a", "output": "b"},
        {"instruction": "output", "output": "instruction"},
    ]
    assert found[3][0] == {"instruction": "c", "output": "output"}
    error = found[1][0].error
    assert (error.what, error.where, error.fix) == ("the header stands again", f"{name}:3", "remove the line")


def test_without_a_header_a_first_row_may_stand_again(rows):
    assert [list(row.values()) for row, _ in rows("What?,Yes.\nWhat?,Yes.\n")] == [["What?", "Yes."]] * 2


COT = [["Is it?", "yes", "So it is."], ["And 7?", "7", "It says so."]]


def headerless(write, name, cells, **source):
    """(columns, warnings) of a table without a header."""
    by = "\t" if ".tsv" in name else ","
    path = write(name, "".join(by.join(row) + "\n" for row in cells))
    ledger = Ledger()
    found = [r.value for r in read(DataSource(path=name, **source), path.parent, ledger=ledger)]
    assert [list(row.values()) for row in found] == cells
    return list(found[0]), list(ledger.warnings)


@pytest.mark.parametrize("name", ["a.tsv", "a.tsv.gz"])
def test_three_columns_of_texts_between_tabs_are_flan_s(write, name):
    said = "three columns without a header are read as question, answer, rationale (FLAN)"
    assert headerless(write, name, COT) == (["question", "answer", "rationale"], [said])
    assert headerless(write, "a.csv", COT, format="flan_cot")[1] == [said]


@pytest.mark.parametrize(
    ("name", "cells", "source"),
    [
        ("a.csv", COT, {}),
        ("a.tsv", [["1", "What is it?", "It is."], ["2", "And?", "Yes."]], {}),
        ("a.tsv", [["What is it?", "It is.", "-0.5"], ["And?", "Yes.", " 3 "], ["Or?", "No.", ""]], {}),
        ("a.tsv", [["What is it?", "It is."]], {}),
        ("a.tsv", COT, {"fields": {"prompt": "0", "response": "1"}}),
        ("a.tsv", COT, {"format": "prompt_response"}),
    ],
)
def test_other_columns_without_a_header_have_no_names(write, name, cells, source):
    said = "the table has no header: its columns are 0, 1, …"
    assert headerless(write, name, cells, **source) == (["0", "1", "2"][: len(cells[0])], [said])


def test_the_remedy_for_columns_without_names_works(write, convert):
    row = dict(zip("012", COT[1], strict=True))
    with pytest.raises(DataError, match="the columns have no names") as caught:
        convert(row)
    pair, cot = caught.value.fix.splitlines()
    made = convert(row, fields=dict(re.findall(r"data\.0\.fields\.(\w+)=(\d)", pair)))
    assert made.messages[0].content == "And 7?"
    path = write("a.tsv", "".join("\t".join(row) + "\n" for row in COT))
    source = DataSource(path=str(path), format=cot.rpartition("data.0.format=")[2])
    (made,) = converter(source)(list(read(source))[1])
    assert made.messages[1].content == "It says so. The answer is 7."


@pytest.mark.parametrize("by", [",", "\t"])
def test_a_header_of_unknown_names_may_be_a_row(write, by):
    name = "a.tsv" if by == "\t" else "a.csv"
    path = write(name, f"hello{by}bonjour\ncat{by}chat\n")

    def told(**source):
        ledger = Ledger()
        found = [r.value for r in read(DataSource(path=name, **source), path.parent, ledger=ledger)]
        return found, list(ledger.warnings)

    found, (said,) = told()
    assert found == [{"hello": "cat", "bonjour": "chat"}]
    assert "header, of unknown names (hello, bonjour)" in said
    fields = dict(re.findall(r"fields\.(\w+)=(\w+)", said))
    found, (said,) = told(fields=fields)
    assert found == [{"0": "hello", "1": "bonjour"}, {"0": "cat", "1": "chat"}]
    assert said.startswith("the table has no header")
    assert told(fields={"prompt": "hello", "response": "bonjour"}) == (
        [{"hello": "cat", "bonjour": "chat"}],
        [],
    )


def test_a_table_by_bars(rows):
    found = rows("prompt|response\nWhat, now?|Yes; all.\n")
    assert [row for row, _ in found] == [{"prompt": "What, now?", "response": "Yes; all."}]
    assert [row for row, _ in rows("prompt,a|b\n1,2\n")] == [{"prompt": "1", "a|b": "2"}]


@pytest.mark.parametrize(
    ("text", "by"),
    [
        ("prompt,response\na,b\n", ","),
        ("sep=;\na;b\nc;d\n", ";"),
        ("Is it?\tno\tSo.\nOr?\tyes\tWell.\n", "\t"),
        ("a|b\n1|2\n", "|"),
        ('a,b\n"x, y",2\n' * 9 + "3\n", ","),
        ("Once, there was.\nAnd then, so, it was.\nThe end.\n", ""),
        ("a single line, and no more\n", ""),
        ("a\nb\nc\n", ""),
    ],
)
def test_whether_a_text_is_a_table(text, by):
    assert looks_like_table(text.encode()) == by


def test_a_quote_that_is_never_closed_does_not_swallow_the_file(rows, monkeypatch):
    monkeypatch.setattr("imprint.data.parse_table.LONGEST", 1000)
    with pytest.raises(DataError, match=r"(?s)a.csv:2: not valid CSV.*field larger.*close the quote"):
        rows('a,b\n"1,2\n' + "3,4\n" * 10_000)


def test_null_bytes_and_bad_bytes_by_their_offset(rows):
    for byte, says in ((b"\0", "null byte"), (b"\xe9", "not UTF-8")):
        data = "\ufeffa,b\nü,2\n3,".encode() + byte + b"\n"
        with pytest.raises(DataError, match=says) as caught:
            rows(data)
        assert caught.value.where == "a.csv:3"
        assert f"byte offset {data.index(byte)}" in caught.value.found


def test_memory_does_not_grow_with_the_rows():
    line = b'"%s","a\nb"\n' % (b"y" * 400)

    def lines(count):
        yield b"prompt,response\n"
        for _ in range(count):
            yield from line.splitlines(keepends=True)

    peaks = []
    for count in (1_000, 10_000):
        tracemalloc.start()
        found = csv_rows(lines(count), "a.csv", dialect(b"prompt,response\n", tabs=False), {"prompt"})
        assert isinstance(next(found), Table)
        assert sum(1 for _ in found) == count
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0]


@pytest.mark.parametrize("name", ["creak", "ecqa", "qasc", "strategyqa"])
def test_real_tables_without_header_are_their_lines_cut_at_tabs(sft, name):
    path = sft / f"flan_cot_{name}.tsv"
    lines = Path(path).read_text(encoding="utf-8").splitlines()
    found = [list(record.value.values()) for record in read(DataSource(path=str(path)))]
    assert found == [line.split("\t") for line in lines]
    assert len(found) in (6915, 7112, 1084, 2061)


def test_real_table_with_quoted_quotes(sft):
    path = sft.parent / "eval" / "mmlu_native_example_astronomy_test.csv"
    with path.open(newline="", encoding="utf-8") as file:
        own = list(csv.reader(file))
    assert [list(record.value.values()) for record in read(DataSource(path=str(path)))] == own
    assert len(own) == 152


def test_a_header_that_ends_in_separators_cuts_no_reply(rows):
    found = rows("prompt,response,,\nName two,red, blue\na,b,,\nc,d\ne,f, ,\ng\nh,i,,j\nprompt,response,,\n")
    errors = {line: value.error for value, line in found if isinstance(value, Broken)}
    assert {line: value for value, line in found if line not in errors} == {
        3: {"prompt": "a", "response": "b"},
        4: {"prompt": "c", "response": "d"},
        5: {"prompt": "e", "response": "f"},
    }
    assert {line: error.what for line, error in errors.items()} == {
        2: "the row has the wrong number of columns",
        6: "the row has the wrong number of columns",
        7: "a cell stands under no name",
        8: "the header stands again",
    }
    assert errors[7].found == "'j'"
    (cut,) = rows("prompt,response,\nName two,red, blue\n", name="b.csv")
    assert cut[0].error.what == "a cell stands under no name"
    assert cut[0].error.found == "' blue'"
    assert "put it in double quotes; else name the column" in cut[0].error.fix


def test_rows_of_too_many_and_too_few_cells_have_each_its_remedy(rows):
    many, few = (value.error for value, _ in rows("a,b\n1,2,3\n4\n"))
    assert (many.found, few.found) == ("3 cells: '1', '2', '3'", "1 cell: '4'")
    assert many.fix == "put a cell that holds the separator in double quotes"
    assert "if cells are missing, add them" in few.fix
