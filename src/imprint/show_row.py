"""Of `imprint show`: one row by its place, and all that is left out, each with its reason."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import NoReturn

from imprint.data.conversation import Conversation, Place
from imprint.data.formats import converter
from imprint.data.gather import read
from imprint.data.ledger import Ledger
from imprint.data.load import load
from imprint.data.locate import names_of
from imprint.errors import DataError, nearest
from imprint.recipe import DataSource, Recipe
from imprint.render.turns import LeftOut, Turn
from imprint.show import Shown, View
from imprint.track.words import plural

_SPEC = re.compile(r"(?:(?P<file>.+):|:)?(?:line |row )?(?P<line>\d+)")


@dataclass(frozen=True)
class Out:
    """Something that is not trained: a record, a conversation or (with its message, from 0) a reply."""

    what: str
    place: Place
    reason: str
    detail: str = ""
    message: int | None = None


@dataclass(frozen=True)
class Row:
    """What became of one record: its conversations, each with its turns, and what was left out."""

    place: Place
    parts: list[tuple[Conversation, list[Turn]]]
    out: list[Out]
    held_out: bool = False
    replay: str = ""  # of a row of replay: how many pieces it is, and what becomes of them

    @property
    def conversations(self) -> list[Conversation]:
        return [conversation for conversation, _ in self.parts]

    @property
    def turns(self) -> list[Turn]:
        return [turn for _, turns in self.parts for turn in turns]

    def views(self, shown: Shown, number: int | None) -> Iterator[View]:
        """The first turns of the record, with their texts."""
        every = (view for conversation, turns in self.parts for view in shown.views(conversation, turns))
        return islice(every, number)


class _Reasons(Ledger):
    """A ledger that remembers every conversation that was left out, not the first ones alone."""

    def __init__(self) -> None:
        super().__init__()
        self.all_out: list[tuple[Place, str]] = []

    def leave_out(self, place: Place, reason: str) -> None:
        super().leave_out(place, reason)
        self.all_out.append((place, reason))


def sources_of(recipe: Recipe, replay: bool = True) -> list[tuple[DataSource, str]]:
    """Every source of a recipe with its key; those of replay, last, only if they are wanted."""
    found = [(source, f"data.{number}") for number, source in enumerate(recipe.data)]
    if isinstance(recipe.validation, DataSource):
        found.append((recipe.validation, "validation"))
    mixed_in = recipe.replay if replay else []
    return found + [(source, f"replay.{number}") for number, source in enumerate(mixed_in)]


def find_record(recipe: Recipe, spec: str) -> tuple[Place, DataError | None]:
    """The place that FILE:LINE names, and why its record is refused, if it is.

    The file may be given by its last part, or not at all where there is one. Raises DataError where
    there is no such place.
    """
    found = _SPEC.fullmatch(spec.strip())
    sources = [(source, key, names_of(source)) for source, key in sources_of(recipe)]
    files = list(dict.fromkeys(name for *_, names in sources for name in names))
    if found is None:
        raise DataError(
            "it names no row",
            where=f"--row {spec}",
            expected="FILE:LINE, or LINE where there is one file",
            fix=f"--row {files[0]}:1",
        )
    file = _file(spec, found["file"] or "", files)
    wanted, seen, behind = int(found["line"]), None, None
    for source, key, names in sources:
        if file not in names:
            continue
        convert = converter(source, key)
        for record in read(source, seed=recipe.seed):
            if record.place.file != file:
                continue
            place = record.place
            if place.line == wanted:
                try:
                    convert(record)
                except DataError as error:
                    return place, error
                return place, None
            if place.line < wanted:  # not always in order: rows that belong together come together
                seen = max(seen or place, place)
            else:
                behind = min(behind or place, place)
    _no_such_row(spec, seen, behind)


def _file(spec: str, given: str, files: list[str]) -> str:
    """The source that is meant."""
    if not given and len(files) == 1:
        return files[0]
    same = [file for file in files if given and (file == given or file.endswith("/" + given))]
    if len(same) == 1:
        return same[0]
    guess = nearest(given, files) or nearest(given, [file.rpartition("/")[2] for file in files])
    raise DataError(
        "it does not say in which file" if not given or same else f"no source is named {given!r}",
        where=f"--row {spec}",
        expected="one of " + ", ".join(same or files),
        fix=f"--row {guess or (same or files)[0]}:{spec.rpartition(':')[2]}",
    )


def _no_such_row(spec: str, before: Place | None, behind: Place | None) -> NoReturn:
    """The error that names the rows nearest to one that is not there."""
    near = [place for place in (before, behind) if place is not None]
    last = "" if behind or not before else f" (the last {before.unit} that holds a row)"
    raise DataError(
        "there is no row at this place",
        where=f"--row {spec}",
        expected="the nearest: " + " and ".join(map(str, near)) + last,
        fix=f"--row {near[0].file}:{near[0].line}",
    )


def refused(place: Place, error: DataError) -> Row:
    return Row(place, [], [_out_of(place, error)])


def row_at(shown: Shown, place: Place) -> Row:
    """What became of the record at a place that was not refused."""
    for held_out, conversations in ((False, shown.conversations), (True, shown.held_out)):
        parts, out = [], []
        for index, conversation in enumerate(conversations):
            if conversation.source != place:
                continue
            items = shown.items_of(conversation)
            parts.append((conversation, [_numbered(item, index) for item in items if isinstance(item, Turn)]))
            out += [_left_out(item) for item in items if isinstance(item, LeftOut)]
        if parts:
            return Row(place, parts, out, held_out)
    if shown.replay is not None:
        parts, pieces, apart = shown.replay.at(place)
        if parts:
            told = f"this row is replay: {plural(pieces, 'piece')} to draw from, and none held out"
            if apart:
                told = f"this row is replay: {plural(pieces, 'piece')}, of which {apart:,} held out"
            return Row(place, parts, [], replay=told)
        if place.file in (name for source in shown.recipe.replay for name in names_of(source)):
            return Row(place, [], [Out("row of replay", place, "nothing of it can be trained")])
    reasons = (reason for where, reason in _conversations_out(shown) if where == place)
    reason = next(reasons, "it is part of the conversations of another row: the root of its tree")
    return Row(place, [], [Out("conversation", place, reason)])


def everything_left_out(shown: Shown, limit: int) -> list[Out]:
    """The first records, conversations and replies that are not trained, in this order."""
    return list(islice(_everything_left_out(shown), limit))


def _everything_left_out(shown: Shown) -> Iterator[Out]:
    if shown.ledger.records.left:
        for source, key in sources_of(shown.recipe, replay=False):
            convert = converter(source, key)
            for record in read(source):
                try:
                    convert(record)
                except DataError as error:
                    yield _out_of(record.place, error)
    yield from (Out("conversation", place, reason) for place, reason in _conversations_out(shown))
    if not shown.ledger.turns.left:
        return
    kept: dict[int, int] = {group[0].conversation: len(group) for group in shown.groups}
    for index, conversation in enumerate(shown.conversations):
        replies = sum(message.role == "assistant" for message in conversation.messages)
        if kept.get(index, 0) < replies:
            yield from map(_left_out, (i for i in shown.items_of(conversation) if isinstance(i, LeftOut)))


def _conversations_out(shown: Shown) -> list[tuple[Place, str]]:
    """Where conversations were left out and why; the data is read again where the ledger holds some only."""
    recipe = shown.recipe
    withdrawn = len(shown.conversations) - len(shown.groups)
    if shown.ledger.conversations.num_left <= withdrawn:
        return []
    reasons = _Reasons()
    load(
        recipe.data,
        validation=recipe.validation if isinstance(recipe.validation, DataSource) else 0.0,
        bad_rows=recipe.bad_rows,
        consecutive_replies=recipe.consecutive_replies,
        seed=recipe.seed,
        ledger=reasons,
    )
    return reasons.all_out


def _numbered(turn: Turn, conversation: int) -> Turn:
    """The turn of a conversation that was rendered alone, with the conversation's index."""
    return replace(turn, conversation=conversation)


def _left_out(item: LeftOut) -> Out:
    return Out("reply", item.source, item.reason, item.detail, item.turn)


def _out_of(place: Place, error: DataError) -> Out:
    lines = [
        f"{label} {text}"
        for label, text in (("found", error.found), ("expected", error.expected), ("to fix", error.fix))
        if text
    ]
    return Out("record", place, error.what, "\n".join(lines))
