"""JSON in which no key may stand twice in one object: Python's own decoder takes the last and says nothing."""

from __future__ import annotations

import json
from typing import Any


class Twice(ValueError):
    """A key stands twice in one object; the message is the key."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        keys = [key for key, _ in pairs]
        raise Twice(next(key for key in made if keys.count(key) > 1))
    return made


DECODER = json.JSONDecoder()
UNIQUE = json.JSONDecoder(object_pairs_hook=_unique)
