"""The exports that a recipe asks for: checked before anything long is done, tried in a rehearsal, made at the end.

They are made when the run has ended, its model is saved and its memory is free, by the code of `imprint export`.
"""

from __future__ import annotations

import copy
import json
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from imprint.build_model import Say
from imprint.ending import save_report
from imprint.errors import ImprintError, Interrupted, RecipeError, RunError, RunFailed, UserError
from imprint.export.standard import Trained, write_json
from imprint.export.targets import Made, check_options, find_target
from imprint.export_run import export as export_run
from imprint.export_run import make, with_date
from imprint.export_wanted import Wanted, command, default_folder
from imprint.folder import resume_command, working_on
from imprint.prepare import Prepared
from imprint.recipe import Export
from imprint.result import NotMade
from imprint.save import save_tokenizer
from imprint.signals import doing
from imprint.track import events
from imprint.train.allocation import give_back_freed_memory


def name_of(export: Export) -> str:
    """The name of its folder."""
    return export.folder or ("adapter" if export.adapter_only else export.to)


def wanted_of(run: Path, export: Export) -> Wanted:
    out = run / "export" / export.folder if export.folder else None
    return Wanted(
        export.to, out, dtype=export.dtype, adapter_only=export.adapter_only, options=export.options
    )


# ---- before the run


def check(exports: Sequence[Export]) -> None:
    """RecipeError where one cannot be made whatever the model: an unknown setting, a tool that is missing."""
    for name, times in Counter(map(name_of, exports)).items():
        if times > 1:
            raise RecipeError(
                f"{times} exports would stand in the same folder",
                where="export",
                found=f"RUN/export/{name}",
                fix="give one of them a name of its own: {to: …, folder: NAME}",
            )
    for export in exports:
        target = find_target(export.to)
        try:
            check_options(target, export.options)
            if not export.adapter_only:
                target.check(export.options)
        except UserError as error:
            raise _refused(export, error) from None


def foresee(prepared: Prepared) -> None:
    """RecipeError where one cannot be made of this architecture, tokenizer or template. No weights are needed."""
    whole = [export for export in prepared.recipe.export if not export.adapter_only]
    if not whole:
        return
    with TemporaryDirectory() as nowhere:
        folder = Path(nowhere) / prepared.folder.resolve().name
        write_mould(prepared, folder)
        for export in whole:
            try:
                find_target(export.to).foresee(folder, export.options)
            except UserError as error:
                raise _refused(export, error) from None


def write_mould(prepared: Prepared, folder: Path) -> None:
    """What the merged model will be, but its weights."""
    folder.mkdir()
    stops = [int(i) for i in prepared.rendering.stop_ids]
    config = json.loads((prepared.folder / "config.json").read_text(encoding="utf-8"))
    for part in (config, *(inner for inner in config.values() if isinstance(inner, dict))):
        if "vocab_size" in part:
            part["vocab_size"] = max(part["vocab_size"], prepared.num_tokens)
    write_json(folder / "config.json", config | {"eos_token_id": stops})
    generation = prepared.folder / "generation_config.json"
    said = json.loads(generation.read_text(encoding="utf-8")) if generation.is_file() else {}
    write_json(folder / "generation_config.json", said | {"eos_token_id": stops})
    tokenizer = copy.deepcopy(prepared.rendering.encoder.tokenizer)  # that of the run stays as it is
    save_tokenizer(tokenizer, prepared.rendering, folder)


def _refused(export: Export, error: UserError) -> RecipeError:
    where = f"export {name_of(export)}" + (f": {error.where}" if error.where else "")
    fix = f"{error.fix}; or leave this export away" if error.fix else "leave this export away"
    return RecipeError(error.what, where=where, found=error.found, expected=error.expected, fix=fix)


# ---- in the rehearsal


def trial(prepared: Prepared, run: Path, export: Export) -> Callable[[Path, Path], int]:
    """What makes an export once: of a model folder, into a new folder, both aside.

    It returns the bytes that lie beside the export while it is made; RunError where it cannot be made.
    """

    def once(model: Path, out: Path) -> int:
        target, wanted, beside = find_target(export.to), wanted_of(run, export), 0

        def weighed(merged: Path, place: Path, options: Mapping[str, str]) -> Made:
            nonlocal beside
            beside = 0 if merged == place else sum(file.stat().st_size for file in merged.iterdir())
            return target.make(merged, place, options)

        rendering = prepared.rendering
        trained = Trained(
            model,
            prepared.folder,
            rendering.stop_ids,
            len(rendering.encoder.tokenizer),
            prepared.recipe.trust_remote_code,
        )
        out.mkdir(parents=True)
        try:
            make(replace(target, make=weighed), trained, out, with_date(target, run, wanted), lambda _: None)
        except Exception as error:  # whatever it is, it would come at the end as well
            why, fix = _words(error)
            raise RunError(
                f"the export {name_of(export)} could not be made of the untrained model",
                where=str(run),
                found=why,
                fix=f"{fix + '; then ' if fix else ''}{resume_command(run)}, or, to train without exports, "
                f"{resume_command(run)} export=[]",
            ) from error
        return beside

    return once


# ---- after the run


def missing(run: Path, exports: Sequence[Export]) -> list[Export]:
    """Those that do not stand in the run folder, but for those whose proof failed: it would fail again."""
    settled = {
        event["name"]
        for event in events.read(run / "events.jsonl")
        if event["kind"] == "export" and event["passed"] is False
    }
    return [
        export
        for export in exports
        if name_of(export) not in settled and not default_folder(run, wanted_of(run, export)).exists()
    ]


def make_exports(run: Path, exports: Sequence[Export], say: Say) -> list[NotMade]:
    """Make those that are missing, log each, and write the report anew; which could not be made.

    Whatever goes wrong with one of them, the others are made, and the run is as it was.
    """
    give_back_freed_memory()  # their proofs load the model in processes of their own
    with working_on(run, True), events.EventLog(run / "events.jsonl", [_Said(say)]) as log:
        made = [_make(run, export, log, say) for export in missing(run, exports)]
        failed = [fault for fault in made if fault is not None]
        doing("the report was written", "the exports are made", resume_command(run))
        try:
            save_report(run, log.wait_for_room)
        except RunFailed:  # of two errors, the first is the one to tell
            if not failed:
                raise
    return failed


class _Said:
    """A sink for what the log itself has to tell: that it waits for room on a full disk."""

    def __init__(self, say: Say):
        self.say = say

    def event(self, event: events.Event) -> None:
        if event["kind"] == "note":
            self.say(event["text"])


def _make(run: Path, export: Export, log: events.EventLog, say: Say) -> NotMade | None:
    """Make one and log what became of it; why it is not there, where it is not."""
    name, wanted, begun = name_of(export), wanted_of(run, export), time.monotonic()
    doing(f"the export {name} was made", "the model is saved", resume_command(run))
    again = command(run, wanted)
    facts: dict[str, Any] = {"name": name, "to": export.to, "path": None, "passed": None}
    fault = None
    say(f"export {name}")
    try:
        done = export_run(run, wanted, say)
    except Interrupted:
        raise
    except Exception as error:  # a converter of others may raise anything: the run is not to pay for it
        why, fix = _words(error)
        fault = NotMade(name, why, f"{fix}; then {again}" if fix else again)
        text = f"The export {name} could not be made: {why}. It can be tried again: {again}"
    else:
        for note in done.notes:
            say(f"note   {note}")
        say(f"proof  {done.proof.line}")
        facts |= {"path": done.folder.relative_to(run).as_posix(), "passed": done.proof.passed}
        text = f"Exported to {facts['path']}: {done.proof.line}."
        if done.proof.passed is False:
            why = f"it does not say what was trained: {done.proof.line}"
            fix = f"see {done.folder / 'parity.json'}, where it is kept; {again} tries again"
            fault = NotMade(name, why, fix)
    try:
        log.log("export", **facts, seconds=time.monotonic() - begun, text=text)
    except OSError as error:  # the disk stays full: what is known is told all the same
        say(f"this could not be logged: {error}")
    return fault


def _words(error: Exception) -> tuple[str, str]:
    """(what went wrong, what to do about it, where that is known), each in one line."""
    if not isinstance(error, ImprintError):
        return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300], ""
    why = f"{error.what} ({error.found})" if error.found else error.what
    return " ".join(why.split()), " ".join(error.fix.split())
