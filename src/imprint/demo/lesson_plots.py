"""The pictures of the lessons: figures with their intervals, as SVG that takes its colours from the page."""

from __future__ import annotations

from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter

from imprint.demo.lesson_words import Rows
from imprint.demo.lessons import Lesson, Panel
from imprint.demo.teach import value_of
from imprint.evaluate.curves import FAINT, INK, STYLE, TRAIN, VALID, as_svg

TITLES: dict[Panel, str] = {
    "held_out": "held-out questions right",
    "seen": "trained questions right",
    "general": "loss on general text, nats a token",
    "stopped": "answers that ended by themselves",
}
_COLOURS: dict[Panel, str] = {"held_out": TRAIN, "seen": INK, "general": VALID, "stopped": VALID}


def picture(lesson: Lesson, rows: Rows, width: float = 8.2) -> str:
    """What the trials of a lesson showed; `width` is in inches."""
    style: Any = STYLE
    with matplotlib.rc_context(style):
        figure = _by_epochs(rows, width) if lesson.name == "epochs" else _by_trial(lesson, rows, width)
        return as_svg(figure, f"{lesson.name}{width:g}", lesson.title)


def _by_trial(lesson: Lesson, rows: Rows, width: float) -> Figure:
    """A line for each trial, and a panel for each sort of figure: a dot, and its interval as a bar."""
    narrow = width < 5
    across = 1 if narrow else len(lesson.panels)
    down = len(lesson.panels) if narrow else 1
    figure = Figure(
        figsize=(width, down * (0.75 + 0.27 * len(rows))),
        layout=ConstrainedLayoutEngine(wspace=0.08, hspace=0.06),
    )
    drawn = figure.subplots(down, across, sharey=True, squeeze=False).flatten()
    for axes, panel in zip(drawn, lesson.panels, strict=True):
        for line, (_, found) in enumerate(rows):
            value, (low, high) = value_of(panel, found)
            if high > low:
                axes.plot([low, high], [line, line], color=_COLOURS[panel], linewidth=1.4, alpha=0.55)
            axes.plot([value], [line], "o", color=_COLOURS[panel], markersize=5.5, markeredgewidth=0)
        if panel == "general":
            axes.axvline(rows[0][1].general_before, color=INK, linewidth=0.8, dashes=(2, 3))
        axes.set_title(TITLES[panel], fontsize=9, color=INK, loc="left")
        axes.set_yticks(range(len(rows)), [label for label, _ in rows])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.grid(axis="x", color=FAINT, linewidth=0.6)
        _of_shares(axes, panel, "x")
    return figure


def _by_epochs(rows: Rows, width: float) -> Figure:
    """Losses and marks over the passes, of what is trained and of what is held out."""
    narrow = width < 5
    figure = Figure(
        figsize=(width, 5.2 if narrow else 2.9), layout=ConstrainedLayoutEngine(wspace=0.08, hspace=0.06)
    )
    losses, marks = figure.subplots(2 if narrow else 1, 1 if narrow else 2, squeeze=False).flatten()
    x = [float(found.settings["epochs"]) for _, found in rows]
    for values, colour, dashes in (
        ([f.seen_loss for _, f in rows], INK, (3, 2)),
        ([f.held_out_loss for _, f in rows], TRAIN, (None, None)),
    ):
        losses.plot(x, values, color=colour, marker="o", markersize=4.5, markeredgewidth=0, dashes=dashes)
    losses.set_title("loss of the right answers, nats a token", fontsize=9, color=INK, loc="left")
    losses.set_ylim(bottom=0)
    panels: tuple[tuple[Panel, Any], ...] = (("seen", (3, 2)), ("held_out", (None, None)))
    for panel, dashes in panels:
        shares = [value_of(panel, found) for _, found in rows]
        y, colour = [share for share, _ in shares], _COLOURS[panel]
        marks.plot(x, y, color=colour, marker="o", markersize=4.5, markeredgewidth=0, dashes=dashes)
        for at, (_, interval) in zip(x, shares, strict=True):
            marks.plot([at, at], interval, color=colour, linewidth=1.4, alpha=0.55)
    marks.set_title("questions right", fontsize=9, color=INK, loc="left")
    _of_shares(marks, "seen", "y")
    for axes in (losses, marks):
        axes.set_xscale("log", base=2)
        axes.set_xticks(x, [f"{value:g}" for value in x])
        axes.minorticks_off()
        axes.set_xlabel("epochs")
        axes.grid(axis="y", color=FAINT, linewidth=0.6)
    return figure


def _of_shares(axes: Axes, panel: Panel, which: str) -> None:
    """Shares go from none to all, so that pictures can be compared; losses begin at 0."""
    if panel == "general":
        axes.set_xlim(left=0)
        return
    axis, limit = (axes.xaxis, axes.set_xlim) if which == "x" else (axes.yaxis, axes.set_ylim)
    limit(-0.02, 1.02)
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.0f} %"))
