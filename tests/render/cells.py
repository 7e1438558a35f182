"""The harness: every template × tokenizer × conversation is a cell, and each is held against the oracle.

What a cell accepts must be sound; what it leaves out has a reason. `run` yields the outcomes, so that
tests can ask for none unsound, and docs/templates.md can list what is refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from imprint.data.conversation import Conversation, Place, Record
from imprint.data.formats import converter, merge_replies
from imprint.errors import TemplateError
from imprint.recipe import DataSource
from imprint.render.resolve import Rendering
from imprint.render.turns import LeftOut, Noticed, Turn, render
from render.corpus import BYTE_LEVEL, SENTENCEPIECE, TEMPLATES, label, made_for, template_source
from render.dialogues import ROWS
from render.oracle import assert_sound

KINDS = ("bytes", *BYTE_LEVEL, *SENTENCEPIECE)
NO_LIMIT = 10**6
PLAIN = ("single", "several", "twelve")  # what every template should accept
# a call and the reply to its result, as the template has a place for the tools, and asks for thoughts
CALLS = (
    "text arguments",
    "object arguments",
    "reasoned call",
    "described by the system",
    "described with reasoning",
)
# a few of every kind, for the fast tests
CORE = (
    "several", "system", "greeting", "leading", "one character", "scripts", "code", "every reply", "last reply",
    "inline several", "text arguments", "reasoned call", "parallel", "one context only", "typed by a user",
)  # fmt: skip
# left out whatever the template: the row asks for it
BY_REQUEST = (
    "an opening reply answers nothing: context only",
    "its weight is 0: context only",
    "no user message before it: context only",
    "control tokens in its text",
)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a conversation: cases of the turns accepted, reasons of those left out, violations.

    `switch` is the thinking switch that was chosen for such conversations.
    """

    template: str
    tokenizer: str
    conversation: str
    switch: str
    cases: tuple[str, ...]
    reasons: tuple[str, ...]
    violations: tuple[str, ...]

    @property
    def refusals(self) -> tuple[str, ...]:
        """Reasons that lie in the template or the tokenizer, not in the row."""
        return tuple(reason for reason in self.reasons if reason not in BY_REQUEST)

    @property
    def accepted(self) -> bool:
        return bool(self.cases) and not self.refusals


@cache
def conversations() -> dict[str, dict[str, Conversation]]:
    """The corpus as the data layer gives it to `render`: kind → name → conversation."""
    return {kind: {name: read(row) for name, row in rows.items()} for kind, rows in ROWS.items()}


def by_name() -> dict[str, Conversation]:
    return {name: made for group in conversations().values() for name, made in group.items()}


def read(row: Any, *, merge: bool = True) -> Conversation:
    """A row of a data file as a run reads it."""
    convert = converter(DataSource(path="rows.jsonl"))
    (made,) = convert(Record(row, Place("rows.jsonl", 1)))
    merged = merge_replies(made) if merge else made
    assert isinstance(merged, Conversation), merged
    return merged


@lru_cache(maxsize=32)  # a rendering holds a tokenizer
def rendering_for(
    source: str, kind: str, reasoned: bool, options: tuple[tuple[str, Any], ...] = ()
) -> Rendering | str:
    """How a run renders such conversations; what is wrong where the template cannot render any."""
    try:
        return made_for(source, kind, reasoning=float(reasoned), options=dict(options))
    except TemplateError as error:
        return error.what


def turns_of(conversation: Conversation, made: Rendering, **settings: Any) -> list[Turn | LeftOut]:
    """What a run makes of a conversation, by its defaults."""
    found = render(
        [conversation], made.template, made.encoder, max_length=NO_LIMIT, stop_ids=made.stop_ids, **settings
    )
    return [item for item in found if not isinstance(item, Noticed)]


def reasoned(conversation: Conversation) -> bool:
    return any(message.thought[0] for message in conversation.messages if message.role == "assistant")


def check(
    path: Path, kind: str, name: str, conversation: Conversation, options: tuple[tuple[str, Any], ...] = ()
) -> Outcome:
    """One cell."""
    made = rendering_for(template_source(path), kind, reasoned(conversation), options)
    if isinstance(made, str):
        return Outcome(label(path), kind, name, "", (), (made,), ())
    cases, reasons, violations = [], [], []
    seen: list[int] = []
    for item in turns_of(conversation, made):
        seen.append(item.turn)
        if isinstance(item, LeftOut):
            reasons.append(item.reason)
            continue
        cases.append(item.case)
        try:
            assert_sound(item, conversation, made)
        except AssertionError as error:
            violations.append(f"message {item.turn}: {error}")
    replies = [i for i, message in enumerate(conversation.messages) if message.role == "assistant"]
    if sorted(seen) != replies:
        violations.append(f"replies {replies} became {sorted(seen)}")
    switch = ", ".join(f"{key}={value}".lower() for key, value in made.template.options.items())
    return Outcome(label(path), kind, name, switch, tuple(cases), tuple(reasons), tuple(violations))


def run(
    paths: Iterable[Path] = TEMPLATES,
    kinds: Iterable[str] = ("bytes",),
    rows: Mapping[str, Conversation] | None = None,
) -> Iterator[Outcome]:
    """The cells of these templates, tokenizers and conversations (None: the whole corpus)."""
    rows = by_name() if rows is None else rows
    for path in paths:
        for kind in kinds:
            for name, conversation in rows.items():
                yield check(path, kind, name, conversation)


def core() -> dict[str, Conversation]:
    return {name: by_name()[name] for name in CORE}
