"""Files whose JSON is sound but laid out otherwise than as rows: columns, rows under numbers, rows in one line."""

from __future__ import annotations

from typing import Any

from imprint.data.faults import show
from imprint.errors import DataError

_OF_MESSAGES = frozenset(("role", "from", "content", "value"))
_OF_TALKS = frozenset(("conversations", "conversation", "dialog", "dialogue", "chat", "items", "data"))
_SCALARS = (str, int, float, type(None))  # a bool is an int
ONE_A_LINE = "jq -c . OLD > NEW"
EACH_A_LINE = "jq -c '.[]' OLD > NEW"


def not_rows(value: Any, where: str) -> DataError | None:
    """What is said of a file that is one object and holds a table by its columns, or rows under their numbers.

    The list of one row's texts in turn, and its ids with their labels, are no columns.
    """
    if not isinstance(value, dict) or not value:
        return None
    if _is_split(value):
        return _columns(f"columns: {show(value['columns'])}", "**", where)
    inner = list(value.values())
    if all(isinstance(one, dict) for one in inner):
        if all(map(str.isdecimal, value)):
            found = f"keys {', '.join(list(value)[:3])}: {show(inner[0])}"
            return DataError(
                "the file holds rows under their numbers",
                where=where,
                found=found,
                expected="one row per line, or a list of rows",
                fix=f"write the rows alone: {EACH_A_LINE}",
            )
        same = all(one.keys() == inner[0].keys() for one in inner)
        by_number = bool(inner[0]) and all(map(str.isdecimal, inner[0]))
        return _columns(_first(value), "", where) if same and by_number else None
    return _columns(_first(value), "", where) if _is_lists(value) else None


def _is_split(value: dict[str, Any]) -> bool:
    """As pandas writes a table with orient="split"."""
    names, cells = value.get("columns"), value.get("data")
    return (
        value.keys() <= {"columns", "index", "data"}
        and isinstance(names, list)
        and isinstance(cells, list)
        and all(isinstance(row, list) and len(row) == len(names) for row in cells[:10])
    )


def _is_lists(value: dict[str, Any]) -> bool:
    """Whether each of several keys has a list, all of one length, of what a cell of a table may hold."""
    lists = list(value.values())
    if len(lists) < 2 or not all(isinstance(one, list) for one in lists):
        return False
    if not lists[0] or any(len(one) != len(lists[0]) for one in lists):
        return False
    if not all(_is_column(one) for one in lists):
        return False
    talk = any(isinstance(value[name][0], str) for name in _OF_TALKS & value.keys())
    ids = isinstance(value.get("input_ids"), list) and isinstance(value["input_ids"][0], int)
    return not talk and not ids and any(isinstance(one[0], (str, list)) for one in lists)


def _is_column(cells: list[Any]) -> bool:
    return all(isinstance(one, _SCALARS) for one in cells) or all(isinstance(one, list) for one in cells)


def _first(value: dict[str, Any]) -> str:
    return "; ".join(f"{show(name)}: {show(inner)}" for name, inner in list(value.items())[:2])


def _columns(found: str, stars: str, where: str) -> DataError:
    return DataError(
        "the file holds columns, not rows",
        where=where,
        found=found,
        expected="one object per row",
        fix='write it by rows: FRAME.to_json(NEW, orient="records", lines=True)\n'
        f"where of the file alone FRAME = pandas.DataFrame({stars}json.load(open(OLD)))",
    )


def holds_rows(value: list[Any]) -> bool:
    """Whether a list holds rows, and not the messages of one conversation: by its first element."""
    first = value[0] if value else None
    if isinstance(first, list):
        return bool(first) and isinstance(first[0], dict)
    return (
        isinstance(first, dict) and (_OF_MESSAGES.isdisjoint(first) or "message_id" in first) and first != {}
    )


def list_of_rows(value: list[Any], where: str) -> DataError:
    return DataError(
        "the line is a list of rows",
        where=where,
        found=f"{len(value):,} in one line: {show(value[0])}",
        expected="one row per line",
        fix=f"write each on a line of its own: {EACH_A_LINE}",
    )
