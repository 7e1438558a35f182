"""Prepared data on disk, found again by everything that it depends on: docs/decisions/0011.

    FOLDER/prepared/KEY/               what was prepared, and manifest.json: sizes and hashes, written last
    FOLDER/prepared/KEY.partial-…/     what is being written, or was when a process ended

An entry is written aside, forced onto the disk, hashed, and gets its name in one move. It is used
only if every byte is as it was written; any other is made anew. Nobody else can read it.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import platform
import re
import secrets
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import imprint
from imprint.data.spool import Scratch
from imprint.errors import RunError

DAY = 24 * 60 * 60
UNUSED = 30 * DAY  # seconds after which an entry is removed
ABANDONED = DAY  # seconds after which a partial one is
LARGEST = 50 * 10**9  # bytes of all entries together, but for the one that is being used
MANIFEST = "manifest.json"

_KEY = re.compile(r"[0-9a-f]{64}(\.partial-.+)?")

_NO_ROOM = {getattr(errno, name, None) for name in ("ENOSPC", "EDQUOT", "EROFS", "EACCES", "EPERM", "EFBIG")}

T = TypeVar("T")


@dataclass(frozen=True)
class Origin:
    """Where prepared data came from."""

    taken: bool  # from the cache, not prepared anew
    folder: Path | None  # where it lies now; None: in a temporary folder
    created: datetime
    note: str = ""  # why it is not kept


def key_of(parts: Mapping[str, Any]) -> str:
    """The name of an entry: a hash of all that it depends on, and of the code that makes it."""
    whole = {**parts, "code": code_version()}
    return hashlib.sha256(json.dumps(whole, sort_keys=True, default=repr).encode()).hexdigest()


@lru_cache(maxsize=1)
def code_version() -> str:
    """A hash of the source files that read and render, and of the versions of what they use."""
    root = Path(imprint.__file__).parent
    files = [root / "preparation.py", *(root / "data").rglob("*"), *(root / "render").rglob("*")]
    digest = hashlib.sha256()
    for path in sorted(files):
        if path.suffix in (".py", ".jinja"):
            digest.update(f"{path.relative_to(root).as_posix()}\n".encode() + path.read_bytes())
    names = ("tokenizers", "transformers", "jinja2", "pyarrow", "numpy")
    digest.update(json.dumps([platform.python_version(), sys.byteorder, *map(version, names)]).encode())
    return digest.hexdigest()


code_version()  # now, when the code is loaded: an upgrade beneath a running process must not be taken for it


def cache_folder() -> Path | None:
    """IMPRINT_CACHE, else the user's cache folder; None where IMPRINT_CACHE is `off`."""
    given = os.environ.get("IMPRINT_CACHE", "")
    if given == "off":
        return None
    if given:
        return Path(os.path.expanduser(given))
    base = os.environ.get("XDG_CACHE_HOME", "")
    base = base or os.path.expanduser("~/.cache")
    if base.startswith("~"):
        raise OSError("there is no home folder")
    return Path(base) / "imprint"


def cached(key: str, make: Callable[[Path], None], read: Callable[[Path, object], T]) -> tuple[T, Origin]:
    """What `read` finds in the folder that `make` fills for this key, now or in an earlier process.

    `read` gets the folder, and an object that it keeps for as long as it reads there. What `make`
    raises is raised, and nothing is kept; but where the cache cannot be written, a temporary
    folder takes its place. `make` must close all that it opens.
    """
    note = "IMPRINT_CACHE=off"
    try:
        folder = cache_folder()
        if folder is not None:
            return _in_cache(folder.absolute() / "prepared", key, make, read)
    except OSError as error:
        told = [str(error)] if error.strerror is None else [error.strerror, str(error.filename or "")]
        note = ": ".join(["the cache cannot be used", *filter(None, told)])
    scratch = Scratch()
    try:
        make(scratch.path)
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        raise RunError(
            "the prepared data cannot be written",
            where=str(scratch.path),
            found=str(error),
            expected="a disk with room for a few times the data",
            fix="free some space, or name a folder on another disk: IMPRINT_CACHE=FOLDER",
        ) from error
    return read(scratch.path, scratch), Origin(False, None, datetime.now(), note)


def _in_cache(
    folder: Path, key: str, make: Callable[[Path], None], read: Callable[[Path, object], T]
) -> tuple[T, Origin]:
    path = folder / key
    if is_whole(path):
        # another process may remove it meanwhile: then it is made again
        with suppress(OSError):
            value, created = read(path, None), datetime.fromtimestamp((path / MANIFEST).stat().st_mtime)
            with suppress(OSError):  # of another user, or on a disk that is only read
                os.utime(path)  # the time of its last use
            return value, Origin(True, path, created)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    partial = folder / f"{key}.partial-{os.getpid()}-{secrets.token_hex(4)}"
    partial.mkdir(mode=0o700)
    try:
        make(partial)
        seal(partial)
        _move(partial, path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    value = read(path, None)
    remove_old(folder, keep=path)
    return value, Origin(False, path, datetime.now())


def _move(partial: Path, path: Path) -> None:
    """Give a sealed entry its name. One that another process made meanwhile is as good; a spoilt one goes."""
    for _ in range(3):
        try:
            os.rename(partial, path)
        except OSError:
            if is_whole(path):
                return
            _remove(path)
        else:
            _sync(path.parent)
            return
    os.rename(partial, path)


def seal(folder: Path) -> None:
    """Force all files of a folder onto the disk, readable by their owner alone, and then write their manifest."""
    manifest = {}
    for file in sorted(folder.iterdir()):
        file.chmod(0o600)
        manifest[file.name] = {"bytes": file.stat().st_size, "sha256": _hash(file)}
        _sync(file)
    path = folder / MANIFEST
    path.write_text(json.dumps(manifest, indent=1), encoding="utf-8")
    path.chmod(0o600)
    _sync(path)
    _sync(folder)


def is_whole(folder: Path) -> bool:
    """Whether a sealed folder holds every byte with which it was sealed."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        return bool(manifest) and all(
            (folder / name).stat().st_size == facts["bytes"] and _hash(folder / name) == facts["sha256"]
            for name, facts in manifest.items()
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def remove_old(folder: Path, keep: Path) -> None:
    """Remove what nothing used for UNUSED seconds, and then the longest unused until all is below LARGEST."""
    now = time.time()
    entries: list[tuple[float, int, Path]] = []  # last use, bytes, path
    for path in folder.iterdir():
        if not _KEY.fullmatch(path.name) or path == keep:
            continue
        with suppress(OSError):  # another process may be removing it
            partial = path.name != path.name[:64]
            looked_at = [path, *path.iterdir()] if partial else [path]
            used = max(file.stat().st_mtime for file in looked_at)
            if now - used > (ABANDONED if partial else UNUSED):
                _remove(path)
            elif not partial:
                entries.append((used, _size(path), path))
    total = _size(keep) + sum(size for _, size, _ in entries)
    for _, size, path in sorted(entries):
        if total <= LARGEST:
            break
        _remove(path)
        total -= size


def _remove(path: Path) -> None:
    """Take an entry away: first its name, so that nobody finds half of it. In use on Windows, it stays."""
    aside = path.with_name(f"{path.name[:64]}.partial-{secrets.token_hex(4)}")
    with suppress(OSError):
        os.rename(path, aside)
        shutil.rmtree(aside, ignore_errors=True)


def _size(folder: Path) -> int:
    with suppress(OSError):
        return sum(file.stat().st_size for file in folder.iterdir())
    return 0


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    """Force a file's or a folder's content onto the disk."""
    if os.name == "nt" and path.is_dir():  # folders cannot be opened there
        return
    descriptor = os.open(path, os.O_RDWR if path.is_file() else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
