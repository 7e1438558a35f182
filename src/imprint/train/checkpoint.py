"""Checkpoints that a power cut cannot spoil: written aside, read back, synced, renamed; read only if they verify.

    step-000100/
        weights.safetensors     trainable parameters, whole tensors
        optimizer.safetensors   what the optimizer keeps: moments and step counts
        state.json              step and counters
        manifest.json           sizes and hashes of the others, and whose they are; written last

Safetensors and JSON only: nothing that is read here can run code.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from imprint.disk import fault_of, read_manifest, remove
from imprint.disk import file_hash as file_hash
from imprint.disk import is_valid as is_valid
from imprint.disk import seal as seal
from imprint.distributed.shard import copy_whole, local, reshard, whole
from imprint.errors import RunError, RunFailed
from imprint.train.slots import slots_to_tensors, tensors_to_slots
from imprint.train.step import TrainState

ANOTHERS = "it belongs to another run"
PORTION = 32 << 20  # bytes of a file that are read back before it is opened anew
_NAME = re.compile(r"step-(\d{6,})")
_PARTIAL = re.compile(r"step-(\d{6,})\.partial")


@dataclass
class Counters:
    """What a run has done and seen so far; saved with every checkpoint."""

    best_loss: float | None = None
    best_step: int = 0
    waited: int = 0  # validations since the best one
    seconds: float = 0.0
    conversations: int = 0
    tokens: int = 0
    computed_tokens: int = 0
    trained_tokens: int = 0
    replayed: int = 0  # pieces of replay drawn
    replay_weight: float = 0.0  # the sum over the steps of replay's share of the step's weight
    stopped: str = ""  # why training ended before its last step
    skipped: int = 0  # updates that were left out because they were not finite
    skipped_now: int = 0  # of them, those just before this step, one after another
    row_tokens: int = 0  # most tokens of a row, as it is now (see train/budget.py); 0 before the first step
    activation_checkpointing: bool = False  # switched on because memory ran out


@dataclass(frozen=True)
class Snapshot:
    """What a checkpoint will hold, as it was after a step: copies that training no longer changes.

    Three numbers a trained parameter with AdamW, on the main process: 12 bytes each in float32.
    """

    step: int
    best_step: int
    weights: Mapping[str, Tensor]
    optimizer: Mapping[str, Tensor]
    facts: str

    @property
    def num_bytes(self) -> int:
        return sum(t.nbytes for tensors in (self.weights, self.optimizer) for t in tensors.values())


def snapshot(state: TrainState, counters: Counters) -> Snapshot:
    """Copy what a checkpoint holds. Every rank calls this; what the others than the main one get is empty."""
    weights, optimizer = trained_tensors(state.model), optimizer_tensors(state)
    if not state.mesh.is_main:
        weights, optimizer = {}, {}
    slots = [value for kept in state.optimizer.state.values() for value in kept.values()]
    changing = {_place(value) for value in (*state.model.parameters(), *slots) if isinstance(value, Tensor)}

    def own(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: t.clone() if _place(t) in changing else t for name, t in tensors.items()}

    facts = json.dumps({"step": state.step, "counters": asdict(counters)}, indent=1)
    return Snapshot(state.step, counters.best_step, own(weights), own(optimizer), facts)


def _place(tensor: Tensor) -> int:
    return int(local(tensor).untyped_storage().data_ptr())


def save_checkpoint(
    folder: Path,
    state: TrainState,
    counters: Counters,
    keep: set[int],
    about: Mapping[str, Any] | None = None,
) -> Path:
    """Write `folder/step-N` and then remove what `rotate` need not keep. Every rank calls this; the main one writes."""
    taken = snapshot(state, counters)
    path = folder / f"step-{state.step:06d}"
    if state.mesh.is_main:
        write_checkpoint(path, taken, about or {})
        rotate(folder, state.step, keep, about or {})
    state.mesh.wait()
    return path


def write_checkpoint(path: Path, taken: Snapshot, about: Mapping[str, Any]) -> None:
    """A folder that was read back and found equal, or no folder: it gets its name when all is on the disk.

    `about` goes into its manifest: the run that it belongs to, versions, fingerprints. RunFailed, and
    nothing is written, where a number in it is not finite: from such a checkpoint no run can go on.
    """
    if fault_of(path) == "" and is_of(path, about):
        return  # the run was killed after this was done
    _refuse_not_finite(taken)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and read_manifest(path) and not is_of(path, about):
        _move_aside(path)
    partial = path.with_name(path.name + ".partial")
    for stale in (partial, path):
        if stale.is_symlink() or stale.exists():
            remove(stale)
    partial.mkdir(parents=True)
    try:
        for name, tensors in (("weights", taken.weights), ("optimizer", taken.optimizer)):
            file = partial / f"{name}.safetensors"
            save_file(dict(tensors), file, metadata={"format": "pt"})
            _read_back(file, tensors)
        (partial / "state.json").write_text(taken.facts, encoding="utf-8")
        seal(partial, path, {**about, "step": taken.step, "best_step": taken.best_step})
    except Exception:
        shutil.rmtree(partial, ignore_errors=True)  # on a full disk it takes the room that others need
        raise


def _read_back(file: Path, tensors: Mapping[str, Tensor]) -> None:
    """Compare a file with what was written. It is opened anew for each portion: what was read of it is mapped, and
    counts as this process's memory for as long as it is open."""
    left = list(tensors)
    while left:
        with safe_open(file, framework="pt") as written:
            names, read = set(written.keys()), 0
            while left and read < PORTION:
                name = left.pop()
                if name not in names or not torch.equal(written.get_tensor(name), tensors[name]):
                    raise OSError(f"{file}: what was read back is not what was written ({name})")
                read += tensors[name].nbytes


def _refuse_not_finite(taken: Snapshot) -> None:
    for tensors in (taken.weights, taken.optimizer):
        for name, tensor in tensors.items():
            if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                raise RunFailed(
                    f"the weights or the optimizer's state are not finite after step {taken.step:,}",
                    found=name,
                    expected="finite numbers; no checkpoint was made of them, and the one before is kept",
                    fix="begin a new run with a lower learning_rate, or with precision=float32",
                )


def is_of(path: Path, about: Mapping[str, Any]) -> bool:
    """Whether a checkpoint belongs to the run that `about` names."""
    return (read_manifest(path) or {}).get("run") == about.get("run")


def _move_aside(path: Path) -> None:
    """What another run has left in this folder is nothing to write over."""
    number = 1
    while (aside := path.with_name(f"{path.name}.of-another-run-{number}")).exists():
        number += 1
    os.rename(path, aside)


def rotate(folder: Path, step: int, keep: set[int], about: Mapping[str, Any]) -> None:
    """Remove this run's checkpoints but that of `step`, those in `keep`, and one before all of them.

    The one before is there for the case that one of the others is damaged on the disk. Where a best one
    is kept (`keep` is not empty), it has to be usable alone: its own best one is itself, or none yet.
    """
    kept = {step} | {wanted for wanted in keep if wanted}
    found: dict[int, tuple[Path, int]] = {}
    for path in folder.iterdir():
        if _PARTIAL.fullmatch(path.name):
            remove(path)
        elif _NAME.fullmatch(path.name) and (manifest := read_manifest(path)) and is_of(path, about):
            found[manifest["step"]] = (path, manifest["best_step"])
    alone = [n for n, (_, best) in found.items() if n < min(kept) and (not keep or best in (0, n))]
    kept |= {max(alone)} if alone else set()
    for number, (path, _) in sorted(found.items()):
        if number not in kept:
            remove(path)


def checkpoints(folder: Path, about: Mapping[str, Any] | None = None) -> Iterator[tuple[Path, str]]:
    """The checkpoints in a folder, the newest first, each with what is wrong with it (nothing: it verifies).

    Their manifests say how new they are; of one that is damaged, only its name can. Each is read when
    it is asked for.
    """
    found: list[tuple[int, Path]] = []
    for path in folder.glob("step-*"):
        if named := _NAME.fullmatch(path.name):
            found.append((int((read_manifest(path) or {"step": named[1]})["step"]), path))
    for _, path in sorted(found, reverse=True):
        fault = fault_of(path)
        if not fault and about is not None and not is_of(path, about):
            fault = ANOTHERS
        yield path, fault


def latest_checkpoint(
    folder: Path, with_best: bool = False, about: Mapping[str, Any] | None = None
) -> Path | None:
    """The newest checkpoint that verifies; damaged ones, and those of other runs than `about`, are passed over.

    `with_best`: the best checkpoint of its time has to verify too, because the run will end with it.
    """
    for path, fault in checkpoints(folder, about):
        if not fault and (not with_best or is_valid(best_of(path))):
            return path
    return None


def best_of(path: Path) -> Path:
    """The checkpoint that was the best when `path` was saved; `path` itself where none was yet."""
    best = (read_manifest(path) or {})["best_step"]
    return path.with_name(f"step-{best:06d}") if best else path


def load_checkpoint(path: Path, state: TrainState) -> Counters:
    """Put a checkpoint's weights, optimizer and step into `state`; its counters."""
    load_weights(path, state.model)
    kept = load_file(path / "optimizer.safetensors")
    tensors_to_slots(kept, state.optimizer, _names(state))
    if state.loss_scale:
        state.loss_scale.restore(kept)
    facts = json.loads((path / "state.json").read_text(encoding="utf-8"))
    state.step = facts["step"]
    return Counters(**facts["counters"])


@torch.no_grad()
def load_weights(path: Path, model: nn.Module) -> None:
    """Put a checkpoint's weights into a model with the same trainable parameters; RunError otherwise."""
    saved = load_file(path / "weights.safetensors")
    wanted = dict(_trained(model))
    if saved.keys() != wanted.keys() or any(saved[k].shape != wanted[k].shape for k in wanted):
        different = sorted(saved.keys() ^ wanted.keys()) or [
            k for k in wanted if saved[k].shape != wanted[k].shape
        ]
        raise RunError(
            "the checkpoint does not belong to this model",
            where=str(path),
            found=f"{len(different)} parameters differ, the first is {different[0]}",
            fix="resume with the model that the run began with",
        )
    for name, parameter in wanted.items():
        copy_whole(parameter, saved[name])


def trained_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Every trainable parameter as a whole tensor on the CPU, by name."""
    return {name: whole(p.detach()).cpu().contiguous() for name, p in _trained(model)}


def optimizer_tensors(state: TrainState) -> dict[str, Tensor]:
    """What the optimizer keeps for each parameter, moments and step counts, and the loss scale of float16."""
    scale = state.loss_scale.tensors() if state.loss_scale else {}
    return {**slots_to_tensors(state.optimizer, _names(state)), **scale}


def _names(state: TrainState) -> dict[int, str]:
    return {id(parameter): name for name, parameter in _trained(state.model)}


def _trained(model: nn.Module) -> list[tuple[str, Any]]:
    reshard(model)  # the optimizer knows the shards
    return [(name, p) for name, p in model.named_parameters() if p.requires_grad]
