"""Trackio, which keeps its data locally, or in a Space where TRACKIO_SPACE_ID names one."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from imprint.track.events import Event
from imprint.track.sinks import PROJECT, Subject, flat, metrics, texts


class Sink:
    def start(self, run: Subject) -> str:
        import trackio

        self.module: Any = trackio
        self.step = run.step
        self.project = os.environ.get("TRACKIO_PROJECT", PROJECT)
        name = run.known or f"{run.name}-{run.id}"
        # a local list of numbers and texts: trackio refuses nested values in some versions
        config = {
            key: value if isinstance(value, (int, float)) else str(value)
            for key, value in flat(run.config).items()
        }
        self.run: Any = trackio.init(
            project=self.project, name=name, config=config, resume="allow", embed=False
        )
        return name

    def log(self, event: Event) -> None:
        self.step = event.get("step", self.step)
        found: dict[str, Any] = dict(metrics(event))
        if hasattr(self.module, "Markdown"):  # not in its first versions
            found |= {name: self.module.Markdown(text) for name, text in texts(event)}
        if found:
            self.run.log(found, step=self.step)

    def artifact(self, path: Path) -> None:
        if hasattr(self.module, "save"):
            self.module.save(str(path), project=self.project)

    def finish(self, status: str) -> None:
        self.run.finish()
