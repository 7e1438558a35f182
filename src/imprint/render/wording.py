"""A template's own words in a rendering whose every other text is a sentinel: what is prose, what a mark or syntax."""

from __future__ import annotations

import re
from collections.abc import Iterator

SENTINEL = re.compile(r"qx7([mt])\d{4}z", re.IGNORECASE)  # m: of a message, t: of a tool or a call

_REACH = 400  # characters in which an end is looked for: a stranger's text may be of any length
_FEW, _MANY = 2, 4  # words that tell; where a mark or the syntax of tools is as likely
_DEFINITION = 8  # words that tell between two texts of one tool's definition

_ROLES = "system|developer|user|assistant|model|tool|ipython|human|observation"
_ROLE = re.compile(rf"\s*(?:{_ROLES})\s*(?:[:\n]\s*|$)", re.IGNORECASE)  # in front of a message's text
_TAG = r"<{1,2}[^<>\n]{1,40}>{1,2}|\[/?[A-Z_]{3,30}\]"
_TAGS = re.compile(_TAG)
_EDGE = rf"(?:{_TAG}|\s)++"
_HEAD, _TAIL = re.compile(_EDGE), re.compile(rf"{_EDGE}\Z")
# JSON, Python or TypeScript around the texts of a tool
_NAMES = r"\b(?:true|false|null|none|True|False|None|string|str|any)\b"
_SYNTAX = rf"""(?:["']\w+["']|&#3[49];|{_NAMES}|[-=]>|[\[\](){{}},.:;\s"'])++"""
_SYNTAX_HEAD, _SYNTAX_TAIL = re.compile(_SYNTAX), re.compile(rf"{_SYNTAX}\Z")

_CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"  # written without spaces: each character counts
_WORD = re.compile(rf"[^\W\d_{_CJK}]+(?:['’][^\W\d_]+)*")
_CJK_LETTER = re.compile(f"[{_CJK}]")
_FOREIGN = re.compile(r"[^\W\d_\x00-\x7f]")
_DATE = re.compile(r"\b(?:\d{8}|\d{1,4}[-/.]\d{1,2}[-/.]\d{1,4}|(?:19|20)\d\d)\b|\d{4}年")


def own_texts(prompt: str, marks: frozenset[str], control: re.Pattern[str]) -> Iterator[str]:
    """The texts in `prompt` that are the template's own, without `marks`, control tokens and syntax."""
    at, left = 0, ""
    for match in [*SENTINEL.finditer(prompt), None]:
        end, right = (match.start(), match[1].lower()) if match else (len(prompt), "")
        yield from _of_gap(prompt[at:end], left, right, marks, control)
        at, left = (match.end(), right) if match else (end, "")


def marks_of(text: str, control: re.Pattern[str]) -> frozenset[str]:
    """Everything between the sentinels and control tokens of a text in which only marks are expected."""
    gaps = (gap for part in SENTINEL.split(text)[::2] for gap in control.split(part))
    return frozenset(mark for gap in gaps if (mark := _bare(gap)))


def _of_gap(
    gap: str, left: str, right: str, marks: frozenset[str], control: re.Pattern[str]
) -> Iterator[str]:
    """The texts between two sentinels, of which `left` and `right` say whose they are ("": none)."""
    pieces = control.split(gap)
    for i, piece in enumerate(pieces):
        behind, before = left == "t" and i == 0, right == "t" and i == len(pieces) - 1
        if behind:
            piece = piece[match.end() :] if (match := _SYNTAX_HEAD.match(piece)) else piece
        if before:
            match = _SYNTAX_TAIL.search(piece, max(0, len(piece) - _REACH))
            stop = match.start() if match else len(piece)
            piece = piece[: stop + (piece[stop : stop + 1] in (".", ":"))]  # which end a sentence
        text = _bare(piece)
        fewest = _MANY if behind or before or left == right == "t" or text in marks else _FEW
        fewest = _DEFINITION if behind and before else fewest
        text = _without_marks(text, marks)
        if text and _tells(text, fewest):
            yield text


def _bare(text: str) -> str:
    """Without tags and a role's name at its ends."""
    text = text[match.end() :] if (match := _HEAD.match(text)) else text
    text = text[match.end() :] if (match := _ROLE.match(text)) else text
    text = text[match.end() :] if (match := _HEAD.match(text)) else text
    match = _TAIL.search(text, max(0, len(text) - _REACH))
    return (text[: match.start()] if match else text).lstrip(".,;: ").rstrip()


def _without_marks(text: str, marks: frozenset[str]) -> str:
    """A text without the mark that begins or ends it (`### Instruction:` behind a preamble)."""
    for mark in sorted(marks, key=len, reverse=True):
        if text == mark:
            continue
        wordlike = mark[-1:].isalpha()  # `user` may end a sentence; on a line of its own it is a mark
        if text.removesuffix(mark).endswith("\n" if wordlike else ("\n", " ")):
            text = text.removesuffix(mark).rstrip()
        if not wordlike:
            text = text.removeprefix(mark).lstrip()
    return text


def _tells(text: str, fewest: int) -> bool:
    """Whether a text says something to a model: enough words, or a date."""
    if _DATE.search(text):
        return True
    plain = _TAGS.sub(" ", text)
    words, letters = len(_WORD.findall(plain)), len(_CJK_LETTER.findall(plain))
    if fewest > _FEW:
        letters //= 2 if text.endswith((":", "：")) else 1  # a role's name: `用户问题：`
        return words + letters >= fewest
    return words >= fewest or len(_FOREIGN.findall(plain)) >= _MANY
