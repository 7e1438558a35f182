"""An entry is found whole or not at all, whatever happened to it, and whoever writes at the same time."""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import imprint.cache as cache
from conftest import environment
from imprint.cache import cache_folder, cached, is_whole, key_of
from imprint.errors import DataError, RunError

KEY = key_of({"of": "the tests"})
CONTENT = {"a.txt": "what was prepared" * 100, "b.json": "{}", "empty": ""}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("IMPRINT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "prepared"


class Maker:
    """Makes CONTENT, reads it, and counts how often."""

    def __init__(self, fails=None):
        self.made, self.fails = 0, fails

    def make(self, path):
        self.made += 1
        for name, text in CONTENT.items():
            (path / name).write_text(text)
        if self.fails is not None:
            raise self.fails

    def read(self, path, keep):
        return {file.name: file.read_text() for file in path.iterdir() if file.name != "manifest.json"}

    def get(self, key=KEY):
        value, origin = cached(key, self.make, self.read)
        assert value == CONTENT
        return origin


def test_the_second_time_nothing_is_made(folder):
    maker = Maker()
    first, second = maker.get(), maker.get()
    assert maker.made == 1
    assert (first.taken, second.taken) == (False, True)
    assert first.folder == second.folder == folder / KEY
    assert abs((second.created - first.created).total_seconds()) < 60
    assert [path.name for path in folder.iterdir()] == [KEY]
    other = key_of({"of": "others"})
    assert not maker.get(other).taken
    assert maker.made == 2


def test_only_the_owner_can_read_it(folder):
    Maker().get()
    assert folder.stat().st_mode & 0o777 == (folder / KEY).stat().st_mode & 0o777 == 0o700
    assert {file.stat().st_mode & 0o777 for file in (folder / KEY).iterdir()} == {0o600}


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


SPOILT = {
    "a byte flipped": lambda entry: flip(entry / "a.txt"),
    "truncated": lambda entry: os.truncate(entry / "a.txt", 10),
    "emptied": lambda entry: os.truncate(entry / "b.json", 0),
    "longer": lambda entry: (entry / "empty").write_text("x"),
    "a file gone": lambda entry: (entry / "empty").unlink(),
    "no manifest": lambda entry: (entry / "manifest.json").unlink(),
    "half a manifest": lambda entry: os.truncate(entry / "manifest.json", 30),
    "an empty manifest": lambda entry: (entry / "manifest.json").write_text("{}"),
    "a manifest of something else": lambda entry: (entry / "manifest.json").write_text("[1]"),
    "all gone": lambda entry: [file.unlink() for file in entry.iterdir()],
}


@pytest.mark.parametrize("what", SPOILT)
def test_a_spoilt_entry_is_made_anew(folder, what):
    maker = Maker()
    maker.get()
    assert is_whole(folder / KEY)
    SPOILT[what](folder / KEY)
    assert not is_whole(folder / KEY)
    assert not maker.get().taken
    assert maker.get().taken
    assert maker.made == 2
    assert [path.name for path in folder.iterdir()] == [KEY]


def test_a_file_in_its_place_is_replaced(folder):
    folder.mkdir(parents=True)
    (folder / KEY).write_text("no folder")
    maker = Maker()
    assert not maker.get().taken
    assert maker.get().taken


def test_every_byte_counts(folder):
    """Flip each byte of a small entry in turn: none goes unnoticed but white space in the manifest."""
    Maker().get()
    for file in (folder / KEY).iterdir():
        whole = file.read_bytes()
        for at in range(0, len(whole), 7):
            spoilt = bytearray(whole)
            spoilt[at] ^= 4
            file.write_bytes(spoilt)
            assert not is_whole(folder / KEY) or bytes([whole[at]]).isspace(), (file.name, at)
        file.write_bytes(whole)
    assert is_whole(folder / KEY)


def test_what_fails_leaves_nothing(folder):
    with pytest.raises(DataError, match="a bad row"):
        Maker(DataError("a bad row")).get()
    with pytest.raises(KeyboardInterrupt):
        Maker(KeyboardInterrupt()).get()
    assert list(folder.iterdir()) == []


PROGRAM = """
import os, signal, sys
from pathlib import Path
import imprint.cache as cache

where = sys.argv[1]
def kill(*_): os.kill(os.getpid(), signal.SIGKILL)
def make(path):
    (path / "a.txt").write_text("half of it")
    if where == "make": kill()
if where != "make":
    calls, original = 0, getattr(cache, where)
    at = int(sys.argv[2])
    def counted(*given):
        global calls
        calls += 1
        if calls == at: kill()
        return original(*given)
    setattr(cache, where, counted)
cache.cached(sys.argv[3], make, lambda path, keep: None)
print("lived")
"""
KILLED_AT = [("make", 1), ("seal", 1), ("_hash", 1), ("_sync", 1), ("_sync", 2), ("_sync", 3), ("_move", 1)]


@pytest.mark.skipif(sys.platform == "win32", reason="no signal there ends a process at once")
def test_killed_at_any_moment_while_writing(folder):
    """What is left is never taken for an entry, and goes in its time."""
    lives = 0
    for where, call in [*KILLED_AT, ("_sync", 4), ("_sync", 99)]:
        command = [sys.executable, "-c", PROGRAM, where, str(call), key_of({"killed": [where, call]})]
        run = subprocess.run(command, env=environment(), capture_output=True, text=True)
        assert run.returncode == (0 if "lived" in run.stdout else -signal.SIGKILL), run.stderr
        lives += "lived" in run.stdout
        maker = Maker()
        if (where, call) in KILLED_AT:
            assert not maker.get(key_of({"killed": [where, call]})).taken
            assert maker.get(key_of({"killed": [where, call]})).taken
    assert lives == 1
    left = list(folder.glob("*.partial-*"))
    assert len(left) == len(KILLED_AT), "after the last of them it had its name"
    for path in (file for partial in left for file in (partial, *partial.iterdir())):
        os.utime(path, (0, time.time() - cache.ABANDONED - 60))
    Maker().get()
    assert list(folder.glob("*.partial-*")) == []


def test_a_partial_one_that_grows_is_left_alone(folder):
    partial = folder / f"{KEY}.partial-1-x"
    partial.mkdir(parents=True)
    (partial / "growing").write_text("x")
    os.utime(partial, (0, 0))  # its files were made long ago, and one of them was written just now
    Maker().get()
    assert partial.is_dir()


def test_an_interrupted_system_leaves_no_half_entry(folder, monkeypatch):
    """Everything is on disk before the manifest is written, and the manifest before the name is given."""
    told = []
    for name in ("_sync", "_move"):
        original = getattr(cache, name)
        monkeypatch.setattr(
            cache,
            name,
            lambda path, *more, n=name, f=original: (told.append((n, path.name)), f(path, *more))[1],
        )
    Maker().get()
    names = [name for _, name in told]
    assert set(names[:3]) == set(CONTENT)
    assert names[3] == "manifest.json"
    assert told[5][0] == "_move"
    assert told[-1] == ("_sync", "prepared")


def _in_process(folder, barrier, results):
    os.environ["IMPRINT_CACHE"] = folder
    maker = Maker()
    barrier.wait()
    results.put([maker.get().taken for _ in range(5)])


def test_processes_that_write_the_same_at_once(folder):
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(3), context.Queue()
    given = (str(folder.parent), barrier, results)
    processes = [context.Process(target=_in_process, args=given) for _ in range(3)]
    for process in processes:
        process.start()
    found = [results.get(timeout=60) for _ in processes]
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert all(taken[1:] == [True] * 4 for taken in found), found
    assert [path.name for path in folder.iterdir()] == [KEY]
    assert is_whole(folder / KEY)


def test_writing_while_another_writes(folder):
    """Both prepare; the second to finish takes what is there, and its own goes."""
    first, second = Maker(), Maker()
    inside, go_on = threading.Event(), threading.Event()
    original = first.make

    def slow(path):
        original(path)
        inside.set()
        assert go_on.wait(30)

    first.make = slow
    origins = []
    thread = threading.Thread(target=lambda: origins.append(first.get()))
    thread.start()
    assert inside.wait(30)
    origins.append(second.get())
    kept = (folder / KEY).stat().st_ino
    go_on.set()
    thread.join(30)
    assert [origin.taken for origin in origins] == [False, False]
    assert (first.made, second.made) == (1, 1)
    assert (folder / KEY).stat().st_ino == kept
    assert [path.name for path in folder.iterdir()] == [KEY]


def test_off_keeps_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("IMPRINT_CACHE", "off")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    maker, places = Maker(), []
    original = maker.make
    maker.make = lambda path: (places.append(path), original(path))
    for _ in range(2):
        origin = maker.get()
        assert (origin.taken, origin.folder) == (False, None)
        assert "off" in origin.note
    assert len(set(places)) == 2
    assert not any(path.exists() for path in places), "gone with their last reader"
    assert list(tmp_path.iterdir()) == []


def test_where_the_cache_is(monkeypatch):
    for name in ("IMPRINT_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/home/somebody")
    monkeypatch.setenv("USERPROFILE", "/home/somebody")
    assert cache_folder() == Path("/home/somebody/.cache/imprint")
    monkeypatch.setenv("XDG_CACHE_HOME", "/large")
    assert cache_folder() == Path("/large/imprint")
    monkeypatch.setenv("IMPRINT_CACHE", "~/mine")
    assert cache_folder() == Path("/home/somebody/mine")
    monkeypatch.setenv("IMPRINT_CACHE", "off")
    assert cache_folder() is None


def test_a_cache_that_cannot_be_made_is_done_without(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("IMPRINT_CACHE", str(tmp_path / "file" / "cache"))
    origin = Maker().get()
    assert (origin.taken, origin.folder) == (False, None)
    assert "cannot be used" in origin.note


def test_a_full_disk_is_done_without(folder, monkeypatch):
    """The entry finds no room, the temporary folder does."""
    full = OSError(errno.ENOSPC, "No space left on device")
    maker = Maker()
    original = maker.make

    def make(path):
        original(path)
        if path.parent == folder:
            raise full

    maker.make = make
    origin = maker.get()
    assert (origin.taken, origin.folder) == (False, None)
    assert "No space left" in origin.note
    assert list(folder.iterdir()) == []
    with pytest.raises(RunError, match="IMPRINT_CACHE=FOLDER"):
        Maker(full).get()
    with pytest.raises(OSError, match="another error"):
        Maker(OSError("another error")).get()


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_cache_that_can_only_be_read(folder):
    maker = Maker()
    maker.get()
    folder.chmod(0o500)
    try:
        assert maker.get().taken
        assert maker.get(key_of({"of": "others"})).folder is None
    finally:
        folder.chmod(0o700)


def test_what_is_not_used_goes(folder, monkeypatch):
    keys = [key_of({"number": i}) for i in range(4)]
    maker = Maker()
    for key in keys[:3]:
        maker.get(key)
    stranger = folder / "not-ours"
    stranger.mkdir()
    long_ago = time.time() - cache.UNUSED - 60
    for path in (folder / keys[0], folder / keys[1], stranger):
        os.utime(path, (long_ago, long_ago))
    maker.get(keys[1])  # used again, so it stays
    maker.get(keys[3])
    assert {path.name for path in folder.iterdir()} == {*keys[1:], "not-ours"}


def test_all_together_stay_below_a_size(folder, monkeypatch):
    keys = [key_of({"number": i}) for i in range(5)]
    maker = Maker()
    for age, key in enumerate(keys[:4]):
        maker.get(key)
        used = time.time() - 1000 + 100 * age
        os.utime(folder / key, (used, used))
    size = sum(file.stat().st_size for file in (folder / keys[0]).iterdir())
    maker.get(keys[0])  # the newest use now
    monkeypatch.setattr(cache, "LARGEST", 3 * size + size // 2)
    maker.get(keys[4])
    assert {path.name for path in folder.iterdir()} == {keys[0], keys[3], keys[4]}
    monkeypatch.setattr(cache, "LARGEST", 0)
    maker.get(keys[1])
    assert {path.name for path in folder.iterdir()} == {keys[1]}, "what is being used stays"


def test_one_that_goes_while_it_is_opened_is_made_anew(folder):
    maker = Maker()
    maker.get()
    original, calls = maker.read, []

    def read(path, keep):
        calls.append(path)
        if len(calls) == 1:
            raise FileNotFoundError(path)
        return original(path, keep)

    maker.read = read
    assert not maker.get().taken
    assert maker.made == 2


def test_the_key_is_of_all_its_parts(monkeypatch):
    parts = {"a": [1, {"x": None}], "b": "text"}
    different = [key_of(parts), key_of({**parts, "a": [1, {"x": 0}]}), key_of({**parts, "c": ""})]
    monkeypatch.setattr(cache, "code_version", lambda: "other code")
    different.append(key_of(parts))
    assert len(set(different)) == len(different)
    assert key_of(dict(reversed(parts.items()))) == different[-1]


def test_the_code_version_is_of_the_code(tmp_path, monkeypatch):
    """Of every file that reads or renders, presets too, and of the packages that they use."""
    import shutil

    import imprint

    source = Path(imprint.__file__).parent
    copy = tmp_path / "imprint"
    shutil.copytree(source, copy, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(imprint, "__file__", str(copy / "__init__.py"))

    def now():
        cache.code_version.cache_clear()
        return cache.code_version()

    before = now()
    assert now() == before
    for name in ("data/replies.py", "render/tokens.py", "render/presets/chatml.jinja", "preparation.py"):
        text = (copy / name).read_text()
        (copy / name).write_text(text + "\n")
        assert now() != before, name
        (copy / name).write_text(text)
    (copy / "run.py").write_text("")
    assert now() == before
    (copy / "data" / "new.py").write_text("")
    assert now() != before
    (copy / "data" / "new.py").unlink()
    versions = cache.version
    for package in ("tokenizers", "transformers", "jinja2"):
        other = {package: "0"}
        monkeypatch.setattr(cache, "version", lambda name, other=other: other.get(name) or versions(name))
        assert now() != before, package
    cache.code_version.cache_clear()
