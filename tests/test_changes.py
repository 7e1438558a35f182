"""What may be other when a run is resumed: refused with the difference named, or accepted and written down."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from pathlib import Path

import pytest
import yaml

from conftest import ROWS, events_of, losses, settings, tree, write_rows

GIVEN = ("max_steps=6", "validation=0", "save_every=2", "learning_rate=1e-2")


@pytest.fixture(scope="module")
def begun(tmp_path_factory, tiny):
    """A run that was stopped after its third step, beside its data."""

    import imprint.train.loop as loop
    from imprint.errors import Interrupted
    from imprint.run import train
    from imprint.settings import resolve

    here = tmp_path_factory.mktemp("begun")
    write_rows(here / "rows.jsonl", ROWS)
    original = loop.train_step

    def stops(state, rows):
        if state.step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(state, rows)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "train_step", stops)
        with pytest.raises(Interrupted):
            train(resolve(None, settings(tiny, here / "rows.jsonl", here / "run", *GIVEN)).recipe)
    return here


@pytest.fixture
def run(begun, tmp_path):
    shutil.copytree(begun / "run", tmp_path / "run")
    return tmp_path / "run"


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("learning_rate=1e-3", "learning_rate: 0.01 when the run began, 0.001 now"),
        ("batch_size=2", "batch_size: 4 when the run began, 2 now"),
        ("max_steps=9", "--force-changed max_steps"),
        ("seed=1", "`seed` changes the updates of this run"),
        ("precision=bfloat16", "`precision` changes the updates of this run"),
        ("method=lora", "`method` cannot be changed in a run"),
        ("output=elsewhere", "`output` cannot be changed in a run"),
        ("row_tokens=auto", "`row_tokens` is measured when a run is made"),
        ("lerning_rate=1", "learning_rate"),
        ("patience=2", "no validation loss"),
    ],
)
def test_what_changes_the_updates_is_refused(given, told, run, cli):
    before = tree(run)
    done = cli("resume", run, given)
    assert done.code == 2, done.err
    assert told in " ".join(done.err.split())
    assert tree(run) == before


def test_another_optimizer_cannot_be_forced(run, cli):
    """What one keeps of a weight is nothing that another can go on with."""
    before = tree(run)
    done = cli("resume", run, "optimizer=muon", "--force-changed", "optimizer")
    assert done.code == 2, done.err
    assert "`optimizer` cannot be changed in a run" in " ".join(done.err.split())
    assert tree(run) == before


def test_adapters_that_began_otherwise_cannot_be_forced(run):
    """Adapters of the whole base, put beside what pissa leaves of it, are no model that anybody trained."""
    from imprint.changes import Change, _refuse
    from imprint.errors import RunError

    with pytest.raises(RunError, match=r"`lora\.init` cannot be changed in a run"):
        _refuse(run, Change("lora.init", "zero", "pissa", forced=True), ["lora.init=pissa"])


def test_a_run_may_go_on_in_float16(run, cli):
    """Its checkpoints hold no scale of the loss: that begins then."""
    done = cli("resume", run, "precision=float16", "--force-changed", "precision")
    assert done.code == 0, done.err
    assert ["loss_scale" in event for event in events_of(run, "step")] == [False] * 3 + [True] * 3


def test_a_run_may_go_on_without_validation(tiny, tmp_path, start, cli):
    """The best weights so far are kept no longer; it ends with its last ones."""
    write_rows(tmp_path / "rows.jsonl", ROWS)
    given = ("max_steps=6", "validation=0.2", "validate_every=1", "save_every=2", "learning_rate=1e-2")
    stop = ("imprint.train.loop.train_step", 3, signal.SIGTERM)
    arguments = settings(tiny, tmp_path / "rows.jsonl", tmp_path / "run", *given)
    assert start("train", *arguments, signal_before=stop).wait().code == 130
    done = cli("resume", tmp_path / "run", "validation=0", *("--force-changed", "validation"),
               *("--force-changed", "data"))  # fmt: skip
    assert done.code == 0, done.err
    assert [event["model_step"] for event in events_of(tmp_path / "run", "end")] == [6]


def test_what_changes_nothing_may_change(run, cli):
    done = cli("resume", run, "save_every=1", "row_tokens=48", "attention=reference")
    assert done.code == 0, done.err
    notes = [event["text"] for event in events_of(run, "note")]
    assert "changed: save_every: 2 → 1" in notes
    assert any(text.startswith("changed: row_tokens: ") and "not to the bit" in text for text in notes)
    assert any("rows hold at most 48 tokens from step 4 on, as asked for" in text for text in notes)
    assert [event["step"] for event in events_of(run, "checkpoint")][-3:] == [4, 5, 6]
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    assert (recipe["save_every"], recipe["row_tokens"], recipe["attention"]) == (1, 48, "reference")
    changed = json.loads((run / "run.json").read_text())["changes"]
    assert {change["key"] for change in changed} == {"attention", "row_tokens", "save_every"}


def test_a_forced_change_is_written_down_and_stays(run, begun, cli):
    done = cli("resume", run, "learning_rate=1e-3", "max_steps=8", "--force-changed", "learning_rate",
               "--force-changed", "max_steps")  # fmt: skip
    assert done.code == 0, done.err
    assert [step for step, _ in losses(run)] == list(range(1, 9))
    assert max(event["learning_rate"] for event in events_of(run, "step")[3:]) <= 1e-3
    facts = json.loads((run / "run.json").read_text())
    assert {(c["step"], c["key"], c["before"], c["after"]) for c in facts["changes"]} == {
        (3, "learning_rate", "0.01", "0.001"), (3, "max_steps", "6", "8")}  # fmt: skip
    assert "accepted with --force-changed" in (run / "report.html").read_text()


def test_changed_data_is_named_and_can_be_accepted(begun, run, cli):
    data = begun / "rows.jsonl"
    whole = data.read_text()
    try:
        data.write_text(whole + whole.splitlines(keepends=True)[0].replace("red", "dark red"))
        done = cli("resume", run)
        assert done.code == 2
        told = " ".join(done.err.split())
        assert "the data changed since this run began" in told
        assert f"{data}: 16 rows when the run began, 17 now" in told
        assert f"imprint resume {run} --force-changed data" in told
        done = cli("resume", run, "--force-changed", "data")
        assert done.code == 0, done.err
    finally:
        data.write_text(whole)
    assert any(event["text"].startswith("changed: data: ") for event in events_of(run, "note"))


def test_data_under_a_relative_path_is_the_same_file():
    """The ledger names it as the recipe did; a run that is taken up has absolute paths."""
    from datetime import datetime

    from imprint.changes import differing_files

    def told(before, now):
        return differing_files(before, now, datetime.now())

    here = str(Path("data").absolute())
    assert told({"data/a.jsonl": 3}, {f"{here}/a.jsonl": 3}) == ""
    assert told({"../data/a.jsonl": 3}, {f"{here}/a.jsonl": 4}) == (
        f"{here}/a.jsonl: 3 rows when the run began, 4 now"
    )
    assert told({"a.jsonl": 3}, {f"{here}/a.jsonl": 3, "/b/a.jsonl": 3}).count("when the run began") == 3


def test_changed_data_of_as_many_rows(tiny, tmp_path, start, cli, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path / "rows.jsonl", ROWS)
    kill = ("imprint.train.loop.train_step", 2, signal.SIGKILL)
    assert start("train", *settings(tiny, "rows.jsonl", "run", *GIVEN), signal_before=kill).wait().code == -9
    os.utime(tmp_path / "rows.jsonl", (time.time() + 60,) * 2)
    text = (tmp_path / "rows.jsonl").read_text()
    (tmp_path / "rows.jsonl").write_text(text.replace("red", "dark red", 1))
    os.utime(tmp_path / "rows.jsonl", (time.time() + 60,) * 2)
    done = cli("resume", "run")
    assert done.code == 2, done.err
    assert f"found     {tmp_path}/rows.jsonl: as many rows, but the file was changed on" in done.err


def test_a_misspelt_key_is_not_forced(run, cli):
    before = tree(run)
    done = cli("resume", run, "--force-changed", "learnin_rate")
    assert (done.code, done.err) == (2, (
        "error --force-changed learnin_rate: there is no such key\n"
        "  expected  a key of the recipe, or one of data, replay, model, template, checkpoints\n"
        "  to fix    write learning_rate\n"
    ))  # fmt: skip
    assert tree(run) == before
    done = cli("resume", run, "--force-changed", "data", "--force-changed", "lora.alpha")
    assert done.code == 0, "what did not change is let by: whoever restarts jobs repeats one command"


def test_fewer_steps_than_were_made(run, cli):
    done = cli("resume", run, "max_steps=2", "--force-changed", "max_steps")
    assert done.code == 2, done.err
    assert "the run has made more steps than that already: 3" in done.err


def test_every_key_is_in_a_class():
    """A key that nobody thought of changes the updates: the lists name real keys only."""
    from imprint import changes
    from imprint.schema import describe

    keys = {setting.key for setting in describe()}
    named = {*changes.NO_EFFECT, *changes.ROUNDING, *changes.OUTCOME, *changes.IMPOSSIBLE}
    assert {key for key in named if "*" not in key} - keys <= {"track", "rehearse"}
