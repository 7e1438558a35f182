import gzip
import json
import os
import subprocess
import sys

import pyarrow
import pyarrow.parquet
import pytest

from imprint.data.conversation import Place
from imprint.data.readers import fingerprint, read
from imprint.data.text import Broken
from imprint.errors import DataError
from imprint.recipe import DataSource

ROWS = [{"prompt": "a\u2028b", "response": "ü"}, {"prompt": "c", "response": "d", "n": 10**40}]


def values(records):
    return [record.value for record in records]


@pytest.mark.parametrize("name", ["a.jsonl", "a.ndjson", "a.json", "a.jsonl.gz", "a.json.gz", "A.JSONL"])
def test_json_lines_in_any_file(write, records, name):
    found = records(write(name, ROWS))
    assert values(found) == ROWS
    assert [record.place for record in found] == [Place(name, 1), Place(name, 2)]


@pytest.mark.parametrize("document", [ROWS, {"data": ROWS}, {"version": 1, "rows": ROWS, "by": {"a": "x"}}])
@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("name", ["a.json", "a.json.gz"])
def test_json_documents(write, records, document, indent, name):
    assert values(records(write(name, json.dumps(document, indent=indent)))) == ROWS


def test_a_json_file_of_one_row_is_that_row(write, records):
    row = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    assert values(records(write("a.json", json.dumps(row, indent=1)))) == [row]
    mapped = {"chat": row["messages"]}
    path = write("b.json", json.dumps(mapped, indent=1))
    assert values(read(DataSource(path=str(path), fields={"messages": "chat"}))) == [mapped]


def test_lines_of_array_elements_equal_an_independent_count(write, records):
    elements = [{"k": f"row {i}\n", "deep": [{"x": [i] * (i % 4)}]} for i in range(60)]
    texts = [json.dumps(e, indent=i % 3 or None) for i, e in enumerate(elements)]
    text = "\n\n[" + ",\n \r\n".join(texts) + "\n]\n"
    found = records(write("a.json", text))
    assert values(found) == elements
    lines = text.split("\n")
    for record, own in zip(found, texts, strict=True):
        assert own.split("\n")[0] in lines[record.place.line - 1]
    assert len({record.place.line for record in found}) == 60


def test_elements_that_share_a_line_are_told_apart_by_number(write, records):
    one = [str(record.place) for record in records(write("a.json", "[{}, {}, {}]"))]
    assert one == ["a.json:row 1", "a.json:row 2", "a.json:row 3"]
    some = [str(record.place) for record in records(write("b.json", "[{}, {},\n{}]"))]
    assert some == ["b.json:1", "b.json:row 2", "b.json:2"]


def test_rows_keep_their_own_keys(write, records):
    tools = [{"a": {"type": "string"}}, {"b": {"enum": [1, None], "default": None}}]
    rows = [{"tools": [tool]} for tool in tools]
    for name, content in [("a.jsonl", rows), ("a.json", json.dumps(rows))]:
        assert values(records(write(name, content))) == rows


def test_blank_lines_are_not_records(write, records):
    found = records(write("a.jsonl", '\n{"a": 1}\n  \t\n\r\n{"a": NaN}'))
    assert [record.place.line for record in found] == [2, 5]
    assert found[1].value["a"] != found[1].value["a"]


@pytest.mark.parametrize(
    ("bad", "where", "says"),
    [
        ('{"a": "x" "b": 1}', "a.jsonl:2:11", "comma"),
        ('{"a": "cut o', "a.jsonl:2:7", "close the text"),
        ("{'a': 1}", "a.jsonl:2:2", "double quotes"),
        ('{"a": 1} {"a": 2}', "a.jsonl:2:10", "line of its own"),
        ('{"a": "C:\\dir"}', "a.jsonl:2:10", "backslash"),
        ('{"a": "tab\there"}', "a.jsonl:2:11", "\\t"),
        ("[" * 100_000, "a.jsonl:2", "remove this row"),
        ('{"a": ' + "9" * 5000 + "}", "a.jsonl:2", "remove this row"),
        ('{"a": "\\ud83d"}', "a.jsonl:2", "half"),
    ],
)
def test_a_broken_line_is_a_bad_row_and_the_next_is_read(write, records, bad, where, says):
    found = records(write("a.jsonl", f'{{"a": 0}}\n{bad}\n{{"a": "\\ud83d\\ude00"}}\n'))
    assert [found[0].value, found[2].value] == [{"a": 0}, {"a": "😀"}]
    assert isinstance(found[1].value, Broken)
    assert found[1].place == Place("a.jsonl", 2)
    assert found[1].value.error.where == where
    assert says in str(found[1].value.error)


@pytest.mark.parametrize(
    ("text", "where", "says"),
    [
        ('[{"a": 1},\n {"a": 2}\n {"a": 3}]', "a.json:3:2", "add the comma"),
        ('[{"a": 1},\n {"a": "x', "a.json:2:8", "cut off"),
        ('[{"a": 1},\n]', "a.json:1:10", "remove the comma"),
        ('[\n{"a": 1}]\n]', "a.json:3:1", "nothing after"),
        ('[{"a": 1}', "a.json:1:10", "at the end"),
        ("hello", "a.json:1:1", "name it .txt"),
        ("[1,\n" + "[" * 100_000, "a.json:2", "deeply"),
        ('{"a": [], "b": []}', "a.json", "lists: a, b"),
        ('{"a": {"b": []}}', "a.json", "lists: none"),
    ],
)
def test_a_broken_document_stops(write, records, text, where, says):
    with pytest.raises(DataError) as caught:
        records(write("a.json", text))
    assert caught.value.where == where
    assert says in str(caught.value)


def test_a_document_named_jsonl_is_read_or_says_so(write, records):
    found = records(write("a.jsonl", '[\n {"a": 1},\n {"a": 2}\n]'))
    assert [(record.value, str(record.place)) for record in found] == [
        ({"a": 1}, "a.jsonl:2"),
        ({"a": 2}, "a.jsonl:3"),
    ]
    row = {"prompt": "q", "response": "a"}
    assert values(records(write("b.jsonl", json.dumps(row, indent=1)))) == [row]
    assert values(records(write("c.jsonl", json.dumps({"rows": [row]}, indent=1)))) == [row]


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv"])
def test_utf8_mark_is_accepted_and_other_encodings_are_named(write, records, name):
    text = "a,b\nü,2\n" if name == "a.csv" else '{"a": "ü"}\n{"a": 2}\n'
    plain = values(records(write(name, text)))
    assert values(records(write(name, b"\xef\xbb\xbf" + text.encode()))) == plain
    for encoding in ("UTF-16", "UTF-32"):
        with pytest.raises(DataError, match=f"the file is {encoding}") as caught:
            records(write(name, text.encode(encoding)))
        assert f"iconv -f {encoding}" in str(caught.value)


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_a_byte_that_is_not_utf8_is_named_with_its_offset(write, records, mark):
    data = mark + '{"a": 1}\n{"a": "caf\xe9"}\n{"a": 3}\n'.encode("latin-1")
    offset = data.index(0xE9)
    found = records(write("a.jsonl", data))
    assert found[2].value == {"a": 3}
    table = mark + "prompt\na caf\xe9\n".encode("latin-1")
    with pytest.raises(DataError) as caught:
        records(write("a.csv", table))
    for error, at in ((found[1].value.error, offset), (caught.value, table.index(0xE9))):
        assert f"0xE9 at byte offset {at}" in error.found
        assert error.where.endswith(":2")


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.jsonl.gz"])
@pytest.mark.parametrize("content", ["", "\n \n", "\ufeff"])
def test_an_empty_file_is_an_error(write, records, name, content):
    with pytest.raises(DataError, match="empty"):
        records(write(name, content))


def test_files_without_rows_are_errors(write, records):
    for name, content in [("a.json", "[]"), ("b.json", '{"data": []}'), ("c.csv", "a,b\n")]:
        with pytest.raises(DataError, match="empty"):
            records(write(name, content))


def test_csv_with_quoted_newlines(write, records):
    text = 'prompt,response\r\n"two\nlines","say ""hi"", ok"\r\n\r\nplain,\n"' + "x" * 200_000 + '",y\n'
    for name in ("a.csv", "a.csv.gz"):
        found = records(write(name, text))
        assert found[0].value == {"prompt": "two\nlines", "response": 'say "hi", ok'}
        assert found[1].value == {"prompt": "plain", "response": ""}
        assert len(found[2].value["prompt"]) == 200_000
        assert [record.place.line for record in found] == [2, 5, 6]


@pytest.mark.parametrize("by", [";", "\t"])
def test_csv_by_semicolon_or_tab(write, records, by):
    text = f'\n"prompt"{by}response\r\n"a{by} b"{by}"c, d"\n1{by}2{by}3\n'
    found = records(write("a.csv", text))
    assert found[0].value == {"prompt": f"a{by} b", "response": "c, d"}
    assert "3 cells" in found[1].value.error.found


def test_csv_by_comma_may_hold_the_others(write, records):
    assert values(records(write("a.csv", "a;b,c\td\n1;2,3\n"))) == [{"a;b": "1;2", "c\td": "3"}]
    assert values(records(write("a.csv", "a\n1;2\n"))) == [{"a": "1;2"}]


TWICE = '{"prompt": "a", "response": "b", "meta": [{"k\\n": 1, "k\\n": 2}]}'
FINE = '{"prompt": "a", "response": "b"}'


@pytest.mark.parametrize(
    ("name", "text", "where"),
    [
        ("a.jsonl", f"{FINE}\n{TWICE}\n{FINE}\n", ":2"),
        ("a.json", f"[\n{FINE},\n{TWICE},\n{FINE}]", ":3"),
        ("a.json", f'{{"data": [{FINE}, {TWICE}, {FINE}]}}', ":row 2"),
    ],
)
def test_a_key_that_stands_twice_makes_a_bad_row(write, records, name, text, where):
    found = records(write(name, text))
    assert [isinstance(record.value, Broken) for record in found] == [False, True, False]
    error = found[1].value.error
    assert (error.what, error.where) == ("a key stands twice in one object", name + where)
    assert r"'k\n'" in error.found


def test_a_key_that_stands_twice_in_a_file_of_one_row(write, records):
    (record,) = records(write("a.json", TWICE))
    assert record.value.error.where == "a.json:1"


def test_csv_rows_of_another_width_are_bad_rows(write, records):
    found = records(write("a.csv", "a,b\n1,2\n1,2,3\n4\n5,6\n"))
    assert found[0].value == {"a": "1", "b": "2"}
    assert found[3].value == {"a": "5", "b": "6"}
    assert found[1].value.error.where == "a.csv:3"
    assert "3 cells" in found[1].value.error.found
    assert found[2].value.error.where == "a.csv:4"
    assert "2, as in the header: a, b" in found[2].value.error.expected


@pytest.mark.parametrize(
    ("text", "where", "says"),
    [
        ("a,b\n1,2\n3,x\0y\n", "a.csv:3", "null byte"),
        ('a,b\n1,2\n"3,4\n5,6\n', "a.csv:3", "close the quote"),
        ("a,a\n1,2\n", "a.csv:1", "same name"),
    ],
)
def test_csv_that_cannot_be_read_on(write, records, text, where, says):
    with pytest.raises(DataError) as caught:
        records(write("a.csv", text))
    assert caught.value.where == where
    assert says in str(caught.value)


def test_parquet_rows_come_without_arrows_nulls(tmp_path, records):
    rows = [
        {"messages": [{"role": "user", "content": "a"}], "note": None},
        {"messages": [{"role": "tool", "content": "b", "name": "f"}], "note": "x"},
    ]
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    found = records(path)
    assert values(found) == rows
    assert [str(record.place) for record in found] == ["a.parquet:row 1", "a.parquet:row 2"]
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(DataError, match=r"Parquet file cannot be read"):
        records(path)


def test_a_cut_off_gzip_file_is_an_error(write, records):
    whole = gzip.compress(os.urandom(10_000).hex().encode())
    with pytest.raises(DataError, match=r"(?s)cannot be read.*whole gzip"):
        records(write("a.jsonl.gz", whole[:5000]))


def test_a_missing_file_names_the_nearest(write, tmp_path):
    write("train.jsonl", ROWS)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "x.csv").write_text("a\n1\n")
    for path, says in [
        ("trian.jsonl", "write train.jsonl"),
        ("./trian.jsonl", "write train.jsonl"),
        ("nowhere/train.jsonl", "no folder nowhere"),
        ("folder/q.parquet", "x.csv"),
    ]:
        with pytest.raises(DataError) as caught:
            read(DataSource(path=path), tmp_path)
        assert caught.value.where == path
        assert says in str(caught.value)


@pytest.mark.parametrize("name", ["a.docx", "a.log.gz", "a.parquet.gz", "a"])
def test_other_kinds_of_files_are_refused(write, records, name):
    with pytest.raises(DataError, match=r"(?s)kind of file.*\.ndjson"):
        records(write(name, "x"))


def test_an_absolute_path_stays_as_it_was_given(write):
    path = write("a.jsonl", ROWS)
    assert [record.place.file for record in read(DataSource(path=str(path)))] == [str(path)] * 2


def python(program, folder):
    """What a program prints that runs offline with an empty hub cache in `folder`."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(folder)}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    command = [sys.executable, "-W", "error", "-c", program]
    run = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return run.stdout


def test_a_hub_id_offline_is_an_error_with_a_remedy(tmp_path):
    program = """
from imprint.data.readers import read
from imprint.errors import DataError
from imprint.recipe import DataSource
for path in ("nobody-here/no-such-data", "no-such-data"):
    try:
        list(read(DataSource(path=path)))
    except DataError as error:
        print(error)
"""
    told = python(program, tmp_path)
    assert told.count("the hub dataset cannot be loaded") == 2
    assert "nobody-here/no-such-data: " in told
    assert "hf download --repo-type dataset nobody-here/no-such-data --local-dir no-such-data" in told
    assert "give a file that is here" in told


def test_a_hub_dataset_is_read_from_the_local_cache(tmp_path):
    (tmp_path / "tiny").mkdir()
    rows = [{"question": f"q{i}", "answer": None if i else "a", "note": {f"k{i}": i}} for i in range(3)]
    (tmp_path / "tiny" / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    python("import datasets; datasets.load_dataset('./tiny')", tmp_path)
    # what the cache of a dataset fetched from the hub looks like
    (tmp_path / "datasets" / "tiny").rename(tmp_path / "datasets" / "owner___tiny")
    program = """
import json, sys
from imprint.data.readers import fingerprint, read
from imprint.errors import DataError
from imprint.recipe import DataSource
source = DataSource(path="owner/tiny")
found = list(read(source))
most = DataSource(path="owner/tiny", share=0.8)
drawn = {tuple(r.place.line for r in read(most, seed=seed)) for seed in range(20)}
assert fingerprint(most) != fingerprint(source) and len(drawn) > 3, drawn
try:
    read(DataSource(path="owner/tiny", split="trian")).__next__()
except DataError as error:
    told = str(error)
print(json.dumps([[r.value for r in found], [str(r.place) for r in found], fingerprint(source), told]))
assert "torch" not in sys.modules
"""
    values, places, first, told = json.loads(python(program, tmp_path))
    assert values == rows
    assert places == ["owner/tiny:row 1", "owner/tiny:row 2", "owner/tiny:row 3"]
    assert "trian" in told
    assert "check id, config, split and revision" in told
    assert "hf download" not in told
    assert json.loads(python(program, tmp_path))[2] == first
    assert len(first) == 64


def test_fingerprint_is_of_bytes_and_of_what_changes_the_rows(write, tmp_path):
    def of(path, **settings):
        return fingerprint(DataSource(path=path.name, **settings), tmp_path)

    first = of(write("a.jsonl", ROWS))
    assert first == of(write("b.jsonl", ROWS))
    assert len(first) == 64
    assert first == of(write("a.jsonl", ROWS), split="other")  # no setting of a file
    others = [
        of(write("c.jsonl", ROWS[:1])),
        of(write("a.jsonl", ROWS), format="alpaca"),
        of(write("a.jsonl", ROWS), share=0.5),
        of(write("a.jsonl", ROWS), fields={"prompt": "a"}),
        of(write("a.jsonl", ROWS), fields={"prompt": "b"}),
    ]
    assert len({first, *others}) == 6
    for name in ("a.json", "a.txt", "a.csv"):
        assert first == of(write(name, ROWS))  # the same lines, whatever their name
    texts = {of(write(name, "prompt,response\na,b\n")) for name in ("b.txt", "b.csv", "b.tsv")}
    assert len(texts) == 3


@pytest.mark.parametrize(
    ("others", "remedy"),
    [
        (["b.jsonl"], "name the others, '{root}/*.jsonl'"),
        (["b.jsonl", "in/c.jsonl"], "name the others, '{root}/**/*.jsonl'"),
        (["b.jsonl", "c.csv"], "move it elsewhere"),
        (["b.json"], "move it elsewhere"),
    ],
)
def test_a_stray_file_of_a_folder_is_named_with_the_way_to_leave_it_out(tmp_path, others, remedy):
    folder = tmp_path / "d"
    for name in ["meta.json", *others]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(
            '[{"prompt": "a", "response": "b"}]' if name == "b.json" else '{"prompt": "a", "response": "b"}'
        )
    (folder / "meta.json").write_text('{"name": "x", "version": 1}')
    with pytest.raises(DataError, match="does not hold exactly one list of rows") as raised:
        list(read(DataSource(path=str(folder))))
    assert raised.value.where == f"{folder}/meta.json"
    assert raised.value.fix.endswith("\nor leave it out: " + remedy.format(root=folder))
    with pytest.raises(DataError) as raised:
        list(read(DataSource(path=str(folder / "meta.json"))))
    assert "leave it out" not in raised.value.fix
