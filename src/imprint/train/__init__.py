"""The loop, its step, the optimizer and the checkpoints; and, called, a whole run.

`imprint.train(model=…, data=…)` is the library's first door, and `imprint/train/` is where the
house puts the loop. Python binds a package's name to the package, so the package itself is
callable; the call goes to `imprint.api.train`.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import imprint


class _Train(ModuleType):
    def __call__(self, *recipe: Any, **settings: Any) -> Any:
        return imprint.train_recipe(*recipe, **settings)


sys.modules[__name__].__class__ = _Train
