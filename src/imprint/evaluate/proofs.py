"""What replays of a run's golden file found, for its report: of its own model, and of its exports."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

NAME = "parity.json"


@dataclass(frozen=True, slots=True)
class Proven:
    """One copy of the model, whether it says the same, and what was compared."""

    name: str
    equal: bool
    text: str


def read_proofs(run: Path) -> list[Proven]:
    """Every parity.json of a run folder: its own, then those of its exports by name."""
    exports = (path for path in (run / "export").glob(f"*/{NAME}") if ".partial-" not in path.parent.name)
    paths = [run / NAME, *sorted(exports)]
    return [proven for path in paths if path.is_file() for proven in _of(path, run)]


def _of(path: Path, run: Path) -> Iterator[Proven]:
    """The verdicts in one file: one, or one for each program that was asked."""
    place = "model" if path.parent == run else path.parent.relative_to(run).as_posix()
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        for program, found in _verdicts(value):
            name = f"{place}, in {program}" if program else place
            yield Proven(name, found["equal"] is True, str(found["words"]).partition(": ")[2])
    except (ValueError, KeyError, TypeError, AttributeError):
        yield Proven(place, False, f"{path.name} cannot be read")


def _verdicts(value: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if "equal" in value:
        yield "", value
        return
    yield from ((name, one) for name, one in value.items() if isinstance(one, Mapping) and "equal" in one)
