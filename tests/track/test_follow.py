"""Trackers beside a run: real ones read back, failing, hanging and slow ones that stop nothing, and replay."""

from __future__ import annotations

import importlib.util
import json
import struct
import sys
import threading
import time
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from conftest import events_of, losses, settings, weights_of
from imprint.errors import Interrupted, RecipeError
from imprint.signals import Stopped
from imprint.track import follow
from imprint.track.events import EventLog
from imprint.track.sinks import Subject, flat, metrics, require, texts

STEP = {"kind": "step", "time": 12.5, "step": 3, "loss": 0.5, "grad_norm": None, "tokens": 7}


# ---- what a tracker is told


def test_figures_and_texts_of_events():
    assert metrics(STEP) == {"train/loss": 0.5, "train/tokens": 7.0}
    assert metrics({"kind": "validation", "time": 1.0, "step": 2, "loss": 1.0, "best": True}) == {
        "validation/loss": 1.0,
        "validation/best": 1.0,
    }
    assert metrics({"kind": "note", "time": 1.0, "text": "hello"}) == {}
    assert list(texts({"kind": "note", "text": "hello"})) == [("notes", "note: hello")]
    assert list(texts({"kind": "sample", "question": "a", "reply": "b"})) == [("samples", "a\n\nb\n\n")]
    assert flat({"a": {"b": 1, "c": {}}, "d": [2]}) == {"a.b": 1, "a.c": {}, "d": [2]}


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RecipeError) as caught:
        require(["wandb", "wandb"])
    assert str(caught.value) == (
        "track: wandb needs the package wandb\n"
        "  found     it is not installed\n"
        "  to fix    pip install 'imprint-sft[trackers]'"
    )


# ---- a sink that fails, hangs or is slow


class Fake:
    """A tracker that keeps what it is told; `act` is called before each event."""

    def __init__(self, act=lambda event: None):
        self.act, self.told = act, []

    def start(self, run: Subject) -> str:
        self.told.append(("start", run.known, run.step, run.config.get("total_steps")))
        return run.known or f"id-{run.id}"

    def log(self, event):
        self.act(event)
        self.told.append((event["kind"], event.get("step"), event.get("loss")))

    def artifact(self, path):
        self.told.append(("artifact", path.name))

    def finish(self, status):
        self.told.append(("finish", status))


def followed(
    folder: Path, fake: Fake, monkeypatch, num_steps: int = 6, names: tuple[str, ...] = ("wandb",)
) -> float:
    """Log a small run with a tracker, and tell how long that took."""
    monkeypatch.setattr(follow, "make", lambda name: fake)
    began = time.monotonic()
    with EventLog(folder / "events.jsonl") as log, follow.following(folder, "abc", names, log):
        log.log("start", total_steps=num_steps)
        for step in range(1, num_steps + 1):
            log.log("step", step=step, loss=1 / step)
            time.sleep(0.005)
        log.log("end", step=num_steps)
    return time.monotonic() - began


def test_a_tracker_gets_all_of_it_in_order(tmp_path, monkeypatch):
    (tmp_path / "recipe.yaml").write_text("model: m\n")
    fake = Fake()
    followed(tmp_path, fake, monkeypatch)
    assert fake.told[0] == ("start", "", 0, 6)
    assert [told[1] for told in fake.told if told[0] == "step"] == [1, 2, 3, 4, 5, 6]
    assert fake.told[-2:] == [("artifact", "recipe.yaml"), ("finish", "finished")]
    assert json.loads((tmp_path / "trackers.json").read_text()) == {"wandb": "id-abc"}
    assert events_of(tmp_path, "note") == []


def test_a_tracker_that_fails_is_told_once_and_left_alone(tmp_path, monkeypatch):
    def act(event):
        if event.get("step") == 2:
            raise ConnectionError("no route, with hf_" + "a1" * 20)

    followed(tmp_path, Fake(act), monkeypatch)
    (note,) = events_of(tmp_path, "note")
    assert note["text"] == (
        "wandb failed, and is left alone: ConnectionError: no route, with [redacted]; "
        f"imprint track {tmp_path} --to wandb sends all of it"
    )
    assert len(events_of(tmp_path, "step")) == 6


def test_a_tracker_that_leaves_the_interpreter_does_not(tmp_path, monkeypatch):
    def act(event):
        raise SystemExit(3)

    followed(tmp_path, Fake(act), monkeypatch)
    assert "SystemExit: 3" in events_of(tmp_path, "note")[0]["text"]


def test_a_tracker_that_hangs_is_not_waited_for(tmp_path, monkeypatch):
    never = threading.Event()
    monkeypatch.setattr(follow, "WAIT", 0.3)
    try:
        assert followed(tmp_path, Fake(lambda event: never.wait(60)), monkeypatch) < 3
    finally:
        never.set()
    assert "did not come to its end" in events_of(tmp_path, "note")[0]["text"]
    assert len(events_of(tmp_path, "step")) == 6


def test_what_a_slow_tracker_has_no_room_for_is_left_out_and_told(tmp_path, monkeypatch):
    monkeypatch.setattr(follow, "ROOM", 5)
    fake = Fake(lambda event: time.sleep(0.05))
    followed(tmp_path, fake, monkeypatch, num_steps=40)
    assert fake.told[-1] == ("finish", "finished")
    assert "was too slow: " in events_of(tmp_path, "note")[0]["text"]
    assert len(events_of(tmp_path, "step")) == 40


@pytest.mark.parametrize(
    ("error", "status"),
    [(RuntimeError(), "failed"), (Interrupted("stop"), "interrupted"), (Stopped("x", False), "interrupted")],
)
def test_a_run_that_breaks_is_finished_as_such(error, status, tmp_path, monkeypatch):
    fake = Fake()
    monkeypatch.setattr(follow, "make", lambda name: fake)

    def broken() -> None:
        with EventLog(tmp_path / "events.jsonl") as log, follow.following(tmp_path, "abc", ["wandb"], log):
            log.log("start", total_steps=1)
            raise error

    with pytest.raises(type(error)):
        broken()
    assert fake.told[-1] == ("finish", status)


# ---- real ones


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(folder))
    read.Reload()
    return {tag: [(e.step, e.value) for e in read.Scalars(tag)] for tag in read.Tags()["scalars"]}


def wandb_records(content: bytes) -> Iterator[bytes]:
    """The records of a .wandb file: 7 bytes of header, then LevelDB's log format in blocks of 32 KiB."""
    at, parts = 7, b""
    while at < len(content):
        if 32768 - at % 32768 < 7:  # too little for a header: filled with zeros
            at += 32768 - at % 32768
            continue
        length, kind = struct.unpack_from("<HB", content, at + 4)
        parts += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield parts
            parts = b""


def wandb_history(folder: Path) -> list[dict[str, Any]]:
    """The rows of W&B's own offline files, oldest file first."""
    from wandb.proto import wandb_internal_pb2

    rows = []
    for path in sorted(folder.glob("wandb/offline-run-*/*.wandb")):
        for data in wandb_records(path.read_bytes()):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            if record.WhichOneof("record_type") == "history":
                items = record.history.item
                rows.append({i.key or ".".join(i.nested_key): json.loads(i.value_json) for i in items})
    return rows


def test_tensorboard_and_offline_wandb_follow_a_run_and_its_resumption(
    tiny, rows, tmp_path, cli, monkeypatch
):
    pytest.importorskip("tensorboard")
    pytest.importorskip("wandb")
    secret = "hf_" + "Zz9" * 12
    for name, value in {"WANDB_MODE": "offline", "HF_TOKEN": secret, "WANDB_API_KEY": "f0" * 20}.items():
        monkeypatch.setenv(name, value)
    run = tmp_path / "run"
    arguments = (
        "max_steps=4",
        "save_every=2",
        "validate_every=2",
        "samples=1",
        "sample_tokens=4",
        "golden=1",
    )
    with monkeypatch.context() as patch:
        patch.setattr("imprint.run.run_loop", stopping_after(3))
        assert cli("train", *settings(tiny, rows, run, "track=[tensorboard, wandb]", *arguments)).code == 1
    known = json.loads((run / "trackers.json").read_text())
    ended = cli("resume", run)
    assert ended.code == 0, ended.err
    assert "wandb:" not in ended.err, "it is as quiet as the other"
    assert json.loads((run / "trackers.json").read_text()) == known
    seen = scalars(run / "tensorboard")
    assert [step for step, _ in seen["train/loss"]] == [1, 2, 3, 4]
    assert [value for _, value in seen["train/loss"]] == pytest.approx([loss for _, loss in losses(run)])
    assert {step for step, _ in seen["validation/loss"]} == {0, 2, 4}
    history = wandb_history(run)
    by_step = {row["step"]: row["train/loss"] for row in history if "train/loss" in row}
    assert by_step == pytest.approx(dict(losses(run)))
    assert all(path.name.endswith(f"{known['wandb']}.wandb") for path in run.glob("wandb/*/*.wandb"))
    assert not events_of(run, "note") or "failed" not in str(events_of(run, "note"))

    # the same again, from the log alone
    refused = cli("track", run, "--to", "tensorboard")
    assert refused.code == 2
    assert "this run is in tensorboard already" in refused.err
    assert "--again" in refused.err
    again = cli("track", run, "--to", "tensorboard", "--again", "--json")
    assert again.code == 0, again.err
    assert scalars(run / json.loads(again.out)["id"])["train/loss"] == seen["train/loss"]

    # of secrets, not one byte in the whole folder, its export's card included
    assert cli("export", run).code == 0
    for path in run.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert secret.encode() not in content, path
            assert b"f0" * 20 not in content, path


def test_a_secret_that_the_model_and_the_notes_repeat(tiny, rows, tmp_path, cli, monkeypatch):
    """Were a secret in what is logged, no file of the run would hold it; without the guard, several would."""
    pytest.importorskip("tensorboard")
    secret = "correct-horse-battery-staple"
    monkeypatch.setenv("MY_SERVICE_TOKEN", secret)
    monkeypatch.setattr(
        "imprint.run.describe_sample", lambda *_: {"question": secret, "reply": f"<{secret}>"}
    )
    monkeypatch.setattr("imprint.ending.freeze", lambda *_: [f"a note with {secret}"])

    def holding(name: str) -> set[str]:
        given = ("max_steps=1", "samples=1", "sample_tokens=2", "track=tensorboard")
        ended = cli("train", *settings(tiny, rows, tmp_path / name, *given))
        assert ended.code == 0, ended.err
        files = [path for path in (tmp_path / name).rglob("*") if path.is_file()]
        found = {path.name.partition(".")[0] for path in files if secret.encode() in path.read_bytes()}
        return found | ({"terminal"} if secret in ended.out + ended.err else set())

    assert holding("guarded") == set()
    monkeypatch.setattr("imprint.track.events.redactor", lambda: lambda value: value)
    assert holding("bare") >= {"events", "samples", "report", "terminal"}


def stopping_after(step: int):
    """The loop, broken after a step as a crash would break it."""
    from imprint.errors import RunFailed
    from imprint.train import loop

    def run_loop(state, data, plan, watch, counters):
        log = watch.log.log

        def told(kind, **fields):
            log(kind, **fields)
            if kind == "step" and fields["step"] == step:
                raise RunFailed("broken here")

        watch.log.log = told
        return loop.train(state, data, plan, watch, counters)

    return run_loop


def test_a_run_with_a_tracker_is_the_same_run(tiny, rows, tmp_path, cli, monkeypatch):
    for name in ("plain", "tracked"):
        given = () if name == "plain" else ("track=tensorboard",)
        assert (
            cli("train", *settings(tiny, rows, tmp_path / name, "max_steps=2", "validation=0", *given)).code
            == 0
        )
    assert weights_of(tmp_path / "plain") == weights_of(tmp_path / "tracked")
    assert losses(tmp_path / "plain") == losses(tmp_path / "tracked")
    assert not (tmp_path / "plain" / "trackers.json").exists()


# ---- those that are not installed here: their calls, recorded; and real ones where they are


def recorded(name: str, monkeypatch) -> list[tuple[str, tuple, dict]]:
    """A module that records every call, by its dotted name; objects that it returns record too."""
    calls: list[tuple[str, tuple, dict]] = []

    class Recorder(types.ModuleType):
        def __getattr__(self, part):
            if part.startswith("__"):
                raise AttributeError(part)
            return Recorder(f"{self.__name__}.{part}")

        def __call__(self, *arguments, **named):
            calls.append((self.__name__.partition(".")[2], arguments, named))
            return Recorder(self.__name__)

    monkeypatch.setitem(sys.modules, name, Recorder(name))
    return calls


SUBJECT = Subject(
    "base-train", Path("runs/base-train"), "abc", "", 0, {"recipe": {"model": "m", "lora": {"rank": 2}}}
)


def test_what_mlflow_is_told(tmp_path, monkeypatch):
    from imprint.track.to_mlflow import Sink

    calls = recorded("mlflow", monkeypatch)
    sink = Sink()
    sink.start(SUBJECT)
    params = [arguments for name, arguments, _ in calls if name == "entities.Param"]
    assert params == [("recipe.model", "m"), ("recipe.lora.rank", "2")]
    calls.clear()
    sink.log(STEP)
    sink.log({"kind": "note", "time": 13.0, "text": "hello"})
    sink.artifact(tmp_path / "report.html")
    sink.finish("interrupted")
    assert ("entities.Metric", ("train/loss", 0.5, 12500, 3), {}) in calls
    names = [name.rpartition(".")[2] for name, _, _ in calls]
    assert names == ["Metric", "Metric", "log_batch", "log_text", "log_artifact", "set_terminated"]
    assert calls[-1][2] == {"status": "KILLED"}


def test_mlflow_goes_on_with_its_run(monkeypatch):
    from dataclasses import replace

    from imprint.track.to_mlflow import Sink

    calls = recorded("mlflow", monkeypatch)
    assert Sink().start(replace(SUBJECT, known="run-7", step=2)) == "run-7"
    assert calls[-1] == ("MlflowClient.update_run", ("run-7",), {"status": "RUNNING"})


def test_what_trackio_is_told(tmp_path, monkeypatch):
    from dataclasses import replace

    from imprint.track.to_trackio import Sink

    calls = recorded("trackio", monkeypatch)
    sink = Sink()
    name = sink.start(SUBJECT)
    assert name == "base-train-abc"
    assert calls[0][2] == {
        "project": "imprint", "name": name, "resume": "allow", "embed": False,
        "config": {"recipe.model": "m", "recipe.lora.rank": 2},
    }  # fmt: skip
    sink.log(STEP)
    sink.artifact(tmp_path / "report.html")
    sink.finish("finished")
    assert calls[1][0] == "init.log"
    assert calls[1][1:] == (({"train/loss": 0.5, "train/tokens": 7.0},), {"step": 3})
    assert [called for called, _, _ in calls[2:]] == ["save", "init.finish"]
    assert Sink().start(replace(SUBJECT, known=name)) == name


def test_mlflow_itself(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    from imprint.track.to_mlflow import Sink

    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    sink = Sink()
    run = sink.start(SUBJECT)
    sink.log(STEP)
    sink.finish("finished")
    found = mlflow.MlflowClient().get_run(run)
    assert found.data.metrics["train/loss"] == 0.5
    assert found.data.params["recipe.lora.rank"] == "2"
    assert found.info.status == "FINISHED"


def test_trackio_itself(tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path))
    pytest.importorskip("trackio")
    from imprint.track.to_trackio import Sink

    sink = Sink()
    sink.start(SUBJECT)
    sink.log(STEP)
    sink.finish("finished")
    assert list(tmp_path.rglob("*.db")) or list(tmp_path.rglob("*.parquet"))
