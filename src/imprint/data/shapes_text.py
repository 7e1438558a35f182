"""Rows that no template renders: documents, for replay, and ids that were made elsewhere."""

from __future__ import annotations

import re

from imprint.data.conversation import TEXT, Message, Place, Tokens
from imprint.data.faults import bad_row, show
from imprint.data.shapes import Draft, Read, Row, marked, text

# columns beside a text that say that it is not a document: its label, or a prompt or reply
LABELS = (
    "label", "labels", "target", "targets", "summary", "sentiment", "translation", "response", "completion",
    "output", "answer", "answers", "reply", "solution", "instruction", "question", "prompt", "query",
)  # fmt: skip
PADDING = "padding, which the attention_mask says is none of the row, is taken away"
# columns of lengths, and how many there are of one example
LENGTHS = {"seq_lens": 1, "seq_lengths": 1, "sequence_lengths": 1, "cu_seqlens": 2}

_GUANACO = re.compile(r"(?:^|\n)?### (Human|Assistant):[ ]?")
_RENDERED = re.compile(
    r"<\|im_start\|>|\[INST\]|<start_of_turn>|<\|start_header_id\|>|### Instruction:|<\|user\|>"
)


def document(row: Row, place: Place) -> tuple[Message, ...]:
    """A text alone: a document, all of it trained. A conversation written in Guanaco's marks is read as one."""
    value = text(row, "text", place)
    if not value.strip():
        raise bad_row(
            "the text is empty", place, show(value), "a text to learn", "write it or remove the row"
        )
    return marked(value, _GUANACO) or (Message(TEXT, value),)


def is_document(row: Row) -> bool:
    """Whether the text can be meant as a document: it is no rendered chat, and there is no label beside it."""
    value = row["text"]
    return (
        isinstance(value, str)
        and not any(label in row for label in LABELS)
        and not _RENDERED.search(value[:2000])
    )


def tokens(column: str) -> Read:
    """Ids that were made elsewhere: `labels` with -100 for context, or a mask of zeros and ones."""

    def read(row: Row, place: Place) -> list[Draft]:
        ids, given = _integers(row, "input_ids", place), _integers(row, column, place)
        if len(ids) != len(given):
            raise bad_row(
                "ids and labels differ in number",
                place,
                f"{len(ids)} input_ids, {len(given)} {column}",
                "as many of the one as of the other",
                "tokenise the row again",
            )
        if column == "labels":
            wrong = next((i for i, label in enumerate(given) if label not in (-100, ids[i])), None)
            weights = tuple(0.0 if label == -100 else 1.0 for label in given)
            expected = "the id itself, or -100 for context (labels are not shifted)"
        else:
            wrong = next((i for i, flag in enumerate(given) if flag not in (0, 1)), None)
            weights = tuple(map(float, given))
            expected = "0 for context, 1 for what is learned"
        if wrong is not None:
            found = f"position {wrong}: id {ids[wrong]}, {column} {given[wrong]}"
            raise bad_row("a label is not that of its id", place, found, expected, "tokenise the row again")
        if not any(weights):
            raise bad_row(
                "no id is learned",
                place,
                f"{len(ids)} ids, all context",
                "one label or more",
                "remove the row",
            )
        _refuse_packed(row, place)
        made, note = _without_padding(row, Tokens(tuple(ids), weights), place)
        return [Draft((), tokens=made, notes=note)]

    return read


def _refuse_packed(row: Row, place: Place) -> None:
    """DataError for several examples in one row: as one text, the later would see the earlier."""
    packed = [
        name for name, one in LENGTHS.items() if isinstance(row.get(name), list) and len(row[name]) > one
    ]
    positions = row.get("position_ids")
    if isinstance(positions, list) and positions.count(0) > 1 and not _is_padded(row):
        packed.append("position_ids")
    if packed:
        raise bad_row(
            "the row is several examples packed into one",
            place,
            "; ".join(f"{name}: {show(row[name])}" for name in packed),
            "one example a row: imprint packs them itself",
            "give the rows as they were before they were packed",
        )


def _is_padded(row: Row) -> bool:
    mask = row.get("attention_mask")
    return isinstance(mask, list) and 0 in mask


def _without_padding(row: Row, made: Tokens, place: Place) -> tuple[Tokens, tuple[str, ...]]:
    """The ids that the row's attention_mask lets be seen; padding before them would shift their positions."""
    if row.get("attention_mask") is None:
        return made, ()
    mask = _integers(row, "attention_mask", place)
    if len(mask) == len(made.ids) and all(mask):
        return made, ()
    kept = [at for at, seen in enumerate(mask) if seen]
    inner = bool(kept) and kept == list(range(kept[0], kept[-1] + 1))
    if (
        len(mask) != len(made.ids)
        or not inner
        or any(w and not mask[at] for at, w in enumerate(made.weights))
    ):
        raise bad_row(
            "the attention mask is not that of the ids",
            place,
            f"attention_mask: {show(mask)}",
            "a 1 for each id, and 0 for padding before or behind all of them, which is not learned",
            "tokenise the row again, without padding",
        )
    ids, weights = zip(*[(made.ids[at], made.weights[at]) for at in kept], strict=True)
    return Tokens(ids, weights), (PADDING,)


def _integers(row: Row, column: str, place: Place) -> list[int]:
    values = row[column]
    kinds = {int} if column in ("input_ids", "labels") else {int, bool}  # a mask may be of true and false
    if not isinstance(values, list) or not kinds.issuperset(map(type, values)):
        raise bad_row(
            "a column is not a list of integers", place, f"{column}: {show(values)}", "[1, 2]", "mend it"
        )
    if column == "input_ids" and (not values or min(values) < 0):
        raise bad_row(
            "the ids are empty or negative",
            place,
            f"{column}: {show(values)}",
            "ids of tokens",
            "remove the row",
        )
    return [int(value) for value in values]
