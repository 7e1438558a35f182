"""The event log: everything that a run says about itself, one JSON object a line.

| kind          | fields beside `kind` and `time` (seconds since 1970)                                 |
|---|---|
| `start`       | recipe, decisions, num_parameters, num_trainable, total_steps, versions, …           |
| `rehearsal`   | stages (seconds), seconds, predicted_seconds, peak_bytes, disk_bytes, free_disk, …   |
| `step`        | step, epoch, loss, learning_rate, grad_norm, conversations, tokens, computed_tokens, |
|               | trained_tokens, seconds, peak_bytes; with replay: replay (pieces), replay_weight     |
| `validation`  | step, loss, trained_tokens, seconds, best                                            |
| `replay_loss` | step, loss, trained_tokens, seconds: on replay that is not trained                   |
| `sample`      | step, prompt, question, reply, reference, stopped; kept in samples.jsonl             |
| `checkpoint`  | step, path, bytes, seconds (of writing, in the background), waited (by training)      |
| `not_finite`  | step, loss, grad_norm, rows (places), batch (places), skipped: the update was left out |
| `note`        | text; where memory ran out also step, row_tokens, activation_checkpointing            |
| `early_stop`  | step, reason                                                                         |
| `resume`      | step; first_validation, best_validation; passed_over: checkpoints, and why            |
| `interrupted` | step                                                                                 |
| `export`      | name, to, path (null: not made), passed (null: not proven), seconds, text            |
| `end`         | step, seconds, best_step, best_loss, reason; with replay: replay, replay_weight      |

`step` counts updates of the weights that are done: step 0 is before training. `epoch` is the
number of passes over the data that are done, a fraction included. `loss` is in nats a token.
`tokens` is what the turns hold one by one, `computed_tokens` what was computed once shared
prompts were merged and rows filled up, `trained_tokens` those with a loss. `replay_weight` is the
share of a step's weight that replay had, of the run the mean of its steps, each of which counts alike
in training. A decision is {key, value, reason}; any named tuple becomes such an object. Not every
field is always there.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterable
from functools import partial
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from imprint import signals
from imprint.disk import is_full, patiently, write_bytes
from imprint.errors import RunError
from imprint.redact import redactor

Event = dict[str, Any]

KINDS = {
    "start",
    "resume",
    "rehearsal",
    "step",
    "validation",
    "replay_loss",
    "sample",
    "checkpoint",
    "not_finite",
    "note",
    "early_stop",
    "interrupted",
    "export",
    "end",
}


class Sink(Protocol):
    """Something that follows a run: the terminal, a tracker."""

    def event(self, event: Event) -> None: ...


class EventLog:
    """Appends events to `path`, samples to samples.jsonl beside it, and hands each to the sinks.

    A line is handed to the system at once, so that a killed process loses none; `sync` makes
    them outlive a power failure too. A line torn by one is cut off when the log is opened.
    Secrets are taken out before anything is written or handed on.
    """

    def __init__(self, path: Path, sinks: Iterable[Sink] = ()):
        self.path = path
        self.sinks = tuple(sinks)
        self.patient = True  # whether a full disk is waited for: once in a run is enough
        self._redact = redactor()
        self._events = _open(path)
        self._samples = _open(samples_path(path))

    def log(self, kind: str, **fields: Any) -> None:
        """Record that something happened, now. NaN and infinity become null."""
        assert kind in KINDS, f"unknown kind of event: {kind}"
        event: Event = self._redact(_plain({"kind": kind, "time": time.time(), **fields}))
        file = self._samples if kind == "sample" else self._events
        self._append(file, _line(event))
        for sink in self.sinks:
            sink.event(event)

    def sync(self) -> None:
        """Return once all that was logged is on the disk."""
        for file in (self._events, self._samples):
            self.wait_for_room(partial(os.fsync, file.fileno()))

    def wait_for_room(self, work: Callable[[], object]) -> None:
        """Do what writes to this disk: where it is full, wait and tell who follows the run (see disk.patiently)."""
        try:
            patiently(work, self.tell, lambda: not self.patient or signals.asked())
        except Exception as error:
            self.patient = self.patient and not is_full(error)
            raise

    def tell(self, text: str) -> None:
        """Say something to those who follow the run, and write nothing: the disk may be full."""
        for sink in self.sinks:
            sink.event({"kind": "note", "time": time.time(), "text": self._redact(text)})

    def _append(self, file: FileIO, line: bytes) -> None:
        """All of a line or nothing of it; where the disk is full, the run waits here."""
        before, left = os.fstat(file.fileno()).st_size, line

        def write() -> None:
            nonlocal left
            while left:  # of a nearly full disk, a part is taken
                left = left[file.write(left) :]

        try:
            self.wait_for_room(write)
        except BaseException as error:
            os.ftruncate(file.fileno(), before)
            if isinstance(error, OSError):
                error.filename = os.fspath(file.name)
            raise

    def close(self) -> None:
        if not self._events.closed:
            self.sync()
        self._events.close()
        self._samples.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def samples_path(path: Path) -> Path:
    """Where the samples of the log at `path` are."""
    return path.with_name("samples.jsonl")


def read(path: Path) -> list[Event]:
    """The events of a log, oldest first; none where there is no file.

    A last line that a power failure tore is skipped. Any other broken line is a RunError.
    """
    return _parse(path)[0]


def rewind(path: Path, step: int) -> None:
    """Forget what came after `step`, in the log and in the samples beside it.

    Events without a step stay. Each file is replaced at once: killed at any instant, it is
    either the old one or the new one.
    """
    for file in (path, samples_path(path)):
        if file.exists():
            kept = [event for event in read(file) if "step" not in event or event["step"] <= step]
            write_bytes(file, b"".join(map(_line, kept)))


def _open(path: Path) -> FileIO:
    """Open for appending, after mending the end that a power failure may have left."""
    if path.exists():
        whole = _parse(path)[1]
        if whole < path.stat().st_size:
            os.truncate(path, whole)
    file = path.open("ab", buffering=0)
    if path.stat().st_size and not path.read_bytes().endswith(b"\n"):
        file.write(b"\n")
    return file


def _parse(path: Path) -> tuple[list[Event], int]:
    """The events, and how many bytes of the file they take up."""
    if not path.exists():
        return [], 0
    events: list[Event] = []
    whole = 0
    lines = path.read_bytes().splitlines(keepends=True)
    for number, line in enumerate(lines, start=1):
        try:
            event = json.loads(line)
            if not isinstance(event, dict):
                raise ValueError("not an object")
        except ValueError as error:  # UnicodeDecodeError and JSONDecodeError are both ValueErrors
            if number == len(lines):
                break
            raise RunError(
                "a line of the event log is broken",
                where=f"{path}:{number}",
                found=line.decode(errors="replace").strip()[:80],
                expected="one JSON object",
                fix="remove the line; only what it says is lost",
            ) from error
        events.append(event)
        whole += len(line)
    return events, whole


def _line(event: Event) -> bytes:
    # An ASCII line has no separator (such as U+2028) that another reader might take for a line's end.
    return json.dumps(event, allow_nan=False).encode("ascii") + b"\n"


def _plain(value: Any) -> Any:
    """The same as JSON can hold: no NaN or infinity, paths as text, named tuples as objects."""
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        value = value._asdict()
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    return value
