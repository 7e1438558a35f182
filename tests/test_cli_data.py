"""`imprint data check | convert | sets`, as they are typed."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from conftest import environment, imprint, write_rows

PAIRS = [{"prompt": f"What is {n}?", "response": f"It is {n}."} for n in range(4)]
ALPACA = {"instruction": "Say a.", "input": "", "output": "a", "text": "rendered"}


@pytest.fixture
def data(tmp_path):
    return write_rows(tmp_path / "data.jsonl", [*PAIRS, ALPACA, PAIRS[0]])


@pytest.mark.parametrize("verb", ["data", "data check", "data convert", "data sets"])
def test_the_help_is_short_and_has_examples(verb, cli):
    done = cli(*verb.split(), "--help")
    assert done.code == 0
    lines = done.out.splitlines()
    assert max(map(len, lines)) <= 80
    assert len(lines) <= 45
    assert f"imprint {verb}" in done.out.split("Example", 1)[1]


def test_help_loads_no_torch():
    script = (
        "import atexit, sys\n"
        'names = {"torch", "transformers", "datasets"}\n'
        "atexit.register(lambda: print(sorted(names & set(sys.modules)), file=sys.stderr))\n"
        "from imprint.cli import main\nsys.exit(main())"
    )
    for arguments in (["data", "--help"], ["data", "sets"], ["data", "check", "--help"]):
        done = subprocess.run(
            [sys.executable, "-c", script, *arguments],
            capture_output=True,
            text=True,
            env=environment(),
            timeout=60,
        )
        assert (done.returncode, done.stderr.strip()) == (0, "[]")


def test_check_tells_a_person(data, cli):
    done = cli("data", "check", data)
    assert done.code == 0
    assert max(map(len, done.out.splitlines())) <= 80
    told = " ".join(done.out.split())
    for said in (
        "prompt_response rows 5, recognised by prompt + response",
        "alpaca rows 1, recognised by instruction + input + output",
        "not used text",
        "5 of 2 messages",
        "line 6 as line 1",
        "user What is 0? assistant It is 0.",
        "All 6 rows can be used: 6 conversations.",
    ):
        assert said in told, said


def test_check_tells_a_program(data, cli):
    done = cli("data", "check", data, "--json")
    found = json.loads(done.out)
    assert (done.code, found["records"], found["refused"], found["repeated_conversations"]["count"]) == (
        0,
        6,
        0,
        1,
    )
    shape = found["sources"][1]
    assert (shape["format"], shape["recognised_by"]["ignored"]) == ("alpaca", ["text"])


def test_check_ends_with_2_where_rows_are_refused_and_says_the_mend(tmp_path, cli):
    bad = write_rows(
        tmp_path / "bad.jsonl", [PAIRS[0], {"q": "a", "gold": "b"}, {"prompt": "a", "response": ""}]
    )
    done = cli("data", "check", bad)
    assert done.code == 2
    told = " ".join(done.out.split())
    assert "refused: the reply is empty" in told
    assert "write the response or remove the row" in told
    assert "name your columns: fields.prompt=COLUMN fields.response=COLUMN" in told
    assert "data.0" not in told
    assert "2 of 3 rows cannot be used" in told
    done = cli("data", "check", bad, "bad_rows=leave_out")
    assert done.code == 0
    assert "2 are left out, as bad_rows says" in done.out


def test_check_takes_the_settings_of_a_source(tmp_path, cli):
    given = write_rows(tmp_path / "a.jsonl", [{"q": "a", "gold": "b"}] * 2)
    other = write_rows(tmp_path / "b.jsonl", [{"q": "c", "gold": "d"}])
    done = cli("data", "check", given, other, "fields.prompt=q", "fields.response=gold", "--json")
    found = json.loads(done.out)
    assert [shape["rows"] for shape in found["sources"]] == [2, 1]
    for argument, told in (
        ("frmat=alpaca", "write format=alpaca"),
        ("format=alpacca", "format=alpaca"),
        ("epochs=3", "`epochs` is not a setting of data"),
        ("path=x", "`path` is not a setting of data"),
    ):
        done = cli("data", "check", given, argument)
        assert done.code == 2
        assert told in done.err
    assert (
        "--template has no effect without --model" in cli("data", "check", given, "--template", "chatml").err
    )


def test_check_shows_what_the_model_sees(data, tiny, cli):
    done = cli("data", "check", data, "--model", tiny, "--template", "chatml")
    assert done.code == 0
    assert "<|im_start|>user↵" in done.out
    assert "⟦It is 0.<|im_end|>⟧" in done.out
    found = json.loads(cli("data", "check", data, "--model", tiny, "--template", "chatml", "--json").out)
    assert [turn["completion"] for turn in found["turns"]] == ["It is 0.<|im_end|>", "a<|im_end|>"]


def test_check_says_why_an_example_has_nothing_to_train(tmp_path, tiny, cli):
    long = write_rows(tmp_path / "long.jsonl", [{"prompt": "a", "response": "on and on " * 200}])
    done = cli("data", "check", long, "--model", tiny, "--template", "chatml")
    assert "nothing of it is trained: it is longer than max_length" in " ".join(done.out.split())


def test_check_reads_folders_globs_and_standard_input(data, tmp_path, cli):
    for given in (tmp_path, tmp_path / "*.jsonl"):
        assert "All 6 rows can be used" in cli("data", "check", given).out
    done = imprint("data", "check", "-", stdin=data.read_text())
    assert (done.code, "All 6 rows can be used" in done.out) == (0, True)


def test_check_of_every_shape_of_row_has_something_to_show(tmp_path, cli):
    """Documents, ids, tools, thoughts: each is told and shown, none breaks the page."""
    call = {"type": "function", "function": {"name": "add", "arguments": "{}"}}
    rows = [
        {"text": "[bold]It was[/bold] a dark night."},
        {"input_ids": [1, 2, 3], "labels": [-100, 2, 3]},
        {"tools": [{"name": "add"}, {"name": "now"}], "messages": [
            {"role": "user", "content": "x\ty [red]"}, {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "content": "2"}, {"role": "assistant", "content": "z" * 1000, "reasoning_content": "hm"},
            *[{"role": role, "content": "more"} for role in ("user", "assistant") * 4]]},
    ]  # fmt: skip
    for number, row in enumerate(rows):
        done = cli("data", "check", write_rows(tmp_path / f"{number}.jsonl", [row]))
        assert done.code == 0
        assert max(map(len, done.out.splitlines())) <= 80
    assert "offered in 1 conversation, 1 call" in " ".join(done.out.split())
    assert "(thinks) hm" in done.out
    assert "… (1,000 characters)" in " ".join(done.out.split())
    assert "[bold]It was[/bold]" in cli("data", "check", tmp_path / "0.jsonl").out
    assert "3, 2 of them trained: 1 2 3" in cli("data", "check", tmp_path / "1.jsonl").out


def test_convert(data, tmp_path, cli):
    out = tmp_path / "out.jsonl"
    done = cli("data", "convert", data, out)
    assert (done.code, done.out.strip()) == (0, str(out))
    assert "written" in done.err
    assert "What became of the data" in done.err
    assert len(out.read_text().splitlines()) == 6
    done = cli("data", "convert", data, out)
    assert done.code == 2
    assert "--force" in done.err
    assert cli("data", "convert", data, out, "--to", "alpaca", "--force").code == 0
    assert json.loads(out.read_text().splitlines()[0]) == {
        "instruction": "What is 0?",
        "input": "",
        "output": "It is 0.",
    }
    done = cli("data", "convert", data, "-", "--to", "question_answer")
    assert json.loads(done.out.splitlines()[3]) == {"question": "What is 3?", "answer": "It is 3."}
    done = cli("data", "convert", data)
    assert done.code == 2
    assert f"imprint data convert {data} out.jsonl" in done.err


def test_convert_takes_several_sources_and_settings(tmp_path, cli):
    given = write_rows(tmp_path / "a.jsonl", [{"q": "a", "gold": "b"}, {"q": "", "gold": "b"}])
    other = write_rows(tmp_path / "b.jsonl", [{"q": "c", "gold": "d"}])
    arguments = [
        "data",
        "convert",
        given,
        other,
        tmp_path / "out.csv",
        "fields.prompt=q",
        "fields.response=gold",
    ]
    done = cli(*arguments)
    assert done.code == 2
    assert f"{given}:1" not in done.err
    assert f"{given}:2: the prompt is empty" in done.err
    assert not (tmp_path / "out.csv").exists()
    assert cli(*arguments, "bad_rows=leave_out", "--to", "prompt_response").code == 0
    assert (tmp_path / "out.csv").read_text() == "prompt,response\na,b\nc,d\n"


def test_sets(cli):
    done = cli("data", "sets")
    assert done.code == 0
    assert max(map(len, done.out.splitlines())) <= 80
    for name in ("alpaca *", "dolly", "oasst1", "gsm8k"):
        assert f"\n{name}" in done.out
    told = " ".join(cli("data", "sets", "alpaca").out.split())
    assert "tatsu-lab/alpaca" in told
    assert "not for commercial use" in told
    assert "data=alpaca" in told
    assert {one["name"] for one in json.loads(cli("data", "sets", "--json").out)} >= {"alpaca", "lima"}
    assert json.loads(cli("data", "sets", "lima", "--json").out)[0]["hub"] == "GAIR/lima"
    done = cli("data", "sets", "alpacca")
    assert done.code == 2
    assert "write alpaca" in done.err


def test_a_setting_given_twice_is_said_plainly(tmp_path, cli):
    (tmp_path / "a.jsonl").write_text('{"prompt": "a", "response": "b"}\n')
    done = cli("data", "check", str(tmp_path / "a.jsonl"), "share=0.5", "share=0.6")
    assert done.code == 2
    assert "`share` is given twice" in done.err
    assert "data.0" not in done.err
