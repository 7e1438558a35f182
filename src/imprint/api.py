"""The second door: a whole run from Python, as `imprint train` makes it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import yaml

from imprint import settings
from imprint.recipe import Recipe

if TYPE_CHECKING:
    from imprint.result import Result


def train(recipe: Recipe | None = None, **values: Any) -> Result:
    """Train, and return the run's folder, its model folder and how it ended.

    Give a Recipe, or the settings of one by name, as on the command line:
    `imprint.train(model="models/base", data="train.jsonl", lora={"rank": 8}, method="lora")`.
    Raises ImprintError; a UserError before anything is written.
    """
    from imprint import run

    if recipe is None:
        recipe = make_recipe(**values)
    elif values:
        raise TypeError("give a Recipe or settings, not both; recipe.model_copy(update=…) changes one")
    return run.train(recipe)


def make_recipe(**values: Any) -> Recipe:
    """A Recipe from settings by name, with the preset of the model's folder, checked like any other."""
    return settings.resolve(None, [f"{key}={_as_yaml(value)}" for key, value in values.items()]).recipe


def _as_yaml(value: Any) -> str:
    """A value on one line, as it would stand behind `key=`; paths may be Path objects."""
    value = _plain(value)
    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=1 << 30)
    return text.strip().removesuffix("...").strip()  # a bare scalar ends with a document marker


def _plain(value: Any) -> Any:
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
