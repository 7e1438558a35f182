"""Of `imprint show`: the same replies under two templates."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime

from imprint.data.conversation import Conversation
from imprint.render.compare import Side, side
from imprint.render.turns import LeftOut, Turn
from imprint.show import Shown, View, shown_turns


@dataclass(frozen=True)
class Pair:
    """One reply under two templates; a view is None where that template's turn is left out."""

    place: str
    file: str
    number: int
    left: Side
    right: Side
    left_view: View | None
    right_view: View | None


def under_another(shown: Shown, template: str, now: datetime) -> Shown:
    """The same data under another template; the options of the first are not the other's."""
    return shown_turns(shown.recipe.model_copy(update={"template": template, "template_options": {}}), now)


def pairs(shown: Shown, other: Shown, conversations: Iterable[Conversation]) -> Iterator[Pair]:
    """Each reply that either template would train or leave out, in the order of the data."""
    for conversation in conversations:
        left, right = (_sides(one, conversation) for one in (shown, other))
        for message in sorted(left.keys() | right.keys()):
            nothing = f"message {message + 1} is no reply of its own"
            a = left.get(message, (_out(shown, nothing), None))
            b = right.get(message, (_out(other, nothing), None))
            number = sum(m.role == "assistant" for m in conversation.messages[:message])
            yield Pair(str(conversation.source), conversation.source.file, number, a[0], b[0], a[1], b[1])


def _sides(shown: Shown, conversation: Conversation) -> dict[int, tuple[Side, View | None]]:
    """What one template makes of each reply, by its message."""
    items = shown.items_of(conversation)
    views = shown.views(conversation, [item for item in items if isinstance(item, Turn)])
    rendering = shown.rendering
    found: dict[int, tuple[Side, View | None]] = {
        item.turn: (_out(shown, f"{item.reason}: {item.detail}" if item.detail else item.reason), None)
        for item in items
        if isinstance(item, LeftOut)
    }
    for view in views:
        one = side(
            rendering.template.name,
            view.turn,
            view.prompt,
            view.completion,
            rendering.encoder,
            rendering.stop_ids,
        )
        found[view.turn.turn] = one, view
    return found


def _out(shown: Shown, reason: str) -> Side:
    return Side(shown.rendering.template.name, None, reason=reason)
