"""`imprint demo --lessons`: the trials of the chosen lessons, told in the terminal and on a page.

FOLDER holds base/, general.jsonl, lessons.json (every figure) and lessons.html. What was found is kept at once,
and a trial that was broken off goes on, so that the same command ends what an earlier one began.
"""

from __future__ import annotations

import json
import os
import shlex
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from imprint.demo.lesson_words import Rows, percent
from imprint.demo.lessons import LESSONS, Lesson
from imprint.demo.trials import Found, Trial, digest_of, examine, forget, train, write_materials
from imprint.errors import Interrupted, RecipeError, RunError, nearest
from imprint.track.words import duration, plural

if TYPE_CHECKING:
    from rich.console import Console

FOLDER = Path("imprint-lessons")
FIGURES, PAGE = "lessons.json", "lessons.html"
WIDTH = 80
_EXAM = 15  # an examination takes about as long as so many steps
NAMES = {
    "held_out": "held-out right",
    "seen": "trained right",
    "general": "general loss",
    "stopped": "ended",
}


class Notebook:
    """The figures that were found so far; each is on the disk as soon as it is known."""

    def __init__(self, folder: Path, digest: str):
        self.path = folder / FIGURES
        self.digest = digest
        self.found: dict[str, Found] = {}
        if not self.path.exists():
            return
        kept = read_figures(self.path)
        if kept["digest"] != digest:
            raise RunError(
                "these lessons were begun with something else",
                where=str(self.path),
                found="another base model, other texts, other questions, or other settings",
                expected="what its figures were made with, so that they can be compared",
                fix=f"begin anew elsewhere: imprint demo {folder}-2 --lessons",
            )
        self.found = {key: Found.from_json(value) for key, value in kept["trials"].items()}

    def __contains__(self, trial: Trial) -> bool:
        return trial.key in self.found

    def add(self, trial: Trial, found: Found) -> None:
        self.found[trial.key] = found
        self.write()

    def rows(self, lesson: Lesson) -> Rows | None:
        """What its trials showed; None where one of them is still to come."""
        if any(trial not in self for _, trial in lesson.trials):
            return None
        return [(label, self.found[trial.key]) for label, trial in lesson.trials]

    def write(self) -> None:
        told = []
        for lesson in LESSONS:
            if rows := self.rows(lesson):
                trials = {label: trial.key for label, trial in lesson.trials}
                told.append({"name": lesson.name, "trials": trials, "seen": lesson.seen(rows)})
        value = {
            "imprint": version("imprint-sft"),
            "cores": os.cpu_count(),
            "digest": self.digest,
            "trials": {key: found.to_json() for key, found in self.found.items()},
            "lessons": told,
        }
        aside = self.path.with_suffix(".new")
        aside.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
        os.replace(aside, self.path)


def read_figures(path: Path) -> dict[str, Any]:
    """What `Notebook.write` wrote; RunError where it is something else."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        if not {"digest", "trials"} <= set(value):
            raise ValueError("it has no digest and no trials")
    except (ValueError, TypeError) as error:
        raise RunError(
            "these are no figures of lessons",
            where=str(path),
            found=str(error),
            expected=f"the {FIGURES} that imprint demo --lessons writes",
            fix="remove it, and the lessons are made anew",
        ) from error
    figures: dict[str, Any] = value
    return figures


def rows_of(figures: dict[str, Any]) -> dict[str, Rows]:
    """What each lesson's trials showed, by its name, from the figures of a file; only those that are complete."""
    found = {key: Found.from_json(value) for key, value in figures["trials"].items()}
    return {
        lesson.name: [(label, found[trial.key]) for label, trial in lesson.trials]
        for lesson in LESSONS
        if all(trial.key in found for _, trial in lesson.trials)
    }


def parse(words: Sequence[str]) -> tuple[Path, list[Lesson]]:
    """The folder and the lessons that the words after the verb name: all lessons where they name none."""
    by_name = {lesson.name: lesson for lesson in LESSONS}
    chosen = [by_name[word] for word in words if word in by_name]
    others = [word for word in words if word not in by_name]
    for word in others:
        like = nearest(word, by_name)
        if len(others) > 1 or (like and not Path(word).exists()):
            raise RecipeError(
                f"there is no lesson {word!r}",
                expected=f"at most one folder, and any of {', '.join(by_name)}",
                fix=f"write {like}" if like else "give one folder: imprint demo FOLDER --lessons",
            )
    return (Path(others[0]) if others else FOLDER), [
        lesson for lesson in LESSONS if lesson in (chosen or LESSONS)
    ]


def teach(folder: Path, lessons: Sequence[Lesson], console: Console, extra: Sequence[str] = ()) -> Path:
    """Carry out what is missing of these lessons, tell each, and write the page, which is returned.

    Interrupted on Ctrl-C; what was found is kept. `extra` are settings for every trial.
    """
    from imprint.demo.lesson_page import write_page

    begun = time.perf_counter()
    if folder.exists() and any(folder.iterdir()) and not (folder / "base").exists():
        raise RunError(
            "this folder holds something else",
            where=str(folder),
            expected="a new folder, or one of the demo or of its lessons",
            fix="choose another: imprint demo FOLDER --lessons",
        )
    write_materials(folder)
    notebook = Notebook(folder, digest_of(folder, extra))
    wanted = list(dict.fromkeys(trial for lesson in lessons for _, trial in lesson.trials))
    try:
        with Bar(console, [trial for trial in wanted if trial not in notebook]) as bar:
            for lesson in lessons:
                for label, trial in lesson.trials:
                    if trial not in notebook:
                        together = [t for t in wanted if t.run == trial.run and t not in notebook]
                        bar.begin(f"{lesson.name}: {label}", trial)
                        _carry_out(together, folder, notebook, bar, extra)
                tell(console, lesson, notebook.rows(lesson) or [])
                write_page(folder, notebook.found)
    except (Interrupted, KeyboardInterrupt) as stop:
        names = [lesson.name for lesson in lessons] if len(lessons) < len(LESSONS) else []
        again = shlex.join(["imprint", "demo", str(folder), "--lessons", *names])
        what = stop.what if isinstance(stop, Interrupted) else "stopped by Ctrl-C"
        found = (
            f"{plural(len(notebook.found), 'trial')} done, whose figures are kept" if notebook.found else ""
        )
        raise Interrupted(
            what, where=str(folder), found=found, fix=f"the same command goes on: {again}"
        ) from None
    console.print(f"\n{plural(len(lessons), 'lesson')} in {duration(time.perf_counter() - begun)}")
    console.print(f"  the page     {folder / PAGE}   (open it in a browser)", soft_wrap=True)
    console.print(f"  the figures  {folder / FIGURES}", soft_wrap=True)
    return folder / PAGE


def _carry_out(
    trials: Sequence[Trial], folder: Path, notebook: Notebook, bar: Bar, extra: Sequence[str]
) -> None:
    """Train once for trials that share a run, examine each, and keep only their figures."""
    run = train(trials[0], folder, bar.following, extra)
    for trial in trials:
        bar.asking()
        notebook.add(trial, examine(trial, run, extra))
    forget(trials[0], run)
    bar.done()


class Bar:
    """How far all trials are: a line that is redrawn on a terminal, and a line for each trial elsewhere."""

    def __init__(self, console: Console, trials: Sequence[Trial]):
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=16),
            TimeRemainingColumn(compact=True),
        )
        self._progress = Progress(*columns, console=console, transient=True, speed_estimate_period=120)
        self._console, self._begun, self._what = console, time.perf_counter(), ""
        runs = {trial.run.key: trial.run for trial in trials}
        steps = sum(trial.steps for trial in runs.values()) + _EXAM * len(trials)
        self._task = self._progress.add_task("", total=steps)
        self._number, self._count = 0, len(runs)
        self._before, self._steps = 0.0, 0  # steps before what is going on, and of it

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def begin(self, what: str, trial: Trial) -> None:
        """A run begins, and with it the training of `trial`."""
        self._number += 1
        self._begun, self._what = time.perf_counter(), what
        self._before, self._steps = self._progress.tasks[0].completed, trial.steps
        self._say("training")

    def asking(self) -> None:
        """An examination begins; the training, or the one before it, is over."""
        self._before += self._steps
        self._steps = _EXAM
        self._progress.update(self._task, completed=self._before)
        self._say("asking")

    def _say(self, doing: str) -> None:
        line = f"{self._number} of {self._count}  {self._what}"
        line = line if len(line) < 46 else line[:45] + "…"
        self._progress.update(self._task, description=f"{line}  {doing}")

    @contextmanager
    def following(self, total_steps: int) -> Iterator[Self]:
        """What a run tells its events while it goes on."""
        yield self

    def event(self, event: dict[str, Any]) -> None:
        if event["kind"] == "step":
            self._progress.update(self._task, completed=self._before + event["step"])

    def done(self) -> None:
        self._progress.update(self._task, completed=self._before + self._steps)
        if not self._console.is_terminal:
            seconds = duration(time.perf_counter() - self._begun)
            self._console.print(
                f"{self._number} of {self._count}  {self._what}  {seconds}", soft_wrap=True, style="dim"
            )


def tell(console: Console, lesson: Lesson, rows: Rows) -> None:
    """One lesson in 80 columns: its question, its figures, what they show."""
    from rich.padding import Padding
    from rich.rule import Rule
    from rich.table import Table

    console.print()
    console.print(Rule(f"{lesson.name}  {lesson.title}", align="left"), width=WIDTH)
    console.print(f"{lesson.question} {lesson.how} Intervals are of 95 %.", width=WIDTH, style="dim")
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    table.add_column("")
    table.add_column("steps", justify="right")
    for panel in lesson.panels:
        table.add_column(NAMES[panel], justify="right", no_wrap=True)
        if panel != "general":
            table.add_column("interval", justify="right", no_wrap=True, style="dim")
    for label, found in rows:
        table.add_row(
            label, f"{found.steps:,}", *(cell for panel in lesson.panels for cell in cells(panel, found))
        )
    console.print(Padding(table, (0, 0, 0, 2)))
    console.print(lesson.seen(rows), width=WIDTH)


def cells(panel: str, found: Found) -> list[str]:
    """A figure, and its interval where it is a share of questions."""
    if panel == "general":
        return [f"{found.general:.2f}"]
    right, (low, high) = value_of(panel, found)
    return [percent(right), f"{100 * low:.0f} to {100 * high:.0f} %"]


def value_of(panel: str, found: Found) -> tuple[float, tuple[float, float]]:
    """A figure and its 95 % interval; of a loss, the interval is empty."""
    from imprint.evaluate.marks import wilson

    if panel == "general":
        return found.general, (found.general, found.general)
    if panel == "stopped":
        marks = found.held_out
        return marks.stopped / marks.asked, wilson(marks.stopped, marks.asked)
    marks = found.seen if panel == "seen" else found.held_out
    return marks.share, marks.interval
