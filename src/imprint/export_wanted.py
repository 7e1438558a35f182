"""What a person wants of an export: its form, its settings, its place, and the command that makes it."""

from __future__ import annotations

import os
import platform
import re
import shlex
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from glob import escape
from pathlib import Path

import torch

from imprint.errors import RecipeError, RunError
from imprint.export.standard import Trained

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
PARTIAL = ".partial-"  # NAME.partial-HOST-PID: an export that is being made


@dataclass(frozen=True)
class Wanted:
    """What the user asked for; `options` are settings of the target."""

    to: str = "hf"
    out: Path | None = None
    base: Path | None = None
    dtype: str | None = None
    scale: float = 1.0
    adapter_only: bool = False
    options: Mapping[str, str] = field(default_factory=dict)


def refuse_meaningless(run: Path, trained: Trained, wanted: Wanted) -> None:
    """RecipeError where settings have no effect together."""
    if wanted.dtype is not None and wanted.dtype not in DTYPES:
        raise RecipeError(
            "there is no such type", where="--dtype", found=wanted.dtype, expected=", ".join(DTYPES)
        )
    if not wanted.adapter_only:
        return
    problem = ""
    if not trained.is_adapter:
        problem = f"{run} trained every weight: it has no adapter"
    elif wanted.to != "hf":
        problem = f"--to {wanted.to} takes a whole model"
    elif wanted.dtype or wanted.scale != 1:
        problem = "the adapter is handed over as it is, so --dtype and --scale have no effect"
    if problem:
        raise RecipeError(problem, where="--adapter-only", fix="leave one of them away")


def default_folder(run: Path, wanted: Wanted) -> Path:
    return wanted.out or run / "export" / ("adapter" if wanted.adapter_only else wanted.to)


def free_folder(run: Path, wanted: Wanted) -> Path:
    """Where the export goes; RunError where something is there already."""
    named_folder = default_folder(run, wanted)
    if named_folder.exists():
        raise RunError(
            "the export exists already",
            where=str(named_folder),
            expected="a folder that does not exist yet: nothing is written over",
            fix="choose another one: --out FOLDER",
        )
    return named_folder


def failed_name(out: Path) -> Path:
    """A free name for an export that did not pass."""
    names = (out.with_name(f"{out.name}.failed{'' if n == 1 else f'-{n}'}") for n in range(1, 10_000))
    return next(name for name in names if not name.exists())


def partial_folder(out: Path) -> Path:
    """Where an export is made before it gets its name: of this process, so nobody else's."""
    return out.with_name(f"{out.name}{PARTIAL}{_host()}-{os.getpid()}")


def _host() -> str:
    return re.sub(r"[^A-Za-z0-9]+", "_", platform.node()) or "here"


def remove_leftovers(out: Path) -> list[Path]:
    """Take away what killed exports to the same place have left, and tell what.

    Only those of processes of this machine that are gone: another machine on the same disk may still be writing.
    """
    ended = []
    for path in sorted(out.parent.glob(f"{escape(out.name)}{PARTIAL}{_host()}-*")):
        found = re.fullmatch(r".*-(\d+)(\.merged)?", path.name)
        # of this process itself: in a container, the number of a killed one comes again
        if found and (int(found[1]) == os.getpid() or not is_running(int(found[1]))):
            shutil.rmtree(path)
            ended.append(path)
    return ended


def is_running(process: int) -> bool:
    """Whether there is a process of this number; where that cannot be asked, there may be."""
    if os.name != "posix":  # there, os.kill would end it
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def command(run: Path, wanted: Wanted) -> str:
    """What to type to make this export."""
    words = ["imprint", "export", str(run)]
    if wanted.adapter_only:
        words.append("--adapter-only")
    elif wanted.to != "hf":
        words += ["--to", wanted.to]
    words += ["--dtype", wanted.dtype] if wanted.dtype else []
    words += ["--scale", f"{wanted.scale:g}"] if wanted.scale != 1 else []
    words += ["--base", str(wanted.base)] if wanted.base else []
    words += ["--out", str(wanted.out)] if wanted.out else []
    return shlex.join([*words, *(f"{key}={value}" for key, value in wanted.options.items())])
