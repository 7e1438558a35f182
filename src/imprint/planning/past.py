"""What finished runs say of a plan: observed over foretold, of memory and of time."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from imprint.track import events


@dataclass(frozen=True, slots=True)
class Correction:
    """What the runs that were found say: observed over foretold."""

    memory: float = 1.0
    memory_spread: float | None = None
    seconds: float = 1.0
    seconds_spread: float | None = None
    runs: int = 0


def correction(folder: Path, most: int = 8) -> Correction:
    """What the newest finished runs of a folder say: observed over foretold, of memory and of time."""
    runs = sorted(folder.glob("*/events.jsonl"), key=lambda file: file.stat().st_mtime, reverse=True)
    memory, seconds = [], []
    for file in runs:
        try:
            found = predicted_and_observed(file)
        except (OSError, ValueError, KeyError, TypeError):
            continue  # another version's log, or one that is being written
        if found is None:
            continue
        peak, time_ = found
        memory += [peak] if peak else []
        seconds += [time_] if time_ else []
        if len(memory) >= most:
            break
    made = Correction(runs=max(len(memory), len(seconds)))
    if memory:
        made = replace(made, memory=statistics.median(memory), memory_spread=_spread(memory, 0.15))
    if seconds:
        made = replace(made, seconds=statistics.median(seconds), seconds_spread=_spread(seconds, 0.25))
    return made


def _spread(ratios: Sequence[float], alone: float) -> float:
    """How far a next one may be from their median: what they were themselves, at least 5 %."""
    middle = statistics.median(ratios)
    if len(ratios) < 3:
        return alone
    return max(0.05, 1.5 * max(abs(ratio / middle - 1) for ratio in ratios))


def predicted_and_observed(file: Path) -> tuple[float | None, float | None] | None:
    """Of a finished run: its peak and its seconds over what had been planned; None where it says nothing of it."""
    log = events.read(file)
    start = next((event for event in log if event["kind"] == "start"), None)
    end = next((event for event in reversed(log) if event["kind"] == "end"), None)
    if start is None or end is None or "planned" not in start:
        return None
    if any(event["kind"] == "resume" for event in log):
        return None  # its seconds and its peak are those of several processes
    planned = start["planned"]
    peaks = [event["peak_bytes"] for event in log if event["kind"] == "step"]
    return (
        max(peaks) / planned["peak_bytes"] if peaks and planned.get("peak_bytes") else None,
        end["seconds"] / planned["seconds"] if planned.get("seconds") else None,
    )
