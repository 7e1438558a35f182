"""What `imprint data check --json` says of a survey."""

from __future__ import annotations

from typing import Any

from imprint.data.check import Bad, Shape, Survey, middle
from imprint.data.conversation import Message
from imprint.data.ledger import Tally
from imprint.data.repeats import Repeated


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
                "count": refused.all.tally.count,
                "places": list(map(str, refused.all.tally.places)),
                "fix": refused.all.first.fix,
                "by_fix": [_bad_to_json(bad) for bad in refused.by_fix.values()],
            }
            for reason, refused in found.bad.items()
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


def _bad_to_json(bad: Bad) -> dict[str, Any]:
    return {
        "count": bad.tally.count,
        "places": list(map(str, bad.tally.places)),
        "found": bad.first.found,
        "fix": bad.first.fix,
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
    "rows", "conversations", "replies", "with_tools", "calls", "reasoning", "untrained", "opening", "documents",
    "tokenised", "characters",
)  # fmt: skip


def _shape_to_json(shape: Shape) -> dict[str, Any]:
    evidence = shape.evidence._asdict() if shape.evidence else {}
    for name in ("format", "ignored"):
        evidence.pop(name, None)
    return {
        "source": shape.source,
        "format": shape.format,
        "recognised_by": evidence or None,
        "not_used": shape.unused.to_json(),
        **{name: getattr(shape, name) for name in _COUNTS},
        "roles": dict(shape.roles),
        "messages": dict(zip(("min", "median", "max"), middle(shape.sizes), strict=True)),
        "characters_each": dict(zip(("min", "median", "max"), middle(shape.lengths), strict=True)),
        "longest": str(shape.longest[1]) if shape.longest else None,
    }
