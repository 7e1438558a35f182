"""Trackers beside a run: each in a thread with a queue of its own, so that none stops or slows the run.

What a tracker has not taken when its queue is full is left out, and told; after its first failure it is
left alone, and told; at the end it is waited for, a while. All of it can be sent again from the event
log, by `imprint track`. The ids that trackers gave are kept in the run folder, for a run that goes on.
"""

from __future__ import annotations

import json
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from shlex import quote

from imprint.disk import write_text
from imprint.errors import RunError, RunFailed
from imprint.redact import redactor
from imprint.track import events
from imprint.track.events import Event, EventLog
from imprint.track.sinks import Subject, Tracker, make

ROOM = 10_000  # events that wait for a tracker
WAIT = 60.0  # seconds that trackers have after a run that came to its end
SHORT_WAIT = 8.0  # after one that was stopped: a spot machine is gone soon
FILES = ("recipe.yaml", "ledger.json", "report.html")
IDS = "trackers.json"
Step = Callable[[Tracker], None]


class Follower:
    """Feeds one tracker in a thread; a sink of the event log. `trouble` says what went wrong, once."""

    def __init__(self, name: str, tracker: Tracker, run: Path, known: str, given: str):
        self.name, self.tracker, self.run, self.known, self.given = name, tracker, run, known, given
        self.id = ""
        self.trouble = ""
        self.done = threading.Event()
        self.left_out = 0
        self._started = False
        self.room: float = ROOM
        self._queue: queue.Queue[Step | None] = queue.Queue()
        self._thread = threading.Thread(target=self._work, name=f"imprint track {name}", daemon=True)
        self._thread.start()

    def event(self, event: Event) -> None:
        """Never waits, never fails."""
        if event["kind"] in ("start", "resume") and not self._started:
            self._started = True
            self._put(lambda tracker: self._start(tracker, event))
        if self._started:
            if self._queue.qsize() < self.room:
                self._put(lambda tracker: tracker.log(event))
            else:
                self.left_out += 1

    def end(self, status: str) -> None:
        """Let the tracker have the files, and finish; does not wait for it."""
        for name in FILES:
            if (self.run / name).is_file():
                self._put(lambda tracker, path=self.run / name: tracker.artifact(path))  # type: ignore[misc]
        self._put(lambda tracker: tracker.finish(status))
        self._put(None)

    def _put(self, step: Step | None) -> None:
        if not self.done.is_set():
            self._queue.put(step)

    def _work(self) -> None:
        try:
            while (step := self._queue.get()) is not None:
                step(self.tracker)
        except BaseException as error:  # also SystemExit: some trackers leave by it
            text = " ".join(str(redactor()(str(error))).split())[:300]
            self.trouble = f"{self.name} failed, and is left alone: {type(error).__name__}: {text}"
        finally:
            self.done.set()

    def _start(self, tracker: Tracker, event: Event) -> None:
        begun = event if event["kind"] == "start" else beginning(self.run)
        hidden = ("kind", "time", "decisions", "planned")
        config = {key: value for key, value in begun.items() if key not in hidden}
        step = event.get("step", 0)
        self.id = tracker.start(Subject(self.run.name, self.run, self.given, self.known, step, config))
        keep_id(self.run, self.name, self.id)


def beginning(run: Path) -> Event:
    """The start event of a run; RunError where it has none."""
    started = [event for event in events.read(run / "events.jsonl") if event["kind"] == "start"]
    if not started:
        raise RunError(
            "this run has not begun", where=str(run), expected="events.jsonl with a start", fix="train first"
        )
    return started[-1]


def ids(run: Path) -> dict[str, str]:
    """The run's ids in its trackers, by their names; none where the file is missing or broken."""
    path = run / IDS
    try:
        found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError:
        return {}
    return {str(name): str(value) for name, value in found.items()} if isinstance(found, dict) else {}


_keeping = threading.Lock()


def keep_id(run: Path, name: str, value: str) -> None:
    with _keeping:
        write_text(run / IDS, json.dumps({**ids(run), name: value}, indent=1))


@contextmanager
def following(run: Path, run_id: str, names: Sequence[str], log: EventLog) -> Iterator[None]:
    """Inside, the trackers follow what `log` says. Leaves at most WAIT seconds after the run did."""
    known = ids(run)
    followers = [Follower(name, make(name), run, known.get(name, ""), run_id) for name in names]
    log.sinks += (*followers, *([_Tell(followers, log)] if followers else []))
    status = "failed"
    try:
        yield
        status = "finished"
    except KeyboardInterrupt:
        status = "interrupted"
        raise
    except Exception as error:
        status = "interrupted" if getattr(error, "exit_code", 1) == 130 else "failed"
        raise
    finally:
        _finish(followers, log, status)


class _Tell:
    """Notes in the log what went wrong with a tracker, from the thread that logs."""

    def __init__(self, followers: Sequence[Follower], log: EventLog):
        self.followers, self.log = followers, log

    def event(self, event: Event) -> None:
        for follower in self.followers:
            trouble, follower.trouble = follower.trouble, ""
            if trouble:
                self.log.log("note", text=f"{trouble}; {again(follower.run, follower.name)}")


def again(run: Path, name: str) -> str:
    return f"imprint track {quote(str(run))} --to {name} sends all of it"


def _finish(followers: Sequence[Follower], log: EventLog, status: str) -> None:
    for follower in followers:
        follower.end(status)
    began = time.monotonic()
    for follower in followers:
        # one that has not even begun by now most likely cannot reach its server
        patience = WAIT if status == "finished" and follower.id else min(WAIT, SHORT_WAIT)
        if not follower.done.wait(max(0.0, began + patience - time.monotonic())):
            follower.trouble = f"{follower.name} did not come to its end, and is not waited for"
        elif follower.left_out and not follower.trouble:
            follower.trouble = f"{follower.name} was too slow: {follower.left_out:,} events were left out"
    if any(follower.trouble for follower in followers):
        _Tell(followers, log).event({})


def replay(run: Path, name: str, another: bool, wait: float = 600.0) -> str:
    """Send the event log of a run to a tracker, in order; its id there.

    RunError where the run is known there and `another` is not asked for; RunFailed where the tracker fails.
    """
    start = beginning(run)
    known, facts = ids(run).get(name, ""), json.loads((run / "run.json").read_text(encoding="utf-8"))
    if known and not another:
        raise RunError(
            f"this run is in {name} already",
            where=str(run),
            found=f"as {known}",
            fix="add --again to send it once more, as a run of its own",
        )
    given = f"{facts['id']}-{time.time_ns() // 1_000_000 if known else ''}".rstrip("-")
    log = events.read(run / "events.jsonl")
    samples = events.read(run / "samples.jsonl")
    redact = redactor()
    follower = Follower(name, make(name), run, "", given)
    follower.room = float("inf")  # nobody trains: all of it may wait
    for event in [
        start,
        *sorted([e for e in log if e is not start and e != start] + samples, key=lambda e: e["time"]),
    ]:
        follower.event(redact(event))
    ended = [event["kind"] for event in log if event["kind"] in ("end", "interrupted")]
    follower.end({"end": "finished", "interrupted": "interrupted"}.get(ended[-1] if ended else "", "failed"))
    if not follower.done.wait(wait):
        follower.trouble = f"{name} did not come to its end within {wait:.0f} s"
    if follower.trouble:
        raise RunFailed(
            follower.trouble, where=str(run), fix="mend it there, and give the same command again"
        )
    return follower.id
