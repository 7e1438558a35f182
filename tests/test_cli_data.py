"""`imprint data check | convert | sets`, as they are typed."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys

import pytest

from conftest import environment, imprint, write_rows
from imprint.data.catalogue import FORMATS

PAIRS = [{"prompt": f"What is {n}?", "response": f"It is {n}."} for n in range(4)]
ALPACA = {"instruction": "Say a.", "input": "", "output": "a", "text": "rendered"}


@pytest.fixture
def data(tmp_path):
    return write_rows(tmp_path / "data.jsonl", [*PAIRS, ALPACA, PAIRS[0]])


@pytest.mark.parametrize("verb", ["data", "data check", "data convert", "data formats", "data sets"])
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
    for arguments in (["data", "--help"], ["data", "sets"], ["data", "formats"], ["data", "check", "--help"]):
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
        "not used `text`",
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
    assert (shape["format"], shape["not_used"]) == ("alpaca", {"text": 1})


def test_check_ends_with_2_where_rows_are_refused_and_says_the_mend(tmp_path, cli):
    bad = write_rows(
        tmp_path / "bad.jsonl", [PAIRS[0], {"q": "a", "gold": "b"}, {"prompt": "a", "response": ""}]
    )
    done = cli("data", "check", bad)
    assert done.code == 2
    told = " ".join(done.out.split())
    assert "refused: the reply is empty" in told
    assert "write the response or remove the row" in told
    assert "name your columns: fields.prompt=q fields.response=gold" in told
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


def test_unused_columns_of_all_rows_are_counted(tmp_path, cli):
    rows = [{"prompt": f"a{n}", "response": "b"} for n in range(8)]
    rows += [
        {"prompt": "c", "response": "d", "lang": "en", "meta": {"a": 1}},
        {"prompt": "e", "response": "f"},
    ]
    rows[2]["lang"], rows[3]["lang"] = "de", None
    given = write_rows(tmp_path / "a.jsonl", rows)
    assert "not used `lang` in 2 of 10 rows; `meta` in 1 of 10 rows" in " ".join(
        cli("data", "check", given).out.split()
    )
    (found,) = json.loads(cli("data", "check", given, "--json").out)["sources"]
    assert found["not_used"] == {"lang": 2, "meta": 1}
    done = cli("data", "convert", given, str(tmp_path / "out.jsonl"))
    assert "note not used: `lang` in 2 of 10 rows; `meta` in 1 of 10 rows" in " ".join(done.err.split())


def test_unused_columns_that_are_empty_are_not_told_and_many_are_cut(tmp_path, cli):
    (tmp_path / "a.csv").write_text("prompt,response,note\na,b,\nc,d,\n")
    assert "not used" not in cli("data", "check", str(tmp_path / "a.csv")).out
    row = {"prompt": "a", "response": "b"} | {f"c{n}": n for n in range(32)}
    told = " ".join(cli("data", "check", write_rows(tmp_path / "b.jsonl", [row, row])).out.split())
    assert "`c18`, `c19` in all 2 rows; and 12 others" in told
    assert "`c20`" not in told


def test_settings_of_one_source_go_before_those_of_all(tmp_path, cli):
    one = write_rows(tmp_path / "a.jsonl", [{"q": "a", "gold": "b"}] * 2)
    other = write_rows(tmp_path / "b.jsonl", [{"ask": "c", "gold": "d"}])
    given = ("fields.response=gold", "data.0.fields.prompt=q", "data.1.fields.prompt=ask")
    done = cli("data", "check", one, other, *given, "--json")
    assert [shape["rows"] for shape in json.loads(done.out)["sources"]] == [2, 1]
    done = cli("data", "check", one, other, "fields.prompt=q", "data.1.fields.prompt=ask", given[0], "--json")
    assert [shape["rows"] for shape in json.loads(done.out)["sources"]] == [2, 1]
    done = cli("data", "check", one, other, "fields.prompt=q", given[0])  # what is wrong with which of them
    assert "data.1.fields.prompt=" in done.out
    done = cli("data", "convert", one, other, *given, str(tmp_path / "out.jsonl"))
    assert (done.code, len((tmp_path / "out.jsonl").read_text().splitlines())) == (0, 3)


def test_sources_may_be_named_as_in_a_recipe(tmp_path, cli):
    given = write_rows(tmp_path / "a.jsonl", PAIRS)
    for named in ([f"data={given}"], [f"data.0.path={given}", "data.0.share=1"]):
        assert json.loads(cli("data", "check", *named, "--json").out)["records"] == 4
    assert cli("data", "convert", f"data={given}", str(tmp_path / "out.jsonl")).code == 0
    for arguments, what, fix in (
        ([given, f"data.1.path={given}"], "sources are named by themselves here", f"write {given} {given}"),
        ([f"data.1.path={given}"], "the numbers of the sources leave a gap", f"write {given}"),
        ([given, "data.1.share=0.5"], "there is no source data.1", "write share=0.5"),
        ([given, "data.0.shar=0.5"], "`shar` is not a setting of data", "write share=0.5"),
        ([given, given, "data.1.shar=0.5"], "`shar` is not a setting of data", "write data.1.share=0.5"),
        ([given, "model=x"], "`model` is not a setting of data", "write --model x"),
    ):
        done = cli("data", "check", *arguments)
        assert done.code == 2
        assert what in done.err
        assert fix in done.err


def test_formats(cli):
    done = cli("data", "formats")
    assert done.code == 0
    assert max(map(len, done.out.splitlines())) <= 80
    listed = json.loads(cli("data", "formats", "--json").out)
    for one in listed:
        assert f"\n{one['name']} " in done.out
        told = cli("data", "formats", one["name"])
        assert max(map(len, told.out.splitlines())) <= 80
        assert all(column in told.out for column in one["columns"])
        assert "example" in told.out
    assert [one["name"] for one in listed] == [one.name for one in FORMATS]
    done = cli("data", "formats", "alpacca")
    assert (done.code, "write alpaca" in done.err) == (2, True)


def test_the_verdict_where_nothing_is_left(tmp_path, cli):
    (tmp_path / "a.jsonl").write_text('"only a prompt"\n' * 3)
    done = cli("data", "check", str(tmp_path / "a.jsonl"), "bad_rows=leave_out")
    assert done.code == 2
    assert "None of the 3 rows can be trained" in " ".join(done.out.split())
    assert "bad_rows" not in done.out
    talk = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "weight": 0}]
    silent = write_rows(tmp_path / "b.jsonl", [{"messages": talk}] * 2)
    done = cli("data", "check", silent)
    assert (done.code, "None of the 2 rows can be trained" in done.out) == (2, True)
    mixed = write_rows(tmp_path / "c.jsonl", [{"messages": talk}, *PAIRS])
    done = cli("data", "check", mixed)
    assert "All 5 rows can be used: 4 conversations; 1 more left out, as said above." in " ".join(
        done.out.split()
    )
    assert done.code == 0


def test_the_verdict_tells_what_a_share_takes(tmp_path, cli):
    given = write_rows(tmp_path / "a.jsonl", [{"prompt": f"a{n}", "response": "b"} for n in range(40)])
    told = cli("data", "check", given, "share=0.5").out.splitlines()[-1]
    taken = int(told.split("takes ")[1].split(" of")[0])
    assert told == f"All 40 rows can be used, and share takes {taken} of them: {taken} conversations."
    assert 10 < taken < 30


def test_the_remedy_for_two_columns_of_unknown_names_works(tmp_path, cli):
    (tmp_path / "a.csv").write_text("Frage,Die Antwort\na,b\nc,d\n")
    told = " ".join(cli("data", "check", str(tmp_path / "a.csv")).out.split())
    assert "fields.prompt=Frage fields.response='Die Antwort'" in told
    done = cli("data", "check", str(tmp_path / "a.csv"), "fields.prompt=Frage", "fields.response=Die Antwort")
    assert (done.code, "All 2 rows can be used" in done.out) == (0, True)


def test_each_remedy_of_one_reason_is_printed(tmp_path, cli):
    (tmp_path / "a.jsonl").write_text('// a\n{"prompt": "a", "response": "b"},\n')
    told = cli("data", "check", tmp_path / "a.jsonl").out
    assert max(map(len, told.splitlines())) <= 80
    told = " ".join(told.split())
    assert "rows 1: line 1 found Expecting value" in told
    assert "to fix remove the comment: JSON has none rows 1: line 2 found Extra data" in told
    assert "to fix remove the comma behind the row" in told


def test_the_remedy_for_a_column_beside_those_that_fields_name_works(tmp_path, cli):
    given = write_rows(tmp_path / "a.jsonl", [{"Question": "q", "Context": "c", "My Answer": "a"}])
    mine = ["fields.prompt=Question", "fields.response=My Answer"]
    told = " ".join(cli("data", "check", given, *mine, "--json").out.split())
    remedy = "fields.instruction=Question fields.input=Context fields.output='My Answer'"
    assert remedy in told
    done = cli("data", "check", given, *shlex.split(remedy))
    assert done.code == 0, done.err
    assert "not used" not in done.out


def test_weights_and_opening_replies_are_told_in_full(tmp_path, cli):
    messages = [
        {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "context", "weight": 0},
        {"role": "user", "content": "r"},
        {"role": "assistant", "content": "a"},
    ]
    told = " ".join(
        cli("data", "check", write_rows(tmp_path / "a.jsonl", [{"messages": messages}])).out.split()
    )
    assert "replies 3, 1 of weight 0: context only, 1 opening: context only" in told
    assert "assistant (weight 0) context user r" in told


def test_a_recipe_given_as_data_is_said_so(tmp_path, tiny, cli):
    (tmp_path / "r.yaml").write_text("model: a\n")
    for given in (
        ["data", "check", tmp_path / "r.yaml"],
        ["show", f"model={tiny}", f"data={tmp_path / 'r.yaml'}"],
    ):
        done = cli(*given)
        assert done.code == 2
        assert "imprint show RECIPE looks at what it trains" in done.err
        assert "data=;" not in done.err
