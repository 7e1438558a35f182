"""Examples of the data, as `imprint data check` shows them: as messages, or as a model sees them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from imprint.cli_arguments import print_pairs
from imprint.data.conversation import Conversation
from imprint.data.load import settle

if TYPE_CHECKING:
    from rich.console import Console

    from imprint.recipe import Recipe
    from imprint.render.resolve import Rendering
    from imprint.show import View

EXCERPT = 300  # characters of a message that are shown
CONTEXT = 400  # tokens of a context that are shown


def views(conversation: Conversation, recipe: Recipe, rendering: Rendering) -> tuple[list[View], str]:
    """The turns of an example, as `imprint show` would show them; and why others are left out."""
    from imprint.data.ledger import Ledger
    from imprint.preparation import rendered
    from imprint.render.turns import LeftOut, Turn
    from imprint.show import Shown

    settled = settle(conversation, recipe.consecutive_replies)
    if isinstance(settled, str):
        return [], settled
    found = list(rendered([settled], recipe, rendering))
    turns = [one for one in found if isinstance(one, Turn)]
    why = "; ".join(
        dict.fromkeys(f"{one.reason} ({one.detail})" for one in found if isinstance(one, LeftOut))
    )
    return Shown([turns], [settled], [], rendering, recipe, Ledger()).views(settled, turns), why


def turn_to_json(view: View) -> dict[str, Any]:
    """A turn as values that JSON can hold."""
    from imprint.render.preview import as_json

    return as_json(view.turn, view.number, (view.prompt, view.completion), view.owned.spans)


def print_examples(
    console: Console, examples: Sequence[Conversation], recipe: Recipe, rendering: Rendering | None
) -> None:
    """Each example: its texts, or with a model the last of its turns as the model sees it."""
    if rendering is None:
        for one in examples:
            console.print(str(one.source), style="bold cyan", markup=False)
            print_pairs(console, _messages(one))
            console.print()
        return
    from imprint.render.preview import as_text, legend

    colour = console.color_system is not None
    console.print(legend(colour=colour))
    for one in examples:
        turns, why = views(one, recipe, rendering)
        if not turns:
            console.print(f"{one.source}  nothing of it is trained: {why}", markup=False)
        for view in turns[-1:]:
            console.print(
                as_text(
                    view.turn, view.number, rendering.encoder, rendering.stop_ids, colour=colour, most=CONTEXT
                )
            )
    for note in rendering.notes:
        console.print(f"note  {note}", markup=False)


def _messages(conversation: Conversation) -> Iterator[tuple[str, str]]:
    if conversation.tokens is not None:
        ids, weights = conversation.tokens
        yield (
            "ids",
            _excerpt(f"{len(ids):,}, {sum(map(bool, weights)):,} of them trained: {' '.join(map(str, ids))}"),
        )
    for tool in conversation.tools[:1]:
        more = f"\nand {len(conversation.tools) - 1} more" if len(conversation.tools) > 1 else ""
        yield "tools", _excerpt(json.dumps(tool, ensure_ascii=False, default=str)) + more
    for message in conversation.messages[:8]:
        label = message.role
        unweighted = "(weight 0) " if message.weight == 0 else ""
        if message.reasoning:
            yield label, unweighted + _excerpt(f"(thinks) {message.reasoning}")
        if message.content or not message.tool_calls:
            yield label, unweighted + _excerpt(message.content)
        for call in message.tool_calls:
            yield (
                label,
                f"{unweighted}calls "
                + _excerpt(json.dumps(call.get("function", call), ensure_ascii=False, default=str)),
            )
    if len(conversation.messages) > 8:
        yield "…", f"{len(conversation.messages) - 8} messages more"


def _excerpt(text: str) -> str:
    from imprint.render.preview import visible

    shown = visible(text if len(text) <= EXCERPT else text[:EXCERPT].rstrip())
    shown = shown.replace("↵\n", "\n").replace("⇥\t", "  ").strip("\n")
    return shown if len(text) <= EXCERPT else f"{shown} … ({len(text):,} characters)"
