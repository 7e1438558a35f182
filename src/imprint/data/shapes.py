"""How the rows of each format are read: messages, pairs of texts, instructions, preferences.

A reader takes a row, which has the format's columns, and its place. It gives the messages of one
conversation, or a list of drafts, and raises DataError for a row that cannot be learned from.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from typing import Any, NamedTuple

from imprint.data.conversation import Message, Place, Tokens
from imprint.data.faults import as_text, bad_row, cut, from_json, show, show_type, slip
from imprint.data.messages import parse_messages
from imprint.data.vocabulary import REPLIES, SPEAKING, holds
from imprint.errors import DataError

Row = dict[str, Any]
STOP_MARK = "<|endoftext|>"  # files made for the GPT-3 interface end each reply with it
_TALKS = {"conversation", "dialog", "dialogue", "chat"}  # columns that may hold texts in turn
_ENDINGS = REPLIES | {"summary"}
_LOST = SPEAKING - {"instruction", "input", "output"}  # of an instance
PROMPTS = ("prompt", "question", "instruction", "query", "input")


class Draft(NamedTuple):
    """What a format reads of one conversation; what it leaves open comes from the row's own columns.

    `notes` say what of the row is not used, or not as it stands; equal notes are counted together.
    """

    messages: tuple[Message, ...]
    tools: tuple[Row, ...] | None = None
    id: str = ""
    group: str = ""
    tokens: Tokens | None = None
    notes: tuple[str, ...] = ()
    notes_at: tuple[tuple[str, Place], ...] = ()  # of rows at other places


Read = Callable[[Row, Place], tuple[Message, ...] | list[Draft]]


def chat(column: str) -> Read:
    """A list of messages; outside `messages`, also of texts in turn, or of {input, output} pairs."""

    def read(row: Row, place: Place) -> tuple[Message, ...] | list[Draft]:
        values = row[column]
        if column != "messages" and type(values) is list and values:
            if all(isinstance(value, str) for value in values):
                roles = ("user", "assistant")
                return tuple(Message(roles[turn % 2], value) for turn, value in enumerate(values))
            if all(map(_is_exchange, values)):
                return _exchanges(values, place)
        notes: list[str] = []
        messages = parse_messages(values, place, notes)
        return [Draft(messages, notes=tuple(notes))] if notes else messages

    return read


def _is_exchange(value: Any) -> bool:
    return isinstance(value, dict) and "input" in value and "output" in value


def _exchanges(values: list[Row], place: Place) -> tuple[Message, ...]:
    """XTuner's turns: {input, output}, the first with the `system` text, which later ones may repeat."""
    messages: list[Message] = []
    system = ""
    for turn, value in enumerate(values, 1):
        _refuse_unread(value, place, turn)
        given = text(value, "system", place) if value.get("system") is not None else ""
        if given.strip() and given != system:
            if turn > 1:
                raise bad_row(
                    "a turn has a system text of its own",
                    place,
                    f"turn {turn}: system: {show(given)}; of the first turn: {show(system)}",
                    "one system text, in the first turn",
                    "remove it, or make a row of what follows",
                )
            system = given
            messages.append(Message("system", system))
        messages += side(value, "input", "user", place) + side(value, "output", "assistant", place)
    return tuple(messages)


def _refuse_unread(value: Row, place: Place, turn: int) -> None:
    """DataError for a key of a turn that speaks and is no part of it, or is misspelt."""
    for key in value:
        if key in ("system", "input", "output") or not holds(value[key]):
            continue
        misspelt = slip(key, ("system",))
        if misspelt or key.lower() in SPEAKING:
            raise bad_row(
                "a turn has a key that is not read",
                place,
                f"turn {turn}: {cut(key)}: {show(value[key])}",
                "system, input and output",
                f"{f'rename {cut(key)} to system' if misspelt else 'write it into the input'}, or remove it",
            )


def is_chat(column: str) -> Callable[[Row], bool]:
    """Whether the column holds messages: for names that files also use for other things."""

    def fits(row: Row) -> bool:
        values = row[column]
        if isinstance(values, str):
            return values.lstrip().startswith("[{")
        if not isinstance(values, list) or not values:
            return False
        first = values[0]
        if isinstance(first, dict):
            roles, texts = ("role", "from"), ("content", "value", "text")
            speaks = any(key in first for key in roles) and any(key in first for key in texts)
            return speaks or (column == "conversation" and _is_exchange(first))
        if column == "data":
            return _are_texts(values)
        # of a talk that a column beside sums up or goes on with, this is a part alone
        return column in _TALKS and _are_texts(values) and _ENDINGS.isdisjoint(row)

    return fits


def _are_texts(values: list[Any]) -> bool:
    return len(values) > 1 and all(isinstance(value, str) for value in values)


def pair(prompt: str, reply: str) -> Read:
    """A prompt and its reply in two columns, each a text or a list of messages; `history` holds earlier ones."""

    def read(row: Row, place: Place) -> tuple[Message, ...] | list[Draft]:
        said, notes = row[reply], list[str]()
        if type(said) is str and said.endswith(STOP_MARK):
            row = row | {reply: said.removesuffix(STOP_MARK)}
            notes.append(f"{STOP_MARK} at the end of a reply is taken off: it is a stop, not text")
        messages = side(row, prompt, "user", place, notes) + side(row, reply, "assistant", place, notes)
        if row.get("history"):
            messages = (*earlier(row, place), *messages)
        return [Draft(messages, notes=tuple(notes))] if notes else messages

    return read


def instruction(reply: str) -> Read:
    """Alpaca's instruction and input, with the reply in a column of another name."""

    def read(row: Row, place: Place) -> tuple[Message, ...]:
        asked = instructed(row, "input", place) if "input" in row else side(row, "instruction", "user", place)
        return (*earlier(row, place), *asked, *side(row, reply, "assistant", place))

    return read


def alpaca(row: Row, place: Place) -> tuple[Message, ...]:
    """Instruction and input make the prompt; `history` holds earlier [prompt, reply] pairs."""
    said = (*instructed(row, "input", place), *side(row, "output", "assistant", place))
    return (*earlier(row, place), *said) if row.get("history") else said


def without_output(row: Row) -> bool:
    """Whether a row is none of Alpaca's, of which `output` is the reply."""
    return "output" not in row


def earlier(row: Row, place: Place) -> list[Message]:
    """The messages of `history`, a list of [prompt, reply] or its JSON text; none where it is empty or missing."""
    messages: list[Message] = []
    history = row.get("history") or ()
    if isinstance(history, str) and (not history.strip() or history.lstrip().startswith("[")):
        history = from_json(history.strip() or "[]", "`history`", place)  # a cell of a table
    for said in history if isinstance(history, (list, tuple)) else (history,):
        if not isinstance(said, list) or len(said) != 2 or not all(isinstance(text, str) for text in said):
            raise bad_row(
                "`history` cannot be read",
                place,
                show(history),
                "a list of [prompt, reply]",
                "write it in this form",
            )
        messages += [Message("user", said[0]), Message("assistant", said[1])]
    return messages


def dolly(row: Row, place: Place) -> tuple[Message, ...]:
    """Instruction and context make the prompt."""
    asked = instructed(row, "context", place)
    return (*earlier(row, place), *asked, *side(row, "response", "assistant", place))


def instructed(row: Row, second: str, place: Place) -> tuple[Message, ...]:
    """The prompt: an instruction, and behind a blank line what it is about; one alone where the other is empty."""
    given = row.get(second)
    if given is None or given == "" or given == []:  # most rows
        return side(row, "instruction", "user", place)
    about = text(row, second, place)
    if not about.strip():
        return side(row, "instruction", "user", place)
    asked = text(row, "instruction", place)
    return (Message("user", f"{asked}\n\n{about}" if asked.strip() else about),)


def seeds(row: Row, place: Place) -> list[Draft]:
    """Self-Instruct: one instruction and several instances, each a conversation of one group."""
    instances = row["instances"]
    if not isinstance(instances, list) or not instances or not all(map(_is_exchange, instances)):
        several = isinstance(instances, list) and len(instances) > 1
        bad = next(i for i, one in enumerate(instances, 1) if not _is_exchange(one)) if several else 0
        raise bad_row(
            "`instances` cannot be read",
            place,
            f"instance {bad} of {len(instances)}: {show(instances[bad - 1])}" if bad else show(instances),
            'a list of {"input": "...", "output": "..."}, one or more',
            "write them in this form or remove the row",
        )
    group = ""
    if len(instances) > 1:
        group = "seed " + hashlib.sha256(repr(row["instruction"]).encode()).hexdigest()[:16]
    drafts = []
    for number, instance in enumerate(instances, 1):
        whole = {"instruction": row["instruction"], **instance}
        try:
            messages = (*instructed(whole, "input", place), *side(whole, "output", "assistant", place))
        except DataError as error:
            found = f"instance {number} of {len(instances)}: {error.found}"
            fix = error.fix.replace("the row", "this instance")
            raise bad_row(error.what, place, found, error.expected, fix) from None
        lost = [key for key in instance if key.lower() in _LOST and holds(instance[key])]
        notes = tuple(f"the key `{key}` of an instance is not used" for key in lost)
        drafts.append(Draft(messages, group=group, notes=notes))
    return drafts


def flan_cot(row: Row, place: Place) -> tuple[Message, ...]:
    r"""FLAN's chains of thought: the rationale, then the answer; a written \n is the end of a line.

    Without a rationale it is a question and its answer, as they stand.
    """
    if not text(row, "rationale", place).strip():
        return (*side(row, "question", "user", place), *side(row, "answer", "assistant", place))
    question, answer, rationale = (
        text(row, part, place).replace("\\n", "\n") for part in ("question", "answer", "rationale")
    )
    side({"answer": answer}, "answer", "assistant", place)
    reply = f"{rationale.rstrip()} The answer is {answer.strip()}."
    return (*side({"question": question}, "question", "user", place), Message("assistant", reply))


def marked(value: str, marks: re.Pattern[str]) -> tuple[Message, ...]:
    """The messages of a text that begins with a mark of its first speaker; none where it does not."""
    value = value.strip()
    if not marks.match(value):
        return ()
    _, *rest = marks.split(value)
    said = zip(rest[::2], rest[1::2], strict=True)
    return tuple(Message("user" if who == "Human" else "assistant", words.strip()) for who, words in said)


def side(
    row: Row, column: str, role: str, place: Place, notes: list[str] | None = None
) -> tuple[Message, ...]:
    """What one column says: a text is one message of `role`; a list of messages stays what it is."""
    value = row[column]
    if type(value) is str:
        if value and not value.isspace():
            return (Message(role, value),)
    elif isinstance(value, list) and value:
        return parse_messages(value, place, notes)
    elif value is not None and value != []:
        text(row, column, place)
    raise bad_row(
        "the reply is empty" if role == "assistant" else "the prompt is empty",
        place,
        f"column {column}: {show(value)}",
        "a text to learn" if role == "assistant" else "a text to answer",
        f"write the {column} or remove the row",
    )


def text(row: Row, column: str, place: Place) -> str:
    """The text of a column; DataError where it is something else."""
    value: Any = row[column]
    if not isinstance(value, str):
        raise bad_row(
            "a column is not a text",
            place,
            f"{column}: {show_type(value)}",
            "a text",
            as_text(value),
        )
    return value
