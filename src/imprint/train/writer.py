"""Checkpoints in the background: training waits for a copy in memory, and a thread does the rest.

At most one write is in flight: the next save waits for it. What the thread meets is raised at the next
step or save, and a run never ends before its last checkpoint is verified. Where the disk is full, the
thread keeps the copy and tries again (see disk.patiently); meanwhile training goes on to its next save.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from imprint import signals
from imprint.disk import patiently
from imprint.distributed.mesh import Mesh
from imprint.errors import RunFailed
from imprint.train.checkpoint import Counters, Snapshot, rotate, snapshot, write_checkpoint
from imprint.train.step import TrainState

LOOK = 0.1  # seconds between two looks at a thread that is waited for


class Log(Protocol):
    """Where is told what was written."""

    def log(self, kind: str, **fields: Any) -> None: ...


@dataclass
class _Write:
    """One checkpoint on its way to the disk."""

    taken: Snapshot
    keep: set[int]
    waited: float  # seconds that training stood still for it
    error: BaseException | None = None
    done: bool = False
    seconds: float = 0.0


class Writer:
    """Writes the checkpoints of a run into `folder`; `about` goes into their manifests.

    Every rank has one, and calls its methods at the same points; the main one writes.
    """

    def __init__(self, folder: Path, about: Mapping[str, Any], log: Log, mesh: Mesh):
        self.folder, self.about, self.log, self.mesh = folder, about, log, mesh
        self._write: _Write | None = None
        self._thread: threading.Thread | None = None
        self._texts: list[str] = []
        self._abandoned = False

    @property
    def failed(self) -> bool:
        """Whether the write in flight has ended with an error, which `check` raises."""
        return self._write is not None and self._write.done and self._write.error is not None

    def save(self, state: TrainState, counters: Counters, keep: set[int]) -> None:
        """Copy what the state is now, and have it written; raises what the write before met."""
        begun = time.perf_counter()
        self.finish()
        taken = snapshot(state, counters)
        if self.mesh.is_main:
            self._write = _Write(taken, keep, time.perf_counter() - begun)
            self._thread = threading.Thread(
                target=self._run, args=(self._write,), name="imprint writer", daemon=True
            )
            self._thread.start()

    def look(self) -> None:
        """Tell what the thread has to say, without waiting for it."""
        while self._texts:
            self.log.log("note", text=self._texts.pop(0))
        write = self._write
        if write is not None and write.done and write.error is None:
            self._write = None
            self.log.log(
                "checkpoint",
                step=write.taken.step,
                path=f"step-{write.taken.step:06d}",
                bytes=write.taken.num_bytes,
                seconds=write.seconds,
                waited=write.waited,
            )

    def check(self, failed: bool) -> None:
        """Raise the error of the write, on each rank, where `failed` on any of them."""
        self.look()
        if not failed:
            return
        if self._write is not None and (error := self._write.error) is not None:
            self._write = None
            raise error
        raise RunFailed(
            "process 0 could not write a checkpoint", fix="see what process 0 says, and resume the run"
        )

    def finish(self) -> None:
        """Until the write in flight has ended and is verified; raises what it met, on each rank."""
        self.wait()
        self.check(self.mesh.any(self.failed))

    def wait(self) -> None:
        """Until no thread runs. What it met is not raised here."""
        while self._thread is not None and self._thread.is_alive():
            self._thread.join(LOOK)
            self.look()
        self._thread = None
        self.look()

    def abandon(self) -> None:
        """Have the thread stop waiting for room on the disk; the process is about to end."""
        self._abandoned = True

    def _run(self, write: _Write) -> None:
        begun = time.perf_counter()
        taken, path = write.taken, self.folder / f"step-{write.taken.step:06d}"

        def work() -> None:
            write_checkpoint(path, taken, self.about)
            rotate(self.folder, taken.step, write.keep, self.about)

        try:
            with torch.no_grad():
                patiently(work, self._texts.append, self._given_up)
        except BaseException as error:  # raised in the main thread, by `check`
            write.error = error
        write.seconds = time.perf_counter() - begun
        write.done = True

    def _given_up(self) -> bool:
        return self._abandoned or signals.asked()
