"""SIGTERM, SIGHUP and Ctrl-C: how a process is told to stop, and when it does.

Where nothing of a run has begun, or all of it lies on the disk, a signal ends what is being done at
once: `Stopped` is raised in the main thread. Inside `deferred` it is only noted, and who works there
looks at it at the next safe point. A second one ends everything at once, wherever it comes: files are
written so that this loses nothing (see disk.py). Where the main thread hangs in a library that never
comes back, a watcher ends the process some seconds after the second signal.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

from imprint.errors import Interrupted

GRACE = 10.0  # seconds that the main thread has after a second signal
_NAMES = ("SIGINT", "SIGTERM", "SIGHUP")
SIGNALS = tuple(getattr(signal, name) for name in _NAMES if hasattr(signal, name))


class Stopped(KeyboardInterrupt):
    """A signal that ends what is being done at once; no `except Exception` of a library holds it up."""

    def __init__(self, by: str, second: bool):
        super().__init__(by)
        self.by, self.second = by, second


@dataclass
class _Listener:
    """What this process was told, and what to tell the user if it stops now."""

    received: list[str] = field(default_factory=list)
    deferring: bool = False
    doing: str = "imprint was starting"
    safe: str = "nothing was begun"  # what stands, if it stops now
    fix: str = "give the same command again"

    def receive(self, number: int, frame: FrameType | None) -> None:
        self.received.append("Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name)
        if len(self.received) > 1 or not self.deferring:
            raise Stopped(self.received[-1], len(self.received) > 1)


_listener: _Listener | None = None


def asked() -> bool:
    """Whether this process was told to stop."""
    return _listener is not None and bool(_listener.received)


def doing(what: str, safe: str, fix: str) -> None:
    """Say what is being done now, what stands if it is stopped here, and how to go on then."""
    if _listener is not None:
        _listener.doing, _listener.safe, _listener.fix = what, safe, fix


@contextmanager
def stoppable() -> Iterator[None]:
    """Inside, a signal becomes Interrupted, with what `doing` was told last. Inside another, it does nothing."""
    if _listener is not None:
        yield
        return
    with _listening() as listener:
        try:
            yield
        except Stopped as stop:
            raise stopped(stop, listener) from None


def stopped(stop: Stopped, listener: _Listener | None = None) -> Interrupted:
    """What the user is told of a stop at once."""
    listener = listener or _listener or _Listener()
    how = f"stopped at once by a second signal ({stop.by})" if stop.second else f"stopped by {stop.by}"
    parts = [f"{how} while {listener.doing}" if listener.doing else how, listener.safe]
    return Interrupted("; ".join(filter(None, parts)), fix=listener.fix)


@contextmanager
def stop_signals() -> Iterator[list[str]]:
    """Inside, the names of signals are collected as they come; a second one raises Stopped.

    So does, at the end, a first one that nobody inside heeded.
    """
    with _listening() as listener:
        before, listener.deferring = listener.deferring, True
        try:
            yield listener.received
        finally:
            listener.deferring = before
        if len(listener.received) == 1 and not before:
            raise Stopped(listener.received[0], False)


@contextmanager
def _listening() -> Iterator[_Listener]:
    """Handlers for the signals, of the one listener; beside the main thread, signals are left alone."""
    global _listener
    if _listener is not None:
        yield _listener
        return
    if threading.current_thread() is not threading.main_thread():
        yield _Listener()
        return
    listener = _Listener()
    ignored = [number for number in SIGNALS if signal.getsignal(number) is signal.SIG_IGN]  # nohup
    handlers = {n: signal.signal(n, listener.receive) for n in SIGNALS if n not in ignored}
    _listener = listener
    watcher = _watch()
    try:
        yield listener
    finally:
        _listener = None
        for number, handler in handlers.items():
            signal.signal(number, handler)
        watcher()


def _watch() -> Any:
    """Start the thread that ends this process where the main thread does not; what to call at the end."""
    if os.name != "posix":  # set_wakeup_fd takes sockets only
        return lambda: None
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    before = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    over = threading.Event()

    def look() -> None:
        told = 0
        while number := os.read(reading, 1):
            told += number[0] in SIGNALS
            if told > 1 and not over.wait(GRACE):
                with suppress(OSError):
                    os.write(2, b"ended at once by a second signal: what is on the disk is whole\n")
                os._exit(130)
        os.close(reading)

    threading.Thread(target=look, name="imprint signals", daemon=True).start()

    def end() -> None:
        over.set()
        signal.set_wakeup_fd(before)
        os.close(writing)

    return end
