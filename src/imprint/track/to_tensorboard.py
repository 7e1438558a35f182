"""TensorBoard: event files in the run folder. `tensorboard --logdir RUN/tensorboard`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from imprint.track.events import Event
from imprint.track.sinks import Subject, metrics, texts


class Sink:
    def start(self, run: Subject) -> str:
        from torch.utils.tensorboard import SummaryWriter

        name = run.known or (
            "tensorboard" if run.id.count("-") == 0 else f"tensorboard-{run.id.split('-')[1]}"
        )
        self.step = run.step
        purge = run.step + 1 if run.known else None  # what a killed run showed of later steps
        self.writer: Any = SummaryWriter(str(run.folder / name), purge_step=purge)
        if not run.known:
            self._text("recipe", "```\n" + yaml.safe_dump(run.config, sort_keys=False) + "```", None)
        return name

    def log(self, event: Event) -> None:
        self.step, at = event.get("step", self.step), event["time"]
        for name, value in metrics(event).items():
            self.writer.add_scalar(name, value, self.step, walltime=at)
        for name, text in texts(event):
            self._text(name, text, at)

    def _text(self, name: str, text: str, at: float | None) -> None:
        self.writer.add_text(name, text, self.step, walltime=at)

    def artifact(self, path: Path) -> None:
        """Nothing: its files lie in the run folder already, beside these."""

    def finish(self, status: str) -> None:
        self.writer.close()
