"""Checkpoints that a power cut cannot spoil: written aside, synced, hashed, renamed; read only if they verify.

    step-000100/
        weights.safetensors     trainable parameters, whole tensors
        optimizer.safetensors   AdamW's moments and step counts
        state.json              step and counters
        manifest.json           sizes and hashes of the others; written last

Safetensors and JSON only: nothing that is read here can run code.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from imprint.distributed.shard import copy_whole, reshard, whole
from imprint.errors import RunError
from imprint.train.step import TrainState

_NAME = re.compile(r"step-(\d{6,})")


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


def save_checkpoint(folder: Path, state: TrainState, counters: Counters, keep: set[int]) -> Path:
    """Write `folder/step-N` and then remove the run's other checkpoints but those of the steps in `keep`.

    Every rank calls this; the main one writes.
    """
    path = folder / f"step-{state.step:06d}"
    tensors = trained_tensors(state.model)
    optimizer = optimizer_tensors(state)
    if state.mesh.is_main and not is_valid(path):
        facts = json.dumps({"step": state.step, "counters": asdict(counters)}, indent=1)
        folder.mkdir(parents=True, exist_ok=True)
        write_aside(
            path,
            {
                "weights.safetensors": tensors,
                "optimizer.safetensors": optimizer,
                "state.json": facts,
            },
        )
        for other in folder.iterdir():
            found = _NAME.fullmatch(other.name)
            if other.name.endswith(".partial") or (found and int(found[1]) not in keep | {state.step}):
                shutil.rmtree(other)
    state.mesh.wait()
    return path


def write_aside(path: Path, files: Mapping[str, Mapping[str, Tensor] | str]) -> None:
    """A folder with these files and their manifest, or no folder: it gets its name when all is on disk."""
    partial = path.with_name(path.name + ".partial")
    for stale in (partial, path):
        shutil.rmtree(stale, ignore_errors=True)
    partial.mkdir(parents=True)
    for name, content in files.items():
        if isinstance(content, str):
            (partial / name).write_text(content, encoding="utf-8")
        else:
            save_file(dict(content), partial / name, metadata={"format": "pt"})
    seal(partial, path)


def seal(partial: Path, path: Path) -> None:
    """Give a finished folder its manifest and then, in one move, its name."""
    manifest = {
        file.relative_to(partial).as_posix(): {"bytes": file.stat().st_size, "sha256": file_hash(file)}
        for file in sorted(partial.rglob("*"))
        if file.is_file() and file.name != "manifest.json"
    }
    (partial / "manifest.json").write_text(json.dumps(manifest, indent=1), encoding="utf-8")
    mode = (partial / "manifest.json").stat().st_mode
    for file in partial.rglob("*"):
        if file.is_file():
            file.chmod(mode)  # safetensors makes files that only their owner can read
        sync(file)
    sync(partial)
    os.replace(partial, path)
    sync(path.parent)


def sync(path: Path) -> None:
    """Force a file's or a folder's content onto the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Replace a small file in one move."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    sync(partial)
    os.replace(partial, path)
    sync(path.parent)


def file_hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_valid(path: Path) -> bool:
    """Whether every file of a sealed folder is there with the size and hash that it was written with."""
    try:
        manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
        return all(
            (path / name).stat().st_size == facts["bytes"] and file_hash(path / name) == facts["sha256"]
            for name, facts in manifest.items()
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def latest_checkpoint(folder: Path, with_best: bool = False) -> Path | None:
    """The checkpoint of the highest step that verifies; damaged ones are passed over.

    `with_best`: the best checkpoint of its time has to verify too, because the run will end with it.
    """
    steps = sorted(
        ((int(found[1]), path) for path in folder.glob("step-*") if (found := _NAME.fullmatch(path.name))),
        reverse=True,
    )
    return next(
        (path for _, path in steps if is_valid(path) and (not with_best or is_valid(best_of(path)))), None
    )


def best_of(path: Path) -> Path:
    """The checkpoint that was the best when `path` was saved; `path` itself where none was yet."""
    best = json.loads((path / "state.json").read_text(encoding="utf-8"))["counters"]["best_step"]
    return path.with_name(f"step-{best:06d}") if best else path


def load_checkpoint(path: Path, state: TrainState) -> Counters:
    """Put a checkpoint's weights, optimizer and step into `state`; its counters."""
    load_weights(path, state.model)
    optimizer = load_file(path / "optimizer.safetensors")
    names = _names(state)
    for group in state.optimizer.param_groups:
        for parameter in group["params"]:
            if f"{names[id(parameter)]}/step" not in optimizer:
                continue  # it never had a gradient: a part of the model that text does not reach
            slots = {}
            for key in ("exp_avg", "exp_avg_sq"):
                slots[key] = torch.zeros_like(parameter)
                with torch.no_grad():
                    copy_whole(slots[key], optimizer[f"{names[id(parameter)]}/{key}"])
            step = optimizer[f"{names[id(parameter)]}/step"]
            state.optimizer.state[parameter] = {"step": step.to(parameter.device), **slots}
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
    """AdamW's moments and step counts by parameter."""
    names = _names(state)
    return {
        f"{names[id(parameter)]}/{key}": whole(value.detach()).cpu().contiguous()
        for parameter, slots in state.optimizer.state.items()
        for key, value in slots.items()
    }


def _names(state: TrainState) -> dict[int, str]:
    return {id(parameter): name for name, parameter in _trained(state.model)}


def _trained(model: nn.Module) -> list[tuple[str, Any]]:
    reshard(model)  # the optimizer knows the shards
    return [(name, p) for name, p in model.named_parameters() if p.requires_grad]
