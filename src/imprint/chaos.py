"""A rehearsal for machines that may vanish: a run that is killed again and again, against one that is not.

    WORK/whole/      trained without a break: what every other run has to equal
    WORK/killed-N/   killed at random instants, resumed until done

A third of the instants is drawn from the whole life of a process, from its first import to its report; a third
from its steps, and a third from the time while a checkpoint is written.

Each run is a process of its own; a kill is SIGKILL, which nothing can catch. Equal means: the bytes of
the model folder and the losses of all steps.
"""

from __future__ import annotations

import json
import math
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from imprint.errors import RunFailed
from imprint.track import events

LOOK = 0.002  # seconds between two looks at a running process


class Running(Protocol):
    """A process that trains."""

    def poll(self) -> int | None: ...
    def kill(self) -> None: ...
    def wait(self) -> int: ...
    def said(self) -> str: ...


Start = Callable[[Sequence[str]], Running]  # of the arguments behind `imprint`


@dataclass
class Kill:
    """One SIGKILL: of which run, how long after its process began, and what it had done by then."""

    run: str
    seconds: float
    saving: bool  # this process was writing a checkpoint
    step: int  # the run's last step in the log
    new_steps: int  # those that this process made


@dataclass(frozen=True)
class Instant:
    """When to kill: so long after a process began, made so many steps, or began to write so many checkpoints.

    `delay` are seconds after that.
    """

    seconds: float = 0.0
    steps: int = 0
    saves: int = 0
    delay: float = 0.0


@dataclass(frozen=True)
class Whole:
    """What is known of a run that nobody killed: steps, saves, and seconds of all, of a step, of a save."""

    steps: int
    saves: int
    seconds: float
    step_seconds: float
    save_seconds: float

    def draw(self, draw: random.Random, done: float) -> Instant:
        """An instant for a process that takes up a run of which this share is `done`."""
        left = 1.0 - done
        match draw.choice(("any", "step", "save")):
            case "step":
                steps = draw.randint(1, max(1, round(self.steps * left / 2)))
                return Instant(steps=steps, delay=draw.uniform(0, 2 * self.step_seconds))
            case "save":
                saves = draw.randint(1, max(1, round(self.saves * left / 2)))
                return Instant(saves=saves, delay=draw.uniform(0, self.save_seconds))
        return Instant(seconds=draw.uniform(0, self.seconds))


@dataclass
class Outcome:
    """What became of it. `different` and `unusable` name runs; both are empty where nothing was lost."""

    kills: list[Kill] = field(default_factory=list)
    runs: int = 0
    resumes: int = 0
    different: list[str] = field(default_factory=list)
    unusable: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"num_kills": len(self.kills)}


def torment(
    arguments: Sequence[str],
    work: Path,
    kills: int,
    seed: int,
    start: Start,
    say: Callable[[str], None] = lambda _: None,
) -> Outcome:
    """Kill runs of `imprint train ARGUMENTS` until `kills` are spent, each resumed to its end and compared.

    `arguments` name no output; `work` must not exist. RunFailed where even the run without a kill fails.
    """
    begun = time.monotonic()
    outcome, draw = Outcome(), random.Random(seed)
    whole = work / "whole"
    work.mkdir(parents=True)
    process = start(["train", *arguments, f"output={whole}"])
    if process.wait() != 0:
        raise RunFailed("the run fails without any kill", where=str(whole), found=process.said()[-2000:])
    known = _known(whole, time.monotonic() - begun)
    say(f"without a kill: {known.seconds:.1f} s, {known.steps} steps, {known.saves} checkpoints")
    while len(outcome.kills) < kills:
        run = work / f"killed-{outcome.runs}"
        outcome.runs += 1
        known = _to_its_end(run, arguments, kills, known, draw, start, outcome, say)
        if run.name not in outcome.unusable and not equal(run, whole):
            outcome.different.append(run.name)
            say(f"{run.name}: ends otherwise than without kills; kept for a look")
        elif run.name not in outcome.unusable:
            shutil.rmtree(run)
    outcome.seconds = time.monotonic() - begun
    return outcome


def _known(whole: Path, seconds: float) -> Whole:
    told = list(events.read(whole / "events.jsonl"))

    def middle(kind: str) -> float:
        taken = [event["seconds"] for event in told if event["kind"] == kind]
        return statistics.median(taken) if taken else 0.0

    counted = [event["kind"] for event in told]
    saves = counted.count("checkpoint")
    return Whole(counted.count("step"), saves, seconds, middle("step"), middle("checkpoint"))


def _to_its_end(
    run: Path,
    arguments: Sequence[str],
    kills: int,
    known: Whole,
    draw: random.Random,
    start: Start,
    outcome: Outcome,
    say: Callable[[str], None],
) -> Whole:
    """One run, killed and taken up again until it is done; what is known of a whole run afterwards.

    The first run is the slowest, where files are read for the first time.
    """
    while True:
        fresh = not (run / "run.json").is_file()
        outcome.resumes += not fresh
        watched = Watched(run)
        process = start(["train", *arguments, f"output={run}"] if fresh else ["resume", str(run)])
        begun = time.monotonic()
        if len(outcome.kills) < kills:
            kill = watched.kill(process, known.draw(draw, watched.step / known.steps))
            if kill is not None:
                outcome.kills.append(kill)
                say(
                    f"kill {len(outcome.kills)}: {run.name} after {kill.seconds:.1f} s, step {kill.step} "
                    f"({kill.new_steps} new)" + ", while saving" * kill.saving
                )
                continue
        code = process.wait()
        if fresh:
            known = replace(known, seconds=min(known.seconds, time.monotonic() - begun))
        done = _is_done(run)
        if code not in (0, 2) or not done:  # 2: it was done before it was killed
            outcome.unusable.append(run.name)
            say(f"{run.name} cannot be taken up:\n{process.said()[-2000:]}")
        return known


class Watched:
    """A run folder, and what has come into it since this was made."""

    def __init__(self, run: Path):
        self.run = run
        self._since = time.time()
        self._before = self._partials()
        self._saves: set[str] = set()  # names of checkpoints that were begun
        self._size = 0  # of the log, when it was looked at
        self._steps = 0  # new ones
        self.step = _last_step(run)

    def kill(self, process: Running, when: Instant) -> Kill | None:
        """Kill a process at this instant; None: it ended before."""
        begun, due = time.monotonic(), math.inf
        while process.poll() is None:
            now = time.monotonic()
            self._look()
            reached = now - begun >= when.seconds and self._steps >= when.steps
            if due == math.inf and reached and len(self._saves) >= when.saves:
                due = now + when.delay
            if now >= due:
                process.kill()
                process.wait()
                saving = bool(self._begun())
                step, new = _last_step(self.run), self._new_steps()
                return Kill(self.run.name, round(now - begun, 3), saving, step, new)
            time.sleep(LOOK)
        return None

    def _look(self) -> None:
        self._saves |= self._begun()
        with suppress(FileNotFoundError):
            size = (self.run / "events.jsonl").stat().st_size
            if size != self._size:
                self._size, self._steps = size, self._new_steps()

    def _new_steps(self) -> int:
        """Steps that were logged since."""
        told = events.read(self.run / "events.jsonl")
        return sum(event["kind"] == "step" and event["time"] >= self._since for event in told)

    def _begun(self) -> set[str]:
        """Checkpoints that are being written now; what an earlier kill left half written is none of them."""
        return {name for name, made in self._partials().items() if self._before.get(name) != made}

    def _partials(self) -> dict[str, int]:
        found = {}
        for path in (self.run / "checkpoints").glob("*.partial"):
            with suppress(FileNotFoundError):  # it just got its name
                found[path.name] = path.stat().st_mtime_ns
        return found


def _is_done(run: Path) -> bool:
    ended = any(event["kind"] == "end" for event in events.read(run / "events.jsonl"))
    return ended and (run / "model").is_dir()


def equal(run: Path, whole: Path) -> bool:
    """Whether two runs ended alike: the bytes of their models, and the loss of each step."""

    def model(folder: Path) -> dict[str, bytes]:
        inside = folder / "model"
        files = sorted(path for path in inside.rglob("*") if path.is_file())
        return {path.relative_to(inside).as_posix(): path.read_bytes() for path in files}

    return model(run) == model(whole) and _losses(run) == _losses(whole)


def _last_step(run: Path) -> int:
    losses = _losses(run)
    return losses[-1][0] if losses else 0


def _losses(run: Path) -> list[tuple[int, float]]:
    path = run / "events.jsonl"
    return [(event["step"], event["loss"]) for event in events.read(path) if event["kind"] == "step"]


class _Process:
    """`imprint …` in a new interpreter; what it says goes into a file."""

    def __init__(self, arguments: Sequence[str], log: Path):
        self.log = log
        with log.open("ab") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "imprint.cli", *arguments],
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def poll(self) -> int | None:
        return self.process.poll()

    def kill(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)

    def wait(self) -> int:
        try:
            return self.process.wait()
        except BaseException:  # whoever stops the rehearsal leaves no run behind
            self.process.kill()
            self.process.wait()
            raise

    def said(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace") if self.log.is_file() else ""


def starter(log: Path) -> Start:
    """Starts each run in a new interpreter, as a scheduler would."""
    return lambda arguments: _Process(arguments, log)


def write(path: Path, outcome: Outcome) -> None:
    path.write_text(json.dumps(outcome.to_json(), indent=1) + "\n", encoding="utf-8")
