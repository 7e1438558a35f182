"""Columns that speak and that the format of a row does not use: told, or refused where the prompt lacks them.

A column whose text stands in the conversation already is not lost, and nothing is said of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from imprint.data.catalogue import ALONE, OPTIONAL, PAIR, Format
from imprint.data.conversation import Message, Place
from imprint.data.faults import bad_row, cut, show
from imprint.data.recognise import as_alpaca
from imprint.data.shapes import Draft, Row
from imprint.data.vocabulary import ABOUT, ASKS, SPEAKING, SYSTEMS, holds, speaks
from imprint.errors import DataError

LABEL = 3  # words of a `task` that may be a name (summarization, sentiment analysis), not an instruction


def set_aside(format: Format, columns: tuple[str, ...]) -> tuple[str, ...]:
    """The columns with a name of the vocabulary that no part of the format reads."""
    if format.name.startswith("tokens_"):
        return ()  # the ids hold all of the row
    used = {*format.columns, *format.uses, *OPTIONAL}
    return tuple(column for column in columns if column.lower() in SPEAKING and column not in used)


def account(
    columns: tuple[str, ...],
    row: Row,
    format: Format,
    found: list[Draft] | tuple[Message, ...],
    refuse: Callable[[str], None],
    tell: Callable[[str], None],
    fields: Mapping[str, str],
) -> None:
    """Tell of each of the columns that is lost; where it asks or instructs, `refuse` hears of it first.

    `fields` are the user's names of columns, by their parts.
    """
    columns = tuple(column for column in columns if speaks(row[column]))
    if not columns:
        return
    messages = found if isinstance(found, tuple) else [one for draft in found for one in draft.messages]
    said = _plain(" ".join(f"{one.content} {one.reasoning or ''}" for one in messages))
    for column in columns:
        value = row[column]
        texts = _texts(value)
        if texts is not None and all(_stands_in(text, said) for text in texts):
            continue
        if isinstance(value, str) and _is_missed(column, value, row, format):
            refuse(column)
        tell(_told(column, value, format, fields))


def _told(column: str, value: object, format: Format, fields: Mapping[str, str]) -> str:
    told = f"the column `{cut(column)}` is not used: it is no part of {format.name}"
    if (
        column.lower() not in ABOUT
        or not isinstance(value, str)
        or format.rank != PAIR
        or len(format.columns) != 2
    ):
        return told
    prompt, reply = (fields.get(part, part) for part in format.columns)
    return f"{told}; to read it behind the prompt: {as_alpaca(prompt, column, reply)}"


def _texts(value: object) -> list[str] | None:
    """What a text, or a list of texts or messages, says; None for anything else."""
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list):
        return None
    inner = [one.get("content", one.get("value")) if isinstance(one, dict) else one for one in value]
    texts = [text for text in inner if isinstance(text, str)]
    return texts if len(texts) == len(inner) else None


def _is_missed(column: str, value: str, row: Row, format: Format) -> bool:
    """Whether the text of a column is surely meant for the model, and the model would not see it."""
    name = column.lower()
    if name in SYSTEMS:
        return format.rank != ALONE and not (holds(row.get("system")) or holds(row.get("system_prompt")))
    if name not in ASKS or format.rank != PAIR or (name == "task" and len(value.split()) <= LABEL):
        return False
    texts = [row.get(one) for one in (*format.columns[:-1], "input")]
    whole = _plain(value)  # a prompt that was rendered from the others holds nothing more
    return not all(_stands_in(text, whole) for text in texts if isinstance(text, str))


def _plain(text: str) -> str:
    return " ".join(text.split())


def _stands_in(part: str, whole: str) -> bool:
    """Whether a text stands in another that is plain, and not inside a word of it."""
    part = _plain(part)
    at = whole.find(part)
    while at >= 0:
        end = at + len(part)
        if not (_one_word(whole[at - 1 : at], part[:1]) or _one_word(part[-1:], whole[end : end + 1])):
            return True
        at = whole.find(part, at + 1)
    return False


def _one_word(one: str, other: str) -> bool:
    """Whether two letters beside each other belong to one word; where no spaces stand between words, none do."""
    return (one + other).isascii() and one.isalnum() and other.isalnum()


def missed(
    column: str, row: Row, format: Format, place: Place, key: str, fields: Mapping[str, str]
) -> DataError:
    """The error for a column that the model would have to see."""
    ways = [f"as the system text: {key}.fields.system={column}"]
    if len(format.columns) == 2 and column.lower() not in SYSTEMS:
        prompt, reply = (fields.get(part, part) for part in format.columns)
        ways.insert(0, f"before the prompt: {as_alpaca(column, prompt, reply, f'{key}.')}")
    ways.append(f"to leave it aside: {key}.format={format.name}")
    return bad_row(
        "a column that belongs to the prompt is not used",
        place,
        f"{cut(column)}: {show(row[column])}",
        f"no other prompt than {format.name} reads: {', '.join(format.columns)}",
        "\n".join(ways),
    )


def labels(format: Format) -> tuple[str, ...]:
    """The columns that say of a reply whether it is wanted (KTO)."""
    chosen = "chosen" in format.columns or "preferred_output" in format.columns
    return ("kto_tag",) if format.rank == ALONE or chosen else ("kto_tag", "label")


def refuse_unwanted(label: str, row: Row, format: Format, place: Place) -> None:
    """DataError for a row whose label says that its reply is not wanted: false, as JSON or as a cell of a table.

    0 says so beside the columns of KTO (prompt, completion); elsewhere a label 0 may be the name of a class.
    """
    value = row[label]
    no = value is False or (isinstance(value, str) and value.strip().lower() == "false")
    if not no and (label == "kto_tag" or format.name == "prompt_completion"):
        no = value == 0 or (isinstance(value, str) and value.strip() in ("0", "0.0"))
    if no:
        reply = format.columns[-1]
        raise bad_row(
            "the label says that this reply is not wanted",
            place,
            f"{label}: {show(value)}; {reply}: {show(row[reply])}",
            "replies to learn from",
            f"remove the rows with the {label} {show(value)}; if it means something else, remove the column",
        )
