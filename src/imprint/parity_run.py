"""A run compared with what serves it: its own model, a folder, or a server."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from imprint import settings
from imprint.disk import file_hash, replace_text
from imprint.errors import RunError
from imprint.evaluate.report import write_report
from imprint.export.endpoint import EndpointCandidate
from imprint.export.folder import replay_folder
from imprint.export.golden import NAME, Golden, read_golden
from imprint.export.parity import Parity, bar_for, replay
from imprint.folder import read_facts, resume_command

PARITY = "parity.json"


def compare_folder(run: Path, folder: Path | None, device: str = "cpu") -> tuple[Parity, Path | None]:
    """(what a replay on a folder found, where parity.json was written, if it was). No folder: the run's own model.

    The run's own verdict lies beside its report; that of an export lies in it. Nothing is written into a folder that
    `imprint export` did not make: it belongs to somebody else.
    """
    golden = golden_of(run)
    own = folder is None or folder.resolve() in ((run / "model").resolve(), run.resolve())
    target = run / "model" if own or folder is None else folder
    if target.suffix == ".gguf" or (target.is_dir() and any(target.glob("*.gguf"))):
        raise RunError(
            "a GGUF file is not compared here",
            where=str(target),
            expected="a folder of transformers, or a server: --url",
            fix=f"imprint export {run} --to gguf proves what it makes; or serve the file, and give --url",
        )
    if own and not target.is_dir():
        raise RunError(
            "this run has no model yet",
            where=str(run),
            found="no model/: it was stopped, or still runs",
            fix=f"go on with it: {resume_command(run)}",
        )
    if not target.is_dir():
        raise RunError("there is no such folder", where=str(target), fix="give an exported folder, or none")
    if (target / "run.json").is_file():
        raise RunError(
            "this is another run",
            where=str(target),
            expected="a folder of transformers, as imprint export writes it",
            fix=f"imprint parity {run} {target / 'model'}",
        )
    # code is run where it was trusted: of the run's own model, and of what was exported from it
    inside = target.resolve().is_relative_to(run.resolve())
    trusted = inside and settings.load(run / "recipe.yaml").trust_remote_code
    found = replay_folder(run / NAME, target, device=device, trust_remote_code=trusted)
    changed = changed_weights(run, golden) if own else []
    if changed:
        told = f"{', '.join(changed)}: not the file that the golden one was frozen beside"
        found = replace(found, notes=(*found.notes, told))
    if not own and not is_export(target):
        told = f"nothing was written into {target}: imprint export did not make it"
        return replace(found, notes=(*found.notes, told)), None
    try:
        written = write_parity(found if own else handed_on(found), run if own else target)
        if (run / "report.html").is_file():
            write_report(run)
    except OSError as error:  # a verdict is told all the same
        told = f"nothing could be written: {' '.join(str(error).split())}"
        return replace(found, notes=(*found.notes, told)), None
    return found, written


def compare_endpoint(run: Path, url: str, model: str = "", kind: str = "float32") -> Parity:
    """What a replay over HTTP found. `kind` is the type that the server keeps its weights in."""
    golden = golden_of(run)
    candidate = EndpointCandidate(url, golden, model)
    found = replay(golden, candidate, kind, bar_for(kind, golden))
    return replace(found, notes=(*found.notes, *candidate.notes()))


def golden_of(run: Path) -> Golden:
    """The golden file of a run folder; RunError where it is no run, or has none."""
    read_facts(run)
    return read_golden(run)


def changed_weights(run: Path, golden: Golden) -> list[str]:
    """Which weight files of the run's model are no longer those that the golden file was frozen beside."""
    files = {name: run / "model" / name for name in golden.weights}
    return [
        name for name, path in files.items() if not path.is_file() or file_hash(path) != golden.weights[name]
    ]


def handed_on(found: Parity) -> Parity:
    """As it is written into an export: no path of this machine goes with that."""
    return replace(found, target="the exported folder")


def is_export(folder: Path) -> bool:
    """Whether `imprint export` made a folder: it says so in there."""
    try:
        return "imprint" in json.loads((folder / "export.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):
        return False


def write_parity(found: Parity, folder: Path) -> Path:
    path = folder / PARITY
    replace_text(folder, PARITY, json.dumps(found.to_json(), indent=1, ensure_ascii=False) + "\n")
    return path
