"""The run folder: made whole or not at all, never written over, and the same when it is taken up again.

recipe.yaml     every setting, resolved           events.jsonl   every metric
run.json        what was found when it was made   samples.jsonl  answers to fixed prompts
ledger.json     what became of every row          report.html    the story, for a person
checkpoints/    the newest and the best           model/         what you serve
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import secrets
import shlex
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from imprint import settings
from imprint.data.locate import absolute
from imprint.disk import write_text
from imprint.errors import RunError
from imprint.model.fingerprint import model_fingerprint
from imprint.model.quantize import BLOCK
from imprint.prepare import Prepared
from imprint.recipe import DataSource, Recipe
from imprint.render.template import PRESETS
from imprint.signals import Stopped
from imprint.track import events

try:
    import fcntl
except ImportError:  # Windows: two processes on one run are then not noticed
    fcntl = None  # type: ignore[assignment]


def resume_command(run: Path) -> str:
    """What to type to go on with a run."""
    return f"imprint resume {shlex.quote(str(run))}"


def refuse_existing(recipe: Recipe) -> None:
    """RunError where the run folder is there already, or could not be made: nothing is ever written over."""
    path = Path("runs/new" if recipe.output == "auto" else recipe.output)
    parent = next(parent for parent in path.absolute().parents if parent.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise RunError(
            "the run folder cannot be made",
            where=f"output={path}",
            found=f"{parent} is {'not writable' if parent.is_dir() else 'a file'}",
            fix="choose another output=…",
        )
    if recipe.output != "auto" and path.exists():
        done = (path / "model").is_dir() or not (path / "run.json").is_file()
        raise RunError(
            "the run folder exists already",
            where=f"output={path}",
            expected="a folder that does not exist yet: nothing is written over",
            fix="choose another output=…" + ("" if done else f", or go on with it: {resume_command(path)}"),
        )


def create_folder(path: Path, prepared: Prepared, recipe: Recipe, now: datetime) -> None:
    """The run folder with recipe, facts and ledger; it appears whole or not at all."""
    if path.exists():
        refuse_existing(recipe)
    partial = path.with_name(f"{path.name}.partial-{os.getpid()}")  # of this process, so nobody else's
    try:
        partial.mkdir(parents=True)
        _fill_folder(partial, prepared, recipe, now)
        os.rename(partial, path)
    except Stopped:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise RunError(
            "the run folder cannot be made",
            where=f"output={path}",
            found=str(error),
            fix="choose another output=…, on a disk with room",
        ) from error


def _fill_folder(partial: Path, prepared: Prepared, recipe: Recipe, now: datetime) -> None:
    facts = {
        "id": secrets.token_hex(8),
        "imprint": version("imprint-sft"),
        "created": now.isoformat(),
        "model": str(prepared.folder.resolve()),
        "template": prepared.rendering.template.name,
        "stop_ids": prepared.rendering.stop_ids,
        "added_tokens": prepared.rendering.added,
        "total_steps": prepared.plan.total_steps,
        "world_size": int(os.environ.get("WORLD_SIZE", "1")),
        "fingerprints": fingerprints(prepared),
        "serving": serving_text(prepared),
        "versions": versions(*needed(recipe)),
    }
    if recipe.method == "qlora":  # what the adapter was trained on
        facts["quantized_base"] = {
            "library": "bitsandbytes",
            **recipe.quantization.model_dump(),
            "block": BLOCK,
        }
    write_text(partial / "recipe.yaml", settings.dump(with_absolute_paths(recipe)))
    write_text(partial / "run.json", json.dumps(facts, indent=1))
    account = prepared.ledger.to_json()
    if prepared.replay is not None:
        account["replay"] = prepared.replay.ledger.to_json()
    write_text(partial / "ledger.json", json.dumps(account, indent=1))


def about(run: Path, prepared: Prepared) -> dict[str, Any]:
    """What each checkpoint says of the run that it belongs to: who reads it later needs nothing else for that."""
    recipe = (run / "recipe.yaml").read_bytes()
    return {
        "run": read_facts(run).get("id"),
        "recipe": hashlib.sha256(recipe).hexdigest(),
        "fingerprints": fingerprints(prepared),
        "versions": {"imprint": version("imprint-sft"), **versions()},
    }


@contextmanager
def working_on(run: Path, is_main: bool) -> Iterator[None]:
    """Keep other processes from working on this run; RunError where one does. A killed one lets go."""
    if fcntl is None or not is_main:
        yield
        return
    with (run / "run.json").open("r+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunError(
                "another process is working on this run",
                where=str(run),
                fix="wait until it has ended, or stop it",
            ) from None
        yield


def with_absolute_paths(recipe: Recipe) -> Recipe:
    """The recipe with its local files named absolutely, so that a run resumes from any directory."""

    changed: dict[str, Any] = {
        key: [absolute(source) for source in getattr(recipe, key)] for key in ("data", "replay")
    }
    if isinstance(recipe.validation, DataSource):
        changed["validation"] = absolute(recipe.validation)
    for key in ("model", "template"):
        path = Path(getattr(recipe, key)).expanduser()
        if path.exists() and not (key == "template" and recipe.template in PRESETS):
            changed[key] = str(path.resolve())
    return recipe.model_copy(update=changed)


def read_facts(run: Path) -> dict[str, Any]:
    """run.json of a run folder; RunError where there is none, or it cannot be read."""
    path = run / "run.json"
    if not path.is_file() or not (run / "recipe.yaml").is_file():
        raise RunError(
            "this is not a run folder",
            where=str(run),
            expected="a folder made by imprint train, with recipe.yaml and run.json",
            fix="give the folder that imprint train printed",
        )
    try:
        facts: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        missing = {"created", "fingerprints", "versions", "world_size"} - facts.keys()
    except (ValueError, AttributeError) as error:
        raise _damaged(path, str(error)) from None
    if missing:
        raise _damaged(path, f"no {', '.join(sorted(missing))}")
    return facts


def _damaged(path: Path, found: str) -> RunError:
    return RunError(
        "the facts of this run cannot be read",
        where=str(path),
        found=found,
        expected="JSON, as it was written",
        fix="put a copy of it back; the checkpoints beside it are as they were",
    )


def is_finished(run: Path) -> bool:
    """Whether a run has saved its model and logged its end."""
    ended = any(event["kind"] == "end" for event in events.read(run / "events.jsonl"))
    return ended and (run / "model").is_dir()


def finished(run: Path, reported: bool = False) -> RunError:
    """Why a run is not resumed that is at its end; `reported`: its report was written only now."""
    fix, model = f"talk to it: imprint chat {shlex.quote(str(run))}", run / "model"
    if (model / "config.json").is_file():  # an adapter has none: training starts from a whole model
        fix += f"; to train on, begin a new run with model={shlex.quote(str(model))}"
    return RunError(
        "this run is finished",
        where=str(run),
        found="its model/ is there, and its last event is its end"
        + ("; its report.html was missing, and is written now" if reported else ""),
        fix=fix,
    )


def fingerprints(prepared: Prepared) -> dict[str, str]:
    """What must not change between the beginning of a run and its resumption."""
    replay = prepared.replay
    return {
        "data": prepared.loaded.fingerprint,
        **({"replay": replay.fingerprint} if replay else {}),
        "model": model_fingerprint(prepared.folder),
        "template": hashlib.sha256(serving_text(prepared).encode()).hexdigest(),
    }


def serving_text(prepared: Prepared) -> str:
    """The template that will be served, or the several of them."""
    serving = prepared.rendering.template.serving
    return serving if isinstance(serving, str) else json.dumps(serving, sort_keys=True)


def record_changes(
    run: Path, prepared: Prepared, changes: Sequence[Any], given: Sequence[str], step: int
) -> None:
    """Keep what a run goes on with: run.json in one move, and then the recipe for people to read.

    Killed between the two, `given` in run.json makes the same recipe of the old one.
    """
    facts = read_facts(run)
    facts["fingerprints"], facts["serving"] = fingerprints(prepared), serving_text(prepared)
    facts["given"] = list(given)
    facts["changes"] = [*facts.get("changes", []), *({"step": step, **c._asdict()} for c in changes)]
    write_text(run / "run.json", json.dumps(facts, indent=1))
    write_text(run / "recipe.yaml", settings.dump(with_absolute_paths(prepared.recipe)))


def versions(*more: str) -> dict[str, str]:
    names = ("torch", "transformers", "tokenizers", "peft", "safetensors", "datasets", *more)
    return {"python": platform.python_version(), **{name: version(name) for name in names}}


def needed(recipe: Recipe) -> list[str]:
    """The packages beside the usual ones that decide what a run computes."""
    return ["bitsandbytes"] if recipe.method == "qlora" or recipe.optimizer == "adamw_8bit" else []


def differences(run: Path, world_size: int) -> list[str]:
    """What is other than when the run began, and keeps a resumed run from being equal to the bit."""
    facts = json.loads((run / "run.json").read_text(encoding="utf-8"))
    before = facts["versions"]
    now = versions(*({"bitsandbytes"} & before.keys()))
    found = [f"{name} {before[name]} became {now[name]}" for name in before if now.get(name) != before[name]]
    if facts["world_size"] != world_size:
        found.append(f"{facts['world_size']} processes became {world_size}")
    return [f"not equal to the bit any more: {text}" for text in found]
