"""What a model folder holds, as one hash: every byte of its weights, tokenizer and settings.

Of a large file the hash is kept in the cache, under its size, times and inode: what is written anew, copied or moved
is read again, what lies where it lay is not. `IMPRINT_CACHE=off` keeps nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

from imprint.cache import cache_folder
from imprint.disk import file_hash, write_text

KINDS = (".json", ".safetensors", ".jinja", ".model")
LARGE = 64 << 20  # bytes from which on a hash is kept: to read fewer takes no time
AT_ONCE = 8  # files


def model_fingerprint(folder: Path) -> str:
    """SHA-256 over names, sizes and contents of the files that make the model what it is."""
    files = [path for path in sorted(folder.iterdir()) if path.suffix in KINDS]
    digest = hashlib.sha256()
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for path, content in zip(files, pool.map(_hash, files), strict=True):
            digest.update(f"{path.name}:{path.stat().st_size}:{content}:".encode())
    return digest.hexdigest()


def _hash(path: Path) -> str:
    path = path.resolve()  # the hub's cache links to its files
    facts = path.stat()
    if facts.st_size < LARGE:
        return file_hash(path)
    return _kept(path, (facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns, facts.st_ino, facts.st_dev))


@lru_cache(maxsize=1024)  # a run asks more than once, also where there is no cache
def _kept(path: Path, state: tuple[int, ...]) -> str:
    with suppress(OSError, ValueError, KeyError, TypeError):  # no cache, or an entry that is damaged
        kept = json.loads(_entry(path).read_text(encoding="utf-8"))
        if kept["state"] == list(state):
            return str(kept["sha256"])
    found = file_hash(path)
    with suppress(OSError):  # read again next time
        entry = _entry(path)
        entry.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_text(entry, json.dumps({"state": state, "sha256": found}))
    return found


def _entry(path: Path) -> Path:
    folder = cache_folder()
    if folder is None:
        raise OSError("IMPRINT_CACHE=off")
    return folder.absolute() / "hashes" / hashlib.sha256(os.fsencode(path)).hexdigest()
