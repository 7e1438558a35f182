import gzip
import json
import os
import subprocess
import sys
import tracemalloc

import pytest

from imprint.data import load as load_module
from imprint.data.ledger import Ledger
from imprint.data.load import OVERLAPS, REPEATS, load, reopen
from imprint.errors import DataError
from imprint.recipe import DataSource

GOOD = [{"prompt": f"q{i}", "response": f"a{i}"} for i in range(40)]
U, A = {"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}


def take(base, *names, ledger=None, **settings):
    """Load files of a folder; returns what was loaded and its checked ledger."""
    ledger = ledger or Ledger()
    defaults = {"validation": 0.0, "bad_rows": "stop", "consecutive_replies": "merge", "seed": 0}
    loaded = load([DataSource(path=n) for n in names], **defaults | settings, ledger=ledger, base=base)
    ledger.check()
    return loaded, ledger


def test_several_sources_in_order(write, tmp_path):
    write("a.jsonl", GOOD[:3])
    write("b.csv", "question,answer\nq,a\n")
    loaded, ledger = take(tmp_path, "a.jsonl", "b.csv")
    assert [item.id for item in loaded.train] == ["a.jsonl:1", "a.jsonl:2", "a.jsonl:3", "b.csv:2"]
    assert loaded.validation == []
    assert ledger.files == {"a.jsonl": 3, "b.csv": 1}
    assert ledger.records.kept == {"used": 4}
    assert ledger.conversations.kept == {"train": 4, "validation": 0}


def test_columns_that_nothing_reads_are_told_once(write, tmp_path):
    write(
        "a.jsonl", [GOOD[0] | {"lang": "en"}, GOOD[1] | {"lang": ""}, GOOD[2], {"messages": [U, A], "n": 0}]
    )
    write("b.csv", "question,answer,lang\nq,a,de\n")
    _, ledger = take(tmp_path, "a.jsonl", "b.csv")
    assert ledger.notes == ["not used: `lang` in 2 of 5 rows; `n` in 1 of 5 rows"]
    assert take(tmp_path, "a.jsonl", bad_rows="leave_out")[1].notes == [
        "not used: `lang`, `n` in 1 of 4 rows"
    ]
    write("c.jsonl", GOOD)
    assert take(tmp_path, "c.jsonl")[1].notes == []


def test_bad_rows_stop_with_all_of_them_told(write, tmp_path):
    rows = [
        *GOOD[:2],
        {"prompt": "q", "response": ""},
        *[{"prompt": "q", "response": None}] * 7,
        {"prmpt": 1},
    ]
    path = write("a.jsonl", rows)
    path.write_text(path.read_text() + '{"prompt": \n')
    with pytest.raises(DataError) as caught:
        take(tmp_path, "a.jsonl")
    assert str(caught.value) == (
        "a.jsonl:3: the reply is empty\n"
        '  found     column response: ""\n'
        "            and 9 more:\n"
        "            the reply is empty × 7 (a.jsonl:4, a.jsonl:5, a.jsonl:6, a.jsonl:7, a.jsonl:8, …)\n"
        "            the columns are of no known format × 1 (a.jsonl:11)\n"
        "            not valid JSON × 1 (a.jsonl:12)\n"
        "  expected  a text to learn\n"
        "  to fix    write the response or remove the row\n"
        "            or train without the bad rows: bad_rows=leave_out"
    )
    loaded, ledger = take(tmp_path, "a.jsonl", bad_rows="leave_out")
    assert len(loaded.train) == 2
    assert {reason: tally.count for reason, tally in ledger.records.left.items()} == {
        "the reply is empty": 8,
        "the columns are of no known format": 1,
        "not valid JSON": 1,
    }


@pytest.mark.parametrize("bad_rows", ["stop", "leave_out"])
def test_nothing_to_train_is_an_error(write, tmp_path, bad_rows):
    write("a.jsonl", [{"messages": [U, {**A, "weight": 0}]}])
    with pytest.raises(
        DataError, match=r"0 trainable rows(?s:.*)no reply has a weight above 0 × 1 \(a.jsonl:1\)"
    ):
        take(tmp_path, "a.jsonl", bad_rows=bad_rows)
    write("a.jsonl", [{"prompt": "q", "response": ""}])
    with pytest.raises(DataError, match=r"the reply is empty"):
        take(tmp_path, "a.jsonl", bad_rows=bad_rows)


def test_consecutive_replies(write, tmp_path):
    write(
        "a.jsonl", [{"messages": [U, A, A]}, {"messages": [U, A]}, {"messages": [U, {**A, "weight": 0}, A]}]
    )
    loaded, ledger = take(tmp_path, "a.jsonl")
    assert loaded.train[0].messages[1].content == "a\n\na"
    assert list(ledger.conversations.left) == ["adjacent replies have different weights"]
    other, ledger = take(tmp_path, "a.jsonl", consecutive_replies="leave_out")
    assert [item.id for item in other.train] == ["a.jsonl:2"]
    assert ledger.conversations.left["two replies in a row"].count == 2
    assert loaded.fingerprint != other.fingerprint


def test_rows_without_weight_are_left_out(write, tmp_path):
    write("a.jsonl", [GOOD[0], {**GOOD[1], "weight": 0}, {"messages": [A, U, {**A, "train": False}]}])
    loaded, ledger = take(tmp_path, "a.jsonl")
    assert len(loaded.train) == 1
    assert ledger.conversations.left["no reply has a weight above 0"].count == 2


def test_validation_share_and_fingerprint(write, tmp_path):
    write("a.jsonl", GOOD)
    loaded, ledger = take(tmp_path, "a.jsonl", validation=0.2)
    again, _ = take(tmp_path, "a.jsonl", validation=0.2)
    assert loaded == again
    assert len(loaded.train) + len(loaded.validation) == 40
    assert loaded.validation
    assert ledger.conversations.kept["validation"] == len(loaded.validation)
    fingerprints = {loaded.fingerprint}
    for settings in ({}, {"validation": 0.3}, {"validation": 0.2, "seed": 1}):
        fingerprints.add(take(tmp_path, "a.jsonl", **settings)[0].fingerprint)
    assert len(fingerprints) == 4
    # what loads the same rows has the same fingerprint
    assert (
        take(tmp_path, "a.jsonl", validation=0.2, bad_rows="leave_out")[0].fingerprint == loaded.fingerprint
    )
    unsplit = [take(tmp_path, "a.jsonl", seed=seed)[0].fingerprint for seed in (0, 1)]
    assert unsplit[0] == unsplit[1]
    write("a.jsonl", GOOD[:-1])
    assert take(tmp_path, "a.jsonl", validation=0.2)[0].fingerprint not in fingerprints


def test_a_validation_file_and_its_copies(write, tmp_path):
    write("a.jsonl", GOOD)
    write("v.jsonl", [GOOD[3], {"prompt": "q3", "response": "another"}, GOOD[5]])
    loaded, ledger = take(tmp_path, "a.jsonl", validation=DataSource(path="v.jsonl"))
    assert (len(loaded.train), len(loaded.validation)) == (40, 3)
    assert ledger.files == {"a.jsonl": 40, "v.jsonl": 3}
    warning = ledger.warnings["a validation conversation is also trained on"]
    assert [str(place) for place in warning.places] == ["v.jsonl:1", "v.jsonl:3"]
    write("v.jsonl", [{"x": 1}])
    with pytest.raises(DataError) as caught:
        take(tmp_path, "a.jsonl", validation=DataSource(path="v.jsonl"))
    assert "validation.fields.prompt=" in str(caught.value)
    with pytest.raises(DataError, match="0 validation rows"):
        take(tmp_path, "a.jsonl", validation=DataSource(path="v.jsonl"), bad_rows="leave_out")


def test_conversations_that_repeat_are_told_and_many_are_warned_of(write, tmp_path):
    """Up to one in a hundred it is a remark. Another reply to the same prompt is no copy."""
    rows = [{"prompt": f"q{i}", "response": "a"} for i in range(199)]
    write("a.jsonl", [*rows, rows[4], {"prompt": "q5", "response": "b"}])
    _, ledger = take(tmp_path, "a.jsonl", validation=0.0)
    assert {text: (told.count, str(told)) for text, told in ledger.remarks.items()} == {
        REPEATS: (1, "a.jsonl:200")
    }
    assert REPEATS not in ledger.warnings
    write("a.jsonl", [*rows, *rows[4:11]])
    _, ledger = take(tmp_path, "a.jsonl", validation=0.0)
    assert (
        str(ledger.warnings[REPEATS]) == "a.jsonl:200, a.jsonl:201, a.jsonl:202, a.jsonl:203, a.jsonl:204, …"
    )
    assert ledger.warnings[REPEATS].count == 7
    assert "keep one of each" in ledger.details[REPEATS]
    assert Ledger.from_json(json.loads(json.dumps(ledger.to_json()))).to_json() == ledger.to_json()
    # among what is trained on alone: copies are on one side, whole
    loaded, ledger = take(tmp_path, "a.jsonl", validation=0.5)
    trained = [int(conversation.messages[0].content[1:]) for conversation in loaded.train]
    assert ledger.warnings[REPEATS].count == len(trained) - len(set(trained)) > 0
    assert OVERLAPS not in ledger.warnings


def test_equal_prompts_hold_nothing_out_and_warn(write, tmp_path):
    write("a.jsonl", [{"prompt": "q", "response": str(i)} for i in range(5)])
    loaded, ledger = take(tmp_path, "a.jsonl", validation=0.5)
    assert (len(loaded.train), len(loaded.validation)) == (5, 0)
    assert "nothing is held out: all prompts are equal" in ledger.warnings


def rows_of(path):
    """The rows of a file, by other means than imprint's."""
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    if ".jsonl" in path.name:
        return [json.loads(line) for line in data.decode().split("\n") if line.strip()]
    return json.loads(data)


@pytest.mark.parametrize(
    ("name", "count", "empty"),
    [
        ("gsm8k_train.jsonl.gz", 7473, 0),
        ("alpaca_5000.json", 5000, 2),
        ("tinker_example_conversations.jsonl", 128, 0),
        ("fastchat_dummy_conversation.json", 500, 0),
        ("tulu3_sft_sample.jsonl", 100, 0),
        ("llms_from_scratch_instructions.json", 1100, 0),
        ("code_alpaca_2k.json", 2017, 2),
        ("glaive_toolcall_en_demo.json", 300, 0),
        ("reason_tool_use_demo_50.jsonl", 50, 0),
        ("loss_weight_messages_demo.jsonl", 500, 0),
        ("t0_p3_templated.jsonl.gz", 7942, 400),
    ],
)
def test_real_files(sft, name, count, empty):
    rows = rows_of(sft / name)
    for row in rows:  # GPT-3's stop is no text
        row.update(
            {"completion": row["completion"].removesuffix("<|endoftext|>")} if "completion" in row else {}
        )
    blank = [row for row in rows if not str(row.get("output", row.get("completion", "x"))).strip()]
    assert (len(rows), len(blank)) == (count, empty)
    loaded, ledger = take(sft, name, bad_rows="leave_out")
    assert (ledger.records.total, len(loaded.train)) == (count, count - empty)
    assert len({item.source for item in loaded.train}) == count - empty
    kept = iter(loaded.train)
    for row in rows:
        if row in blank:
            continue
        found = next(kept).messages
        if "output" in row:
            given = row["instruction"] + ("\n\n" + row["input"] if row["input"] else "")
            assert [m.content for m in found] == [given, row["output"]]
        elif "question" in row or "completion" in row:
            assert [m.content for m in found] == list(row.values())[:2]
        else:
            given = row.get("messages") or row["conversations"]
            assert len(found) == len(given)
            texts = [m.get("content", m.get("value")) for m in given]
            for message, text in zip(found, texts, strict=True):
                assert message.content == text or message.tool_calls or isinstance(text, list)


def test_a_real_file_with_broken_lines(sft):
    lines = (sft / "alpaca_libre_v2.jsonl").read_text().split("\n")
    good, broken = [], []
    for number, line in enumerate(lines, 1):
        try:
            good += [json.loads(line)] if line.strip() else []
        except ValueError:
            broken.append(number)
    loaded, ledger = take(sft, "alpaca_libre_v2.jsonl", bad_rows="leave_out")
    assert len(loaded.train) == sum(1 for row in good if row["output"].strip())
    assert ledger.records.left["not valid JSON"].count == len(broken) > 0
    assert [place.line for place in ledger.records.left["not valid JSON"].places] == broken[:5]


def test_what_was_loaded_is_read_again_from_its_folder(write, tmp_path):
    write("a.jsonl", [*GOOD, {"messages": [U, {**A, "reasoning_content": "because"}]}])
    folder = tmp_path / "spool"
    folder.mkdir()
    loaded, _ = take(tmp_path, "a.jsonl", validation=0.3, folder=folder)
    assert reopen(folder) == loaded
    moved = reopen(folder, {"a.jsonl": "b.jsonl"})
    assert [str(item.source) for item in moved.train] == [
        str(item.source).replace("a", "b") for item in loaded.train
    ]
    assert moved.fingerprint == loaded.fingerprint
    without, _ = take(tmp_path, "a.jsonl", validation=0.3)
    assert without == loaded


@pytest.mark.parametrize(
    ("rows", "share"),
    [
        (GOOD[:4], 0.0),
        ([*GOOD[:3], {"messages": [U, {**A, "reasoning_content": "because"}]}], 0.25),
        ([{"messages": [U, {**A, "content": "<think>because</think>a"}]}, GOOD[0]], 0.5),
        ([{"messages": [U, {**A, "reasoning_content": "b"}, U, A]}, {"messages": [U, A]}], 0.5),
        ([{"messages": [{**U, "content": "<think>not a reply's</think>"}, A]}], 0.0),
    ],
)
def test_the_share_with_reasoning(write, tmp_path, rows, share):
    write("a.jsonl", rows)
    assert take(tmp_path, "a.jsonl")[0].reasoning == share


def test_a_file_that_is_touched_but_not_changed(write, tmp_path, monkeypatch):
    write("a.jsonl", GOOD)
    path, original = tmp_path / "a.jsonl", load_module.read

    def touched(source, base, **rest):
        yield from original(source, base, **rest)
        os.utime(path, (1, 1))

    monkeypatch.setattr(load_module, "read", touched)
    assert len(take(tmp_path, "a.jsonl")[0].train) == 40

    def changed(source, base, **rest):
        yield from original(source, base, **rest)
        path.write_text(path.read_text().replace("q1", "q2"))

    monkeypatch.setattr(load_module, "read", changed)
    with pytest.raises(DataError, match="changed while it was read"):
        take(tmp_path, "a.jsonl")


def test_memory_holds_a_few_bytes_of_a_row(write, tmp_path):
    """Four times the rows, each of a thousand characters: what is held grows by their indices alone."""
    peaks = []
    for count in (2000, 8000):
        rows = [{"prompt": f"q{i}" + "x" * 500, "response": "y" * 500} for i in range(count)]
        write("a.jsonl", rows)
        del rows
        tracemalloc.start()
        loaded, _ = take(tmp_path, "a.jsonl", validation=0.1)
        assert sum(1 for _ in loaded.train) + len(loaded.validation) == count
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert (peaks[1] - peaks[0]) / 6000 < 64


def test_loading_imports_nothing_heavy(write):
    path = write("a.jsonl", GOOD)
    program = f"""
import sys
from imprint.data.ledger import Ledger
from imprint.data.load import OVERLAPS, REPEATS, load
from imprint.recipe import DataSource
settings = dict(validation=0.1, bad_rows="stop", consecutive_replies="merge", seed=0, ledger=Ledger())
load([DataSource(path={str(path)!r})], **settings)
heavy = {{"torch", "transformers", "datasets", "pyarrow", "numpy", "pandas", "rich"}} & set(sys.modules)
print(sorted(heavy))
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    run = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert (run.stdout.strip(), run.stderr) == ("[]", "")
