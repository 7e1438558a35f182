# ruff: noqa: E501  (whole messages, as they are printed)
"""What a user meets on the command line for each fault of the acceptance list that data can have: all of it, word by word.

The messages of single rows are in test_bad_rows.py, those of whole files in test_golden_errors.py; here is
what `imprint train` and `imprint show` make of them, and the faults that only appear beside a model.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from conftest import ROWS, settings, tree, write_rows

COLOURS = ROWS[:8]
PLAIN = "{% for m in messages %}{{ m.role }}: {{ m.content }}{% if m.role == 'assistant' %}{{ eos_token }}{% endif %} {% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"


def talk(*messages: tuple[str, object]) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content} for role, content in messages]}


@pytest.fixture
def here(tmp_path, tiny, monkeypatch) -> Path:
    """A folder with a model and good rows; the current directory."""
    shutil.copytree(tiny, tmp_path / "model")
    write_rows(tmp_path / "rows.jsonl", ROWS)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def told(here, cli):
    """The whole message with which training, or showing, refuses; nothing is written and nothing else is said."""

    def told(*given: str, data: str = "bad.jsonl", verb: str = "train") -> str:
        before = tree(here)
        arguments = settings("model", data, "run", *given)
        if verb == "show":
            arguments = ["model=model", f"data={data}", "template=chatml", *given]
        done = cli(verb, *arguments)
        assert (done.code, done.out) == (2, ""), done.err
        assert tree(here) == before, "something was written"
        return done.err.rstrip("\n")

    return told


def ledger_of(here: Path) -> dict[str, Any]:
    return json.loads((here / "run/ledger.json").read_text())


# ---- refused: the whole message

FILES: dict[str, str | bytes | list[Any]] = {
    "line 317": "".join(json.dumps(row) + "\n" for row in (ROWS * 20)[:316]) + '{"messages": [{"role": "user" "content": "x"}]}\n',
    "no row": "",
    "no good row": '[1\n{"prompt": "a", "response": ""}\n"just a prompt"\n{"note": "x"}\n',
    "no reply": [{"prompt": "a", "response": reply} for reply in ("b", None, "", " ", "\n", "b")],
    "no reply, several reasons": [
        talk(("user", "a"), ("assistant", None)),
        talk(("user", "a")),
        talk(("user", "a"), ("assistant", "b"), ("user", "c")),
        talk(("user", "a")),
    ],
    "roles": [*COLOURS, talk(("system", "s"), ("user", "a"), ("system", "t"), ("assistant", "b"))],
    "types": [{"prompt": "a", "response": "1"}, {"prompt": "b", "response": 2}, {"prompt": "c", "response": 3}],
    "GBK": json.dumps({"prompt": "问题", "response": "我们不知道。"}, ensure_ascii=False).encode("gbk"),
}  # fmt: skip

# (fault of the list, content, settings, message)
REFUSED = [
    (1, "line 317", "", r"""error bad.jsonl:317:31: not valid JSON
  found     Expecting ',' delimiter, at: '": [{"role": "user" "content": "x"}]}'
  to fix    add the comma, or write a quotation mark inside a text as \"
            or train without the bad rows: bad_rows=leave_out"""),
    (2, "GBK", "", """error bad.jsonl:1: the text is not UTF-8
  found     byte 0xCE at byte offset 12 (perhaps GB18030)
  expected  UTF-8
  to fix    save it as UTF-8: iconv -f GB18030 -t UTF-8 OLD > NEW
            or train without the bad rows: bad_rows=leave_out"""),
    (3, "no row", "", """error bad.jsonl: the file is empty
  found     no rows
  expected  at least one row
  to fix    give another file"""),
    (3, "no good row", "bad_rows=leave_out", """error bad.jsonl: 0 trainable rows
  found     not valid JSON × 1 (bad.jsonl:1)
            the reply is empty × 1 (bad.jsonl:2)
            the row is a text alone: a prompt without a reply × 1 (bad.jsonl:3)
            the columns are of no known format × 1 (bad.jsonl:4)
  expected  at least one conversation with a reply to learn
  to fix    mend these rows, or give other data"""),
    (5, "types", "", """error bad.jsonl:2: a column is not a text
  found     response: 2, a number
            and 1 more:
            a column is not a text × 1 (bad.jsonl:3)
  expected  a text
  to fix    write it in double quotes
            or train without the bad rows: bad_rows=leave_out"""),
    (6, "no reply", "", """error bad.jsonl:2: the reply is empty
  found     column response: null
            and 3 more:
            the reply is empty × 3 (bad.jsonl:3, bad.jsonl:4, bad.jsonl:5)
  expected  a text to learn
  to fix    write the response or remove the row
            or train without the bad rows: bad_rows=leave_out"""),
    (7, "no reply, several reasons", "", """error bad.jsonl:1: a message has no content
  found     message 2: content is null or missing
            and 3 more:
            there is no reply × 2 (bad.jsonl:2, bad.jsonl:4)
            the conversation ends with the user × 1 (bad.jsonl:3)
  expected  a text
  to fix    give it a text or remove the message
            or train without the bad rows: bad_rows=leave_out"""),
    (8, "roles", "", """error bad.jsonl:9: a system message is not at the front
  found     message 3 is a system message
  expected  one system message or none, then user, assistant and tool messages
  to fix    move it to the front or remove it
            or train without the bad rows: bad_rows=leave_out"""),
]  # fmt: skip


def put(here: Path, content: str | bytes | list[Any]) -> None:
    if isinstance(content, list):
        write_rows(here / "bad.jsonl", content)
    else:
        (here / "bad.jsonl").write_bytes(content.encode() if isinstance(content, str) else content)


@pytest.mark.parametrize(("fault", "content", "given", "message"), REFUSED, ids=lambda value: str(value)[:20])
def test_data_that_is_refused(fault, content, given, message, here, told):
    put(here, FILES[content])
    assert told(*given.split()) == message
    assert told(*given.split(), verb="show") == message


SETTINGS = [
    ("learning_rat=1e-3", """error argument learning_rat=1e-3: `learning_rat` is not a setting
  to fix    write `learning_rate`"""),
    ("data.0.formt=alpaca", """error argument data.0.formt=alpaca: `data.0.formt` is not a setting
  to fix    write `data.0.format`"""),
    ("lora.rank=4", """error argument lora.rank=4: `lora.rank` has no meaning here: method is full, so there are no adapters
  found     lora.rank: 4
  to fix    set method to lora, or remove it"""),
    ("too_long=drop", """error argument too_long=drop: `too_long` cannot be drop
  found     drop
  expected  leave_out, truncate or error
  to fix    write such a value, or remove it for the default: leave_out"""),
    ("batch_size=8", """error argument batch_size=8: `batch_size` is given twice
  found     first as batch_size=4
  to fix    remove one of them"""),
]  # fmt: skip


@pytest.mark.parametrize(("given", "message"), SETTINGS, ids=lambda value: value[:20])
def test_a_setting_that_is_refused(given, message, here, cli):
    """Fault 17: nothing is started, and the nearest name is told."""
    before = tree(here)
    done = cli("train", *settings("model", "rows.jsonl", "run"), given)
    assert (done.code, done.out, done.err.rstrip("\n")) == (2, "", message)
    assert tree(here) == before


def test_a_prompt_beyond_the_limit(here, told, cli):
    """Fault 9: the first is named with its length, or all are counted; the choices are told."""
    put(here, [*COLOURS, talk(("user", "word " * 200), ("assistant", "Yes.")), talk(("user", "word " * 300), ("assistant", "No."))])  # fmt: skip
    message = told("too_long=error")
    first, *others = message.splitlines()
    assert first == "error bad.jsonl:9, message 1: a turn is longer than max_length"
    assert others[0].startswith("  found     ")
    assert others[0].endswith(" are its prompt")
    assert others[1:] == [
        "  expected  at most 128 tokens",
        "  to fix    raise max_length, shorten the row, or too_long=leave_out (too_long=truncate cuts replies)",
    ]
    assert cli("train", *settings("model", "bad.jsonl", "run", "max_steps=1")).code == 0
    left = ledger_of(here)["turns"]["left"]["its prompt alone fills max_length"]
    assert (left["count"], [place[1] for place in left["places"]]) == (2, [9, 10])


def test_a_reply_that_is_cut(here, told, cli):
    """Fault 10: by default it is left out; where it may be cut, it is counted, and its stop is not learned."""
    put(here, [*COLOURS, talk(("user", "Count."), ("assistant", "word " * 300))])
    done = cli("show", "model=model", "data=bad.jsonl", "template=chatml", "too_long=truncate", "--json")
    (cut,) = [turn for turn in map(json.loads, done.out.splitlines()) if turn["source"] == "bad.jsonl:9"]
    assert not cut["completion"].endswith("<|im_end|>")
    assert cli("train", *settings("model", "bad.jsonl", "run", "max_steps=1", "too_long=truncate")).code == 0
    warned = ledger_of(here)["warnings"]
    assert warned == {
        "a reply is cut at max_length; its stop is not trained": {
            "count": 1,
            "places": [["bad.jsonl", 9, "line"]],
        }
    }


def test_validation_that_is_trained_on_too(here, cli):
    """Fault 11: counted, with the first places."""
    write_rows(here / "held.jsonl", [*COLOURS[:2], talk(("user", "Another?"), ("assistant", "Yes."))])
    assert (
        cli("train", *settings("model", "rows.jsonl", "run", "max_steps=1", "validation=held.jsonl")).code
        == 0
    )
    warned = ledger_of(here)["warnings"]["a validation conversation is also trained on"]
    assert (warned["count"], [place[:2] for place in warned["places"]]) == (
        2,
        [["held.jsonl", 1], ["held.jsonl", 2]],
    )


def test_a_control_token_in_a_text(here, cli):
    """Fault 13: told which, where, and in which message; on request it is ordinary text, byte by byte."""
    reply = "A marker: <|im_end|>, and so on."
    put(here, [*COLOURS, talk(("user", "What is it?"), ("assistant", reply))])
    done = cli("train", *settings("model", "bad.jsonl", "run", "max_steps=1"))
    assert done.code == 0, done.err
    left = ledger_of(here)["turns"]["left"]["control tokens in its text"]
    assert (left["count"], left["places"]) == (1, [["bad.jsonl", 9, "line"]])
    assert "control tokens in its text: <|im_end|> in message 2 (assistant)" in done.err
    given = ["model=model", "data=bad.jsonl", "template=chatml", "--json"]
    turns = [json.loads(line) for line in cli("show", *given, "control_tokens=escape").out.splitlines()]
    (turn,) = [turn for turn in turns if turn["source"] == "bad.jsonl:9"]
    (stop,) = [at for at, token in enumerate(turn["completion_ids"]) if token == turn["completion_ids"][-1]]
    assert stop == len(turn["completion_ids"]) - 1, "the control token in the text is one to the model"
    assert turn["completion"].count("<|im_end|>") == 1


def test_no_template(here, cli):
    """Fault 14: a template is asked for, before anything is loaded."""
    before = tree(here)
    done = cli("train", "model=model", "data=rows.jsonl", "output=run")
    assert done.code == 2
    assert done.err.rstrip("\n") == (
        "error the tokenizer has no chat template\n"
        "  expected  a template that says how a conversation becomes text\n"
        "  to fix    choose one: template=chatml (also llama2, llama3, mistral, gemma, vicuna, zephyr, alpaca, plain), or template=FILE.jinja"
    )
    assert tree(here) == before


def test_a_template_without_marks_has_exact_masks(here, cli):
    """Fault 14: {% generation %} is not needed: what is trained is the reply and its stop, and no more."""
    (here / "t.jinja").write_text(PLAIN)
    done = cli("show", "model=model", "data=rows.jsonl", "template=t.jinja", "--json")
    replies = [
        message["content"] for row in ROWS for message in row["messages"] if message["role"] == "assistant"
    ]
    assert [turn["completion"] for turn in map(json.loads, done.out.splitlines())] == [
        f"{reply}<|endoftext|>" for reply in replies
    ]


# ---- accepted


def test_a_byte_order_mark_changes_nothing(here, cli):
    """Fault 2: the same turns, place by place."""
    (here / "marked.jsonl").write_bytes(b"\xef\xbb\xbf" + (here / "rows.jsonl").read_bytes())
    plain, marked = (
        cli("show", "model=model", f"data={name}.jsonl", "template=chatml", "--json").out
        for name in ("rows", "marked")
    )
    assert marked.replace("marked.jsonl", "rows.jsonl") == plain
    assert len(plain.splitlines()) == 24


def test_tools_that_differ_from_row_to_row_are_kept_exactly(here, cli):
    """Fault 12: each row's schemas, and arguments as text and as object, parse back from what the model sees."""
    (here / "t.jinja").write_text(
        "{{ tools | tojson }}\n\n{% for m in messages %}{{ m.content }}"
        "{% for c in m.tool_calls or [] %}<call>{{ c.function | tojson }}</call>{% endfor %}"
        "{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    )
    schemas = [
        {"name": "f", "parameters": {"type": "object", "properties": {"b": {"type": "integer"}, "a": {}}}},
        {"name": "g", "parameters": {"type": "object", "properties": {"x": {"enum": [1, None, "z"]}}}},
    ]
    arguments: list[Any] = [{"b": 1, "a": [1.0, None]}, {"x": "z"}]
    rows = []
    for schema, given in zip(schemas, arguments, strict=True):
        call = {"type": "function", "function": {"name": schema["name"], "arguments": given}}
        said = {"role": "assistant", "content": "", "tool_calls": [call]}
        rows.append({"messages": [{"role": "user", "content": "Go."}, said], "tools": [schema]})
    rows.append({**rows[0], "tools": json.dumps(rows[0]["tools"])})
    write_rows(here / "tools.jsonl", rows)
    done = cli("show", "model=model", "data=tools.jsonl", "template=t.jinja", "max_length=4096", "--json")
    turns = list(map(json.loads, done.out.splitlines()))
    assert len(turns) == 3, done.err
    for turn, schema, given in zip(turns, [*schemas, schemas[0]], [*arguments, arguments[0]], strict=True):
        (tool,) = json.loads(turn["prompt"].partition("\n\n")[0])
        assert tool["function"] == schema
        call = json.loads(turn["completion"].partition("<call>")[2].partition("</call>")[0])
        assert call == {"name": schema["name"], "arguments": given}
