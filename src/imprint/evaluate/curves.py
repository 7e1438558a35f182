"""The curves of a run as SVG that takes its colours and its font from the page around it."""

from __future__ import annotations

import hashlib
import io
import itertools
import math
import re
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import NDArray

Numbers = NDArray[np.float64]

# Colours that nobody would choose; each is replaced by the page's own, so that dark mode works.
INK, FAINT, TRAIN, VALID, BEST, PAPER = "#010203", "#010204", "#010205", "#010206", "#010207", "#010208"
VARIABLES = {
    INK: "var(--soft)",
    FAINT: "var(--line)",
    TRAIN: "var(--train)",
    VALID: "var(--valid)",
    BEST: "var(--best)",
    PAPER: "var(--paper)",
}
POINTS = 600  # a curve with more is thinned
STYLE: Any = {  # matplotlib types the keys as a list of literals
    "svg.fonttype": "none",
    "svg.hashsalt": "imprint",
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.size": 3,
    "ytick.major.size": 0,
    "axes.axisbelow": True,
}


def loss_curve(
    steps: Sequence[dict[str, Any]], validations: Sequence[dict[str, Any]], best: int | None, width: float
) -> str:
    """Training loss, raw and smoothed, with the validations and the best of them (a step).

    `width` is in inches; the page has one drawing for wide screens and one for phones, since
    a drawing that shrinks would take its letters along.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, 3.0), layout="constrained")
        axes = figure.add_subplot()
        x, y = series(steps, "loss")
        vx, vy = series(validations, "loss")
        for step in epoch_ends(steps):
            axes.axvline(step, color=INK, linewidth=0.8, alpha=0.6, dashes=(1, 3))
        _line_and_trend(axes, x, y)
        axes.plot(vx, vy, color=VALID, linewidth=1, marker="o", markersize=4.5, markeredgewidth=0)
        if best is not None and best in vx:
            at = vy[list(vx).index(best)]
            axes.plot([best], [at], "o", markersize=10, color="none", mec=BEST, mew=1.6)
        _limits(axes, y, vy)
        axes.set_xlabel("step")
        axes.set_ylabel("loss, nats a token")
        _finish(axes, 8 if width > 5 else 5)
        return as_svg(figure, f"loss{width:g}", "Training and validation loss over the steps of the run")


def small_curve(steps: Sequence[dict[str, Any]], field: str, label: str, smooth: bool) -> str:
    """One quantity of the steps, a few centimetres wide; empty where it has no two finite values."""
    x, y = series(steps, field)
    if len(x) < 2:
        return ""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(3.3, 1.9), layout="constrained")
        axes = figure.add_subplot()
        if smooth:
            _line_and_trend(axes, x, y)
        else:
            axes.plot(*thin(x, y), color=TRAIN, linewidth=1.6)
        _limits(axes, y, y[:0])
        axes.set_ylim(bottom=0)
        _finish(axes, 4)
        return as_svg(figure, field, f"{label} over the steps of the run")


def series(events: Sequence[dict[str, Any]], field: str) -> tuple[Numbers, Numbers]:
    """Steps and values of a field, where it is a finite number."""
    kept = [
        (event["step"], event[field])
        for event in events
        if isinstance(event.get(field), (int, float)) and math.isfinite(event[field])
    ]
    pairs = np.array(kept, dtype=np.float64).reshape(-1, 2)
    return pairs[:, 0], pairs[:, 1]


def thin(x: Numbers, y: Numbers, limit: int = POINTS) -> tuple[Numbers, Numbers]:
    """At most about `limit` points: the lowest and the highest of each bucket, so that no spike is lost."""
    if len(x) <= limit:
        return x, y
    kept: set[int] = {0, len(x) - 1}
    for part in np.array_split(np.arange(len(x)), limit // 2 - 1):
        kept.add(int(part[np.argmin(y[part])]))
        kept.add(int(part[np.argmax(y[part])]))
    index = np.array(sorted(kept))
    return x[index], y[index]


def trend(x: Numbers, y: Numbers, limit: int = POINTS // 2) -> tuple[Numbers, Numbers]:
    """A moving average that looks both ways (Gaussian, 1/50 of the run wide), at most `limit` points."""
    at = np.linspace(x[0], x[-1], min(limit, len(x)))
    width = max(1.0, (x[-1] - x[0]) / 50)
    weight = np.exp(-0.5 * ((at[:, None] - x[None, :]) / width) ** 2)
    return at, (weight @ y) / weight.sum(axis=1)


def scientific(value: float) -> str:
    """`1.5e-4`: as short as it can be."""
    mantissa, _, exponent = f"{value:.2e}".partition("e")
    return f"{float(mantissa):g}e{int(exponent)}" if value else "0"


def _line_and_trend(axes: Axes, x: Numbers, y: Numbers) -> None:
    """The values, faint, and their trend."""
    if not len(x):
        return
    if len(x) < 10:
        axes.plot(x, y, color=TRAIN, linewidth=1.6, marker="o" if len(x) == 1 else "", markersize=4)
        return
    axes.plot(*thin(x, y), color=TRAIN, linewidth=0.8, alpha=0.28)
    axes.plot(*trend(x, y), color=TRAIN, linewidth=1.8)


def _limits(axes: Axes, raw: Numbers, points: Numbers) -> None:
    """Show all but the wildest hundredth: one spike should not flatten the rest."""
    if not len(raw) + len(points):
        return
    shown = np.concatenate([np.quantile(raw, [0.002, 0.995]) if len(raw) else raw, points])
    low, high = float(shown.min()), float(shown.max())
    margin = 0.06 * (high - low) or 0.1 * abs(high) or 1.0
    axes.set_ylim(max(0.0, low - margin) if low >= 0 else low - margin, high + margin)


def epoch_ends(steps: Sequence[dict[str, Any]]) -> list[float]:
    """Steps at which an epoch was over, but for the end of the run; none where they would be a fence."""
    ends = [
        float(now["step"])
        for before, now in itertools.pairwise(steps)
        if math.floor(now.get("epoch") or 0) > math.floor(before.get("epoch") or 0)
    ]
    ends = [step for step in ends if step < steps[-1]["step"]]
    return ends if len(ends) <= 12 else []


def _finish(axes: Axes, num_ticks: int) -> None:
    axes.margins(x=0.02)
    left, right = axes.get_xlim()
    if right - left < 1.5:  # one step has no room for ticks at whole numbers
        axes.set_xlim(left - 0.5, right + 0.5)
    axes.grid(axis="y", color=FAINT, linewidth=0.6)
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_locator(MaxNLocator(num_ticks, integer=True, min_n_ticks=1))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    low, high = axes.get_ylim()
    if high >= 1000:
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    elif high < 0.01:
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: scientific(value)))
    assert low < high


def as_svg(figure: Figure, name: str, label: str) -> str:
    """The drawing as an element of a page: own ids, no fonts, no fixed colours, no fixed size."""
    figure.patch.set_visible(False)
    for axes in figure.axes:
        axes.patch.set_visible(False)
    buffer = io.StringIO()
    figure.savefig(
        buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None}
    )
    text = buffer.getvalue()
    text = text[text.index("<svg") :]  # no XML declaration, and no doctype, which names a page of the network
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(
        r"<!--.*?-->\s*|<style.*?</style>\s*", "", text, flags=re.DOTALL
    )  # that style is the page's
    text = re.sub(r"font-family: [^;\"]*; ?", "", text)
    text = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1", text)
    text = re.sub(r"<[^>]*>", lambda tag: re.sub(r"\d+\.\d{3,}", _rounded, tag[0]), text)
    text = re.sub(r" ?\n\s*", " ", text)
    prefix = "c" + hashlib.sha256(name.encode()).hexdigest()[:6]
    text = re.sub(r' id="(?![pm][0-9a-f]{10}")[^"]*"', "", text)  # the rest are clip paths and markers
    text = re.sub(r'( id="|xlink:href="#|url\(#)', rf"\g<1>{prefix}", text)
    for colour, variable in VARIABLES.items():
        text = text.replace(colour, variable)
    opening = f'<svg role="img" aria-label="{label}" '
    viewbox = re.search(r'viewBox="[^"]*"', text)
    assert viewbox is not None
    return re.sub(r"<svg [^>]*>", lambda _: f"{opening}{viewbox[0]}>", text, count=1).replace(
        "xlink:href", "href"
    )


def _rounded(number: re.Match[str]) -> str:
    return f"{float(number[0]):.2f}".rstrip("0").rstrip(".")
