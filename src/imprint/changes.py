"""What may be other when a run is taken up again, and what may not: docs/decisions/0033.

A setting that changes the updates is refused, with what it was and what it would be, unless its key is
given to --force-changed. So are the data, the template and the model, by their fingerprints. What was
accepted stands in run.json, in the events and in the report.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

from imprint import settings
from imprint.errors import RunError, nearest
from imprint.folder import read_facts, record_changes, resume_command, serving_text, with_absolute_paths
from imprint.prepare import Prepared
from imprint.recipe import Recipe
from imprint.schema import leaves, shown
from imprint.track import events
from imprint.train.budget import Budget
from imprint.train.checkpoint import ANOTHERS, Counters
from imprint.train.step import TrainState

# Keys (patterns) and what changing them does. A key that is in none of these changes the updates.
NO_EFFECT = (
    "save_every",
    "samples",
    "sample_tokens",
    "on_nonfinite",
    "track",
    "track.*",
    "rehearse",
    "export",
    "export.*",
)
ROUNDING = ("device", "threads", "layout", "attention", "row_tokens", "activation_checkpointing")
OUTCOME = ("validate_every", "patience", "min_improvement", "final")
IMPOSSIBLE = {
    "version": "it belongs to the recipe's schema",
    "output": "a run stays where it is; its folder can be moved while it rests",
    "method": "the checkpoints hold what the other method trains",
    "optimizer": "the checkpoints hold what the other optimizer keeps of each weight",
    "lora.init": "the checkpoints hold adapters of a base that began otherwise",
    "lora.rank": "the checkpoints hold matrices of the other rank",
    "lora.targets": "the checkpoints hold adapters of other layers",
    "lora.train_tokens": "the checkpoints hold the vectors of other tokens",
}


INPUTS = ("data", "replay", "model", "template")
CHECKPOINTS = "checkpoints"


class Change(NamedTuple):
    """One thing that is other than when the run began."""

    key: str
    before: str
    after: str
    forced: bool

    def __str__(self) -> str:
        end = " (accepted with --force-changed: the run is no longer what an uninterrupted one would be)"
        return f"{self.key}: {self.before} → {self.after}" + (end if self.forced else effect(self.key))


def effect(key: str) -> str:
    """What a change that needs no force does, to be said behind it."""
    if is_one(key, ROUNDING):
        return " (the same updates to rounding, not to the bit)"
    if is_one(key, OUTCOME):
        return " (the same updates; which of them are served, or when the run ends, may change)"
    return ""


def is_one(key: str, patterns: Collection[str]) -> bool:
    return any(fnmatchcase(key, pattern) for pattern in patterns)


def taken_up(
    run: Path, given: Sequence[str], force: Collection[str]
) -> tuple[Recipe, list[Change], list[str]]:
    """The recipe that a run goes on with; what of it is changed now; all `key=value` since it began.

    RunError where something changes the updates and is not in `force`, or cannot be changed at all.
    """
    kept: list[str] = read_facts(run).get("given", [])
    before = settings.amend(run / "recipe.yaml", kept)
    for argument in given:
        key = argument.partition("=")[0]
        kept = [old for old in kept if old.partition("=")[0] != key and not old.startswith(f"{key}.")]
        kept.append(argument)
    after = with_absolute_paths(settings.amend(run / "recipe.yaml", kept))
    then, now = ({".".join(path): value for path, value in leaves(recipe)} for recipe in (before, after))
    changes = []
    for key in dict.fromkeys([*now, *then]):
        old, new = then.get(key, _ABSENT), now.get(key, _ABSENT)
        if old != new:
            changes.append(Change(key, _words(old), _words(new), is_forced(key, force)))
            _refuse(run, changes[-1], given)
    if any(change.key == "row_tokens" and change.after == "auto" for change in changes):
        raise RunError(
            "`row_tokens` is measured when a run is made, not when it is taken up again",
            where=str(run),
            fix="give a number of tokens, or leave it as it is: it is lowered where memory runs out",
        )
    return after, changes, kept


_ABSENT = object()


def _words(value: Any) -> str:
    return "nothing" if value is _ABSENT else shown(value)


def check_forced(force: Collection[str]) -> None:
    """RunError where a key of --force-changed is none. One that did not change does nothing: restarts repeat it."""
    known = {*INPUTS, CHECKPOINTS, *Recipe.model_fields}
    for key in force:
        if key.partition(".")[0] not in known:
            like = nearest(key, known)
            raise RunError(
                f"--force-changed {key}: there is no such key",
                expected="a key of the recipe, or one of " + ", ".join((*INPUTS, CHECKPOINTS)),
                fix=f"write {like}" if like else "see docs/recovery.md",
            )


def refuse_to_begin_again(run: TakenUp, faults: Mapping[str, str]) -> None:
    """RunError where a run has made checkpoints and none verifies: to begin again is for its owner to say."""
    own = {name: fault for name, fault in faults.items() if fault != ANOTHERS}
    made = [e["step"] for e in events.read(run.path / "events.jsonl") if e["kind"] == "checkpoint"]
    if run.from_start or not (own or made):
        return
    folder = run.path / "checkpoints"
    gone = f"a link to {folder.readlink()}, which is not there" if folder.is_symlink() and not own else "none"
    found = [f"{name}: {fault}" for name, fault in own.items()]
    raise RunError(
        "none of this run's checkpoints verifies" if own else "this run's checkpoints are gone",
        where=str(folder),
        found="\n".join(found) or f"{gone}; by the log, the last was made after step {made[-1]:,}",
        expected="one that is as it was written",
        fix=f"put a copy of one back; or train again from the first step, to the same bytes: "
        f"{resume_command(run.path)} --force-changed {CHECKPOINTS}",
    )


def is_forced(key: str, force: Collection[str]) -> bool:
    return key in force or key.partition(".")[0] in force


def _refuse(run: Path, change: Change, given: Sequence[str]) -> None:
    key, where = change.key, str(run)
    found = f"{key}: {change.before} when the run began, {change.after} now"
    if key in IMPOSSIBLE:
        raise RunError(
            f"`{key}` cannot be changed in a run: {IMPOSSIBLE[key]}",
            where=where,
            found=found,
            fix="begin a new run",
        )
    if key == "final" and change.after == "best":
        raise RunError(
            "`final` cannot become best in a run: its best weights so far were not kept",
            where=where,
            found=found,
            fix="begin a new run, or go on with final=last",
        )
    if change.forced or is_one(key, (*NO_EFFECT, *ROUNDING, *OUTCOME)):
        return
    raise RunError(
        f"`{key}` changes the updates of this run",
        where=where,
        found=found,
        expected="what the run began with, so that resumed equals uninterrupted",
        fix=f"leave it out, begin a new run, or accept it: "
        f"{resume_command(run)} {' '.join(given)} --force-changed {key.partition('.')[0]}",
    )


def changed_inputs(
    run: Path,
    facts: Mapping[str, Any],
    found: Mapping[str, str],
    force: Collection[str],
    differs: Mapping[str, str],
) -> list[Change]:
    """What of data, replay, model and template is other than in `facts`, by their fingerprints `found`.

    RunError where one is not in `force`; `differs` says for each what of it is other.
    """
    changed = [key for key, value in facts["fingerprints"].items() if found.get(key) != value]
    changed += [key for key in found if key not in facts["fingerprints"]]
    refused = [key for key in changed if key not in force]
    if refused:
        again = " ".join(f"--force-changed {key}" for key in refused)
        raise RunError(
            f"the {' and the '.join(refused)} changed since this run began",
            where=str(run),
            found="\n".join(filter(None, (differs.get(key, "") for key in refused))),
            expected="what the run began with, so that resumed equals uninterrupted",
            fix=f"put it back, begin a new run, or accept it: {resume_command(run)} {again}",
        )
    return [
        Change(key, str(facts["fingerprints"].get(key, "nothing"))[:12], found.get(key, "nothing")[:12], True)
        for key in changed
    ]


def differing_files(before: Mapping[str, int], now: Mapping[str, int], since: datetime) -> str:
    """What is other in files of data, by their rows then and now, and by when they were changed."""
    told, before = [], {_name_now(name, now): rows for name, rows in before.items()}
    for name in dict.fromkeys([*before, *now]):
        if before.get(name) != now.get(name):
            told.append(f"{name}: {before.get(name, 0):,} rows when the run began, {now.get(name, 0):,} now")
        elif Path(name).is_file() and (at := datetime.fromtimestamp(Path(name).stat().st_mtime)) > since:
            told.append(f"{name}: as many rows, but the file was changed on {at:%Y-%m-%d at %H:%M}")
    return "\n".join(told[:4])


def _name_now(name: str, now: Mapping[str, int]) -> str:
    """What a file is called now: a relative path may have become an absolute one."""
    tail = [part for part in Path(name).parts if part != ".."]
    found = [other for other in now if list(Path(other).parts[-len(tail) :]) == tail]
    return found[0] if name not in now and len(found) == 1 else name


def differing_lines(before: str, now: str) -> str:
    """The first line in which two templates differ."""
    old, new = before.splitlines(), now.splitlines()
    for number in range(max(len(old), len(new))):
        a, b = ("".join(lines[number : number + 1]) for lines in (old, new))
        if a != b:
            return f"line {number + 1} of the template was {a[:80]!r}, and is {b[:80]!r}"
    return ""


# ---- put into force


@dataclass(frozen=True)
class TakenUp:
    """A run folder that training goes on in, and what is other than when it began."""

    path: Path
    changes: list[Change]
    given: list[str]
    from_start: bool = False  # also where none of its checkpoints verifies


def other_inputs(run: Path, facts: dict[str, Any], prepared: Prepared) -> dict[str, str]:
    """What of each input is other than when the run began, in words."""
    ledger = json.loads((run / "ledger.json").read_text(encoding="utf-8"))
    files, now = ledger.get("files", {}), prepared.ledger.to_json().get("files", {})
    return {
        "data": differing_files(files, now, datetime.fromisoformat(facts["created"])),
        "template": differing_lines(facts.get("serving", ""), serving_text(prepared)),
        "model": f"the files in {prepared.folder}",
    }


def accept(run: TakenUp, prepared: Prepared, state: TrainState, counters: Counters) -> None:
    """Put the changes of a run into force and write them down; RunError where they come too late."""
    recipe, total = prepared.recipe, prepared.plan.total_steps
    if total < state.step:
        raise RunError(
            f"the run has made more steps than that already: {state.step:,}",
            where=str(run.path),
            found=f"{total:,} steps in all, by what was changed",
            fix="choose more of them, or begin a new run",
        )
    if not state.mesh.is_main:
        return
    if counters.row_tokens and any(change.key == "row_tokens" for change in run.changes):
        assert isinstance(recipe.row_tokens, int)
        rows = run.path / "checkpoints" / "rows.json"
        Budget(rows, state.model, counters, recipe.row_tokens).ask(state.step + 1, recipe.row_tokens)
    record_changes(run.path, prepared, run.changes, run.given, state.step)


def told_changes(run: TakenUp | None) -> list[str]:
    return [f"changed: {change}" for change in run.changes] if run else []
