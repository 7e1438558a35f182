"""Rows that belong together: the messages of a tree, one a row; questions and their answers in a file beside.

`read` stands between the readers and the formats: what it gives are records again, as many as there
are rows, so the account of the rows stays whole.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from imprint.data import readers
from imprint.data.conversation import Place, Record
from imprint.data.faults import bad_row, show
from imprint.data.ledger import Ledger
from imprint.data.mended import unwrapped
from imprint.data.shapes import Row
from imprint.data.shapes_tree import ANSWERS, TREE_KEYS, Member, Tree, is_removed, is_tree, is_tree_message
from imprint.data.text import Broken
from imprint.errors import DataError, RecipeError
from imprint.recipe import DataSource


def read(
    source: DataSource, base: Path | None = None, *, seed: int = 0, ledger: Ledger | None = None
) -> Iterator[Record]:
    """The records of `source`, with what belongs together put together; otherwise as `readers.read`.

    A tree comes as a `Tree` in the record of its root, and as `Member` in those of its other messages,
    after all other records. A message that cannot be reached from a root is `text.Broken`. RecipeError, after the
    last record, where branches=best is asked for and no record is a tree.
    """
    records = unwrapped(readers.read(source, base, seed=seed, ledger=ledger))
    answers = _Answers(source.path, base) if source.format in ("auto", "bfcl") else None
    messages = None
    if source.format in ("auto", "oasst_messages") and set(TREE_KEYS).issuperset(source.fields):
        messages = _Messages(source)
    gathered = _gathered(records, answers, messages)
    return _with_trees(gathered, source) if source.branches == "best" else gathered


def _gathered(
    records: Iterator[Record], answers: _Answers | None, messages: _Messages | None
) -> Iterator[Record]:
    signs = {"function", "ground_truth"} if answers else set()
    if messages:
        signs.add(messages.names["message_id"])
    for record in records:
        if type(record.value) is dict and not signs.isdisjoint(record.value):  # few rows
            if answers:
                record = answers.joined(record)
            if messages and messages.take(record):
                continue
        yield record
    if messages:
        yield from messages.records()


def _with_trees(records: Iterator[Record], source: DataSource) -> Iterator[Record]:
    """The records; RecipeError behind them where none is a tree, for `branches` would change nothing."""
    prompt = source.fields.get("prompt", "prompt")
    rows, found = 0, False
    for record in records:
        value = record.value
        rows += not isinstance(value, Broken)
        found |= isinstance(value, Tree) or (
            isinstance(value, dict) and is_tree({"prompt": value.get(prompt)})
        )
        yield record
    if rows and not found:
        raise RecipeError(
            "branches=best has no effect: no row is a tree of replies",
            where=source.path,
            found=f"{rows:,} {'rows' if rows > 1 else 'row'}, of other formats",
            expected="OpenAssistant's trees, or their messages with parent_id",
            fix="remove branches=best",
        )


def fingerprint(source: DataSource, base: Path | None = None) -> str:
    """That of the source's own bytes and settings; with that of the answers beside it, and of `branches`."""
    found = readers.fingerprint(source, base)
    beside = _answers_file(source.path, base)
    if beside is None and source.branches == "all":
        return found
    answers = readers.fingerprint(DataSource(path=str(beside)), None) if beside else None
    return hashlib.sha256(json.dumps([found, answers, source.branches]).encode()).hexdigest()


# ---- questions and answers


class _Answers:
    """BFCL's questions get their ground truth, where a file of it lies beside.

    In a folder that holds both, the rows of the answers are parts of those of the questions.
    """

    def __init__(self, path: str, base: Path | None):
        self.path, self.base = path, base
        self.known: dict[str, dict[str, Any]] = {}  # by file, by id
        self.questions: dict[str, bool] = {}  # whether those of a file of answers lie beside it

    def joined(self, record: Record) -> Record:
        row, file = record.value, record.place.file
        if "function" in row and "question" in row and "ground_truth" not in row:
            if file not in self.known:
                self.known[file] = _answers(file, self.base)
            truth = self.known[file].get(str(row.get("id")))
            return record if truth is None else Record(row | {"ground_truth": truth}, record.place)
        is_answer = "ground_truth" in row and "question" not in row
        if is_answer and file != self.path:
            if file not in self.questions:
                self.questions[file] = _has_questions(file, self.base)
            if self.questions[file]:
                return Record(Member(record.place, ANSWERS), record.place)
        return record


def _has_questions(given: str, base: Path | None) -> bool:
    """Whether the file of the questions that a file of BFCL's answers belongs to lies beside it."""
    path = (base or Path()) / Path(given).expanduser()
    if path.parent.name == "possible_answer":
        return (path.parent.parent / path.name).is_file()
    return "_answers." in path.name and path.with_name(path.name.replace("_answers.", ".", 1)).is_file()


def _answers_file(given: str, base: Path | None) -> Path | None:
    """NAME_answers.SUFFIX or possible_answer/NAME.SUFFIX beside a file of BFCL's questions."""
    path = (base or Path()) / Path(given).expanduser()
    stem, dot, suffix = path.name.partition(".")
    beside = (path.with_name(f"{stem}_answers{dot}{suffix}"), path.parent / "possible_answer" / path.name)
    return next((file for file in beside if file.is_file()), None) if stem.startswith("BFCL") else None


def _answers(given: str, base: Path | None) -> dict[str, Any]:
    """The ground truth of each id, of the file beside `given`; none where there is no such file."""
    file = _answers_file(given, base)
    found = {}
    for record in readers.read(DataSource(path=str(file))) if file else ():
        if isinstance(record.value, Broken):
            raise record.value.error
        if isinstance(record.value, dict) and "ground_truth" in record.value:
            found[str(record.value.get("id"))] = record.value["ground_truth"]
    return found


# ---- messages and trees


class _Messages:
    """Rows that are messages of trees: kept on disk until all are read, because those of a tree may lie far apart."""

    def __init__(self, source: DataSource):
        self.names = {key: source.fields.get(key, key) for key in TREE_KEYS}
        self.share = source.share
        self._base: sqlite3.Connection | None = None

    def take(self, record: Record) -> bool:
        """Whether a record is such a message; it is then given back by `records`."""
        value, place = record.value, record.place
        if type(value) is not dict:
            return False
        row = {key: value[name] for key, name in self.names.items() if name in value}
        if not is_tree_message(row) or "replies" in value or "messages" in value:
            return False
        if row["message_id"] in (None, "") or not row["text"].strip():
            return False  # in a table that mixes shapes, the cells of the others are empty
        tree = value.get("message_tree_id")
        if self.share < 1 and not (isinstance(tree, str) and tree):  # `readers` takes a tree as a whole
            raise _no_share(place, self.share)
        if self._base is None:
            self._base = sqlite3.connect("")  # a temporary file, removed when it is closed
            self._base.execute(
                "CREATE TABLE messages (tree TEXT, file TEXT, line INTEGER, unit TEXT, row TEXT)"
            )
        tree = str(row.get("message_tree_id") or "")
        values = (tree, place.file, place.line, place.unit, json.dumps(row, default=str))
        self._base.execute("INSERT INTO messages VALUES (?, ?, ?, ?, ?)", values)
        return True

    def records(self) -> Iterator[Record]:
        """The messages as trees, in the order of the trees' first rows; those without a tree's id together."""
        if self._base is None:
            return
        self._base.execute("CREATE INDEX by_tree ON messages (tree)")
        for (tree,) in self._base.execute("SELECT tree FROM messages GROUP BY tree ORDER BY MIN(rowid)"):
            query = "SELECT row, file, line, unit FROM messages WHERE tree = ? ORDER BY rowid"
            rows = self._base.execute(query, (tree,))
            yield from _built([(json.loads(row), Place(*place)) for row, *place in rows])
        self._base.close()


def _built(rows: list[tuple[Row, Place]]) -> Iterator[Record]:
    """The records of one or several trees: their roots as `Tree`, the rest as `Member` or `Broken`."""
    first: dict[str, int] = {}
    errors: dict[int, DataError] = {}
    for at, (row, place) in enumerate(rows):
        name = str(row["message_id"])
        if name in first:
            errors[at] = _torn(_TWICE, place, f"message_id {show(name)}, as at {rows[first[name]][1]}")
        else:
            first[name] = at
            row["replies"] = []
    roots: dict[int, int] = {}  # of each message that can be reached, its tree's root
    waiting = []
    for at in first.values():
        row, place = rows[at]
        parent = row.get("parent_id")
        if parent in (None, ""):
            roots[at] = at
            waiting.append(at)
        elif str(parent) in first:
            rows[first[str(parent)]][0]["replies"].append(row)
        else:
            errors[at] = _torn(_NO_PARENT, place, f"parent_id {show(parent)}")
    while waiting:
        at = waiting.pop()
        below = [first[str(reply["message_id"])] for reply in rows[at][0]["replies"]]
        roots |= dict.fromkeys(below, roots[at])
        waiting += below
    removed: dict[int, dict[str, Place]] = {}  # of each root
    for at, root in roots.items():
        if is_removed(rows[at][0]):
            removed.setdefault(root, {})[str(rows[at][0]["message_id"])] = rows[at][1]
    for at, (row, place) in enumerate(rows):
        if at in errors:
            yield Record(Broken(errors[at]), place)
        elif at not in roots:
            yield Record(Broken(_torn(_NO_ROOT, place, f"parent_id {show(row.get('parent_id'))}")), place)
        elif roots[at] == at:
            tree = {"message_tree_id": row.get("message_tree_id") or row["message_id"], "prompt": row}
            yield Record(Tree(tree, removed.get(at, {})), place)
        else:
            yield Record(Member(rows[roots[at]][1]), place)


def _no_share(place: Place, share: float) -> DataError:
    return bad_row(
        "no share can be taken of rows that are single messages of trees",
        place,
        f"share {share:g}",
        "message_tree_id, by which whole trees are taken",
        "add this column, remove share, or write one tree a row",
    )


# of a message in a tree that cannot be put together: what is wrong, what would be right, how to mend it
_TWICE = ("two messages of a tree have one message_id", "a message_id of its own", "remove one of them")
_NO_PARENT = (
    "the parent of a message is missing",
    "a row with this message_id, in the same tree and source",
    "add the row, or remove this one and those below it",
)
_NO_ROOT = (
    "the messages above a message lead to no prompt",
    "a way up to a message without a parent",
    "mend the rows above it, or remove this one",
)


def _torn(reason: tuple[str, str, str], place: Place, found: str) -> DataError:
    what, expected, fix = reason
    return bad_row(what, place, found, expected, fix)
