"""Windows, chunks and rotary limits that a short probe does not reach, shrunk until it does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from imprint.model.ropes import ropes_of

WINDOWS = ("sliding_window", "window_size", "attention_window_size", "attention_chunk_size")
ROPE_LIMIT = "original_max_position_embeddings"


@dataclass(frozen=True)
class Limit:
    """One number that a config, and perhaps modules and sets of rotary parameters, hold at `places`."""

    name: str
    value: int
    places: list[Any] = field(repr=False)

    @property
    def is_rope(self) -> bool:
        return self.name == ROPE_LIMIT


def far_limits(base: Any, reached: int, longest: int) -> list[Limit]:
    """The limits of a model that turns of `longest` tokens reach, and a probe of `reached` tokens does not."""
    config = base.config.get_text_config()
    owners = {id(config): config}
    for module in base.modules():
        for owner in (module, getattr(module, "config", None)):
            if owner is not None:
                owners[id(owner)] = owner
    found: dict[tuple[str, int], list[Any]] = {}
    for owner in owners.values():
        for name in WINDOWS:
            value = vars(owner).get(name)
            if isinstance(value, int) and not isinstance(value, bool) and reached <= value < longest:
                found.setdefault((name, value), []).append(owner)
    for rope in ropes_of(config):  # what the other kinds scale does not depend on the row
        value = rope.get(ROPE_LIMIT)
        if rope.get("rope_type") == "longrope" and value is not None and reached <= value < longest:
            found.setdefault((ROPE_LIMIT, value), []).append(rope)
    return [Limit(name, value, places) for (name, value), places in found.items()]


@contextmanager
def shrunk(limit: Limit, value: int) -> Iterator[None]:
    """Inside this block the limit is another one, wherever the model holds it."""
    try:
        _put(limit, value)
        yield
    finally:
        _put(limit, limit.value)


def _put(limit: Limit, value: int) -> None:
    for place in limit.places:
        if isinstance(place, dict):
            place[limit.name] = value
        else:
            setattr(place, limit.name, value)
