"""`--left-out FILE`: what is not trained, with its rows; the ledger's counts are its lines, and mended it is data."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from conftest import settings, write_rows
from imprint.data.formats import converter
from imprint.data.gather import read
from imprint.data.mended import is_left_out
from imprint.left_out import PARTLY
from imprint.recipe import DataSource


def talk(*texts, **more):
    roles = ("user", "assistant")
    return {"messages": [{"role": roles[n % 2], "content": text} for n, text in enumerate(texts)], **more}


GOOD = [talk(f"What is {n}?", f"It is {n}.") for n in range(6)]
LONG = talk("Go on.", "and on " * 200)
PART = talk("Say a.", "a", "Go on.", "and on " * 200)
EMPTY = {"prompt": "a", "response": ""}
UNTRAINED = {"prompt": "a", "response": "b", "weight": 0}
BROKEN = '{"prompt": "b", "response": "c",}'


@pytest.fixture
def bad(tmp_path: Path) -> Path:
    path = tmp_path / "data.jsonl"
    lines = [json.dumps(row) for row in (*GOOD[:3], EMPTY, LONG)] + [BROKEN]
    path.write_text("\n".join(lines + [json.dumps(row) for row in (UNTRAINED, PART, *GOOD[3:])]) + "\n")
    return path


def lines_of(path: Path) -> list[dict]:
    found = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert all(map(is_left_out, found))
    return found


def check_lines(path: Path, data: Path) -> None:
    found = lines_of(path)
    assert [(one["place"], one["level"], one["reason"]) for one in found] == [
        (f"{data}:4", "record", "the reply is empty"),
        (f"{data}:5", "conversation", "none of its replies can be trained"),
        (f"{data}:6", "record", "not valid JSON"),
        (f"{data}:7", "conversation", "no reply has a weight above 0"),
        (f"{data}:8", "reply", "it is longer than max_length"),
    ]
    assert [one["row"] for one in found] == [EMPTY, LONG, BROKEN, UNTRAINED, PART]
    assert "write the response or remove the row" in found[0]["detail"]
    assert [other["level"] for other in found[1]["also"]] == ["reply"]
    assert found[4]["detail"].startswith("message 4\n")
    assert [PARTLY in one["detail"] for one in found] == [False] * 4 + [True]


def test_train_writes_what_the_ledger_counts_also_from_the_cache(bad, tiny, tmp_path, cli, monkeypatch):
    monkeypatch.setenv("IMPRINT_CACHE", str(tmp_path / "cache"))
    for number, told in ((1, "prepared in"), (2, "taken from the cache")):
        out, run = tmp_path / f"left-{number}.jsonl", tmp_path / f"run-{number}"
        given = settings(
            tiny, bad, run, "bad_rows=leave_out", "epochs=1", "validation=0.2", f"max_steps={number}"
        )
        done = cli("train", *given, "--left-out", out)
        assert done.code == 0, done.err
        assert told in done.err
        assert f"left out  4 rows and a part of 1 row, written to {out}" in done.err
        assert "with both files\n          as data they are trained twice" in done.err
        check_lines(out, bad)
        ledger = json.loads((run / "ledger.json").read_text())
        levels = Counter(thing["level"] for one in lines_of(out) for thing in (one, *one.get("also", ())))
        counted = {
            name: sum(tally["count"] for tally in ledger[key]["left"].values())
            for name, key in (("record", "records"), ("conversation", "conversations"), ("reply", "turns"))
        }
        assert levels == counted


def test_show_writes_the_same(bad, tiny, tmp_path, cli):
    out = tmp_path / "left.jsonl"
    done = cli(
        "show", f"model={tiny}", f"data={bad}", "template=chatml", "bad_rows=leave_out", "--left-out", out
    )
    assert done.code == 0
    check_lines(out, bad)


def test_where_bad_rows_stop_the_run_they_are_written_first(bad, tiny, tmp_path, cli):
    for verb, more in (("train", [f"output={tmp_path / 'run'}"]), ("show", [])):
        out = tmp_path / f"{verb}.jsonl"
        done = cli(verb, f"model={tiny}", f"data={bad}", "template=chatml", *more, "--left-out", out)
        assert done.code == 2
        assert "the reply is empty" in done.err
        # without a rendering there are no replies; records and conversations there are
        assert [one["place"][-2:] for one in lines_of(out)] == [":4", ":6", ":7"]
    assert not (tmp_path / "run").exists()


def test_the_file_must_not_exist(bad, tiny, tmp_path, cli):
    out = tmp_path / "left.jsonl"
    out.write_text("mine")
    for given in (
        ["train", f"model={tiny}", f"data={bad}"],
        ["show", f"model={tiny}", f"data={bad}"],
        ["data", "check", bad],
    ):
        done = cli(*given, "--left-out", out)
        assert (done.code, out.read_text()) == (2, "mine")
        assert "the file exists already" in done.err
        assert "choose another name, or remove it first" in done.err
        assert "--force" not in done.err


def test_a_mended_file_is_data(bad, tmp_path, cli):
    out = tmp_path / "left.jsonl"
    assert cli("data", "check", bad, "--left-out", out).code == 2
    found = lines_of(out)
    assert [one["row"] for one in found] == [EMPTY, BROKEN, UNTRAINED]
    source = DataSource(path=str(out))
    with pytest.raises(Exception, match="still not valid JSON"):
        [converter(source)(record) for record in read(source) if not isinstance(record.value, dict)]
    found[0]["row"]["response"] = "mended"
    found[1]["row"] = BROKEN.replace(",}", "}")  # as text, where it stands
    mended = write_rows(tmp_path / "mended.jsonl", found)
    done = cli("data", "convert", mended, tmp_path / "whole.jsonl")
    assert done.code == 0, done.err
    rows = [json.loads(line)["messages"] for line in (tmp_path / "whole.jsonl").read_text().splitlines()]
    assert [[message["content"] for message in row] for row in rows] == [
        ["a", "mended"],
        ["b", "c"],
        ["a", "b"],
    ]


def test_rows_that_only_look_like_lines_of_it_stay_rows(tmp_path):
    row = {
        "place": "a",
        "level": "hard",
        "reason": "b",
        "detail": "c",
        "row": "d",
        "prompt": "p",
        "response": "r",
    }
    (record,) = read(DataSource(path=str(write_rows(tmp_path / "a.jsonl", [row]))))
    assert record.value == row
    assert not is_left_out({key: row[key] for key in ("place", "level", "reason", "detail", "row")})


def test_rows_of_other_kinds_of_file(tmp_path, cli):
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(
        pyarrow.table({"prompt": ["a", "b"], "response": ["", "c"]}), tmp_path / "a.parquet"
    )
    (tmp_path / "b.csv").write_text('prompt,response\na,""\n"b\nc",d\ne\nf,g\n')
    (tmp_path / "c.json").write_text('[{"prompt": "a", "response": ""},\n {"prompt": "b", "response": "c"}]')
    tree = [
        {"message_id": "x", "parent_id": "gone", "message_tree_id": "t", "role": "assistant", "text": "lost"}
    ]
    write_rows(tmp_path / "d.jsonl", tree)
    expected = {
        "a.parquet": [("row 1", {"prompt": "a", "response": ""})],
        "b.csv": [("2", {"prompt": "a", "response": ""}), ("5", "e")],
        "c.json": [("1", {"prompt": "a", "response": ""})],
        "d.jsonl": [("1", json.dumps(tree[0]))],
    }
    for name, rows in expected.items():
        out = tmp_path / f"{name}.left"
        assert cli("data", "check", tmp_path / name, "--left-out", out).code == 2
        assert [(one["place"].rpartition(":")[2], one["row"]) for one in lines_of(out)] == rows, name


def test_what_the_data_itself_leaves_untrained_is_not_left_out(tiny, tmp_path, cli):
    weighted = {
        "messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "weight": 0}]
    }
    weighted["messages"] += talk("r", "b")["messages"]
    opened = {"messages": [{"role": "assistant", "content": "Hello."}, *talk("q", "a")["messages"]]}
    data = write_rows(tmp_path / "data.jsonl", [weighted, opened, *GOOD])
    for number, more in enumerate(([], ["train_on=last_reply"])):
        out = tmp_path / f"left-{number}.jsonl"
        done = cli("show", f"model={tiny}", f"data={data}", "template=chatml", *more, "--left-out", out)
        assert (done.code, out.read_text()) == (0, "")
        assert f"left out  nothing: {out} is empty" in done.err
    # a row of which nothing is trained is left out, whoever asked for it
    write_rows(data, [UNTRAINED, *GOOD])
    assert cli("data", "check", data, "--left-out", tmp_path / "all.jsonl").code == 0
    assert [one["row"] for one in lines_of(tmp_path / "all.jsonl")] == [UNTRAINED]


def test_a_tree_left_out_in_a_branch_is_left_out_in_part(tiny, tmp_path, cli):
    def node(number, role, text, *replies):
        return {"message_id": str(number), "role": role, "text": text, "replies": list(replies)}

    long = node(3, "assistant", "on and on " * 200)
    prompt = node(1, "prompter", "a", long, node(2, "assistant", "b"))
    data = write_rows(tmp_path / "trees.jsonl", [{"message_tree_id": "1", "prompt": prompt}])
    out = tmp_path / "left.jsonl"
    done = cli("show", f"model={tiny}", f"data={data}", "template=chatml", "--left-out", out)
    assert "left out  a part of 1 row, written to" in done.err
    (found,) = lines_of(out)
    assert (found["level"], PARTLY in found["detail"]) == ("conversation", True)
