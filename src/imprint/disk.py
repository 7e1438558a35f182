"""Files that neither a power cut nor a full disk can spoil: written aside, synced, hashed, renamed.

A sealed folder has a manifest.json, written last:

    {"files": {NAME: {"bytes": …, "sha256": …}}, …what else was said of it…, "seal": …}

`seal` is the hash of the manifest's own content, so that a damaged manifest is noticed as well.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from imprint import signals

MANIFEST = "manifest.json"
PATIENCE = 600.0  # seconds that a full disk is waited for
PAUSE = 2.0  # seconds between two tries

_FULL = {getattr(errno, name, None) for name in ("ENOSPC", "EDQUOT")} - {None}
_SAID = ("No space left on device", "Disk quota exceeded", *(f"os error {number}" for number in _FULL))

T = TypeVar("T")


# ---- a full disk


def is_full(error: BaseException) -> bool:
    """Whether an error says that the disk is full; safetensors has an exception of its own for it."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in _FULL
    return any(said in str(error) for said in _SAID)


def patiently(
    work: Callable[[], T], tell: Callable[[str], None], given_up: Callable[[], bool] = signals.asked
) -> T:
    """What `work` returns; where the disk is full, it is called again until there is room.

    The user is told when waiting begins and when it ends. After PATIENCE seconds, or as soon as `given_up`
    (by default: this process was told to stop), the error is raised.
    """
    begun: float | None = None
    while True:
        try:
            done = work()
        except Exception as error:
            now = time.monotonic()
            begun_at = now if begun is None else begun
            if not is_full(error) or given_up() or now - begun_at >= PATIENCE:
                raise
            if begun is None:
                tell(
                    f"the disk is full ({' '.join(str(error).split())[:160]}): waiting up to "
                    f"{PATIENCE / 60:.3g} minutes for room; free some, and the run goes on by itself"
                )
            begun = begun_at
            pause(PAUSE, given_up)
            continue
        if begun is not None:
            tell(f"there is room on the disk again, after {time.monotonic() - begun:.0f} s")
        return done


def pause(seconds: float, given_up: Callable[[], bool]) -> None:
    """Wait, but not beyond the moment in which the user gives up."""
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0 and not given_up():
        time.sleep(min(left, 0.05))


# ---- files and folders


def sync(path: Path) -> None:
    """Force a file's or a folder's content onto the disk."""
    if os.name == "nt" and path.is_dir():  # folders cannot be opened there
        return
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Replace a small file in one move; where that fails, nothing is left beside it."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, content: bytes) -> None:
    partial = path.with_name(path.name + ".partial")
    try:
        partial.write_bytes(content)
        sync(partial)
        os.replace(partial, path)
    except OSError:
        partial.unlink(missing_ok=True)  # on a full disk it takes the room that others need
        raise
    sync(path.parent)


def file_hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def seal(partial: Path, path: Path, about: Mapping[str, Any] | None = None) -> None:
    """Give a finished folder its manifest, with what is said `about` it, and then, in one move, its name."""
    files = {}
    for file in sorted(partial.rglob("*")):
        if file.is_file() and file.name != MANIFEST:
            files[file.relative_to(partial).as_posix()] = _facts(file)
    (partial / MANIFEST).write_text(_sealed({**(about or {}), "files": files}), encoding="utf-8")
    mode = (partial / MANIFEST).stat().st_mode
    for file in partial.rglob("*"):
        if file.is_file():
            file.chmod(mode)  # safetensors makes files that only their owner can read
        sync(file)
    sync(partial)
    os.replace(partial, path)
    sync(path.parent)


def replace_text(folder: Path, name: str, text: str) -> None:
    """Write a small file into a folder. Where that is sealed, and whole, its manifest then knows the new file."""
    whole = read_manifest(folder) if is_valid(folder) else None
    write_text(folder / name, text)
    if whole is not None:
        files = {**whole["files"], name: _facts(folder / name)}
        write_text(folder / MANIFEST, _sealed({**whole, "files": files}))


def read_manifest(path: Path) -> dict[str, Any] | None:
    """The manifest of a sealed folder as it was written; None where there is none, or it is damaged."""
    try:
        found = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        written = found.pop("seal")
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return found if isinstance(found.get("files"), dict) and written == _digest(found) else None


def fault_of(path: Path) -> str:
    """What is wrong with a sealed folder, in words; nothing where each file has the size and hash that it had."""
    manifest = read_manifest(path)
    if manifest is None:
        return f"its {MANIFEST} is missing or damaged"
    try:
        for name, facts in manifest["files"].items():
            if not (path / name).is_file():
                return f"{name} is missing"
            if (path / name).stat().st_size != facts["bytes"]:
                return f"{name} has {(path / name).stat().st_size:,} bytes, not {facts['bytes']:,}"
            if file_hash(path / name) != facts["sha256"]:
                return f"{name} is damaged: it has another hash"
    except (OSError, KeyError, TypeError) as error:
        return f"it cannot be read ({error})"
    return ""


def is_valid(path: Path) -> bool:
    """Whether every file of a sealed folder is there with the size and hash that it was written with."""
    return not fault_of(path)


def remove(path: Path) -> None:
    """Take a sealed folder away: first its manifest, so that no half of it is ever taken for a whole.

    Of one that was moved elsewhere and linked to, only the link.
    """
    if path.is_symlink():
        path.unlink()
        return
    (path / MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(path)


def _facts(file: Path) -> dict[str, Any]:
    return {"bytes": file.stat().st_size, "sha256": file_hash(file)}


def _sealed(content: Mapping[str, Any]) -> str:
    """The text of a manifest with its seal."""
    return json.dumps({**content, "seal": _digest(content)}, indent=1)


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
