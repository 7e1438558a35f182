"""The event log loses nothing, survives a torn end, and can be taken back to a step."""

import json
import os
from pathlib import Path

import pytest

from imprint.auto import Decision
from imprint.errors import RunError
from imprint.track.events import Event, EventLog, read, rewind, samples_path


class Collected:
    def __init__(self) -> None:
        self.events: list[Event] = []

    def event(self, event: Event) -> None:
        self.events.append(event)


def write_run(path: Path, steps: int) -> None:
    with EventLog(path) as log:
        log.log("start", recipe={"model": "m"}, total_steps=steps)
        for step in range(1, steps + 1):
            log.log("step", step=step, loss=1 / step)
            log.log("sample", step=step, question="Why?", reply="So.")
        log.log("note", text="all well")


def test_what_is_logged_is_read_back_and_reaches_the_sinks(tmp_path: Path) -> None:
    path, sink = tmp_path / "events.jsonl", Collected()
    with EventLog(path, sinks=[sink]) as log:
        log.log("note", text="naïve \u2028 text\nwith a line")
        log.log("checkpoint", step=3, path=Path("checkpoints") / "step-000003")
    assert read(path) == sink.events
    assert [event["kind"] for event in read(path)] == ["note", "checkpoint"]
    assert read(path)[0]["text"] == "naïve \u2028 text\nwith a line"
    assert isinstance(read(path)[0]["time"], float)
    assert path.read_bytes().count(b"\n") == 2


def test_each_line_is_readable_before_the_log_is_closed(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    log = EventLog(path)
    log.log("step", step=1)
    assert read(path)[0]["step"] == 1
    log.sync()
    log.close()
    log.close()


def test_not_a_number_becomes_null(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    with EventLog(path) as log:
        log.log("step", step=1, loss=float("nan"), grad_norm=float("inf"), deep={"a": [float("-inf"), 1.5]})
    line = json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(name))
    assert (line["loss"], line["grad_norm"], line["deep"]) == (None, None, {"a": [None, 1.5]})


def test_a_decision_keeps_its_names(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    with EventLog(path) as log:
        log.log("start", decisions=[Decision("device", "cpu", "there is no other")], betas=(0.9, 0.999))
    (event,) = read(path)
    assert event["decisions"] == [{"key": "device", "value": "cpu", "reason": "there is no other"}]
    assert event["betas"] == [0.9, 0.999]


def test_samples_go_to_their_own_file(tmp_path: Path) -> None:
    write_run(tmp_path / "events.jsonl", 2)
    assert all(event["kind"] != "sample" for event in read(tmp_path / "events.jsonl"))
    assert [event["step"] for event in read(tmp_path / "samples.jsonl")] == [1, 2]


def test_an_unknown_kind_is_refused(tmp_path: Path) -> None:
    with EventLog(tmp_path / "events.jsonl") as log, pytest.raises(AssertionError, match="stepp"):
        log.log("stepp", step=1)


def test_a_log_cut_at_any_byte_is_read_and_continued(tmp_path: Path) -> None:
    whole = tmp_path / "whole.jsonl"
    write_run(whole, 2)
    content, events = whole.read_bytes(), read(whole)
    for size in range(len(content) + 1):
        path = tmp_path / "cut.jsonl"
        path.write_bytes(content[:size])
        seen = read(path)
        assert seen == events[: len(seen)]
        assert len(seen) >= content[:size].count(b"\n")
        with EventLog(path) as log:
            log.log("resume", step=0)
        assert [event["kind"] for event in read(path)] == [event["kind"] for event in seen] + ["resume"]


def test_zeros_that_a_power_failure_leaves_are_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    write_run(path, 1)
    before = read(path)
    path.write_bytes(path.read_bytes() + bytes(100))
    assert read(path) == before
    with EventLog(path) as log:
        log.log("resume", step=1)
    assert len(read(path)) == len(before) + 1


def test_a_broken_line_in_the_middle_is_an_error_with_its_place(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text('{"kind": "note"}\n{"kind": "no\n{"kind": "note"}\n')
    with pytest.raises(RunError, match=r"events\.jsonl:2"):
        read(path)
    with pytest.raises(RunError):
        EventLog(path)


def test_no_file_is_no_events(tmp_path: Path) -> None:
    assert read(tmp_path / "events.jsonl") == []
    rewind(tmp_path / "events.jsonl", 3)
    assert list(tmp_path.iterdir()) == []


def test_rewind_forgets_later_steps_only(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    write_run(path, 5)
    before = read(path)
    rewind(path, 3)
    kinds = [(event["kind"], event.get("step")) for event in read(path)]
    assert kinds == [("start", None), ("step", 1), ("step", 2), ("step", 3), ("note", None)]
    assert [event["step"] for event in read(samples_path(path))] == [1, 2, 3]
    assert read(path)[:4] == before[:4]
    assert sorted(os.listdir(tmp_path)) == ["events.jsonl", "samples.jsonl"]


def test_rewind_replaces_the_file_instead_of_writing_into_it(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    write_run(path, 5)
    content = path.read_bytes()
    with path.open("rb") as old:
        rewind(path, 2)
        assert old.read() == content
    assert path.read_bytes() != content
