"""`imprint show`: the turns of a recipe, as they will be trained, from the tokenizer alone."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from imprint.auto import read_model_facts
from imprint.data.ledger import Ledger
from imprint.prepare import read_and_render, turns_of
from imprint.recipe import Recipe
from imprint.render.preview import numbered
from imprint.render.resolve import Rendering
from imprint.render.turns import Turn

UNLIMITED = 1 << 40


def shown_turns(recipe: Recipe) -> tuple[Iterator[tuple[int, Turn]], Rendering, Ledger]:
    """(numbered turns in the order of the data, how they were rendered, the ledger).

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
    return numbered(turn for group in turns for turn in group), rendering, ledger
