"""Whose each character of a rendering is: which message wrote it, or the template itself.

For display and accounting only, never for training: the texts of the messages are looked for in
the rendering, each as the template may have written it (stripped, JSON-escaped). What is not
found is said to be missing, and its characters count as the template's.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imprint.data.conversation import Message
from imprint.render.tokens import Encoder, Ids
from imprint.render.written import TELLING, Wanted, as_json_texts, wanted_texts, words_of

TEMPLATE, TOOLS = "template", "tools"
_HEAD = 12  # characters by which a text is looked up; shorter ones are searched between their neighbours
_FEW = 32  # texts that are searched one by one
_REACH = 4096  # characters in which a short text is looked for behind what stands before it
_TRIES = 64  # places at which a short text is tried
_GLUE = 6  # characters in front of a message by which a short one of the same role is recognised
_LETTERS = re.compile(r"[^\W\d]{2}")  # and the underscores of `<|im_start|>`
_LONGEST_CHARACTER = 8  # tokens that may wait for one character to end
_WORD_GAP = 200  # characters between two words of one tool's definition


@dataclass(frozen=True, slots=True)
class Span:
    """Characters [start, end) of a rendering, and whose they are.

    `role` is a message's role, "tools" (the definitions on offer) or "template"; `part` is content,
    reasoning or tool_call. An empty span is a part that was not found, where it was expected.
    """

    start: int
    end: int
    role: str
    message_index: int = -1  # of no message
    part: str = ""

    @property
    def missing(self) -> bool:
        return self.start == self.end


@dataclass(slots=True)
class _Taken:
    """The characters that are given away: disjoint intervals in order."""

    starts: list[int] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)

    def add(self, start: int, end: int) -> None:
        place = bisect_left(self.starts, start)
        self.starts.insert(place, start)
        self.ends.insert(place, end)

    def blocks(self, start: int, end: int) -> int | None:
        """The end of an interval that [start, end) meets, or None where it is free."""
        place = bisect_right(self.ends, start)
        if place < len(self.starts) and self.starts[place] < end:
            return self.ends[place]
        return None


def attribute(
    prompt: str, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = ()
) -> list[Span]:
    """Spans that cover `prompt` in order without gaps, and an empty one for each part that is not found.

    Long texts are placed first, longest first, each between those that are placed already; so a
    word that the template, a tool or another message also holds is not mistaken for a short message.
    Linear in the length of the prompt.
    """
    taken = _Taken()
    spans = [Span(start, end, TOOLS) for start, end in _find_tools(prompt, tools)]
    for span in spans:
        taken.add(span.start, span.end)
    wanted = list(wanted_texts(prompt, messages))
    _place_long(prompt, wanted, taken)
    _place_short(prompt, wanted, taken)
    expected = 0
    for part in wanted:
        start, end = part.found or (expected, expected)
        spans.append(Span(start, end, part.role, part.message_index, part.part))
        expected = end if part.found and not part.free else expected
    if tools and not any(span.role == TOOLS for span in spans):
        spans.append(Span(0, 0, TOOLS))
    return _fill(spans, len(prompt))


def token_spans(spans: Sequence[Span], offsets: Sequence[tuple[int, int]]) -> NDArray[np.intp]:
    """Index in `spans` of each token's span: a token with any of a message's characters is the message's."""
    kept = [i for i, span in enumerate(spans) if not span.missing]
    begins = np.array([spans[i].start for i in kept])
    own = np.array([spans[i].role != TEMPLATE for i in kept])
    starts, ends = np.array(offsets, dtype=np.intp).reshape(-1, 2).T
    first = np.searchsorted(begins, starts, "right") - 1
    last = np.searchsorted(begins, np.maximum(ends - 1, starts), "right") - 1
    chosen = np.where(~own[first] & (last > first), first + 1, first)  # no two of the template's adjoin
    return np.array(kept, dtype=np.intp)[chosen]


def token_offsets(encoder: Encoder, text: str, ids: Ids) -> list[tuple[int, int]] | None:
    """Characters (start, end) of each token; None where `text` does not begin with what the ids say.

    Tokens that hold parts of one character have the same characters.
    """
    if encoder.backend is not None:
        encoding = encoder.backend.encode(text, add_special_tokens=False)
        if encoding.ids[: len(ids)] == ids.tolist():
            return list(encoding.offsets[: len(ids)])
    offsets: list[tuple[int, int]] = []
    at = 0
    for piece, count in grouped(ids, encoder):
        if not text.startswith(piece, at):
            return None
        offsets += [(at, at + len(piece))] * count
        at += len(piece)
    return offsets


def grouped(ids: Ids, encoder: Encoder) -> Iterator[tuple[str, int]]:
    """The text of each token, with how many tokens make it, which together give the text of all.

    Tokens that hold parts of one character come as one piece; a token's text is what it adds
    behind the piece before it, since many tokenizers drop the space of a first word.
    """
    before: list[int] = []
    waiting: list[int] = []
    for token in ids.tolist():
        waiting.append(token)
        text = encoder.decode(before + waiting)
        if text.endswith("�") and len(waiting) < _LONGEST_CHARACTER:
            continue
        yield text[len(encoder.decode(before)) :], len(waiting)
        before, waiting = waiting, []
    if waiting:
        yield encoder.decode(before + waiting)[len(encoder.decode(before)) :], len(waiting)


def _fill(spans: list[Span], size: int) -> list[Span]:
    """The spans in order, and the template's between them."""
    out: list[Span] = []
    at = 0
    for span in sorted(spans, key=lambda span: (span.start, span.end, span.message_index)):
        if span.start > at:
            out.append(Span(at, span.start, TEMPLATE))
        out.append(span)
        at = max(at, span.end)
    return [*out, Span(at, size, TEMPLATE)] if at < size else out


# ---- where it stands -----------------------------------------------------------------------------


def _find_tools(prompt: str, tools: Sequence[Mapping[str, Any]]) -> list[tuple[int, int]]:
    """Where the definitions stand: the list, or each, as JSON; otherwise from its name to its last word."""
    if not tools:
        return []
    for whole in as_json_texts(list(tools)):
        at = prompt.find(whole)
        if at >= 0:
            return [(at, at + len(whole))]
    found: list[tuple[int, int]] = []
    cursor = 0
    for tool in tools:
        function = tool.get("function", tool)
        place = _find_json(prompt, (tool, function), cursor) or _find_words(prompt, function, cursor)
        if place is not None:
            found.append(place)
            cursor = place[1]
    return found


def _find_json(prompt: str, values: Sequence[Any], cursor: int) -> tuple[int, int] | None:
    for value in values:
        for form in as_json_texts(value):
            at = prompt.find(form, cursor)
            if at >= 0:
                return at, at + len(form)
    return None


def _find_words(prompt: str, function: Mapping[str, Any], cursor: int) -> tuple[int, int] | None:
    """From a tool's name to the last word of its definition, each near the one before it.

    The name alone is no definition: it stands in calls too.
    """
    name = str(function.get("name", ""))
    start = prompt.find(name, cursor)
    words = [word for word in words_of(function) if word != name]
    end = start + len(name)
    for word in words if start >= 0 else ():
        at = prompt.find(word, end, end + _WORD_GAP + len(word))
        end = at + len(word) if at >= 0 else end
    return (start, end) if start >= 0 and name and (end > start + len(name) or not words) else None


def _place_long(prompt: str, wanted: Sequence[Wanted], taken: _Taken) -> None:
    """Place the texts of `_HEAD` characters and more, the longest first: none lies in a shorter one."""
    heads: dict[str, list[int]] = {
        form[:_HEAD]: [] for part in wanted for form in part.forms if len(form) >= _HEAD
    }
    _find_all(prompt, heads)
    order = [i for i, part in enumerate(wanted) if len(part.forms[0].strip()) >= _HEAD]
    placed: list[int] = []
    for i in sorted(order, key=lambda i: (-len(wanted[i].forms[0].strip()), i)):
        part = wanted[i]
        low, high = (0, len(prompt)) if part.free else _window(wanted, placed, i, len(prompt))
        for form in part.forms:
            places = heads.get(form[:_HEAD], []) if len(form) >= _HEAD else []
            part.found = next(_occurrences(prompt, form, places, low, high, taken), None)
            if part.found is not None:
                taken.add(*part.found)
                if not part.free:
                    insort(placed, i)
                break


def _find_all(prompt: str, heads: dict[str, list[int]]) -> None:
    """Every place of each head, in order: one by one if they are few, else in one pass over the text."""
    if len(heads) > _FEW:
        for at in range(len(prompt) - _HEAD + 1):
            places = heads.get(prompt[at : at + _HEAD])
            if places is not None:
                places.append(at)
        return
    for head, places in heads.items():
        at = prompt.find(head)
        while at >= 0:
            places.append(at)
            at = prompt.find(head, at + 1)


def _window(wanted: Sequence[Wanted], placed: list[int], i: int, size: int) -> tuple[int, int]:
    """Between which characters the i-th text stands: behind those before it, before those behind it."""
    at = bisect_left(placed, i)
    before = wanted[placed[at - 1]].found if at else None
    behind = wanted[placed[at]].found if at < len(placed) else None
    return before[1] if before else 0, behind[0] if behind else size


def _occurrences(
    prompt: str, form: str, places: list[int], low: int, high: int, taken: _Taken
) -> Iterator[tuple[int, int]]:
    """Where a form stands within [low, high) and nothing else does."""
    for place in places[bisect_left(places, low) :]:
        end = place + len(form)
        if end > high:
            return
        if prompt.startswith(form, place) and taken.blocks(place, end) is None:
            yield place, end


def _place_short(prompt: str, wanted: Sequence[Wanted], taken: _Taken) -> None:
    """Place the others in order, behind what stands in front of the long ones of the same role."""
    glue: dict[tuple[str, str], str] = {}
    for part in wanted:
        if part.found:
            start = part.found[0]
            glue.setdefault((part.role, part.part), prompt[max(0, start - _GLUE) : start])
    limits = [len(prompt)] * (len(wanted) + 1)  # where the next that is placed begins
    for i in range(len(wanted) - 1, -1, -1):
        found = wanted[i].found
        limits[i] = found[0] if found and not wanted[i].free else limits[i + 1]
    cursor = 0
    for i, part in enumerate(wanted):
        if part.found is None:
            low, high = (0, len(prompt)) if part.free else (cursor, limits[i + 1])
            part.found = _search(prompt, part, glue.get((part.role, part.part), ""), low, high, taken)
            if part.found:
                taken.add(*part.found)
        if part.found and not part.free:
            cursor = part.found[1]


def _search(
    prompt: str, part: Wanted, glue: str, low: int, high: int, taken: _Taken
) -> tuple[int, int] | None:
    """The first place of a text: behind its role's glue, else standing alone, else (if telling) anywhere."""
    for front, anywhere in ((glue, True), ("", False), ("", True)):
        for form in part.forms:
            if anywhere and not front and len(form) < TELLING:
                continue
            at, tries = max(0, low - len(front)), _TRIES
            end = min(high, low + _REACH + len(form))
            while tries and (at := prompt.find(front + form, at, end)) >= 0:
                start = at + len(front)
                stop = start + len(form)
                beyond = taken.blocks(start, stop)
                if beyond is None and (anywhere or _stands_alone(prompt, start, stop)):
                    return start, stop
                at, tries = max(at + 1, (beyond or 0) - len(front)), tries - 1
    return None


def _stands_alone(text: str, start: int, end: int) -> bool:
    """Whether no word or number continues at either end: the `a` of `start` is no message."""
    return not any(
        _LETTERS.fullmatch(text, i - 1, i + 1) or text[i - 1 : i + 1].isdigit()
        for i in (start, end)
        if 0 < i < len(text)
    )
