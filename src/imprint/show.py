"""`imprint show`: the turns of a recipe, as they will be trained, from the tokenizer alone."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from imprint.auto import read_model_facts
from imprint.data.ledger import Ledger
from imprint.data.load import load
from imprint.errors import ModelError
from imprint.prepare import turns_of
from imprint.recipe import Recipe
from imprint.render.preview import numbered
from imprint.render.resolve import Rendering, config_stops, load_tokenizer, prepare_rendering
from imprint.render.turns import Turn

UNLIMITED = 1 << 40


def shown_turns(recipe: Recipe) -> tuple[Iterator[tuple[int, Turn]], Rendering, Ledger]:
    """(numbered turns in the order of the data, how they were rendered, the ledger).

    The model folder needs no weights, and no config.json: then max_length has no default.
    Validation rows taken as a share are shown where they stand in the data.
    """
    folder = Path(recipe.model)
    if not folder.is_dir() and folder.suffix:
        raise ModelError(
            "the model is a folder", where=f"model={recipe.model}", fix="give the folder that holds it"
        )
    tokenizer = load_tokenizer(recipe.model, recipe.revision, recipe.trust_remote_code)
    ledger = Ledger()
    loaded = load(
        recipe.data,
        validation=0.0 if isinstance(recipe.validation, float) else recipe.validation,
        bad_rows=recipe.bad_rows,
        consecutive_replies=recipe.consecutive_replies,
        seed=recipe.seed,
        ledger=ledger,
    )
    rendering = prepare_rendering(
        tokenizer,
        template=recipe.template,
        options=recipe.template_options,
        now=datetime.now(),
        conversations=loaded.train,
        config_stops=config_stops(folder),
    )
    if recipe.max_length == "auto":
        facts = read_model_facts(recipe.model) if (folder / "config.json").is_file() else None
        recipe = recipe.model_copy(update={"max_length": (facts.context if facts else None) or UNLIMITED})
    turns = turns_of(loaded.train, recipe, rendering, ledger, "trained")
    return numbered(turn for group in turns for turn in group), rendering, ledger
