"""MLflow. Its own environment variables rule: MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from imprint.track.events import Event
from imprint.track.sinks import PROJECT, Subject, flat, metrics, texts

MOST = 500  # characters of a parameter that every server takes
STATUS = {"finished": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}


class Sink:
    def start(self, run: Subject) -> str:
        import mlflow

        self.entities: Any = mlflow.entities
        self.client: Any = mlflow.MlflowClient()
        self.step, self.said = run.step, 0
        if run.known:
            self.id = run.known
            self.client.update_run(self.id, status="RUNNING")
            return self.id
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        known = self.client.get_experiment_by_name(name)
        experiment = known.experiment_id if known else self.client.create_experiment(name)
        self.id = str(self.client.create_run(experiment, run_name=run.name).info.run_id)
        params = [mlflow.entities.Param(key, str(value)[:MOST]) for key, value in flat(run.config).items()]
        for first in range(0, len(params), 100):  # as many as a request may have
            self.client.log_batch(self.id, params=params[first : first + 100])
        return self.id

    def log(self, event: Event) -> None:
        self.step, at = event.get("step", self.step), int(1000 * event["time"])
        found = [self.entities.Metric(name, value, at, self.step) for name, value in metrics(event).items()]
        if found:
            self.client.log_batch(self.id, metrics=found)
        for name, text in texts(event):
            self.said += 1
            self.client.log_text(self.id, text, f"{name}/step-{self.step:06d}-{at}-{self.said}.txt")

    def artifact(self, path: Path) -> None:
        self.client.log_artifact(self.id, str(path))

    def finish(self, status: str) -> None:
        self.client.set_terminated(self.id, status=STATUS[status])
