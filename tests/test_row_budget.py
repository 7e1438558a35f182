"""Rows are measured once, when a run is made; what it then does is what the run remembers."""

from __future__ import annotations

import json

import pytest
import yaml

import imprint.row_budget as row_budget
from conftest import events_of, losses, settings, weights_of
from imprint.auto import ROW_TOKENS
from imprint.distributed.mesh import Mesh
from imprint.row_budget import fitting, least
from imprint.train.memory import SHARE, WORKSPACE, Need, Sizes

GIVEN = ("max_steps=4", "validation=0.25", "validate_every=2", "save_every=1", "learning_rate=1e-2")


def said(run):
    (start,) = events_of(run, "start")
    return {decision["key"]: decision for decision in start["decisions"]}.get("row_tokens")


@pytest.fixture
def free(monkeypatch):
    """The machine as if so many bytes were free, beside what kernels take."""

    def free(more: int) -> None:
        monkeypatch.setattr(row_budget, "free_bytes", lambda _: int((WORKSPACE + more) / SHARE))

    return free


def test_rows_are_measured_and_kept_in_the_recipe(tiny, rows, tmp_path, cli):
    run = tmp_path / "run"
    done = cli("train", *settings(tiny, rows, run, *GIVEN))
    assert done.code == 0, done.err
    assert yaml.safe_load((run / "recipe.yaml").read_text())["row_tokens"] == ROW_TOKENS["cpu"]
    assert said(run)["value"] == ROW_TOKENS["cpu"]
    assert "longer rows are not faster here; forecast: " in said(run)["reason"]
    saved = json.loads((run / "checkpoints" / "step-000004" / "state.json").read_text())
    assert saved["counters"]["row_tokens"] == ROW_TOKENS["cpu"]


def test_little_memory_means_short_rows(tiny, rows, tmp_path, cli, free):
    whole, run = tmp_path / "whole", tmp_path / "run"
    assert cli("train", *settings(tiny, rows, whole, *GIVEN)).code == 0
    free(8_000_000)
    assert cli("train", *settings(tiny, rows, run, *GIVEN)).code == 0
    tokens = said(run)["value"]
    assert 64 <= tokens < ROW_TOKENS["cpu"]
    assert tokens % 64 == 0
    assert "longer rows have no room" in said(run)["reason"]
    for (_, ours), (_, theirs) in zip(losses(run), losses(whole), strict=True):
        assert abs(ours - theirs) < 1e-4


def test_where_not_even_the_longest_turn_fits_it_is_said(tiny, rows, tmp_path, cli, free):
    """A warning with numbers, and no error: a forecast may be wrong."""
    free(0)
    run = tmp_path / "run"
    done = cli("train", *settings(tiny, rows, run, *GIVEN))
    assert done.code == 0, done.err
    (note,) = [e["text"] for e in events_of(run, "note") if "memory" in e["text"]]
    assert note.startswith("memory may run out: the run is forecast to need ")
    assert "gradients" in note
    assert "optimizer" in note
    assert 40 < said(run)["value"] < 128  # the longest turn


def test_what_the_recipe_says_is_kept_and_only_warned_of(tiny, rows, tmp_path, cli, free):
    free(0)
    run = tmp_path / "run"
    assert cli("train", *settings(tiny, rows, run, *GIVEN, "row_tokens=2000")).code == 0
    assert yaml.safe_load((run / "recipe.yaml").read_text())["row_tokens"] == 2000
    assert said(run) is None
    assert any("a row of 2,000 tokens" in e["text"] for e in events_of(run, "note"))


def test_a_resumed_run_does_not_measure_again(tiny, rows, tmp_path, cli, free, monkeypatch):
    """Even where the machine says otherwise by then: the same rows, and so the same bits."""
    import imprint.train.loop as loop

    whole, run = tmp_path / "whole", tmp_path / "run"
    assert cli("train", *settings(tiny, rows, whole, *GIVEN)).code == 0
    original = loop.train_step

    def dies(state, given):
        if state.step == 2:
            raise KeyboardInterrupt
        return original(state, given)

    monkeypatch.setattr(loop, "train_step", dies)
    cli("train", *settings(tiny, rows, run, *GIVEN))
    monkeypatch.setattr(loop, "train_step", original)
    free(0)
    monkeypatch.setattr(row_budget, "measure", lambda *_: pytest.fail("measured again"))
    done = cli("resume", run)
    assert done.code == 0, done.err
    assert yaml.safe_load((run / "recipe.yaml").read_text())["row_tokens"] == ROW_TOKENS["cpu"]
    assert weights_of(run) == weights_of(whole)


def test_memory_that_runs_out_in_a_run_is_told_and_remembered(tiny, rows, tmp_path, cli, monkeypatch):
    """Through the command: short of memory once, then killed, then resumed where there is room."""
    import imprint.train.loop as loop
    import imprint.train.step as step

    run, whole = tmp_path / "run", tmp_path / "whole"
    original, made, refused = step.accumulate, loop.train_step, []

    def short(state, given, *more):
        for row in given:
            if state.step == 2 and row.num_tokens > 120:
                refused.append(row.num_tokens)
                raise MemoryError
        return original(state, given, *more)

    monkeypatch.setattr(step, "accumulate", short)
    assert cli("train", *settings(tiny, rows, whole, *GIVEN)).code == 0
    assert refused

    def dies(state, given):
        if state.step == 3:
            raise KeyboardInterrupt
        return made(state, given)

    monkeypatch.setattr(loop, "train_step", dies)
    cli("train", *settings(tiny, rows, run, *GIVEN))
    monkeypatch.setattr(loop, "train_step", made)
    monkeypatch.setattr(step, "accumulate", original)
    done = cli("resume", run)
    assert done.code == 0, done.err
    assert weights_of(run) == weights_of(whole)
    for folder in (run, whole):
        notes = [event for event in events_of(folder, "note") if "row_tokens" in event]
        assert [event["step"] for event in notes] == [3] * len(notes)
        assert notes[-1]["row_tokens"] <= 120
        assert "memory ran out in a row of" in notes[0]["text"]


def test_what_fits():
    sizes = Sizes(0, 0, 0, Need(0.0, 1000.0, 0.0), lambda n: 0)

    def free(tokens: int) -> int:
        return int((WORKSPACE + 1000 * tokens) / SHARE) + 1

    assert fitting(sizes, 4096, free(10_000), 100) == 4096
    assert fitting(sizes, 4096, free(1000), 100) == 960
    assert fitting(sizes, 4096, free(1000), 2000) == 2000  # a longer turn has such a row anyway
    assert fitting(sizes, 4096, free(1000), 9000) == 4096
    assert fitting(sizes, 4096, None, 100) == 4096
    assert fitting(None, 4096, free(1000), 100) == 100


def test_the_least_of_all_ranks():
    assert least(Mesh(), 77) == 77
