"""Trackers: programs of others that follow a run. Each is thin, and gets what the event log says, no more.

A tracker is made without its package; `start` imports it, in the thread that feeds it. Any exception of
its methods means that it is done with: see follow.py.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from imprint.extras import find
from imprint.track.events import Event

# name in a recipe: the package that must be there
PACKAGES = {"tensorboard": "tensorboard", "wandb": "wandb", "mlflow": "mlflow", "trackio": "trackio"}
PROJECT = "imprint"  # unless the tracker's own environment variable names another
GROUPS = {"step": "train", "validation": "validation", "replay_loss": "replay", "checkpoint": "checkpoint"}
NOT_MEASURED = ("kind", "time", "step", "path")
TOLD = ("note", "rehearsal", "early_stop", "not_finite", "interrupted", "resume", "end", "export")


@dataclass(frozen=True)
class Subject:
    """What a tracker is told of a run when it starts: `known` is its id there, where it is going on."""

    name: str
    folder: Path
    id: str  # one that it may take
    known: str
    step: int  # updates that are done
    config: dict[str, Any]


class Tracker(Protocol):
    def start(self, run: Subject) -> str:
        """Begin, or go on with `run.known`; its id there. Called once, before all else."""

    def log(self, event: Event) -> None: ...

    def artifact(self, path: Path) -> None: ...

    def finish(self, status: str) -> None:
        """The last call: `finished`, `failed` or `interrupted`."""


def require(names: str | Sequence[str]) -> tuple[str, ...]:
    """The trackers of a recipe, each once; RecipeError where the package of one is missing. Imports nothing."""
    listed = (names,) if isinstance(names, str) else tuple(dict.fromkeys(names))
    for name in listed:
        find(PACKAGES[name], "trackers", f"track: {name}")
    return listed


def make(name: str) -> Tracker:
    tracker: Tracker = importlib.import_module(f"imprint.track.to_{name}").Sink()
    return tracker


def metrics(event: Event) -> dict[str, float]:
    """The figures of an event, by the names that they have in every tracker: `train/loss`, `validation/loss`."""
    group = GROUPS.get(event["kind"])
    return {
        f"{group}/{key}": float(value)
        for key, value in event.items()
        if group and key not in NOT_MEASURED and isinstance(value, (int, float))
    }


def texts(event: Event) -> Iterator[tuple[str, str]]:
    """What an event says in words, by the name of the text that it belongs to."""
    if event["kind"] == "sample":
        yield (
            "samples",
            "\n\n".join(str(event.get(part) or "") for part in ("question", "reply", "reference")),
        )
    elif event["kind"] in TOLD:
        said = event.get("text") or event.get("reason") or "; ".join(event.get("rows", ()))
        yield "notes", f"{event['kind'].replace('_', ' ')}: {said}" if said else event["kind"]


def flat(config: Any, above: str = "") -> dict[str, Any]:
    """Nested settings by their dotted keys."""
    if isinstance(config, dict) and config:
        return {k: v for name, item in config.items() for k, v in flat(item, f"{above}{name}.").items()}
    return {above[:-1]: config}
