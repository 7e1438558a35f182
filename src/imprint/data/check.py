"""What is in the data, before anything is trained: formats, sizes, repetitions, signs of damage, bad rows."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from imprint.data.catalogue import BY_NAME
from imprint.data.conversation import Conversation, Message, Place, Record
from imprint.data.formats import Evidence, converter, explain
from imprint.data.gather import read
from imprint.data.ledger import Ledger, Tally
from imprint.data.load import settle
from imprint.data.recognise import recognise
from imprint.data.repeats import Repeated, Seen
from imprint.data.shapes import Row
from imprint.data.shapes_tree import Member, Tree
from imprint.data.signs import ALL_CUT, signs
from imprint.errors import DataError
from imprint.recipe import DataSource

SAME_LENGTH = 0.005  # share of the replies that, all as long as the longest, are taken for cut
LONG = 200  # characters, below which equal lengths say nothing


@dataclass
class Shape:
    """The rows of one format in one source, and what they hold. Counters map a size to how often it occurs."""

    source: str
    format: str
    evidence: Evidence | None  # of its first row
    rows: int = 0
    roles: Counter[str] = field(default_factory=Counter)
    sizes: Counter[int] = field(default_factory=Counter)  # messages of a conversation
    lengths: Counter[int] = field(default_factory=Counter)  # characters of a conversation
    longest: tuple[int, Place] | None = None
    replies: int = 0
    with_tools: int = 0
    calls: int = 0
    reasoning: int = 0  # replies that have it
    thinking: int = 0  # conversations that have any
    untrained: int = 0  # replies of weight 0
    documents: int = 0
    tokenised: int = 0
    cut: tuple[int, Tally] = field(
        default_factory=lambda: (0, Tally())
    )  # the longest replies: how long, where

    @property
    def conversations(self) -> int:
        return self.sizes.total()

    @property
    def characters(self) -> int:
        return sum(length * count for length, count in self.lengths.items())


class Bad(NamedTuple):
    """A reason why rows are refused: how many, where, and the first error in full."""

    tally: Tally
    first: DataError


@dataclass
class Survey:
    """All that `survey` found. `bad` maps a reason to its rows; `examples` are of different formats if they can be."""

    ledger: Ledger
    shapes: list[Shape] = field(default_factory=list)
    bad: dict[str, Bad] = field(default_factory=dict)
    signs: dict[str, Tally] = field(default_factory=dict)
    copies: Repeated = field(default_factory=Repeated)  # conversations that repeat another whole
    answers: Repeated = field(default_factory=Repeated)  # other replies to a prompt that occurred before
    examples: list[Conversation] = field(default_factory=list)

    @property
    def refused(self) -> int:
        return self.ledger.records.num_left

    @property
    def reasoning(self) -> float:
        """Share of the conversations that have any."""
        return sum(shape.thinking for shape in self.shapes) / max(
            1, sum(shape.conversations for shape in self.shapes)
        )


def survey(
    sources: Sequence[DataSource],
    *,
    consecutive_replies: str = "merge",
    seed: int = 0,
    control: re.Pattern[str] | None = None,
) -> Survey:
    """Read every source once, in memory that grows by 28 bytes a conversation.

    `control` finds a tokenizer's control tokens; without it, those of well-known templates are looked for.
    """
    made = Survey(Ledger())
    seen, shapes = Seen(), dict[tuple[int, str], Shape]()
    spare: list[Conversation] = []
    for number, source in enumerate(sources):
        key = f"data.{number}"
        convert = converter(source, key, made.ledger.warn)
        for record in read(source, seed=seed, ledger=made.ledger):
            made.ledger.read(record.place)
            try:
                conversations = convert(record)
            except DataError as error:
                _refuse(made, record.place, error)
                continue
            made.ledger.use(record.place)
            name = _format_of(record, source, key)
            shape = shapes.get((number, name))
            if shape is None:
                shape = Shape(source.path, name, _evidence(record, source, key))
                shapes[number, name] = shape
                made.examples += conversations[:1]
            elif len(spare) < 2:
                spare += conversations[:1]
            shape.rows += 1
            for conversation in conversations:
                made.ledger.conversation(record.place)
                settled = settle(conversation, consecutive_replies)
                if isinstance(settled, str):
                    made.ledger.leave_out(record.place, settled)
                    continue
                made.ledger.keep("train", 1)
                _count(shape, settled)
                _look(made, settled, control)
                seen.add(settled)
    made.shapes = list(shapes.values())
    made.examples = (made.examples + spare)[:2]
    made.copies, made.answers = seen.repeated()
    for shape in made.shapes:
        _warn_of_cut(made, shape)
    made.ledger.check()
    return made


def _refuse(made: Survey, place: Place, error: DataError) -> None:
    made.ledger.refuse(place, error.what)
    bad = made.bad.setdefault(error.what, Bad(Tally(), error))
    bad.tally.add(place)


def _format_of(record: Record, source: DataSource, key: str) -> str:
    row = record.value
    if isinstance(row, (Tree, Member)):
        return "oasst_messages"
    if source.format != "auto":
        return source.format
    if not isinstance(row, dict):
        return "messages"
    return recognise(
        _as_read(row, source, record.place, key), frozenset(source.fields), record.place, key
    ).name


def _as_read(row: Row, source: DataSource, place: Place, key: str) -> Row:
    """A row that was read, with the names and columns by which its format was recognised."""
    if source.fields:
        taken = set(source.fields.values())
        kept = {column: value for column, value in row.items() if column not in taken}
        return kept | {part: row[column] for part, column in source.fields.items()}
    filled = {column: value for column, value in row.items() if value is not None and value != ""}
    if len(filled) == len(row):
        return row
    try:  # as the formats do: with its empty columns, or where that fails, without
        recognise(row, frozenset(), place, key).read(row, place)
    except DataError:
        return filled
    return row


def _evidence(record: Record, source: DataSource, key: str) -> Evidence | None:
    """Why the row is of its format; None where nothing was recognised, because it was said."""
    row, place = record.value, record.place
    if isinstance(row, (Tree, Member)):
        used = BY_NAME["oasst_messages"]
        return Evidence(used.name, "its columns", used.columns, (), (), ())
    if source.format != "auto":
        return None
    given = _as_read(row, source, place, key) if isinstance(row, dict) else row
    return explain(given, place, frozenset(source.fields), key)


def _count(shape: Shape, conversation: Conversation) -> None:
    messages = conversation.messages
    shape.sizes[len(messages)] += 1
    length = sum(len(message.content) + len(message.reasoning or "") for message in messages)
    shape.lengths[length] += 1
    if shape.longest is None or length > shape.longest[0]:
        shape.longest = (length, conversation.source)
    shape.tokenised += conversation.tokens is not None
    shape.documents += conversation.tokens is None and not conversation.is_chat
    shape.with_tools += bool(conversation.tools)
    shape.thinking += any(message.role == "assistant" and message.thought[0] for message in messages)
    for message in messages:
        shape.roles[message.role] += 1
        if message.role != "assistant":
            continue
        shape.replies += 1
        shape.calls += len(message.tool_calls)
        shape.reasoning += message.thought[0] is not None
        shape.untrained += message.weight == 0
        size, tally = shape.cut
        if len(message.content) > size:
            shape.cut = size, tally = len(message.content), Tally()
        if len(message.content) == size:
            tally.add(conversation.source)


def _look(made: Survey, conversation: Conversation, control: re.Pattern[str] | None) -> None:
    """Count each sign once a conversation."""
    if not conversation.is_chat and control is None:
        return
    found: set[str] = set()
    for message in conversation.messages:
        reply = message.role == "assistant"
        if message.role != "tool":
            found.update(signs(message.content, reply=reply, control=control))
        if message.reasoning:
            found.update(signs(message.reasoning, control=control))
    for sign in found:
        made.signs.setdefault(sign, Tally()).add(conversation.source)


def _warn_of_cut(made: Survey, shape: Shape) -> None:
    size, tally = shape.cut
    if size >= LONG and tally.count >= max(5, SAME_LENGTH * shape.replies):
        into = made.signs.setdefault(ALL_CUT, Tally())
        into.places += tally.places
        into.count += tally.count


def middle(counts: Counter[int]) -> tuple[int, int, int]:
    """Smallest, median (the lower of two) and largest of what a counter counted."""
    half, total = 0, counts.total()
    for value in sorted(counts):
        half += counts[value]
        if 2 * half >= total:
            return min(counts), value, max(counts)
    return 0, 0, 0


def to_json(found: Survey) -> dict[str, Any]:
    """The survey as values that JSON can hold."""
    return {
        "records": found.ledger.records.total,
        "refused": found.refused,
        "conversations": found.ledger.conversations.total,
        "left_out": found.ledger.conversations.num_left,
        "sources": [_shape_to_json(shape) for shape in found.shapes],
        "bad_rows": [
            {
                "reason": reason,
                "count": bad.tally.count,
                "places": list(map(str, bad.tally.places)),
                "fix": bad.first.fix,
            }
            for reason, bad in found.bad.items()
        ],
        "warnings": _tallies(found.ledger.warnings | found.signs),
        "left_out_conversations": _tallies(found.ledger.conversations.left),
        "notes": found.ledger.notes,
        "repeated_conversations": _repeated_to_json(found.copies),
        "repeated_prompts": _repeated_to_json(found.answers),
        "examples": [
            {"place": str(one.source), "messages": [_message_to_json(message) for message in one.messages]}
            for one in found.examples
        ],
    }


def _tallies(tallies: dict[str, Tally]) -> list[dict[str, Any]]:
    return [_tally(reason, tally) for reason, tally in tallies.items()]


def _tally(reason: str, tally: Tally) -> dict[str, Any]:
    return {"reason": reason, "count": tally.count, "places": list(map(str, tally.places))}


def _repeated_to_json(found: Repeated) -> dict[str, Any]:
    return {"count": found.number, "places": [list(map(str, pair)) for pair in found.pairs]}


def _message_to_json(message: Message) -> dict[str, Any]:
    made: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.reasoning:
        made["reasoning"] = message.reasoning
    return made | ({"tool_calls": message.tool_calls} if message.tool_calls else {})


_COUNTS = (
    "rows", "conversations", "replies", "with_tools", "calls", "reasoning", "untrained", "documents", "tokenised",
    "characters",
)  # fmt: skip


def _shape_to_json(shape: Shape) -> dict[str, Any]:
    evidence = shape.evidence._asdict() if shape.evidence else {}
    evidence.pop("format", None)
    return {
        "source": shape.source,
        "format": shape.format,
        "recognised_by": evidence or None,
        **{name: getattr(shape, name) for name in _COUNTS},
        "roles": dict(shape.roles),
        "messages": dict(zip(("min", "median", "max"), middle(shape.sizes), strict=True)),
        "characters_each": dict(zip(("min", "median", "max"), middle(shape.lengths), strict=True)),
        "longest": str(shape.longest[1]) if shape.longest else None,
    }
