"""The exports that a recipe asks for: refused before training, rehearsed, made when the run has ended, or told."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path

import pytest

from conftest import events_of, settings, tree, weights_of
from imprint import exports
from imprint import settings as recipes
from imprint.disk import is_valid

SMALL = ("max_steps=2", "validation=0.2")
ALL = "export=[{to: hf}, {to: hf, adapter_only: true}, {to: gguf, folder: small, options: {type: f16}}]"


def names(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "export").glob("*")) if (run / "export").is_dir() else []


def train(cli, *arguments):
    ended = cli("train", *arguments)
    assert ended.code == 0, ended.err
    return ended


# ---- made


def test_each_is_made_as_imprint_export_makes_it(tiny, rows, tmp_path, cli):
    run = tmp_path / "run"
    ended = train(cli, *settings(tiny, rows, run, *SMALL, "method=lora", ALL))
    assert ended.out == f"{run}\n"
    assert names(run) == ["adapter", "hf", "small"]
    assert all(is_valid(run / "export" / name) for name in names(run))
    made = events_of(run, "export")
    assert [(event["name"], event["path"], event["passed"]) for event in made] == [
        ("hf", "export/hf", None),  # golden=0: nothing to replay
        ("adapter", "export/adapter", None),
        ("small", "export/small", None),
    ]
    assert events_of(run)[-4]["kind"] == "end"  # the run was over before
    report = (run / "report.html").read_text()
    assert "Exported to export/small: not proven: the run has no golden.json" in report
    copy = shutil.copytree(run, tmp_path / "copy")
    shutil.rmtree(copy / "export")
    for given in ([], ["--adapter-only"], ["--to", "gguf", "--out", copy / "export" / "small", "type=f16"]):
        assert cli("export", copy, *given).code == 0
    by_hand, asked = tree(copy / "export"), tree(run / "export")
    assert asked.keys() == by_hand.keys()
    assert {name for name in asked if asked[name] != by_hand[name]} <= {"hf/README.md", "hf/manifest.json"}


def test_the_proof_is_made_too(tiny, rows, tmp_path, cli, monkeypatch):
    """In this process: a new interpreter takes seconds."""
    from imprint.export.folder import compare, kind_of
    from imprint.export.golden import read_golden

    monkeypatch.setattr("imprint.freeze.REPLY", 4)
    monkeypatch.setattr(
        "imprint.export.folder.replay_folder",
        lambda golden, folder, **_: compare(read_golden(golden), folder, kind_of(folder)),
    )
    run = tmp_path / "run"
    train(cli, *settings(tiny, rows, run, *SMALL, "golden=2", "export=hf"))
    (event,) = events_of(run, "export")
    assert event["passed"] is True
    assert "2 of 2 prompts equal" in event["text"]
    assert json.loads((run / "export/hf/parity.json").read_text())["equal"] is True
    assert "<code>export/hf</code>" in (run / "report.html").read_text()


@pytest.mark.slow
def test_an_export_changes_nothing_of_the_model(tiny, rows, tmp_path, cli):
    """With a rehearsal, which makes each once, and without."""
    for name, given in {
        "plain": (),
        "asked": (ALL,),
        "tried": (ALL, "rehearse=true"),
    }.items():
        train(cli, *settings(tiny, rows, tmp_path / name, *SMALL, "method=lora", *given))
    plain, asked, tried = (tmp_path / name for name in ("plain", "asked", "tried"))
    assert weights_of(plain) == weights_of(asked) == weights_of(tried)
    assert tree(plain / "model") == tree(tried / "model")
    for name in ("adapter/adapter_model.safetensors", "hf/model.safetensors", "small/model-F16.gguf"):
        assert (asked / "export" / name).read_bytes() == (tried / "export" / name).read_bytes()
    (event,) = events_of(tried, "rehearsal")
    assert {"export hf", "export adapter", "export small"} <= event["stages"].keys()
    assert not (tried / "rehearsal").exists()
    made = sum(file.stat().st_size for file in (tried / "export").rglob("*") if file.is_file())
    train(cli, *settings(tiny, rows, tmp_path / "bare", *SMALL, "method=lora", "rehearse=true"))
    (bare,) = events_of(tmp_path / "bare", "rehearsal")
    merged = (tried / "export/hf/model.safetensors").stat().st_size  # lies beside the GGUF while that is made
    assert event["disk_bytes"] - bare["disk_bytes"] == pytest.approx(made + merged, rel=0.1)


# ---- refused before the first step


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("export=[{to: gguf, options: {typ: q8_0}}]", ("export gguf: typ=q8_0", "write type=q8_0")),
        ("export=[{to: gguf, options: {type: q9}}]", ("there is no GGUF type 'q9'", "found     q9")),
        ("export=[{to: gguf, options: {type: q4_k_m}}]", ("no llama-quantize on PATH", "leave this export")),
        ("export=[hf, hf]", ("2 exports would stand in the same folder", "RUN/export/hf")),
        ("export=[{to: hf, options: {type: f16}}]", ("no settings of its own",)),
        ("export=[{to: ollama, options: {now: soon}}]", ("now is no date",)),
    ],
)
def test_what_no_model_could_be_is_refused_before_data_is_read(
    given, said, tiny, rows, tmp_path, cli, monkeypatch
):
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr("imprint.run.prepare", None)
    ended = cli("train", *settings(tiny, rows, tmp_path / "run", given))
    assert ended.code == 2
    assert all(part in ended.err for part in said), ended.err
    assert not (tmp_path / "run").exists()


def test_a_missing_extra_is_refused_too(tiny, rows, tmp_path, cli, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "gguf", None)
    ended = cli("train", *settings(tiny, rows, tmp_path / "run", "export=gguf"))
    assert ended.code == 2
    assert "pip install 'imprint-sft[gguf]'; or leave this export away" in ended.err


def test_a_model_that_cannot_be_exported_is_refused_before_its_weights_are_loaded(
    tiny, rows, tmp_path, cli, monkeypatch
):
    """Its architecture, and a number of Ollama that is beyond its context."""
    monkeypatch.setattr("imprint.run.build", None)
    number = "export=[{to: ollama, options: {num_ctx: '4096'}}]"
    ended = cli("train", *settings(tiny, rows, tmp_path / "run", number))
    assert ended.code == 2
    assert "a whole number from 1 to 128" in ended.err
    monkeypatch.setattr("imprint.export.gguf_config.ARCHITECTURES", {"qwen2": "qwen2"})
    ended = cli("train", *settings(tiny, rows, tmp_path / "run", "export=gguf"))
    assert ended.code == 2
    assert "a llama model cannot be written as GGUF" in ended.err
    assert f"export gguf: {tiny.name}/config.json: model_type" in ended.err
    assert not (tmp_path / "run").exists()


def test_a_converter_that_breaks_is_found_in_the_rehearsal(tiny, rows, tmp_path, cli, monkeypatch):
    monkeypatch.setattr("imprint.export.gguf._add_vocabulary", lambda *_: {}["pre"])
    run = tmp_path / "run"
    ended = cli("train", *settings(tiny, rows, run, *SMALL, "export=gguf", "rehearse=true"))
    assert ended.code == 2
    assert "the export gguf could not be made of the untrained model" in ended.err
    assert "KeyError: 'pre'" in ended.err
    assert not events_of(run, "step")
    assert not (run / "rehearsal").exists()
    assert cli("resume", run, "export=[]").code == 0  # the way that the message shows
    assert names(run) == []
    assert any("changed: export" in event["text"] for event in events_of(run, "note"))


# ---- failed


def test_whatever_goes_wrong_costs_the_run_nothing(tiny, rows, tmp_path, cli, monkeypatch):
    """One of three breaks: the others are made, the command says so, and it can be tried again."""
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr("imprint.export.gguf._add_vocabulary", lambda *_: {}["pre"])
        ended = cli("train", *settings(tiny, rows, run, *SMALL, "method=lora", ALL))
    assert ended.code == 1
    assert ended.out == f"{run}\n"  # the run is done
    assert "the model is trained and saved, but this export could not be made: small" in ended.err
    again = f"imprint export {run} --to gguf --out {run / 'export' / 'small'} type=f16"
    assert f"to fix    {again}\n" in ended.err
    assert names(run) == ["adapter", "hf"]
    assert is_valid(run / "model")
    made = events_of(run, "export")
    assert [event["path"] for event in made] == ["export/hf", "export/adapter", None]
    assert made[-1]["text"] == (
        f"The export small could not be made: KeyError: 'pre'. It can be tried again: {again}"
    )
    assert "KeyError" in (run / "report.html").read_text()
    assert cli(*again.split()[1:]).code == 0
    assert names(run) == ["adapter", "hf", "small"]
    ended = cli("resume", run)
    assert ended.code == 2
    assert "this run is finished" in ended.err


def test_a_full_disk_is_one_of_these(tiny, rows, tmp_path, cli, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr("imprint.export_run.write_standard", full)
        ended = cli("train", *settings(tiny, rows, run, *SMALL, "export=hf"))
    assert ended.code == 1
    assert "No space left on device" in ended.err
    assert f"then imprint export {run}\n" in ended.err
    assert list((run / "export").iterdir()) == []
    ended = cli("resume", run)  # makes what is missing
    assert ended.code == 0, ended.err
    assert names(run) == ["hf"]
    assert len(events_of(run, "end")) == 1


def test_a_proof_that_fails_is_told_once(tiny, rows, tmp_path, cli, monkeypatch):
    from imprint.export.targets import Proof

    monkeypatch.setattr("imprint.export_run.prove", lambda *_: Proof(False, "prompts differ", {"equal": 0}))
    run = tmp_path / "run"
    ended = cli("train", *settings(tiny, rows, run, *SMALL, "export=hf"))
    assert ended.code == 1
    assert "it does not say what was trained: prompts differ" in ended.err
    assert f"{run / 'export' / 'hf.failed' / 'parity.json'}" in ended.err
    assert names(run) == ["hf.failed"]
    assert cli("resume", run).code == 2  # a loop of resumes does not fill the disk
    assert names(run) == ["hf.failed"]


@pytest.mark.slow
def test_a_machine_without_the_tool_goes_on_with_a_run(tiny, rows, tmp_path, start, cli, monkeypatch):
    """What is missing is said when it is resumed; training does not wait for it."""
    run = tmp_path / "run"
    given = settings(tiny, rows, run, *SMALL, "export=gguf")
    stop = ("imprint.train.loop.train_step", 2, signal.SIGKILL)
    assert start("train", *given, signal_before=stop).wait().code == -signal.SIGKILL
    monkeypatch.setitem(__import__("sys").modules, "gguf", None)
    ended = cli("resume", run)
    assert ended.code == 1
    assert "warning: export gguf: writing GGUF needs the gguf package" in " ".join(ended.err.split())
    assert is_valid(run / "model")
    monkeypatch.undo()
    assert cli("resume", run).code == 0
    assert names(run) == ["gguf"]


# ---- stopped


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_stopped_while_they_are_made(number, tiny, rows, tmp_path, start, cli):
    run = tmp_path / "run"
    given = settings(tiny, rows, run, *SMALL, "method=lora", ALL)
    stop = ("imprint.export.standard.write_model", 1, number)
    ended = start("train", *given, signal_before=stop).wait()
    assert is_valid(run / "model")
    assert len(events_of(run, "end")) == 1
    if number == signal.SIGTERM:
        assert ended.code == 130
        said = " ".join(ended.err.split())
        assert "stopped by SIGTERM while the export hf was made; the model is saved" in said
        assert f"imprint resume {run}" in said
        assert names(run) == []
    else:
        assert [name.partition(".partial-")[0] for name in names(run)] == ["hf"]
        assert names(run) != ["hf"]
    ended = cli("resume", run)
    assert ended.code == 0, ended.err
    assert ended.out == f"{run}\n"
    assert names(run) == ["adapter", "hf", "small"]  # what the killed one left is gone
    assert len(events_of(run, "end")) == 1


def test_what_a_mould_says_is_what_the_merged_model_says(tiny, rows, tmp_path, cli):
    """Before any weight is loaded: the same vocabulary, template and stops as in the exported folder."""
    from datetime import datetime

    from imprint.export.gguf_config import read_shape
    from imprint.export.gguf_tokens import read_vocabulary
    from imprint.prepare import prepare

    run = tmp_path / "run"
    train(cli, *settings(tiny, rows, run, *SMALL, "method=lora", "export=hf"))
    recipe = recipes.load(run / "recipe.yaml")
    prepared = prepare(recipe, Path(tiny), datetime(2025, 1, 1))
    before = prepared.rendering.encoder.tokenizer.chat_template
    exports.write_mould(prepared, tmp_path / "mould")
    assert prepared.rendering.encoder.tokenizer.chat_template == before
    mould, made = tmp_path / "mould", run / "export" / "hf"
    assert read_shape(mould) == read_shape(made)
    rows_of = read_shape(made).vocabulary
    assert read_vocabulary(mould, rows_of) == read_vocabulary(made, rows_of)
    for name in ("chat_template.jinja", "tokenizer.json"):
        assert (mould / name).read_bytes() == (made / name).read_bytes()
