"""Weights & Biases. Its own environment variables rule: WANDB_MODE=offline, WANDB_PROJECT, WANDB_ENTITY."""

from __future__ import annotations

import html
import os
from pathlib import Path
from typing import Any

from imprint.track.events import Event
from imprint.track.sinks import PROJECT, Subject, metrics, texts


class Sink:
    def start(self, run: Subject) -> str:
        import wandb

        self.module: Any = wandb
        self.step = run.step
        wandb.setup(wandb.Settings(silent=True))  # else it tells the terminal of each file that is saved
        self.run: Any = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=run.name,
            id=run.known or run.id,
            resume="allow",
            dir=str(run.folder),
            config=run.config,
            # neither the command line, nor the code, nor what the terminal shows: none of it is redacted
            settings=wandb.Settings(
                console="off", silent=True, disable_git=True, disable_code=True, x_disable_meta=True
            ),
        )
        self.run.define_metric("step")  # its own counter cannot go back to a checkpoint
        self.run.define_metric("*", step_metric="step")
        return str(self.run.id)

    def log(self, event: Event) -> None:
        self.step = event.get("step", self.step)
        said = {
            name: self.module.Html(f"<pre>{html.escape(text)}</pre>", inject=False)
            for name, text in texts(event)
        }
        if found := {**metrics(event), **said}:
            self.run.log({"step": self.step, **found})

    def artifact(self, path: Path) -> None:
        self.run.save(str(path), base_path=str(path.parent), policy="now")

    def finish(self, status: str) -> None:
        self.run.finish(exit_code=0 if status == "finished" else 1)
