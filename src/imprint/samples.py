"""The fixed prompts of a run: which are asked at each validation, and what is kept of the answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from imprint.data.conversation import Conversation
from imprint.prepare import Prepared
from imprint.render.turns import Turn

T = TypeVar("T")
_TRIES = 8  # candidates for each sample: where documents are mixed in, some of them ask nothing


def fixed_prompts(prepared: Prepared) -> list[tuple[Turn, Conversation]]:
    """The turns whose prompts are answered at each validation: held-out ones where there are any."""
    loaded = prepared.loaded
    turns, whole = (
        (prepared.validation, loaded.validation) if prepared.validation else (prepared.train, loaded.train)
    )
    different = _different(turns.last_prompts)
    asked = [
        (turn, conversation)
        for turn in (turns[i][-1] for i in _spread(different, _TRIES * prepared.recipe.samples))
        if (conversation := whole[turn.conversation]).is_chat  # a document asks nothing
    ]
    return _spread(asked, prepared.recipe.samples)


def _spread(items: Sequence[T], count: int) -> list[T]:
    """So many of the items, evenly spread; all, where there are fewer."""
    count = min(count, len(items))
    return [items[i * len(items) // count] for i in range(count)]


def _different(prompts: NDArray[np.uint64]) -> list[int]:
    """Of equal prompts the last one, in the order in which they first occur."""
    _, first = np.unique(prompts, return_index=True)
    _, last = np.unique(prompts[::-1], return_index=True)
    return [len(prompts) - 1 - int(i) for i in last[np.argsort(first)]]


def describe_sample(prepared: Prepared, turn: Turn, conversation: Conversation, reply: Any) -> dict[str, Any]:
    """A sample's texts: the prompt as the model saw it, the question, the reply, the demonstration's own."""
    encoder = prepared.rendering.encoder
    messages = conversation.messages[: turn.turn]
    stops = list(prepared.rendering.stop_ids)
    reference = turn.completion[:-1] if turn.completion[-1] in stops else turn.completion
    return {
        "prompt": encoder.decode(turn.prompt),
        "question": next((m.content for m in reversed(messages) if m.role == "user"), ""),
        "reply": encoder.decode(reply),
        "reference": encoder.decode(reference),
    }
