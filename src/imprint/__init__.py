"""imprint: supervised fine-tuning in which nothing goes wrong silently.

The names below are the public API. They are imported on first use, so `import imprint`
costs nothing and does not import torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from imprint.auto import Decision as Decision
    from imprint.auto import read_model_facts as read_model_facts
    from imprint.auto import resolve_auto as resolve_auto
    from imprint.auto import resolve_intervals as resolve_intervals
    from imprint.errors import ImprintError as ImprintError
    from imprint.recipe import DataSource as DataSource
    from imprint.recipe import Lora as Lora
    from imprint.recipe import Recipe as Recipe
    from imprint.settings import Origin as Origin
    from imprint.settings import Resolved as Resolved
    from imprint.settings import dump as dump
    from imprint.settings import load as load
    from imprint.settings import resolve as resolve

# Where each public name lives.
_HOMES = {
    "DataSource": "imprint.recipe",
    "Decision": "imprint.auto",
    "ImprintError": "imprint.errors",
    "Lora": "imprint.recipe",
    "Origin": "imprint.settings",
    "Recipe": "imprint.recipe",
    "Resolved": "imprint.settings",
    "dump": "imprint.settings",
    "load": "imprint.settings",
    "read_model_facts": "imprint.auto",
    "resolve": "imprint.settings",
    "resolve_auto": "imprint.auto",
    "resolve_intervals": "imprint.auto",
}

__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'imprint' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
