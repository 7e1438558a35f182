"""How a bad row is told, and the small readers of values that rows share."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from difflib import SequenceMatcher
from typing import Any

from imprint.data.conversation import Place
from imprint.data.unique import UNIQUE, Twice
from imprint.errors import DataError, nearest

_LONGEST = 1000  # characters of one part of a message: some of it comes from the data
_MOST_NAMES = 30
_PYTHON = re.compile(r"\s*[\[({]+\s*'")  # the repr of a list or a dict
_MARKS = re.compile(r"[\W_]+")


def bad_row(what: str, place: Place, found: str, expected: str, fix: str) -> DataError:
    """`what` is the reason in the ledger: it stays the same from row to row; details go into `found`."""
    found, expected, fix = (cut(part, _LONGEST) for part in (found, expected, fix))
    return DataError(what, where=str(place), found=found, expected=expected, fix=fix)


def cut(text: str, most: int = 80) -> str:
    """A text of the data, cut to what an error message can hold."""
    return text if len(text) <= most else text[: most - 3] + "..."


def listed(names: Iterable[str]) -> str:
    """Names that come from the data, such as a row's columns: each cut, and the first of many."""
    names = list(names)
    more = f", … ({len(names)})" if len(names) > _MOST_NAMES else ""
    return ", ".join(cut(name) for name in names[:_MOST_NAMES]) + more


def show(value: Any) -> str:
    """A value as JSON, cut to what an error message can hold."""
    return cut(json.dumps(value, ensure_ascii=False, default=str))


def show_type(value: Any) -> str:
    """A value, and of which type it is, as JSON names types."""
    names = {
        bool: "true or false",
        int: "a number",
        float: "a number",
        str: "a text",
        list: "a list",
        dict: "an object",
    }
    return f"{show(value)}, {names.get(type(value), 'null' if value is None else type(value).__name__)}"


def as_text(value: Any, otherwise: str = "write it in double quotes") -> str:
    """How to mend a value that should be a text."""
    if isinstance(value, float) and math.isnan(value):
        return "write the text; if the cell is empty, as NaN says, remove the row"
    if isinstance(value, (bytes, bytearray)):
        return 'store it as a text: value.decode("utf-8")'
    return otherwise


def from_json(value: Any, what: str, place: Place) -> Any:
    """The value that a text holds as JSON; anything but a text is returned as it is."""
    if not isinstance(value, str):
        return value
    try:
        return UNIQUE.decode(value)
    except Twice as error:
        raise bad_row(
            "a key stands twice in one object",
            place,
            f"two keys {show(str(error))} in {what}: {show(value)}",
            "each key once",
            "remove or rename one of them",
        ) from error
    except (ValueError, RecursionError) as error:
        fix = "mend the text"
        if _PYTHON.match(value):
            fix = "it is Python's own notation, in single quotes: write the column with json.dumps(value)"
        raise bad_row(
            f"{what} is a text but not JSON", place, f"{error}: {show(value)}", "JSON", fix
        ) from error


def alike(word: str, names: Iterable[str]) -> str | None:
    """The nearest of the names, if it shares three of four letters with the word, in their order."""
    found = nearest(word, names)
    if found is None or SequenceMatcher(None, word.lower(), found.lower()).ratio() < 0.75:
        return None
    return found


def number(value: Any, key: str, place: Place) -> float:
    """A weight: finite and not negative. CSV gives numbers as texts, so these are read too."""
    try:
        weight = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        weight = math.nan
    if not 0 <= weight < math.inf:
        raise bad_row(
            "the weight is negative" if weight < 0 else "the weight is not a number",
            place,
            f"{key}: {show(value)}",
            "a number, 0 or above",
            f"write {key}: 1, or remove it",
        )
    return weight


def slip(word: str, names: Iterable[str]) -> str | None:
    """The name that a word is meant for if one or two of its letters are wrong, or its case or its marks.

    In a short name one letter, in one of eight or more two: left out, doubled, swapped with the next or
    replaced. A word with another first letter, and else the same, is a word of its own (height, weight).
    """
    plain = _MARKS.sub("", word.lower())
    found = None
    for name in names:
        bare = _MARKS.sub("", name)
        if plain == bare:
            return name
        most = 1 if len(bare) < 8 else 2
        if found is None and abs(len(plain) - len(bare)) <= most and plain[1:] != bare[1:]:
            found = name if _steps(plain, bare) <= most else None
    return found


def _steps(one: str, other: str) -> int:
    """How many letters to leave out, add, replace or swap with the next make one word the other."""
    before: list[int] = []
    row = list(range(len(other) + 1))
    for i, letter in enumerate(one):
        last, before, row = before, row, [i + 1]
        for j, its in enumerate(other):
            cost = min(before[j + 1] + 1, row[j] + 1, before[j] + (letter != its))
            if i and j and letter == other[j - 1] and one[i - 1] == its:
                cost = min(cost, last[j - 1] + 1)
            row.append(cost)
    return row[-1]
