"""What is read from the spool is what was written, and costs no memory until it is read."""

import dataclasses
import datetime
import gc
import json
import os
import random
import subprocess
import sys
from array import array

import pytest

from imprint.data.conversation import Conversation, Message, Place, Tokens
from imprint.data.spool import LINES, Numbers, Part, Scratch, Spool, SpoolWriter, write_numbers

CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": [1, null]}'}}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "x": 1.5}}}
U, A = Message("user", "u"), Message("assistant", "a")
SPECIAL = [
    Conversation((U, A), Place("a.jsonl", 1), "a.jsonl:1"),
    Conversation((U, A), Place("a.jsonl", 2), "a.jsonl:1"),  # an id that only looks like a place
    Conversation((U, A), Place("b.parquet", 3, "row"), "b.parquet:row 3"),
    Conversation((U, A), Place("b.parquet", 4, "row"), "", (TOOL, TOOL), 0.25),
    Conversation((U, A), Place("a.jsonl", 5), "x", (), 0.0),
    Conversation((U, A), Place("a.jsonl", 6), "x", (TOOL,)),
    Conversation((Message("user", ""), Message("assistant", "")), Place("a.jsonl", 10**12)),
    Conversation(
        (
            Message("system", 'line\nbreak \u2028 \x00 "quoted" \\ 🦀 é'),
            Message("user", "\ud83d alone, \ud83d\ude00 as two halves"),
            Message("assistant", "", tool_calls=(CALL, CALL)),
            Message("tool", "r", name="f", tool_call_id="c1"),
            Message("assistant", "z", "because", weight=0.0),
            Message("assistant", "z", "", weight=0.1),
            Message("assistant", "z", weight=1 / 3, name=""),
        ),
        Place("a.jsonl", 7),
        "seven",
    ),
]


def spooled(folder, conversations):
    with SpoolWriter(folder) as writer:
        for conversation in conversations:
            writer.add(conversation)
    return Spool(folder, writer.names)


def test_everything_comes_back(tmp_path):
    spool = spooled(tmp_path, SPECIAL)
    assert [spool[i] for i in range(len(spool))] == SPECIAL
    for found, given in zip(Part(spool, range(len(spool))), SPECIAL, strict=True):
        assert repr(found) == repr(given)  # also the types: tuples, floats


def test_every_field_is_kept(tmp_path):
    """A field that is added to a message or a conversation must not be forgotten here."""
    values = {"tuple": ({"k": 1},), "str": "x", "float": 0.5, "Place": Place("f", 1)}
    values = {"Tokens": Tokens((1, 2), (0.0, 1.0)), **values}
    for kind, given in (
        (Message, {"role": "user", "content": "c"}),
        (Conversation, {"messages": (U, A), "source": Place("f", 1)}),
    ):
        for field in dataclasses.fields(kind):
            if field.name == "messages":
                continue
            value = next(value for name, value in values.items() if name in str(field.type))
            made = kind(**given | {field.name: value})
            whole = Conversation((U, made), Place("f", 1)) if kind is Message else made
            folder = tmp_path / f"{kind.__name__}-{field.name}"
            folder.mkdir()
            assert spooled(folder, [whole])[0] == whole, field.name


def test_a_part_is_a_sequence(tmp_path):
    spool = spooled(tmp_path, SPECIAL)
    rows = [6, 1, 1, 3]
    part, same = Part(spool, rows), [SPECIAL[row] for row in rows]
    assert part == same
    assert part != same[:-1]
    assert part != [*same[:-1], same[0]]
    assert list(part) == same
    assert list(reversed(part)) == same[::-1]
    assert (part[-1], part[1:3], part[::-1]) == (same[-1], same[1:3], same[::-1])
    assert same[1] in part
    with pytest.raises(IndexError):
        part[4]
    assert Part(spool, []) == []
    assert not Part(spool, [])


def test_nothing_is_a_spool_too(tmp_path):
    spool = spooled(tmp_path, [])
    assert len(spool) == 0
    write_numbers(tmp_path / "n", array("q"))
    assert list(Numbers(tmp_path / "n")) == []


def test_numbers(tmp_path):
    numbers = [3, -1, 2**62, 0]
    write_numbers(tmp_path / "n", array("q", numbers))
    found = Numbers(tmp_path / "n")
    assert (list(found), found[-1], found[1:3], len(found)) == (numbers, 0, [-1, 2**62], 4)


def test_other_names_of_the_same_files(tmp_path):
    """The id of a row without one is its place, under whatever name the file has."""
    spooled(tmp_path, SPECIAL)
    found = Spool(tmp_path, ["moved/a.jsonl", "b.parquet"])
    assert (found[0].source, found[0].id) == (Place("moved/a.jsonl", 1), "moved/a.jsonl:1")
    assert (found[1].source, found[1].id) == (Place("moved/a.jsonl", 2), "a.jsonl:1")
    assert found[2] == SPECIAL[2]


def test_what_json_does_not_have_becomes_its_text(tmp_path):
    """Tables hold dates. A template that shows one shows this text."""
    day = datetime.date(2026, 1, 2)
    made = Conversation((U, A), Place("t", 1), tools=({"name": "f", "since": day},))
    assert spooled(tmp_path, [made])[0].tools == ({"name": "f", "since": str(day)},)


def test_lines_are_json(tmp_path):
    """Nothing that could run when it is read, and plain texts stay readable."""
    spooled(tmp_path, SPECIAL[:1])
    assert (tmp_path / LINES).read_text() == '[[["user","u"],["assistant","a"]],0,1]\n'
    assert json.loads((tmp_path / LINES).read_text())


def test_random_conversations(tmp_path):
    rng = random.Random(0)
    texts = ["", "a", "é\n", "🦀" * 3, '"]', "\\", "x" * 5000]
    made = [
        Conversation(
            tuple(
                Message(rng.choice(["user", "assistant"]), rng.choice(texts), rng.choice([None, *texts]))
                for _ in range(rng.randrange(1, 6))
            ),
            Place(rng.choice("ab"), i),
            weight=rng.random(),
        )
        for i in range(300)
    ]
    spool = spooled(tmp_path, made)
    order = rng.sample(range(300), 300)
    assert Part(spool, order) == [made[i] for i in order]


def test_a_temporary_folder_goes_with_its_last_reader():
    scratch = Scratch()
    path = scratch.path
    assert path.stat().st_mode & 0o777 == 0o700
    with SpoolWriter(path) as writer:
        writer.add(SPECIAL[0])
    part = Part(Spool(path, writer.names, scratch), [0])
    del scratch
    gc.collect()
    assert part[0] == SPECIAL[0]
    del part
    gc.collect()
    assert not path.exists()


def test_a_temporary_folder_goes_at_exit(tmp_path):
    program = "from imprint.data.spool import Scratch; kept = Scratch(); print(kept.path.is_dir())"
    environment = os.environ | {"TMPDIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    run = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == "True"
    assert list(tmp_path.iterdir()) == []


def test_a_scratch_folder_collected_deep_in_the_stack_is_removed_at_exit(monkeypatch, tmp_path):
    """What is raised while objects are collected would be lost but for a line on standard error."""
    from imprint.data import spool

    def too_deep(*_, **__):
        raise RecursionError

    (tmp_path / "scratch").mkdir()
    later = []
    with monkeypatch.context() as patch:
        patch.setattr(spool.shutil, "rmtree", too_deep)
        patch.setattr(spool.atexit, "register", lambda *given, **named: later.append((given, named)))
        spool._remove(tmp_path / "scratch", os.getpid())
    (((_, path), named),) = later
    spool.shutil.rmtree(path, **named)
    assert not (tmp_path / "scratch").exists()
