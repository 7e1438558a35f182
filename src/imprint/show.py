"""`imprint show`: the turns of a recipe, as they will be trained, from the tokenizer alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from imprint.auto import read_model_facts
from imprint.data.conversation import Conversation
from imprint.data.ledger import Ledger
from imprint.prepare import read_and_render, turns_of
from imprint.recipe import Recipe
from imprint.render.resolve import Rendering
from imprint.render.turns import ReplyText, Turn, reply_texts

UNLIMITED = 1 << 40


@dataclass(frozen=True)
class Shown:
    """What there is to show of a recipe: its turns, how they were rendered, and the ledger."""

    turns: list[Turn]
    conversations: Sequence[Conversation]
    rendering: Rendering
    recipe: Recipe
    ledger: Ledger

    def number(self, turn: Turn) -> int:
        """Which of its conversation's replies a turn is, from 0."""
        messages = self.conversations[turn.conversation].messages
        return sum(message.role == "assistant" for message in messages[: turn.turn])

    def texts(self, turn: Turn) -> tuple[str, str]:
        """Prompt and completion as the template wrote them: what the ids are the ids of."""
        template, encoder = self.rendering.template, self.rendering.encoder
        if turn.case not in ("everything", "truncated"):  # those are cut by tokens
            conversation = self.conversations[turn.conversation]
            for reply in reply_texts(
                conversation, turn.conversation, template, encoder, self.recipe.train_on
            ):
                if isinstance(reply, ReplyText) and reply.turn == turn.turn:
                    return reply.prompt, reply.completion
        return encoder.decode(turn.prompt), encoder.decode(turn.completion)


def shown_turns(recipe: Recipe) -> Shown:
    """What a recipe trains, in the order of its data.

    The model folder needs no weights, and no config.json: then max_length has no default.
    Validation rows taken as a share are shown where they stand in the data.
    """
    folder = Path(recipe.model)
    if not folder.is_dir():
        read_model_facts(recipe.model, recipe.revision)  # a misspelt folder is found before the hub is asked
    validation = 0.0 if isinstance(recipe.validation, float) else recipe.validation
    loaded, rendering, ledger = read_and_render(recipe, folder, datetime.now(), validation)
    if recipe.max_length == "auto":
        facts = read_model_facts(recipe.model) if (folder / "config.json").is_file() else None
        recipe = recipe.model_copy(update={"max_length": (facts.context if facts else None) or UNLIMITED})
    turns = turns_of(loaded.train, recipe, rendering, ledger, "trained")
    return Shown([turn for group in turns for turn in group], loaded.train, rendering, recipe, ledger)
