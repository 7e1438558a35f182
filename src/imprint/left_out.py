"""What is not trained, with its original rows, as a file to mend and read again: `--left-out FILE`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from imprint.data.conversation import Conversation, Place, Record
from imprint.data.formats import converter
from imprint.data.gather import read
from imprint.data.load import settle
from imprint.data.locate import locate
from imprint.data.open import look, unpacked
from imprint.data.shapes_tree import Tree
from imprint.data.text import Broken, lines
from imprint.data.write import aside, line
from imprint.errors import DataError
from imprint.preparation import rendered
from imprint.recipe import DataSource, Recipe
from imprint.render.resolve import Rendering
from imprint.render.turns import CONTEXT_ONLY, NOT_LAST, LeftOut, Turn
from imprint.show_row import sources_of

PARTLY = "the rest of this row is trained, and twice where this file and the row's own are both data"


class LeftRow(NamedTuple):
    """A line of the file, and whether some other part of its row is trained."""

    line: dict[str, Any]
    partly: bool


def write_left_out(path: Path, recipe: Recipe, rendering: Rendering | None = None) -> tuple[int, int]:
    """Write one line for each record of which something is left out: how many wholly, how many in part.

    The data is read once more. Without `rendering` there are records and conversations alone;
    with it the recipe's max_length must be a number. DataError where the file exists.
    """
    whole = partly = 0
    with aside(path) as partial, partial.open("w", encoding="utf-8", newline="\n") as file:
        for row in left_out(recipe, rendering):
            file.write(line(row.line))
            whole += not row.partly
            partly += row.partly
    return whole, partly


def left_out(recipe: Recipe, rendering: Rendering | None) -> Iterator[LeftRow]:
    """The lines of the file, in the order of the data.

    A reply beside trained ones that the data or the recipe asks not to train (of weight 0, an opening one)
    is not left out: there is nothing to mend.
    """
    for source, key in sources_of(recipe):
        convert, raw = converter(source, key), _RawLines(source)
        for record in read(source, seed=recipe.seed):
            partly = False
            try:
                conversations = convert(record)
            except DataError as error:
                things = [_thing("record", error.what, _detail(error))]
            else:
                things = []
                for one in conversations:
                    left, trained = _of(one, recipe, rendering)
                    things += left
                    partly |= trained
            if things:
                first, *others = things
                if partly:
                    first["detail"] = "\n".join(filter(None, (first["detail"], PARTLY)))
                row = {"place": str(record.place), **first, "row": _original(record, raw)}
                yield LeftRow(row | ({"also": others} if others else {}), partly)


def _thing(level: str, reason: str, detail: str, message: int | None = None) -> dict[str, Any]:
    where = "" if message is None else f"message {message + 1}"
    return {"level": level, "reason": reason, "detail": "\n".join(filter(None, (where, detail)))}


def _of(
    conversation: Conversation, recipe: Recipe, rendering: Rendering | None
) -> tuple[list[dict[str, Any]], bool]:
    """What of a conversation is left out, itself or some of its replies; and whether any of it is trained."""
    settled = settle(conversation, recipe.consecutive_replies)
    if isinstance(settled, str):
        return [_thing("conversation", settled, "")], False
    if rendering is None:
        return [], True
    found = list(rendered([settled], recipe, rendering))
    out = [one for one in found if isinstance(one, LeftOut)]
    trained = any(isinstance(one, Turn) for one in found)
    if trained:
        out = [one for one in out if not one.reason.endswith(CONTEXT_ONLY) and one.reason != NOT_LAST]
    replies = [_thing("reply", one.reason, one.detail, one.turn) for one in out]
    if not trained:
        reasons = "; ".join(dict.fromkeys(reply["reason"] for reply in replies))
        replies.insert(0, _thing("conversation", "none of its replies can be trained", reasons))
    return replies, trained


def _detail(error: DataError) -> str:
    parts = (("found", error.found), ("expected", error.expected), ("to fix", error.fix))
    return "\n".join(f"{label}: {text}" for label, text in parts if text)


def _original(record: Record, raw: _RawLines) -> Any:
    """The row as it was read; of one that could not be parsed, the text of its line."""
    if isinstance(record.value, Broken):
        return raw.at(record.place)
    return record.value.row if isinstance(record.value, Tree) else record.value


class _RawLines:
    """The lines of a source's files as texts, in order: asked for a place, it never goes back."""

    def __init__(self, source: DataSource):
        found = locate(source)
        self.files = {} if found is None or found.saved else {file.name: file for file in found.files}
        self.name, self.number = "", 0
        self.rest: Iterator[bytes] = iter(())

    def at(self, place: Place) -> str | None:
        if place.unit != "line" or place.file not in self.files:
            return None  # a row of Parquet, for instance
        if place.file != self.name or place.line <= self.number:
            self.name, self.number, self.rest = place.file, 0, self._lines(place.file)
        for text in self.rest:
            self.number += 1
            if self.number == place.line:
                return str(text, "utf-8", "backslashreplace").rstrip("\r\n")
        return None

    def _lines(self, name: str) -> Iterator[bytes]:
        path = self.files[name].path
        found = look(path, name)
        if found.kind == "json":  # a row of it is no line
            return
        with unpacked(path, found.codec) as file:
            yield from lines(file, name, found.head)
