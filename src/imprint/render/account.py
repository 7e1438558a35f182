"""How many tokens of each file are trained, and whose they are: the proof that no user is trained.

The trained tokens come from the turns; whose they are is found out apart from that, by looking for
the messages' texts in the rendering (`spans`). A mask that were off would show.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np

from imprint.data.conversation import Conversation
from imprint.render.documents import DOCUMENT, TOKENS
from imprint.render.preview import visible
from imprint.render.spans import TEMPLATE, TOOLS, Span, attribute, token_offsets, token_spans
from imprint.render.tokens import Encoder
from imprint.render.turns import Turn

if TYPE_CHECKING:
    from rich.console import Group

REPLY, EARLIER, UNKNOWN = "the reply", "earlier replies", "not attributed"
WHOLE = {DOCUMENT: "documents", TOKENS: "rows tokenised elsewhere"}  # cases that no template rendered
KINDS = (
    "system", "user", "tool results", "tool definitions", EARLIER, REPLY, TEMPLATE, *WHOLE.values(), UNKNOWN
)  # fmt: skip
_MOST_WRITTEN = 8
_NAMES = {"tool": "tool results", TOOLS: "tool definitions"}
HOW = (
    "The context of a conversation is counted once, as its last turn has it; trained tokens and "
    "stops are those of all turns. A token that holds any of a message's text is the message's; what "
    "the template wrote is the rest."
)


# what each case of a turn means
CASES = {
    "prefix": "the prompt is the beginning of the template's own rendering",
    "thought": "the prompt opens a thought that the template's rendering leaves out",
    "rerendered": "behind its prompt, the reply as the template writes it once earlier thoughts are gone",
    DOCUMENT: "a piece of a document: every token is trained",
    TOKENS: "a row that was tokenised elsewhere",
    "everything": "every token is trained (train_on: everything)",
    "truncated": "cut at max_length: its stop is not trained",
}


@dataclass(frozen=True, slots=True)
class Owned:
    """A turn's text and whose each of its tokens is.

    text     what the template wrote: of a reply that was cut, more than the ids hold
    spans    whose each character is
    offsets  characters (start, end) of each token
    owners   [tokens] index in `spans`
    Where the text and the ids do not fit together, the last two are None.
    """

    text: str
    spans: list[Span]
    offsets: list[tuple[int, int]] | None
    owners: Sequence[int] | None


@dataclass(slots=True)
class Share:
    """Tokens of one kind: fed as context, trained, and trained as a stop (among the trained)."""

    context: int = 0
    trained: int = 0
    stop: int = 0


@dataclass(slots=True)
class FileAccount:
    """What one file gives.

    `missing` counts the parts of replies that were not found in a conversation's last rendering,
    `lost` those of what others said: where there are any, the account is not the whole proof.
    """

    conversations: int = 0
    turns: int = 0
    longest: int = 0  # tokens of the longest turn
    missing: int = 0
    lost: int = 0
    kinds: dict[str, Share] = field(default_factory=dict)

    @property
    def total(self) -> Share:
        shares = self.kinds.values()
        return Share(
            sum(s.context for s in shares), sum(s.trained for s in shares), sum(s.stop for s in shares)
        )

    def notes(self) -> list[str]:
        """What the account could not place."""
        notes = []
        if self.missing:
            notes.append(
                f"{self.missing:,} parts of replies (earlier thoughts, most often) are not in the rendering of "
                "their conversation's last turn: the template drops or rewrites them"
            )
        if self.lost:
            notes.append(
                f"{self.lost:,} parts of what users, systems or tools said were not found in the rendering: "
                "the template rewrites them, and they are counted as the template's"
            )
        if UNKNOWN in self.kinds:
            notes.append("the tokens of some turns do not fit their text: whose they are is not known")
        return notes

    def rows(self) -> list[tuple[str, Share]]:
        """The kinds that occur, in a fixed order."""
        return [(kind, self.kinds[kind]) for kind in KINDS if kind in self.kinds]


def kind_of(span: Span, reply: int) -> str:
    """What a person calls the owner of a token in the turn whose reply is message `reply`."""
    if span.role == "assistant":
        return REPLY if span.message_index == reply else EARLIER
    return _NAMES.get(span.role, span.role)


def owned(
    turns: Sequence[Turn], texts: Sequence[str], conversation: Conversation, encoder: Encoder
) -> list[Owned]:
    """Whose each token is, of all turns of one conversation; `texts` are their prompts with completions.

    A turn that begins a later one is read off that one: conversations of many replies cost no more
    than their last turn.
    """
    out: list[Owned] = []
    holder: tuple[Turn, Owned] | None = None
    for turn, text in zip(reversed(turns), reversed(texts), strict=True):
        found = _read_off(turn, text, holder) if holder else None
        if found is None:
            messages = conversation.messages[: turn.turn + 1]
            spans = attribute(text, messages, conversation.tools)
            offsets = token_offsets(encoder, text, turn.ids)
            owners = None if offsets is None else token_spans(spans, offsets).tolist()
            found = Owned(text, spans, offsets, owners)
            holder = turn, found
        out.append(found)
    return out[::-1]


def _read_off(turn: Turn, text: str, holder: tuple[Turn, Owned]) -> Owned | None:
    longer, known = holder
    size = len(turn)
    if known.offsets is None or known.owners is None or not known.text.startswith(text):
        return None
    if not np.array_equal(longer.ids[:size], turn.ids):
        return None
    spans = [span for span in known.spans if span.start < len(text)]  # the first ones: `owners` are indices
    return Owned(text, spans, known.offsets[:size], known.owners[:size])


def owned_whole(turn: Turn, encoder: Encoder) -> Owned:
    """A turn that no template rendered: all of it is the document's, or the row's."""
    text = encoder.decode(turn.ids)
    span = Span(0, len(text), WHOLE[turn.case], 0)
    offsets = token_offsets(encoder, text, turn.ids)
    return Owned(text, [span], offsets, [0] * len(turn) if offsets is not None else None)


class Account:
    """The account of all files: add each conversation once.

    `cases` counts turns by DESIGN.md's cases, `written` what the template wrote and is trained.
    """

    def __init__(self, stop_ids: Sequence[int]):
        self.stop_ids = frozenset(stop_ids)
        self.cases: Counter[str] = Counter()
        self.written: Counter[str] = Counter()
        self.files: dict[str, FileAccount] = {}

    def add(self, conversation: Conversation, turns: Sequence[Turn], owned: Sequence[Owned]) -> None:
        """Count the turns of one conversation, in order."""
        account = self.files.setdefault(conversation.source.file, FileAccount())
        account.conversations += 1
        account.turns += len(turns)
        self.cases.update(turn.case for turn in turns)
        account.longest = max(account.longest, *map(len, turns))
        absent = [span.role for span in owned[-1].spans if span.missing]
        account.missing += absent.count("assistant")
        account.lost += len(absent) - absent.count("assistant")
        for turn, known in zip(turns, owned, strict=True):
            weight = np.concatenate((np.zeros(len(turn.prompt), np.float32), turn.weight))
            last = turn is turns[-1]
            stops = int(turn.completion[-1]) in self.stop_ids and bool(turn.weight[-1])
            for kind, mine in _by_kind(turn, known):
                share = account.kinds.setdefault(kind, Share())
                trained = int(np.count_nonzero(weight[mine]))
                share.trained += trained
                share.context += int(mine.sum()) - trained if last else 0
                share.stop += int(stops and bool(mine[-1]))
            self.written.update(_written(turn, known))

    def most_written(self) -> list[tuple[str, int]]:
        """What the template wrote and is trained, the commonest first."""
        found = [
            (visible(text).replace("\n", ""), count)
            for text, count in self.written.most_common(_MOST_WRITTEN)
        ]
        more = len(self.written) - len(found)
        return (
            [*found, (f"{more:,} others", sum(self.written.values()) - sum(c for _, c in found))]
            if more
            else found
        )

    def tables(self) -> Group:
        """The account, at most 80 columns wide: a table for each file."""
        from rich.console import Group
        from rich.constrain import Constrain
        from rich.table import Table
        from rich.text import Text

        parts: list[Text | Table] = [Text("What is trained, by file and role", "italic")]
        for file, account in self.files.items():
            table = Table(box=None, padding=(0, 2))
            table.add_column("")
            for head in ("context", "trained", "of it stops"):
                table.add_column(head, justify="right", min_width=11)
            for kind, share in account.rows():
                row = (share.context, share.trained, share.stop)
                table.add_row(kind, *(f"{count:,}" for count in row), style=_STYLES.get(kind))
            total = account.total
            numbers = (f"{count:,}" for count in (total.context, total.trained, total.stop))
            table.add_row("all tokens", *numbers, style="bold")
            parts += [
                Text.assemble((file, "bold cyan"), f"  {_counts(account)}"),
                table,
                *(Text(note, "yellow") for note in account.notes()),
                Text(),
            ]
        parts.append(Text(HOW, "dim"))
        if self.written:
            told = ", ".join(f"{text} × {count:,}" for text, count in self.most_written())
            parts.append(Text.assemble(("What of the template is trained: ", "bold"), told))
        for case, count in self.cases.most_common():
            told = CASES.get(case, "")
            parts.append(
                Text.assemble((f"{count:>9,}", "bold"), f"  {case}: {told}" if told else f"  {case}")
            )
        return Group(*(Constrain(part, 80) for part in parts))


_STYLES = {REPLY: "green3"}


def _counts(account: FileAccount) -> str:
    conversations = f"{account.conversations:,} conversation{'s' * (account.conversations != 1)}"
    turns = f"{account.turns:,} turn{'s' * (account.turns != 1)}"
    return f"{conversations}, {turns}, the longest of {account.longest:,} tokens"


def _written(turn: Turn, known: Owned) -> Iterator[str]:
    """The texts among the trained tokens that are the template's."""
    if known.owners is None or known.offsets is None:
        return
    first = len(turn.prompt)
    trained = [i for i in range(first, len(turn)) if turn.weight[i - first]]
    for owner, run in groupby(trained, key=known.owners.__getitem__):
        if known.spans[owner].role == TEMPLATE:
            tokens = list(run)
            yield known.text[known.offsets[tokens[0]][0] : known.offsets[tokens[-1]][1]]


def _by_kind(turn: Turn, known: Owned) -> list[tuple[str, np.ndarray[tuple[int], np.dtype[np.bool_]]]]:
    """Each kind of token in a turn, and which tokens [m + n] are of it."""
    if known.owners is None:
        return [(UNKNOWN, np.ones(len(turn), bool))]
    owners = np.asarray(known.owners)
    kinds = [kind_of(span, turn.turn) for span in known.spans]
    of_spans = np.array([KINDS.index(kind) for kind in kinds])
    of_tokens = of_spans[owners]
    return [(KINDS[i], of_tokens == i) for i in np.unique(of_tokens).tolist()]
