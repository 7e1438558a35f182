"""Runs one side of the comparison as a process of its own, and reads what it measured."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from _common import HERE
from _needed import needed, operations
from _workloads import BATCH, WORK, Workload

Measured = dict[str, Any]

PEER = HERE.parent / ".venv-peers/bin/python"
THREADS = 2


# glibc gives large blocks back to the system at once, and gets each anew, page by page: on CPU a large part of
# PyTorch's time. A user who knows it sets these; the peer is also measured so, apart from its own settings.
KEPT_BLOCKS = {
    "MALLOC_MMAP_THRESHOLD_": str(8 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(16 << 30),
    "MALLOC_TOP_PAD_": str(256 << 20),
}


@dataclass(frozen=True)
class Setting:
    """How a peer lays out an update; `batch` sequences (packed: rows of `row` tokens) in a forward pass.

    `defaults`: with the peer's own default of activation checkpointing. `kept_blocks`: the environment above.
    """

    layout: str
    precision: str
    batch: int
    row: int = 0
    defaults: bool = False
    kept_blocks: bool = False

    @property
    def name(self) -> str:
        if self.layout == "packed":
            split = f"{self.row}" + (f" x {self.batch}" if self.batch > 1 else "")
        else:
            split = f"{self.batch} x {BATCH // self.batch}"
        also = (" defaults" if self.defaults else "") + (" kept blocks" if self.kept_blocks else "")
        return f"{self.layout} {split} {self.precision}{also}"


def call(
    script: str,
    *arguments: Any,
    python: Path | str = sys.executable,
    threads: int = THREADS,
    environment: Mapping[str, str] | None = None,
) -> str:
    """What a script beside this one prints; RuntimeError with the end of its errors where it fails."""
    return output([str(python), str(HERE / script), *map(str, arguments)], threads, environment)


def imprint(*arguments: str) -> str:
    """What the command prints."""
    return output([sys.executable, "-m", "imprint.cli", *arguments])


def output(command: Sequence[str], threads: int = THREADS, more: Mapping[str, str] | None = None) -> str:
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith("MALLOC_")},
        "OMP_NUM_THREADS": str(threads),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "IMPRINT_CACHE": str(WORK / "cache"),
        # a peer's own environment must not find imprint's packages, nor the other way round
        "PYTHONPATH": "",
        **(more or {}),
    }
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip()).splitlines()[-6:]
        raise RuntimeError(" | ".join(last))
    return done.stdout


class Sides:
    """Both sides of one workload: the same model, the same conversations in each of `updates` updates."""

    def __init__(
        self,
        workload: Workload,
        model: Path,
        updates: int,
        changes: Sequence[str] = (),
        threads: int = THREADS,
    ):
        self.workload, self.model, self.updates, self.threads = workload, model, updates, threads
        self.recipe = {**workload.settings(model, updates), **dict(map(changed, changes))}
        self.folder = Path(tempfile.mkdtemp(prefix=f"{workload.name}-", dir=WORK / "peers"))
        self.steps = self.folder / "steps.jsonl"
        call("_steps.py", self._write("recipe", self.recipe), self.steps)
        config = json.loads((model / "config.json").read_text(encoding="utf-8"))
        self.needed = [needed(json.loads(line)) for line in self.steps.read_text().splitlines()]
        rank = self.recipe["lora"]["rank"] if workload.lora else 0
        self.operations = [operations(one, config, rank) for one in self.needed]

    def __enter__(self) -> Sides:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        shutil.rmtree(self.folder)

    def ours(self, **changes: Any) -> Measured:
        """A run of imprint."""
        run = self.folder / "run"
        shutil.rmtree(run, ignore_errors=True)
        spec = {"recipe": {**self.recipe, **changes}, "run": str(run)}
        call("_ours.py", self._write("ours", spec), self.folder / "out.json", threads=self.threads)
        return self._read()

    def peer(self, setting: Setting, limit: float | None = None, updates: int | None = None) -> Measured:
        """A run of TRL; {"failed": why} or {"too_slow": …} where there are no figures."""
        spec = {
            "model": str(self.model),
            "steps": str(self.steps),
            "updates": updates or self.updates,
            "threads": THREADS,
            "learning_rate": self.recipe["learning_rate"],
            "lora_rank": self.recipe["lora"]["rank"] if self.workload.lora else 0,
            "limit": limit,
            "setting": vars(setting),
        }
        more = KEPT_BLOCKS if setting.kept_blocks else {}
        out = self.folder / "out.json"
        try:
            call("_peer_trl.py", self._write("peer", spec), out, python=PEER, environment=more)
        except RuntimeError as error:
            return {"failed": str(error)}
        return self._read()

    def _write(self, name: str, value: Any) -> Path:
        path = self.folder / f"{name}.json"
        path.write_text(json.dumps(value), encoding="utf-8")
        return path

    def _read(self) -> Measured:
        """What a process left, and what follows from it; the same tokens must have been trained."""
        out = self.folder / "out.json"
        found: Measured = json.loads(out.read_text(encoding="utf-8"))
        out.unlink()
        if "too_slow" in found:
            return found
        wanted = [one.trained for one in self.needed][: len(found["trained_tokens"])]
        if found["trained_tokens"] != wanted:
            raise SystemExit(f"{found['trained_tokens']} tokens were trained, and {wanted} were to be")
        # The first update warms up; a run of one update has nothing else.
        seconds = found["seconds"] or [found["first_seconds"]]
        after = len(found["losses"]) - len(seconds)
        stop = after + len(seconds)
        found["seconds_per_update"] = sum(seconds) / len(seconds)
        found["examples_per_second"] = self.recipe["batch_size"] * len(seconds) / sum(seconds)
        found["trained_per_second"] = sum(wanted[after:]) / sum(seconds)
        least = sum(one.tokens for one in self.needed[after:stop])
        found["computed_over_needed"] = sum(found["computed_tokens"][after:]) / least
        found["needed_flops"] = sum(self.operations[after:stop]) / sum(seconds)
        found["beyond_bytes"] = found["peak_bytes"] - found["imported_bytes"] - found["state_bytes"]
        return found


def changed(text: str) -> tuple[str, Any]:
    """KEY=VALUE of the command line."""
    import yaml

    key, equals, value = text.partition("=")
    if not equals:
        raise SystemExit(f"--imprint {text}: KEY=VALUE is wanted")
    return key, yaml.safe_load(value)
