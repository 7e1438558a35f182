"""Packages that come with an extra: found, or asked for by the name of the extra."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

from imprint.errors import RecipeError


def find(package: str, extra: str, setting: str) -> None:
    """RecipeError with what to install where a package that `setting` needs is missing; nothing is imported."""
    if importlib.util.find_spec(package) is None:
        raise RecipeError(
            f"{setting} needs the package {package}",
            found="it is not installed",
            fix=f"pip install 'imprint-sft[{extra}]'",
        )


def needs(package: str, extra: str, setting: str) -> Any:
    """The module of a package that `setting` needs; RecipeError where it is missing."""
    find(package, extra, setting)
    return importlib.import_module(package)
