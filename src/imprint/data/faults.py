"""How a bad row is told, and the small readers of values that rows share."""

from __future__ import annotations

import json
import math
from typing import Any

from imprint.data.conversation import Place
from imprint.errors import DataError


def bad_row(what: str, place: Place, found: str, expected: str, fix: str) -> DataError:
    """`what` is the reason in the ledger: it stays the same from row to row; details go into `found`."""
    return DataError(what, where=str(place), found=found, expected=expected, fix=fix)


def show(value: Any) -> str:
    """A value as JSON, cut to what an error message can hold."""
    text: str = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 80 else text[:77] + "..."


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


def from_json(value: Any, what: str, place: Place) -> Any:
    """The value that a text holds as JSON; anything but a text is returned as it is."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise bad_row(
            f"{what} is a text but not JSON", place, f"{error}: {show(value)}", "JSON", "mend the text"
        ) from error


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
