"""Everything once before the first step, and then nothing of it is left."""

import json
import shutil
from collections import namedtuple

import pytest
import torch

import imprint.train.rehearsal as rehearsal
from conftest import Cli, events_of, settings, tree, weights_of

SHORT = ("max_steps=3", "validation=0.25", "samples=2", "sample_tokens=4")


def train(cli: Cli, *arguments):
    ended = cli("train", *arguments)
    assert ended.code == 0, ended.err
    return ended


@pytest.mark.parametrize(
    "given", [(), ("method=lora",), ("optimizer=muon",), ("method=lora", "lora.dropout=0.3")], ids=str
)
def test_a_rehearsed_run_ends_with_the_same_bytes(given, tiny, rows, tmp_path, cli):
    for name in ("true", "false"):
        train(cli, *settings(tiny, rows, tmp_path / name, *SHORT, f"rehearse={name}", *given))
    assert weights_of(tmp_path / "true") == weights_of(tmp_path / "false")
    loss = [
        [event["loss"] for event in events_of(tmp_path / n, "step", "validation")] for n in ("true", "false")
    ]
    assert loss[0] == loss[1]


def test_a_rehearsal_that_undoes_too_little_would_be_seen(tiny, rows, tmp_path, cli, monkeypatch):
    """The twin: with the weights left as the rehearsal made them, the runs differ."""
    train(cli, *settings(tiny, rows, tmp_path / "plain", *SHORT, "rehearse=false"))
    monkeypatch.setattr(torch.nn.Parameter, "copy_", lambda self, *_, **__: self, raising=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rehearsal, "load_checkpoint", lambda *_: None)
        train(cli, *settings(tiny, rows, tmp_path / "spoiled", *SHORT, "rehearse=true"))
    assert weights_of(tmp_path / "plain") != weights_of(tmp_path / "spoiled")


def test_what_was_found_is_kept_and_nothing_else(tiny, rows, tmp_path, cli):
    ended = train(cli, *settings(tiny, rows, tmp_path / "run", *SHORT, "rehearse=true"))
    (event,) = events_of(tmp_path / "run", "rehearsal")
    assert set(event["stages"]) == {"heaviest row", "updates", "validation", "samples", "checkpoint", "model"}
    assert event["predicted_seconds"] > 0
    (start,) = events_of(tmp_path / "run", "start")
    assert event["disk_bytes"] > 4 * 12 * start["num_trainable"]  # four checkpoints, and the model
    assert event["peak_bytes"] > 10**8
    assert "rehearsed in" in ended.err
    assert not [path for path in tree(tmp_path / "run") if "rehearsal" in path]


def test_short_runs_are_not_rehearsed_by_themselves(tiny, rows, tmp_path, cli):
    train(cli, *settings(tiny, rows, tmp_path / "run", *SHORT))
    assert not events_of(tmp_path / "run", "rehearsal")
    (start,) = events_of(tmp_path / "run", "start")
    assert start["planned"]["peak_bytes"] > 10**8


def test_exports_count_in_the_forecast_of_the_disk(tiny, rows, tmp_path, cli, monkeypatch):
    """Checkpoints and the model would fit, and the exports beside them do not."""
    usage, found = namedtuple("usage", "total used free"), {}
    for name, given in {"bare": (), "asked": ("export=[{to: hf, dtype: float32}]",)}.items():
        train(cli, *settings(tiny, rows, tmp_path / name, *SHORT, "rehearse=true", *given))
        (event,) = events_of(tmp_path / name, "rehearsal")
        found[name] = event["disk_bytes"]
    assert found["asked"] > found["bare"] * 1.05
    free = (found["asked"] + found["bare"]) // 2
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9 - free, free))
    train(cli, *settings(tiny, rows, tmp_path / "fits", *SHORT, "rehearse=true"))
    ended = cli("train", *settings(tiny, rows, tmp_path / "full", *SHORT, "rehearse=true", "export=hf"))
    assert ended.code == 2
    assert "the model and its exports" in ended.err


def test_a_disk_without_room_is_refused_before_the_first_step(tiny, rows, tmp_path, cli, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9 - 2_000_000, 2_000_000))
    for given in ("true", "false"):
        ended = cli("train", *settings(tiny, rows, tmp_path / given, *SHORT, f"rehearse={given}"))
        if given == "false":  # two checkpoints would fit: what is surely written
            assert ended.code == 0
            continue
        assert ended.code == 2
        assert "the disk has no room for this run" in ended.err
        assert "2 MB free" in ended.err
        assert "method=lora" in ended.err
        assert not events_of(tmp_path / given, "step")


def test_a_row_that_has_no_room_makes_rows_shorter_before_the_first_step(
    tiny, rows, tmp_path, cli, monkeypatch
):
    """Memory that is short of the heaviest row is found in the rehearsal; the weights are those of any run."""
    from imprint.train import step

    original, limit = step.accumulate, 100

    def short(state, hand, *more):
        for row in hand:
            if row.num_tokens > limit:
                raise MemoryError("planted")
        return original(state, hand, *more)

    train(cli, *settings(tiny, rows, tmp_path / "plain", *SHORT, "rehearse=false", "batch_size=8"))
    monkeypatch.setattr(step, "accumulate", short)
    train(cli, *settings(tiny, rows, tmp_path / "short", *SHORT, "rehearse=true", "batch_size=8"))
    notes = [event for event in events_of(tmp_path / "short", "note") if "row_tokens" in event]
    assert notes[0]["step"] == 1
    assert json.loads((tmp_path / "short/checkpoints/rows.json").read_text())[0]["step"] == 1
    before, after = (
        [event["loss"] for event in events_of(tmp_path / name, "step")] for name in ("plain", "short")
    )
    assert after == pytest.approx(before, rel=1e-5)


def test_a_checkpoint_that_comes_back_other_than_it_was_written_stops_the_run(
    tiny, rows, tmp_path, cli, monkeypatch
):
    original = rehearsal.load_checkpoint

    def spoiled(path, state):
        found = original(path, state)
        with torch.no_grad():
            next(p for p in state.model.parameters() if p.requires_grad).add_(1e-3)
        return found

    monkeypatch.setattr(rehearsal, "load_checkpoint", spoiled)
    ended = cli("train", *settings(tiny, rows, tmp_path / "run", *SHORT, "rehearse=true"))
    assert ended.code == 2
    assert "read back is not what was written" in ended.err


def test_long_answers_are_told_from_short_ones(monkeypatch):
    """A prompt is read once, whatever is answered: 3 s here, and 0.1 s for each token."""
    now = [0.0]

    def generate(tokens):
        now[0] += 3 + 0.1 * tokens

    monkeypatch.setattr(rehearsal.time, "perf_counter", lambda: now[0])
    assert rehearsal._seconds_of_samples(generate, 64) == pytest.approx(3 + 6.4)
    assert now[0] < 8  # 9 tokens were made for it
    assert rehearsal._seconds_of_samples(generate, 1) == pytest.approx(3.1)


def test_no_more_updates_are_timed_than_a_tenth_of_the_run(tiny, rows, tmp_path, cli, monkeypatch):
    steps, original = [], rehearsal.train_step

    def counted(state, rows):
        steps.append(state.step)
        return original(state, rows)

    monkeypatch.setattr(rehearsal, "train_step", counted)
    train(cli, *settings(tiny, rows, tmp_path / "run", *SHORT, "rehearse=true"))
    assert len(steps) == 2  # the heaviest row, and one update: a third of the run already
