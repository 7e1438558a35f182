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
from imprint.data.faults import bad_row, listed, show, show_type
from imprint.data.messages import parse_messages

Row = dict[str, Any]
STOP_MARK = "<|endoftext|>"  # files made for the GPT-3 interface end each reply with it
PROMPTS = ("prompt", "question", "instruction", "query", "input")

_HH = re.compile(r"(?:^|\n\n)(Human|Assistant):[ ]?")


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


Read = Callable[[Row, Place], tuple[Message, ...] | list[Draft]]


def chat(column: str) -> Read:
    """A list of messages; outside `messages`, also of texts in turn, or of {input, output} pairs."""

    def read(row: Row, place: Place) -> tuple[Message, ...]:
        values = row[column]
        if column != "messages" and type(values) is list and values:
            if all(isinstance(value, str) for value in values):
                roles = ("user", "assistant")
                return tuple(Message(roles[turn % 2], value) for turn, value in enumerate(values))
            if all(map(_is_exchange, values)):
                return tuple(
                    message
                    for value in values
                    for message in (
                        *side(value, "input", "user", place),
                        *side(value, "output", "assistant", place),
                    )
                )
        return parse_messages(values, place)

    return read


def _is_exchange(value: Any) -> bool:
    return isinstance(value, dict) and "input" in value and "output" in value


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
            speaks = ("role" in first or "from" in first) and ("content" in first or "value" in first)
            return speaks or (column == "conversation" and _is_exchange(first))
        return column == "data" and len(values) > 1 and all(isinstance(value, str) for value in values)

    return fits


def pair(prompt: str, reply: str) -> Read:
    """A prompt and its reply in two columns, each a text or a list of messages."""

    def read(row: Row, place: Place) -> tuple[Message, ...] | list[Draft]:
        said = row[reply]
        if reply == "completion" and row.get("label") is False:  # KTO: what is wanted, and what is not
            raise bad_row(
                "the label says that this reply is not wanted",
                place,
                f"label: false; {reply}: {show(said)}",
                "replies to learn from",
                "remove the rows with the label false",
            )
        if type(said) is str and said.endswith(STOP_MARK):
            row = row | {reply: said.removesuffix(STOP_MARK)}
            messages = side(row, prompt, "user", place) + side(row, reply, "assistant", place)
            return [
                Draft(
                    messages,
                    notes=(f"{STOP_MARK} at the end of a reply is taken off: it is a stop, not text",),
                )
            ]
        return side(row, prompt, "user", place) + side(row, reply, "assistant", place)

    return read


def alpaca(row: Row, place: Place) -> tuple[Message, ...] | list[Draft]:
    """Instruction and input make the prompt; `history` holds earlier [prompt, reply] pairs."""
    earlier = _history(row["history"], place) if row.get("history") else ()
    said = (*earlier, *_asked(row, "input", place), *side(row, "output", "assistant", place))
    if "text" in row and isinstance(row["text"], str):
        return [Draft(said, notes=("the column `text` is not used: the reply is in `output`",))]
    return said


def _history(history: Any, place: Place) -> list[Message]:
    messages = []
    for earlier in history if isinstance(history, list) else [history]:
        if (
            not isinstance(earlier, list)
            or len(earlier) != 2
            or not all(isinstance(text, str) for text in earlier)
        ):
            raise bad_row(
                "`history` cannot be read",
                place,
                show(history),
                "a list of [prompt, reply]",
                "write it in this form",
            )
        messages += [Message("user", earlier[0]), Message("assistant", earlier[1])]
    return messages


def dolly(row: Row, place: Place) -> tuple[Message, ...]:
    """Instruction and context make the prompt."""
    return (*_asked(row, "context", place), *side(row, "response", "assistant", place))


def _asked(row: Row, second: str, place: Place) -> tuple[Message, ...]:
    """The prompt: an instruction, and behind a blank line what it is about; one alone where the other is empty."""
    given = row.get(second)
    about = "" if given is None or given == [] else text(row, second, place)
    if not about.strip():
        return side(row, "instruction", "user", place)
    asked = text(row, "instruction", place)
    return (Message("user", f"{asked}\n\n{about}" if asked.strip() else about),)


def seeds(row: Row, place: Place) -> list[Draft]:
    """Self-Instruct: one instruction and several instances, each a conversation of one group."""
    instances = row["instances"]
    if not isinstance(instances, list) or not instances or not all(map(_is_exchange, instances)):
        raise bad_row(
            "`instances` cannot be read",
            place,
            show(instances),
            'a list of {"input": "...", "output": "..."}, one or more',
            "write them in this form or remove the row",
        )
    group = ""
    if len(instances) > 1:
        group = "seed " + hashlib.sha256(repr(row["instruction"]).encode()).hexdigest()[:16]
    drafts = []
    for instance in instances:
        whole = {"instruction": row["instruction"], **instance}
        messages = (*_asked(whole, "input", place), *side(whole, "output", "assistant", place))
        drafts.append(Draft(messages, group=group))
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


def chosen(row: Row, place: Place) -> tuple[Message, ...] | list[Draft]:
    """The chosen side of a preference: the whole conversation, or the reply to a prompt in its own column."""
    value = row["chosen"]
    notes = ("of a preference, the chosen side alone is trained",) if "rejected" in row else ()
    prompt = next((name for name in PROMPTS if row.get(name)), None)
    if isinstance(value, str) and (said := marked(value, _HH)):
        messages = said
    elif isinstance(value, list) and value and (prompt is None or _asks(value, place)):
        messages = parse_messages(value, place)
    elif prompt is None:
        raise bad_row(
            "the chosen reply has no prompt",
            place,
            f"columns {listed(row)}",
            "a column `prompt`, a list of messages, or a text with Human: and Assistant:",
            "add the column of the prompt",
        )
    else:
        asked = row[prompt]
        before = marked(asked.removesuffix("\n\nAssistant:"), _HH) if isinstance(asked, str) else ()
        messages = (before or side(row, prompt, "user", place)) + side(row, "chosen", "assistant", place)
    return [Draft(messages, notes=notes)]


def _asks(value: list[Any], place: Place) -> bool:
    return any(message.role == "user" for message in parse_messages(value, place))


def marked(value: str, marks: re.Pattern[str]) -> tuple[Message, ...]:
    """The messages of a text that begins with a mark of its first speaker; none where it does not."""
    value = value.strip()
    if not marks.match(value):
        return ()
    _, *rest = marks.split(value)
    said = zip(rest[::2], rest[1::2], strict=True)
    return tuple(Message("user" if who == "Human" else "assistant", words.strip()) for who, words in said)


def side(row: Row, column: str, role: str, place: Place) -> tuple[Message, ...]:
    """What one column says: a text is one message of `role`; a list of messages stays what it is."""
    value = row[column]
    if type(value) is str:
        if value.strip():
            return (Message(role, value),)
    elif isinstance(value, list) and value:
        return parse_messages(value, place)
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
            "write it in double quotes",
        )
    return value
