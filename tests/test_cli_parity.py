"""`imprint parity`: what it prints at 80 columns, its exit codes, parity.json, and the line in the report."""

from __future__ import annotations

import json
import shutil

import pytest

from conftest import settings, tree


@pytest.fixture(scope="module")
def run(tiny, rows, tmp_path_factory):
    from imprint.run import train
    from imprint.settings import resolve

    path = tmp_path_factory.mktemp("parity") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("imprint.freeze.REPLY", 6)
        train(resolve(None, settings(tiny, rows, path, "max_steps=2", "golden=3", "validation=0.2")).recipe)
    return path


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch):
    """A fresh interpreter for each comparison takes seconds; tests/export/test_parity.py starts one."""
    from imprint.export.folder import compare, kind_of
    from imprint.export.golden import read_golden

    def replay_here(golden, folder, kind="", device="cpu", trust_remote_code=False):
        return compare(read_golden(golden), folder, kind or kind_of(folder), device, trust_remote_code)

    monkeypatch.setattr("imprint.parity_run.replay_folder", replay_here)


def test_a_run_says_what_it_said(run, cli):
    done = cli("parity", run)
    assert done.code == 0, done
    assert "says what the trained model said: 3 of 3 prompts equal" in " ".join(done.out.split())
    found = json.loads((run / "parity.json").read_text())
    assert found["equal"] is True
    report = (run / "report.html").read_text()
    assert '<h2 id="parity">Parity' in report
    assert "<strong>yes</strong></td><td>3 of 3 prompts equal" in report
    assert json.loads(cli("parity", run, "--json").out) == found


def exported(run, name):
    """A copy of the run's model that says of itself that `imprint export` made it."""
    copy = shutil.copytree(run / "model", run / "export" / name)
    (copy / "export.json").write_text('{"imprint": "0.1.0"}')
    return copy


@pytest.mark.parametrize("said", [None, "{", "[]", '{"to": "hf"}'])
def test_nothing_is_written_into_a_folder_of_somebody_else(said, run, cli, tmp_path):
    """Also where it has a file of that name, which other programs write too."""
    copy = shutil.copytree(run / "model", tmp_path / "other")
    if said is not None:
        (copy / "export.json").write_text(said)
    before, own = tree(copy), (run / "parity.json").read_bytes() if (run / "parity.json").is_file() else None
    done = cli("parity", run, copy)
    assert done.code == 0, done
    told = " ".join(done.out.split())
    assert "says what the trained model said: 3 of 3 prompts equal" in told
    assert "nothing was written into" in told
    assert "imprint export did not make it" in told
    assert tree(copy) == before
    assert ((run / "parity.json").read_bytes() if own is not None else None) == own


def test_a_copy_that_does_not_ends_with_1(run, cli, tmp_path):
    copy = exported(run, "mine")
    template = copy / "chat_template.jinja"
    template.write_text(template.read_text().replace("<|im_start|>assistant", "<|im_start|>bot"))
    done = cli("parity", run, copy)
    assert done.code == 1
    said = " ".join(done.out.split())
    assert "is not what was trained" in said
    assert "Likely cause: template" in said
    assert all(len(line) <= 80 for line in done.out.splitlines() if not line.startswith("written"))
    assert json.loads((copy / "parity.json").read_text())["equal"] is False
    report = (run / "report.html").read_text()
    assert "<code>export/mine</code>" in report
    assert "<strong>no</strong>" in report
    (copy / "parity.json").write_text("{")
    from imprint.evaluate.report import write_report

    assert "parity.json cannot be read" in write_report(run).read_text()


def test_weights_that_are_no_longer_those_of_the_run(run, cli):
    path = run / "model" / "model.safetensors"
    before = path.read_bytes()
    try:
        path.write_bytes(before[:-4] + b"\0\0\0\0")
        assert "not the file that the golden one was frozen beside" in " ".join(
            cli("parity", run).out.split()
        )
    finally:
        path.write_bytes(before)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["nowhere"], "not a run folder"),
        (["RUN", "nowhere"], "no such folder"),
        (["RUN", "RUN", "--url", "http://127.0.0.1:9/v1"], "not both"),
        (["RUN", "--model", "x"], "--model names a model of a server"),
        (["RUN", "--weights", "f16", "--url", "http://127.0.0.1:9/v1"], "no such type"),
        (["RUN", "--weights", "bfloat16"], "--weights is of a server"),
        (["RUN", "--device", "cuda", "--url", "http://127.0.0.1:9/v1"], "--device is of a folder"),
        (["RUN", "--url", "nowhere"], "not the address"),
    ],
)
def test_what_cannot_be_done_is_said(run, cli, given, said):
    done = cli("parity", *(str(run) if word == "RUN" else word for word in given))
    assert done.code == 2
    assert said in " ".join(done.err.split())


def test_damaged_weights_and_a_missing_model_are_named(run, cli, tmp_path):
    copy = shutil.copytree(run, tmp_path / "run")
    weights = copy / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    done = cli("parity", copy)
    assert (done.code, f"{weights}: these weights are damaged" in " ".join(done.err.split())) == (2, True)
    shutil.rmtree(copy / "model")
    done = cli("parity", copy)
    assert (done.code, f"imprint resume {copy}" in " ".join(done.err.split())) == (2, True)


def test_comparing_an_export_leaves_it_whole(run, cli):
    """Its manifest knows the new parity.json, so that it can still be sent; what was changed is not made good."""
    from imprint.disk import is_valid, seal

    copy = exported(run, "whole")
    seal(copy, copy)
    assert cli("parity", run, copy).code == 0
    assert is_valid(copy)
    assert str(run) not in (copy / "parity.json").read_text()  # it is handed on
    (copy / "chat_template.jinja").write_text("{{ messages[0].content }}")
    assert cli("parity", run, copy).code == 1
    assert not is_valid(copy)


def test_a_verdict_is_told_where_nothing_can_be_written(run, cli):
    copy = exported(run, "closed")
    (copy / "parity.json").mkdir()
    done = cli("parity", run, copy)
    assert done.code == 0, done
    said = " ".join(done.out.split())
    assert "says what the trained model said" in said
    assert "nothing could be written" in said
    shutil.rmtree(copy)


def test_a_gguf_file_is_not_taken_for_a_folder_of_transformers(run, cli):
    (run / "export" / "gguf").mkdir(parents=True)
    (run / "export" / "gguf" / "model.gguf").write_bytes(b"GGUF")
    for target in (run / "export" / "gguf", run / "export" / "gguf" / "model.gguf"):
        done = cli("parity", run, target)
        assert done.code == 2
        assert "a GGUF file is not compared here" in done.err
