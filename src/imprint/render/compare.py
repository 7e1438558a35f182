"""Two renderings of the same reply side by side: where their texts differ, and in how many tokens."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import TYPE_CHECKING

import numpy as np

from imprint.render.preview import visible
from imprint.render.tokens import Encoder
from imprint.render.turns import Turn

if TYPE_CHECKING:
    from rich.console import Group
    from rich.text import Text

Range = tuple[int, int]

_CLOSE = 4_000  # characters: longer differences are not looked into
_AROUND = 2  # equal lines that are shown beside a difference
_WORDS = re.compile(r"<[|｜]?[/\w]+[|｜]?>|\[/?\w+\]|\w+|\s+|[^\w\s]")  # control tokens are words
_STYLES = {"-": ("red", "bold white on dark_red"), "+": ("green", "bold white on dark_green")}


@dataclass(frozen=True, slots=True)
class Side:
    """One template's rendering of a reply; without a turn it is left out, and `reason` says why."""

    name: str
    turn: Turn | None
    prompt: str = ""
    completion: str = ""
    stop: str = ""
    reason: str = ""

    @property
    def text(self) -> str:
        """What is shown: the trained part in brackets."""
        return f"{visible(self.prompt)}⟦{visible(self.completion)}⟧"

    @property
    def counts(self) -> str:
        if self.turn is None:
            return f"left out: {self.reason}"
        trained = int(np.count_nonzero(self.turn.weight))
        stop = f"stop {visible(self.stop)}" if self.stop else "no stop is trained"
        return f"{len(self.turn.prompt):,} tokens of context, {trained:,} trained, {stop}"


def side(
    name: str, turn: Turn, prompt: str, completion: str, encoder: Encoder, stop_ids: tuple[int, ...]
) -> Side:
    last = int(turn.completion[-1])
    return Side(name, turn, prompt, completion, encoder.decode([last]) if last in stop_ids else "")


def differences(left: str, right: str) -> tuple[list[Range], list[Range]]:
    """The characters of each text that the other has not, found line by line and then within lines."""
    a, b = left.splitlines(keepends=True), right.splitlines(keepends=True)
    found: tuple[list[Range], list[Range]] = ([], [])
    at_a, at_b = _starts(a), _starts(b)
    for tag, a0, a1, b0, b1 in SequenceMatcher(None, a, b, autojunk=False).get_opcodes():
        if tag == "equal":
            continue
        old, new = left[at_a[a0] : at_a[a1]], right[at_b[b0] : at_b[b1]]
        for x0, x1, y0, y1 in _within(old, new):
            if x1 > x0:
                found[0].append((at_a[a0] + x0, at_a[a0] + x1))
            if y1 > y0:
                found[1].append((at_b[b0] + y0, at_b[b0] + y1))
    return found


def _starts(lines: list[str]) -> list[int]:
    """Where each line begins, and where the last one ends."""
    return [0, *np.cumsum([len(line) for line in lines]).tolist()]


def _within(old: str, new: str) -> Iterator[tuple[int, int, int, int]]:
    """Where two short texts differ, word by word: (start, end) in the one and in the other."""
    if not old or not new or len(old) + len(new) > _CLOSE:
        yield 0, len(old), 0, len(new)
        return
    a, b = _WORDS.findall(old), _WORDS.findall(new)
    at_a, at_b = _starts(a), _starts(b)
    found: list[tuple[int, int, int, int]] = []
    for tag, a0, a1, b0, b1 in SequenceMatcher(None, a, b, autojunk=False).get_opcodes():
        if tag == "equal":
            continue
        span = at_a[a0], at_a[a1], at_b[b0], at_b[b1]
        if found and old[found[-1][1] : span[0]].isspace():  # nothing but white space between two: one
            span = found[-1][0], span[1], found[-1][2], span[3]
            found.pop()
        found.append(span)
    yield from found


def verdict(left: Side, right: Side) -> str:
    """Whether the two say the same, in a word or two."""
    if left.turn is None or right.turn is None:
        return "left out by both" if left.turn is right.turn else "left out by one"
    same_text = (left.prompt, left.completion) == (right.prompt, right.completion)
    same_ids = np.array_equal(left.turn.prompt, right.turn.prompt) and np.array_equal(
        left.turn.completion, right.turn.completion
    )
    if same_text and same_ids:
        return "equal"
    if same_text:
        return "the same text in other tokens"
    if left.prompt + left.completion == right.prompt + right.completion:
        return "the same text, parted elsewhere"
    return "different"


def as_diff(place: str, left: Side, right: Side, *, colour: bool = True) -> Group:
    """The two renderings of one reply for a terminal: `-` is the first alone, `+` the second alone.

    What differs within lines is set off; without `colour`, by ‹ ›.
    """
    from rich.console import Group
    from rich.text import Text

    said = verdict(left, right)
    lines: list[Text] = [Text.assemble((place, "bold cyan"), f"  {said}")]
    for mark, one in (("-", left), ("+", right)):
        lines.append(Text(f"{mark} {one.name}: {one.counts}", _STYLES[mark][0]))
    if said in ("different", "the same text, parted elsewhere"):
        lines += _marked(left.text, right.text, colour)
    return Group(*lines, Text())


def _marked(left: str, right: str, colour: bool) -> Iterator[Text]:
    """The lines of both, those that differ marked and, within them, what differs."""
    from rich.text import Text

    a, b = left.split("\n"), right.split("\n")
    opcodes = SequenceMatcher(None, a, b, autojunk=False).get_opcodes()
    for number, (tag, a0, a1, b0, b1) in enumerate(opcodes):
        if tag == "equal":
            first, last = number == 0, number == len(opcodes) - 1
            yield from map(Text, _folded(a[a0:a1], 0 if first else _AROUND, 0 if last else _AROUND))
            continue
        old, new = "\n".join(a[a0:a1]), "\n".join(b[b0:b1])
        inside = list(_within(old, new))
        if a1 > a0:
            yield from _emphasised("-", old, [(x0, x1) for x0, x1, _, _ in inside], colour)
        if b1 > b0:
            yield from _emphasised("+", new, [(y0, y1) for _, _, y0, y1 in inside], colour)


def _emphasised(mark: str, text: str, ranges: list[Range], colour: bool) -> Iterator[Text]:
    """The lines of a text with the ranges that differ set off."""
    from rich.text import Text

    plain, strong = _STYLES[mark]
    whole, at = Text(), 0
    for start, end in ranges if ranges != [(0, len(text))] else ():
        inside = text[start:end]
        set_off = inside if colour or not inside.strip("↵\n") else f"‹{inside}›"
        whole.append(text[at:start], plain).append(set_off, strong)
        at = end
    whole.append(text[at:], plain)
    for line in whole.split("\n", allow_blank=True):
        yield Text.assemble((f"{mark} ", plain), line)


def _folded(lines: list[str], before: int, behind: int) -> list[str]:
    """Equal lines; of many, those next to a difference: `before` ones first and `behind` ones last."""
    if len(lines) <= before + behind + 1:
        return [f"  {line}" for line in lines]
    hidden = len(lines) - before - behind
    middle = f"  … {hidden} equal lines …"
    return [
        *(f"  {line}" for line in lines[:before]),
        middle,
        *(f"  {line}" for line in lines[-behind:] if behind),
    ]
