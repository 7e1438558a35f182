"""Where a source's data lies: a file, a folder, a glob, standard input, a saved dataset, or on the hub."""

from __future__ import annotations

import glob
import os
import re
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from imprint.data.open import ACCEPTED, KINDS, stem_suffix
from imprint.data.piped import standard_input
from imprint.errors import DataError, nearest
from imprint.recipe import DataSource

STDIN = "-"
SAVED = ("state.json", "dataset_dict.json")  # what save_to_disk of `datasets` leaves in a folder
HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
_URL = re.compile(r"([a-z][a-z0-9+.-]+)://(.*)", re.IGNORECASE)
_HUB_URL = re.compile(r"(?:https?://(?:www\.)?(?:huggingface\.co|hf\.co)/|hf://)datasets/([\w.-]+/[\w.-]+)/?")
_FETCH = {"s3": "aws s3 cp {} .", "gs": "gcloud storage cp {} ."}
_SPLITS = re.compile(r"(?:^|[^a-z])(train|training|test|testing|validation|valid|val|dev|eval)(?:[^a-z]|$)")
_SAME = {"training": "train", "testing": "test"} | dict.fromkeys(
    ("valid", "val", "dev", "eval"), "validation"
)
_PAPERS = {
    "readme",
    "license",
    "licence",
    "notice",
    "changelog",
    "requirements",
    "dataset_info",
    "dataset_infos",
}


class File(NamedTuple):
    """A file of a source: where it is, its name in messages, and its name within the source."""

    path: Path
    name: str
    key: str


class Located(NamedTuple):
    """A source's files in order, the names of those beside them that are not read, and whether a folder is
    one that `datasets` saved (its only file is then the folder itself)."""

    files: list[File]
    others: list[str]
    saved: bool = False


def locate(source: DataSource, base: Path | None = None) -> Located | None:
    """The files that `source` names, or None for a hub id; DataError where it names nothing."""
    try:
        return _locate(source.path, base)
    except OSError as error:  # a folder that nobody may read, a name that is too long
        raise DataError(
            "the path cannot be looked at",
            where=source.path if len(source.path) < 200 else f"{source.path[:200]}…",
            found=error.strerror or str(error),
            fix="correct it, or its permissions",
        ) from error


def _locate(given: str, base: Path | None) -> Located | None:
    if given == STDIN:
        return Located([File(standard_input(), "standard input", "")], [])
    _refuse_url(given)
    path = (base or Path()) / Path(os.path.expanduser(given))
    if path.is_file():
        return Located([File(path, given, "")], [])
    if path.exists() and not path.is_dir():
        raise DataError(
            "the data is a pipe or a device, not a file",
            where=given,
            found="nothing that can be read twice, or that need come to an end",
            expected="a file, a folder, a glob, - for standard input, or a hub id",
            fix="pipe it in, where it is kept until this process ends: COMMAND | imprint … data=-",
        )
    if path.is_dir():
        if any((path / name).is_file() for name in SAVED):
            return Located([File(path, given, "")], [], saved=True)
        return _folder(path, given)
    if glob.has_magic(given):
        return _glob(given, base or Path())
    if HUB_ID.fullmatch(given) and stem_suffix(given) not in KINDS:
        return None
    raise DataError("there is no such file", where=given, **_neighbours(path, given))


def names_of(source: DataSource, base: Path | None = None) -> list[str]:
    """The names that places of this source's records may have."""
    found = locate(source, base)
    return [source.path] if found is None else [file.name for file in found.files]


def stamps_of(source: DataSource, base: Path | None = None) -> list[tuple[int, int]]:
    """Bytes and time of change of every file of a source."""
    found = locate(source, base)
    paths: Iterable[Path] = [] if found is None else (file.path for file in found.files)
    if found is not None and found.saved:
        paths = sorted(found.files[0].path.rglob("*"))
    return [(stat.st_size, stat.st_mtime_ns) for stat in (path.stat() for path in paths)]


def absolute(source: DataSource) -> DataSource:
    """The source named so that it is the same from any directory; standard input and hub ids stay."""
    if source.path == STDIN or locate(source) is None:
        return source
    path = Path(os.path.expanduser(source.path))
    if path.exists():
        return source.model_copy(update={"path": str(path.resolve())})
    root, pattern = _root(source.path)
    escaped = glob.escape(str(Path(os.path.expanduser(root)).resolve()))
    return source.model_copy(update={"path": f"{escaped.rstrip('/')}/{pattern}"})


def _folder(path: Path, given: str) -> Located:
    """All readable files in a folder, sorted by their path below it."""
    names = sorted(
        item.relative_to(path).as_posix()
        for item in path.rglob("*")
        if item.is_file() and not any(part.startswith(".") for part in item.relative_to(path).parts)
    )
    data = [name for name in names if _is_data(name)]
    if not data:
        raise DataError(
            "the folder holds no data file",
            where=given,
            found=_listed(names) or "an empty folder",
            expected=f"files: {ACCEPTED}",
            fix="name a folder of data files, or a file",
        )
    _refuse_splits(data, given)
    root = given.rstrip("/") or "/"
    known = set(data)
    files = [File(path / name, f"{root}/{name}".replace("//", "/"), name) for name in data]
    return Located(files, [f"{root}/{name}".replace("//", "/") for name in names if name not in known])


def _is_data(name: str) -> bool:
    stem = Path(name).name.split(".")[0].lower()
    return stem_suffix(name) in KINDS and stem not in _PAPERS


def _refuse_splits(names: list[str], given: str) -> None:
    """DataError where a folder holds test data beside training data: it would be trained on."""
    splits: dict[str, list[str]] = {}
    for name in names:
        words = [_SAME.get(word, word) for word in _SPLITS.findall(name.lower())]
        if words:
            splits.setdefault(words[-1], []).append(name)
    if len(splits) < 2:
        return
    root, wanted = given.rstrip("/"), splits.get("train") or next(iter(splits.values()))
    if len(wanted) == 1:
        fix = f"name the one to train on: {root}/{wanted[0]}"
    else:
        first, last = min(wanted), max(wanted)
        common = first[
            : next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
        ]
        fix = f"name those to train on: data={shlex.quote(f'{root}/{common}*')}"
    raise DataError(
        "the folder holds several splits, and all would be trained on",
        where=given,
        found="; ".join(f"{split}: {_listed(inside, 2)}" for split, inside in splits.items()),
        expected="files of one split",
        fix=f"{fix}\nand hold out another: validation={root}/…" if len(splits) > 1 else fix,
    )


def _root(pattern: str) -> tuple[str, str]:
    """The folder that a glob begins in, as it is called, and the rest of the pattern."""
    parts = pattern.split("/")
    plain = 0
    while plain < len(parts) - 1 and not glob.has_magic(re.sub(r"\[([*?[])\]", "", parts[plain])):
        plain += 1
    root = "/".join(re.sub(r"\[([*?[])\]", r"\1", part) for part in parts[:plain])
    return root or ("/" if pattern.startswith("/") else "."), "/".join(parts[plain:])


def _glob(given: str, base: Path) -> Located:
    root, pattern = _root(given)
    folder = base / Path(os.path.expanduser(root))
    found = sorted(
        {
            Path(name).as_posix()
            for name in glob.iglob(pattern, root_dir=folder, recursive=True)
            if (folder / name).is_file()
        }
    )
    data = [name for name in found if stem_suffix(name) in KINDS]
    if not data:
        here = sorted(item.name for item in folder.iterdir()) if folder.is_dir() else None
        raise DataError(
            "no file matches" if not found else "no file that matches is of a kind that imprint reads",
            where=given,
            found=f"no folder {root}"
            if here is None
            else f"in {root}: {_listed(found or here) or 'nothing'}",
            expected=ACCEPTED,
            fix=_better(pattern, here or [], root),
        )
    prefix = "" if root == "." and not given.startswith("./") else root.rstrip("/") + "/"
    known = set(data)
    files = [File(folder / name, prefix + name, name) for name in data]
    return Located(files, [prefix + name for name in found if name not in known])


def _better(pattern: str, here: list[str], root: str) -> str:
    suffixes = sorted({"".join(Path(name).suffixes[-2:]) for name in here if stem_suffix(name) in KINDS})
    if suffixes and "/" not in pattern:
        return f"write {shlex.quote(f'{root}/*{suffixes[0]}')}, for instance"
    return "correct the pattern; ** stands for any folders, and quotes keep the shell away from it"


def _listed(names: list[str], most: int = 8) -> str:
    return ", ".join(names[:most]) + (f", … ({len(names)})" if len(names) > most else "")


def _neighbours(path: Path, given: str) -> dict[str, str]:
    """What an error says about a missing file: what its folder holds, and the name most like it."""
    if not path.parent.is_dir():
        return {"found": f"no folder {Path(given).parent}", "fix": "correct the folder's name"}
    names = sorted(item.name for item in path.parent.iterdir() if item.is_file())
    stems = {name.partition(".")[0] or name: name for name in reversed(names)}  # alike by more than a suffix
    stem = nearest(path.name.partition(".")[0] or path.name, stems)
    if stem and (
        like := nearest(path.name, [name for name in names if name.startswith(stem)]) or stems[stem]
    ):
        return {"found": f"a file {like!r} in that folder", "fix": f"write {Path(given).with_name(like)}"}
    data = [name for name in names if stem_suffix(name) in KINDS]
    return {"found": _listed(data) or "no data file in its folder", "fix": "correct the path"}


def _refuse_url(given: str) -> None:
    """DataError for an address: imprint fetches nothing itself, and says what does."""
    url = _URL.fullmatch(given)
    if url is None:
        return
    scheme, rest = url[1].lower(), url[2]
    hub = _HUB_URL.match(given)
    name = re.split(r"[?#]", rest)[0].rstrip("/").rpartition("/")[2] or "data.jsonl"
    if hub and "/resolve/" not in given and "/blob/" not in given:
        fix = f"write data={hub[1]}"
    elif scheme in ("http", "https", "ftp"):
        direct = given.replace("/blob/", "/resolve/") if hub else given
        fix = f"download it, then name the file: curl -L -o {shlex.quote(name)} {shlex.quote(direct)}"
    elif scheme == "file":
        fix = f"write {'/' + rest.lstrip('/')}"
    else:
        fix = "download it, then name the file" + (
            f": {_FETCH[scheme].format(shlex.quote(given))}" if scheme in _FETCH else ""
        )
    raise DataError(
        "the data is an address, not a file",
        where=given,
        expected="a file, a folder, a glob, - for standard input, or a hub id",
        fix=fix,
    )
