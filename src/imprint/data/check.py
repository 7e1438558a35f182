"""What is in the data, before anything is trained: formats, sizes, repetitions, signs of damage, bad rows."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from imprint.data.catalogue import BY_NAME
from imprint.data.conversation import Conversation, Place, Record
from imprint.data.formats import Evidence, converter, explain
from imprint.data.gather import read
from imprint.data.ledger import Ledger, Tally
from imprint.data.load import settle
from imprint.data.locate import STDIN
from imprint.data.repeats import Repeated, Seen
from imprint.data.shapes_tree import ANSWERS, Member, Tree
from imprint.data.signs import ALL_CUT, signs
from imprint.data.unused import Unused, as_read, format_of
from imprint.errors import DataError
from imprint.recipe import DataSource

SAME_LENGTH = 0.005  # share of the replies that, all as long as the longest, are taken for cut
LONG = 200  # characters, below which equal lengths say nothing
REMEDIES = 5  # of one reason that are told apart


@dataclass
class Shape:
    """The rows of one format in one source, and what they hold. Counters map a size to how often it occurs."""

    source: str
    format: str
    evidence: Evidence | None  # of its first row
    rows: int = 0
    unused: Unused = field(default_factory=Unused)
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
    opening: int = 0  # replies that open a conversation and answer nothing
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
    """Rows that are refused: how many, where, and the first error in full."""

    tally: Tally
    first: DataError


class Refused(NamedTuple):
    """A reason why rows are refused: all of them, and apart those with a remedy of their own, the first few."""

    all: Bad
    by_fix: dict[str, Bad]

    @property
    def num_untold(self) -> int:
        """Rows with remedies beyond the first few."""
        return self.all.tally.count - sum(bad.tally.count for bad in self.by_fix.values())


@dataclass
class Survey:
    """All that `survey` found. `bad` maps a reason to its rows; `examples` are of different formats if they can be."""

    ledger: Ledger
    shapes: list[Shape] = field(default_factory=list)
    bad: dict[str, Refused] = field(default_factory=dict)
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
            format, row = format_of(record, source, key)
            name = format.name if format else "messages"
            name = record.value.of if isinstance(record.value, Member) else name
            shape = shapes.get((number, name))
            if shape is None:
                shape = Shape(
                    "standard input" if source.path == STDIN else source.path,
                    name,
                    _evidence(record, source, key),
                )
                shapes[number, name] = shape
                made.examples += conversations[:1]
            elif len(spare) < 2:
                spare += conversations[:1]
            shape.rows += 1
            shape.unused.add(format, row)
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
    refused = made.bad.setdefault(error.what, Refused(Bad(Tally(), error), {}))
    refused.all.tally.add(place)
    if error.fix in refused.by_fix or len(refused.by_fix) < REMEDIES:
        refused.by_fix.setdefault(error.fix, Bad(Tally(), error)).tally.add(place)


def _evidence(record: Record, source: DataSource, key: str) -> Evidence | None:
    """Why the row is of its format; None where nothing was recognised, because it was said."""
    row, place = record.value, record.place
    if isinstance(row, Member) and row.of == ANSWERS:
        return Evidence(row.of, "the ground truth that the questions beside use", (), (), (), ())
    if isinstance(row, (Tree, Member)):
        used = BY_NAME["oasst_messages"]
        return Evidence(used.name, "its columns", used.columns, (), (), ())
    if source.format != "auto":
        return None
    given = as_read(row, source, place, key) if isinstance(row, dict) else row
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
    answers = False
    for message in messages:
        shape.roles[message.role] += 1
        if message.role != "assistant":
            answers |= message.role != "system"
            continue
        shape.opening += not answers and message.weight != 0
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
