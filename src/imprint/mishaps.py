"""How a run that broke off is explained to its user: what happened, what stands, and how to go on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch.distributed as dist
from safetensors import SafetensorError

from imprint import signals
from imprint.disk import is_full
from imprint.errors import ImprintError, Interrupted, RunFailed
from imprint.folder import resume_command
from imprint.track import events
from imprint.train.checkpoint import checkpoints
from imprint.train.shortage import ran_out
from imprint.train.step import NotFinite

# What gloo and NCCL say where the process at the other end is gone.
_GONE = (
    *("Connection closed by peer", "Connection reset by peer", "Connection refused", "Broken pipe"),
    *("remote process exited", "NCCL communicator was aborted", "Socket closed", "Application timeout"),
)
# What went wrong with files, what is expected, and what to do first.
_NO_ROOM = (
    "the run cannot write its files",
    "a disk with room for the model and for four checkpoints",
    "free some space",
)
_NO_FILES = (
    "the run cannot read or write its files",
    "a folder that this user may write into, on a disk that works",
    "mend what is said there",
)


def explained(error: BaseException, path: Path) -> BaseException:
    """What the user is told where a run broke off: as it was, or with how to go on."""
    again = resume_command(path)
    if isinstance(error, signals.Stopped):
        told = signals.stopped(error)
        return Interrupted(told.what, where=str(path), fix=again)
    if isinstance(error, Interrupted):
        return Interrupted(error.what, where=str(path), fix=again)
    if is_lost(error):
        return lost(error, again, str(path))
    if isinstance(error, NotFinite):
        error.fix = (
            f"look at these rows; {again} on_nonfinite=skip leaves such updates out. Where it is not the rows, "
            "begin a new run with a lower learning_rate, or with precision=float32"
        )
        return error
    if is_full(error) and signals.asked():
        return Interrupted(
            "stopped while the disk is full; the last checkpoint is whole",
            where=str(path),
            found=str(error),
            fix=f"free some space, then {again}",
        )
    if isinstance(error, OSError | SafetensorError) or is_full(error):
        what, expected, first = _NO_ROOM if is_full(error) else _NO_FILES
        fix = f"{first}, then go on from the last checkpoint: {again}"
        return RunFailed(what, where=str(path), found=str(error), expected=expected, fix=fix)
    if ran_out(error):
        return RunFailed(
            "memory ran out beside the steps: in the optimizer, a validation or a checkpoint",
            where=str(path),
            found=" ".join(str(error).split())[:300] or type(error).__name__,
            fix=f"free some memory, or begin anew with method=lora; then go on from the last checkpoint: {again}",
        )
    return error


def is_lost(error: BaseException) -> bool:
    """Whether an error says that another process of this run is gone."""
    if not dist.is_initialized() or isinstance(error, ImprintError | OSError):
        return False
    return isinstance(error, RuntimeError) and any(said in str(error) for said in _GONE)


def lost(error: BaseException, again: str, where: str = "") -> ImprintError:
    """What the others say where one process of several has ended: they end as well, at once."""
    if signals.asked():
        return Interrupted("stopped, as the other processes", where=where, fix=again)
    return RunFailed(
        f"another process of this run has ended, and so this one does; go on from the last checkpoint: {again}",
        where=where,
        found=" ".join(str(error).split())[:200],
        fix="see what the other process said (out of memory? killed?); then start as many processes again",
    )


def validated(path: Path) -> dict[str, Any]:
    """The first and the best validation so far of a run that is taken up again: what its end is compared with."""
    found = [event for event in events.read(path / "events.jsonl") if event["kind"] == "validation"]
    best = [event for event in found if event.get("best")]
    kept = {"first_validation": found[:1], "best_validation": best[-1:]}
    return {name: {k: some[0][k] for k in ("step", "loss")} for name, some in kept.items() if some}


def passed_over(folder: Path, chosen: Path | None, about: dict[str, Any]) -> dict[str, Any]:
    """The checkpoints that are newer than the chosen one, and what is wrong with each."""
    found = {}
    for path, fault in checkpoints(folder, about):
        if path == chosen:
            break
        found[path.name] = fault or "the best one of its time does not verify"
    return {"passed_over": found} if found else {}
