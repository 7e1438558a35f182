"""Conversion loses nothing and invents nothing: what is written, read again, is what was read before."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path

import pytest

from imprint.data.catalogue import FORMATS
from imprint.data.conversation import Conversation, Message, Place, Tokens
from imprint.data.convert import convert
from imprint.data.formats import converter
from imprint.data.gather import read
from imprint.data.rows import WRITERS, difference, row_writer
from imprint.errors import DataError, RecipeError
from imprint.recipe import DataSource

SHARED = Path(__file__).parents[3] / "shared" / "data"
KINDS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".jsonl.gz", ".json.gz", ".csv.gz")
CALL = {
    "id": "c1",
    "type": "function",
    "function": {"name": "add", "arguments": {"a": 1, "b": [None, {"c": 2.5}]}},
}
TEXT_CALL = {"type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "add",
            "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}},
        },
    },
    {"name": "now", "description": "“time”, no arguments"},
]


def said(role, content, **more):
    return {"role": role, "content": content, **more}


def ask(content, **more):
    return said("user", content, **more)


def say(content, **more):
    return said("assistant", content, **more)


def talk(*messages, **more):
    return {**more, "messages": list(messages)}


FULL = [
    talk(
        said("system", 'Add.\r\nSay "so", or; not\t.'),
        ask("1 + 1?", name="ann"),
        say("Let me see.", reasoning_content="I need a tool.", tool_calls=[CALL], weight=0),
        said("tool", "2", tool_call_id="c1", name="add"),
        say("It is 2. ", weight=0.25),
        say("Two."),
        id="one",
        weight=0.5,
        tools=TOOLS,
    ),
    talk(ask(" é 日本 🎉\n\n"), say("<think>\nhm\n</think>\n\nyes")),
    talk(ask("a"), say("", tool_calls=[TEXT_CALL, CALL]), split_group="tree 7"),
]
PLAIN = [
    talk(ask('a, "b"\nc'), say("d;e")),
    talk(said("system", "s"), ask("f"), say("g"), id="x"),
]


def write(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def conversations(path) -> list[Conversation]:
    source = DataSource(path=str(path))
    reading = converter(source)
    return [one for record in read(source) for one in reading(record)]


def same(one: list[Conversation], other: list[Conversation]) -> None:
    assert len(one) == len(other) > 0
    assert [difference(a, b) for a, b in zip(one, other, strict=True)] == [""] * len(one)


def run(source, out, **given):
    sources = source if isinstance(source, list) else [source]
    return convert([DataSource(path=str(one)) for one in sources], str(out), **given)


def test_difference_sees_every_part():
    one = Conversation((Message("user", "a"), Message("assistant", "b")), Place("f", 1), "f:1")
    assert difference(one, replace(one, source=Place("g", 9), id="g:9")) == ""
    changes = [
        {"id": "named"}, {"tools": ({"name": "t"},)}, {"weight": 0.0}, {"group": "g"},
        {"tokens": Tokens((1,), (1.0,))}, {"messages": one.messages[:1]},
    ]  # fmt: skip
    assert [difference(one, replace(one, **change)) for change in changes] == [
        "an id", "tools", "a weight", "a group", "ids", "its messages one by one"
    ]  # fmt: skip
    for part, value in (
        ("role", "tool"), ("content", "b "), ("reasoning", ""), ("tool_calls", (CALL,)), ("weight", 1.0),
        ("name", "n"), ("tool_call_id", "i"),
    ):  # fmt: skip
        assert difference(
            one, replace(one, messages=(one.messages[0], replace(one.messages[1], **{part: value})))
        )


@pytest.mark.parametrize("suffix", KINDS)
def test_everything_a_conversation_can_hold_comes_back(suffix, tmp_path):
    source, out = write(tmp_path / "in.jsonl", FULL), tmp_path / f"out{suffix}"
    ledger = run(source, out)
    assert ledger.conversations.kept == {"written": 3}
    same(conversations(source), conversations(out))
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["in.jsonl", f"out{suffix}"])


@pytest.mark.parametrize("format", FORMATS, ids=lambda format: format.name)
def test_every_format_becomes_messages_and_stays_what_it_was(format, tmp_path):
    rows = [format.example]
    if format.name == "oasst_messages":
        rows.append(
            {
                "message_id": "u",
                "parent_id": "t",
                "message_tree_id": "t",
                "role": "assistant",
                "text": "Hello!",
            }
        )
    source = write(tmp_path / "in.jsonl", rows)
    run(source, tmp_path / "out.jsonl")
    before, after = conversations(source), conversations(tmp_path / "out.jsonl")
    same(before, after)
    assert [one.group for one in before] == [one.group for one in after]


@pytest.mark.parametrize("to", [name for name in WRITERS if name not in ("text", "tokens_labels")])
@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_messages_become_another_format_and_stay_what_they_were(to, suffix, tmp_path):
    source, out = write(tmp_path / "in.jsonl", PLAIN), tmp_path / f"out{suffix}"
    run(source, out, to=to)
    same(conversations(source), conversations(out))
    run(out, tmp_path / "back.jsonl")
    assert list(map(json.loads, (tmp_path / "back.jsonl").read_text(encoding="utf-8").splitlines())) == PLAIN


def test_documents_and_ids_keep_their_formats(tmp_path):
    ids = {"input_ids": [5, 6, 7], "labels": [-100, 6, 7], "weight": 2.0}
    for name, row in (("text", {"text": "A story.\n\nIt ends."}), ("tokens_labels", ids)):
        source = write(tmp_path / f"{name}.jsonl", [row])
        for to in ("messages", name):
            run(source, tmp_path / f"{name}-{to}.jsonl", to=to)
            same(conversations(source), conversations(tmp_path / f"{name}-{to}.jsonl"))
        run(source, tmp_path / f"{name}.parquet")
        same(conversations(source), conversations(tmp_path / f"{name}.parquet"))


def test_several_turns_in_sharegpt_and_alpaca(tmp_path):
    talk = [
        {"role": role, "content": text}
        for role, text in zip(("user", "assistant") * 3, "abcdef", strict=True)
    ]
    source = write(tmp_path / "in.jsonl", [{"messages": [{"role": "system", "content": "s"}, *talk]}])
    run(source, tmp_path / "a.json", to="alpaca")
    assert json.loads((tmp_path / "a.json").read_text()) == [
        {"instruction": "e", "input": "", "output": "f", "history": [["a", "b"], ["c", "d"]], "system": "s"}
    ]
    run(source, tmp_path / "s.jsonl", to="sharegpt")
    assert json.loads((tmp_path / "s.jsonl").read_text())["conversations"][:2] == [
        {"from": "system", "value": "s"}, {"from": "human", "value": "a"}
    ]  # fmt: skip
    for name in ("a.json", "s.jsonl"):
        same(conversations(source), conversations(tmp_path / name))
    run(source, tmp_path / "a.parquet", to="alpaca")
    same(conversations(source), conversations(tmp_path / "a.parquet"))


LOSSES = [
    (talk(ask("a"), say("b"), ask("c"), say("d")), "prompt_response", "more than one reply"),
    (talk(ask("a"), say("b", reasoning_content="r")), "alpaca", "the reasoning"),
    (talk(ask("a"), say("b", reasoning_content="r")), "sharegpt", "the reasoning"),
    (talk(ask("a"), say("b", weight=0.5)), "sharegpt", "a weight"),
    (talk(ask("a", name="n"), say("b")), "question_answer", "a name"),
    (talk(ask("a"), say("t", tool_calls=[CALL])), "sharegpt", "a text and tool calls in one reply"),
    (talk(ask("a"), say("", tool_calls=[CALL])), "sharegpt", "the id of a tool call"),
    (talk(ask("a"), say("b"), tools=TOOLS), "alpaca", "tools"),
    (talk(ask("a"), ask("b"), say("c")), "dolly", "messages that do not alternate"),
    ({"text": "a document"}, "alpaca", "a document"),
    ({"input_ids": [1], "labels": [1]}, "sharegpt", "ids"),
]


@pytest.mark.parametrize(("row", "to", "lost"), LOSSES)
def test_what_a_format_cannot_hold_is_refused_by_name_and_place(row, to, lost, tmp_path):
    source, out = write(tmp_path / "in.jsonl", [PLAIN[0], row]), tmp_path / "out.jsonl"
    with pytest.raises(DataError) as caught:
        run(source, out, to=to)
    told = str(caught.value)
    assert f"{source}:2: a row of {to} cannot hold {lost}" in told
    assert "--to messages" in told
    assert "bad_rows=leave_out" in told
    assert not out.exists()
    ledger = run(source, out, to=to, bad_rows="leave_out")
    assert ledger.conversations.kept == {"written": 1}
    assert ledger.conversations.num_left == 1
    assert len(out.read_text().splitlines()) == 1


@pytest.mark.parametrize(
    ("to", "lost"), [("text", "a conversation"), ("tokens_labels", "a conversation of texts")]
)
def test_where_nothing_can_be_written_there_is_no_file(to, lost, tmp_path):
    source, out = write(tmp_path / "in.jsonl", PLAIN), tmp_path / "out.jsonl"
    with pytest.raises(DataError, match=f"a row of {to} cannot hold {lost}"):
        run(source, out, to=to)
    with pytest.raises(DataError, match="no conversation is left to write"):
        run(source, out, to=to, bad_rows="leave_out")
    assert not out.exists()


def test_a_text_that_would_be_read_as_something_else_is_refused(tmp_path):
    """A document that looks like Guanaco's marks is a conversation to whoever reads it."""
    place = Place("f", 1)
    marked = Conversation((Message("text", "### Human: a### Assistant: b"),), place, "f:1")
    with pytest.raises(DataError, match="cannot hold"):
        row_writer("messages")(marked)
    stop = Conversation((Message("user", "a"), Message("assistant", "b<|endoftext|>")), place, "f:1")
    with pytest.raises(DataError, match="cannot hold the content"):
        row_writer("prompt_completion")(stop)
    assert row_writer("messages")(stop)["messages"][1]["content"] == "b<|endoftext|>"


def test_bad_rows_stop_and_nothing_is_written(tmp_path):
    source = write(
        tmp_path / "in.jsonl",
        [{"prompt": "a", "response": ""}, {"prompt": "b", "response": "c"}, {"prompt": "a"}],
    )
    out = tmp_path / "out.jsonl"
    with pytest.raises(DataError) as caught:
        run(source, out)
    assert "in.jsonl:1: the reply is empty" in str(caught.value)
    assert "and 1 more" in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]
    ledger = run(source, out, bad_rows="leave_out")
    assert (ledger.records.total, ledger.records.kept["used"], ledger.records.num_left) == (3, 1, 2)
    ledger.check()


def test_a_table_that_cannot_hold_it_is_refused(tmp_path):
    source = write(tmp_path / "in.jsonl", [{"input_ids": [5, 6], "labels": [-100, 6]}])
    with pytest.raises(DataError) as caught:
        run(source, tmp_path / "out.csv", to="tokens_labels")  # in a cell the list of ids would be a text
    assert "a table of this kind cannot hold what is in it" in str(caught.value)
    assert "write JSON lines" in str(caught.value)
    mixed = write(tmp_path / "mixed.jsonl", [PLAIN[0], {"text": "a document"}])
    run(mixed, tmp_path / "out.json")
    same(conversations(mixed), conversations(tmp_path / "out.json"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "mixed.jsonl", "out.json"]


def test_earlier_turns_in_the_cell_of_a_table(tmp_path):
    source = write(tmp_path / "in.jsonl", [{"messages": PLAIN[0]["messages"] * 2}, PLAIN[0]])
    run(source, tmp_path / "out.csv", to="alpaca")
    same(conversations(source), conversations(tmp_path / "out.csv"))


def test_it_writes_over_nothing(tmp_path):
    source, out = write(tmp_path / "in.jsonl", PLAIN), tmp_path / "out.jsonl"
    out.write_text("mine")
    with pytest.raises(DataError, match="the file exists already"):
        run(source, out)
    assert out.read_text() == "mine"
    run(source, out, force=True)
    same(conversations(source), conversations(out))
    (tmp_path / "folder.jsonl").mkdir()
    with pytest.raises(DataError, match="it is a folder"):
        run(source, tmp_path / "folder.jsonl", force=True)


@pytest.mark.parametrize("given", ["in.jsonl", "./in.jsonl", ".", "*.jsonl", "in*"])
def test_it_never_writes_where_it_reads(given, tmp_path, monkeypatch):
    write(tmp_path / "in.jsonl", PLAIN)
    monkeypatch.chdir(tmp_path)
    before = Path("in.jsonl").read_bytes()
    with pytest.raises(DataError, match="the output is a part of the input"):
        run(given, "in.jsonl", force=True)
    if given == ".":
        with pytest.raises(DataError, match="the output is a part of the input"):
            run(given, "new.jsonl")
    assert Path("in.jsonl").read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


def test_a_failure_leaves_no_file_behind(tmp_path, monkeypatch):
    import imprint.data.convert as module

    source = write(tmp_path / "in.jsonl", PLAIN)

    def broken(rows, to, *given, **named):
        to.write_text("half")
        raise OSError("no space")

    monkeypatch.setattr(module, "write_rows", broken)
    with pytest.raises(OSError, match="no space"):
        run(source, tmp_path / "out.jsonl")
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


def test_equal_data_gives_equal_bytes(tmp_path):
    source = write(tmp_path / "in.jsonl", FULL)
    run(source, tmp_path / "a.jsonl.gz")
    run(source, tmp_path / "b.jsonl.gz")
    assert (tmp_path / "a.jsonl.gz").read_bytes() == (tmp_path / "b.jsonl.gz").read_bytes()
    assert len(gzip.decompress((tmp_path / "a.jsonl.gz").read_bytes()).splitlines()) == 3


def test_standard_output_is_json_lines_and_only_when_all_went_well(tmp_path, capsys):
    source = write(tmp_path / "in.jsonl", PLAIN)
    run(source, "-")
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == PLAIN
    bad = write(tmp_path / "bad.jsonl", [PLAIN[0], {"prompt": "a"}])
    with pytest.raises(DataError):
        run(bad, "-")
    assert capsys.readouterr().out == ""


def test_kinds_and_formats_that_are_not_written(tmp_path):
    source = write(tmp_path / "in.jsonl", PLAIN)
    for name in ("out.xlsx", "out", "out.txt", "out.parquet.gz"):
        with pytest.raises(DataError, match="imprint does not write this kind of file"):
            run(source, tmp_path / name)
    with pytest.raises(RecipeError, match="--to alpaca"):
        run(source, tmp_path / "out.jsonl", to="alpacca")


def test_parquet_has_columns_that_other_tools_read(tmp_path):
    import pyarrow.parquet as parquet

    run(write(tmp_path / "in.jsonl", PLAIN), tmp_path / "out.parquet")
    table = parquet.read_table(tmp_path / "out.parquet")
    assert table.schema.names == ["messages", "id"]
    assert str(table.schema.field("messages").type) == "list<element: struct<role: string, content: string>>"


def sets(*folders):
    return [path for folder in folders for path in sorted((SHARED / folder).glob("*.*"))]


@pytest.mark.slow
@pytest.mark.parametrize("path", sets("sft", "tools"), ids=lambda path: path.name)
def test_real_files_become_messages_and_stay_what_they_were(path, tmp_path):
    source = DataSource(path=str(path))
    reading = converter(source)
    before = []
    for record in read(source):
        try:
            before += reading(record)
        except DataError:
            continue
    out = tmp_path / "out.jsonl"
    if not before:
        with pytest.raises(DataError, match="no conversation is left to write"):
            run(path, out, bad_rows="leave_out")
        return
    ledger = run(path, out, bad_rows="leave_out")
    assert ledger.conversations.kept["written"] == len(before)
    same(before, conversations(out))
    run(out, tmp_path / "out.parquet")
    same(before, conversations(tmp_path / "out.parquet"))


@pytest.mark.parametrize(
    ("call", "lost"),
    [
        ({**TEXT_CALL, "id": "c1"}, "the id of a tool call"),
        ({**TEXT_CALL, "index": 0}, "what stands beside a tool call"),
    ],
)
def test_what_of_a_tool_call_cannot_be_held_is_named(call, lost):
    messages = (Message("user", "x"), Message("assistant", "", tool_calls=(call,)))
    with pytest.raises(DataError) as raised:
        row_writer("sharegpt")(Conversation(messages, Place("a.jsonl", 1), "a.jsonl:1"))
    assert raised.value.what == f"a row of sharegpt cannot hold {lost}"
    plain = replace(messages[1], tool_calls=(TEXT_CALL,))
    assert row_writer("sharegpt")(Conversation((messages[0], plain), Place("a.jsonl", 1), "a.jsonl:1"))


@pytest.mark.parametrize(
    ("other", "lost"),
    [
        ({"name": "add", "arguments": {"a": 1}}, "a tool call's arguments as text"),
        ({"name": "sub", "arguments": '{"a": 1}'}, "a tool call's name, or what stands beside it"),
    ],
)
def test_calls_differ_by_what_they_say(other, lost):
    one, two = (
        Conversation((Message("assistant", "", tool_calls=({"function": function},)),), Place("a", 1), "a:1")
        for function in (TEXT_CALL["function"], other)
    )
    assert difference(one, two) == lost
