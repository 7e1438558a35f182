"""How long a template may run and how much it may make: it came with a model, and so from a stranger."""

from __future__ import annotations

import ctypes
import re
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

try:
    import resource
except ImportError:  # Windows: the limits on sizes remain
    resource = None  # type: ignore[assignment]

SECONDS = 5.0  # of computing, for one rendering; real ones take well under a millisecond
OUT_OF_TIME = "the template did not finish in time"
CHARACTERS = 10_000_000  # of one text, finished or half made
MEMORY = 512 << 20  # bytes by which the process may grow while a rendering lasts
BITS = 4096  # of a whole number
LOOK = 0.1  # seconds between two looks of the watchdog


class LimitExceeded(BaseException):
    """A template ran too long or made too much. A BaseException, so that no filter of Jinja's swallows it."""


class OutOfTime(LimitExceeded):
    def __init__(self) -> None:
        super().__init__(OUT_OF_TIME)


class OutOfMemory(LimitExceeded):
    def __init__(self) -> None:
        super().__init__("the template takes too much memory")


def check_size(size: float) -> None:
    """LimitExceeded where a text, or a list, of this size would be too long."""
    if size > CHARACTERS:
        raise LimitExceeded(f"the template makes a text of more than {CHARACTERS:,} characters")


def size_of(value: Any) -> int:
    """About how many characters `value` has as a text; what is nested counts as often as it occurs."""
    size, waiting = 0, [value]
    while waiting:
        one = waiting.pop()
        size += len(one) if isinstance(one, str | bytes) else 1
        if isinstance(one, Mapping):
            waiting.extend(one)
            waiting.extend(one.values())
        elif isinstance(one, list | tuple):
            waiting.extend(one)
        check_size(size + len(waiting))
    return size


def check_product(left: Any, right: Any) -> None:
    """Before `left * right`: a repeated text or list, or a whole number."""
    for many, times in ((left, right), (right, left)):
        if hasattr(many, "__len__") and isinstance(times, int):
            check_size(len(many) * times)
    if isinstance(left, int) and isinstance(right, int) and left.bit_length() + right.bit_length() > BITS:
        raise LimitExceeded("the template computes a number too large for a chat template")


def check_power(left: Any, right: Any) -> None:
    if isinstance(left, int) and isinstance(right, int) and left.bit_length() * abs(right) > BITS:
        raise LimitExceeded("the template computes a power too large for a chat template")


def check_join(separator: str, parts: list[str]) -> None:
    check_size(sum(map(len, parts)) + len(separator) * len(parts))


def check_replace(text: str, old: Any, new: Any, *_: Any) -> None:
    check_size(len(text) + (text.count(old) if old else len(text) + 1) * len(new))


def check_format(text: str, mark: str, values: Iterable[Any]) -> None:
    """Before `text % values` or `text.format(…)`: every number in the text might be a width."""
    plain = text.replace(mark * 2, "")
    nested = r"%[^a-zA-Z%]*\*" if mark == "%" else r"\{[^{}]*\{"
    if re.search(nested, plain):
        raise LimitExceeded("the template pads a text to a width that it computes")
    widths = sum(int(number[:9]) for number in re.findall(r"\d+", plain))
    longest = max((size_of(value) for value in values), default=0)
    check_size(len(text) + widths + plain.count(mark) * longest)


class Pieces(list[str]):
    """A text in the making, which does not grow beyond the limit."""

    size = 0

    def append(self, piece: str) -> None:
        self.size += len(piece) + 1
        if self.size > CHARACTERS:
            check_size(self.size)
        super().append(piece)

    def extend(self, pieces: Iterable[str]) -> None:
        add, size = super().append, self.size
        for piece in pieces:
            size += len(piece) + 1
            if size > CHARACTERS:
                check_size(size)
            add(piece)
        self.size = size


@dataclass(slots=True)
class _Watched:
    """A rendering that goes on: its clock and when it must end, and the process's memory when first seen."""

    clock: Callable[[], float]
    deadline: float
    memory: int | None = None

    def excess(self) -> type[LimitExceeded] | None:
        used = _memory_in_use()
        self.memory = used if self.memory is None else self.memory
        if self.clock() > self.deadline:
            return OutOfTime
        return OutOfMemory if used - self.memory > MEMORY else None


def _own_clock() -> Callable[[], float]:
    """Seconds that this thread has computed, for other threads to read.

    Not those that passed: which rows exist must not depend on what else the machine does. They are
    read where the system counts no others.
    """
    if not hasattr(time, "pthread_getcpuclockid"):  # Windows, macOS
        return time.monotonic
    return partial(time.clock_gettime, time.pthread_getcpuclockid(threading.get_ident()))


def _memory_in_use() -> int:
    """Bytes of this process: now, on Linux; at most until now, elsewhere; 0 where nothing says."""
    try:
        pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
        return int(pages) * resource.getpagesize()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss if resource else 0  # bytes on macOS


class _Watchdog:
    """Ends renderings that exceed their time or their memory, in whatever thread they run."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.watched: dict[int, _Watched] = {}
        self.thread: threading.Thread | None = None

    def limit(self) -> _Watchdog:
        """Raises LimitExceeded inside the block once it computes for SECONDS or takes too much MEMORY."""
        return self

    def __enter__(self) -> None:
        if self.thread is None or not self.thread.is_alive():
            self.thread = threading.Thread(target=self._watch, name="template-watchdog", daemon=True)
            self.thread.start()
        clock = _own_clock()
        self.watched[threading.get_ident()] = _Watched(clock, clock() + SECONDS)

    def __exit__(self, *_: object) -> None:
        with self.lock:  # after this, no exception can be on its way to this thread
            self.watched.pop(threading.get_ident(), None)

    def _watch(self) -> None:
        while True:
            time.sleep(LOOK)
            with self.lock:
                for thread, rendering in list(self.watched.items()):
                    if (excess := rendering.excess()) is not None:
                        del self.watched[thread]
                        ctypes.pythonapi.PyThreadState_SetAsyncExc(
                            ctypes.c_ulong(thread), ctypes.py_object(excess)
                        )


_watchdog = _Watchdog()
limited = _watchdog.limit
