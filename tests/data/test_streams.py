"""Streams: kept on disk before anything is read from them, with what holds for files; endless ones are refused."""

import io
import os
import sys
from collections import namedtuple
from pathlib import Path

import pytest

from imprint.data import piped as piped_module
from imprint.data.gather import fingerprint, read
from imprint.data.ledger import Ledger
from imprint.data.load import load
from imprint.data.locate import locate
from imprint.errors import DataError
from imprint.recipe import DataSource

ROW = b'{"prompt": "a", "response": "b"}\n'
STDIN = DataSource(path="-")


class Endless(io.RawIOBase):
    """What a generator that never stops puts into a pipe; it counts what was taken."""

    taken = 0

    def readable(self):
        return True

    def readinto(self, into):
        text = (ROW * (len(into) // len(ROW) + 1))[: len(into)]
        into[:] = text
        self.taken += len(text)
        return len(text)


@pytest.fixture
def stream(monkeypatch):
    """Puts a raw stream on standard input."""

    def stream(raw):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(raw)))
        piped_module.spooled.cache_clear()
        return raw

    yield stream
    piped_module.spooled.cache_clear()


def leftovers():
    import tempfile

    return set(Path(tempfile.gettempdir()).glob("imprint-*/standard-input*"))


def test_a_stream_without_an_end_is_refused(stream, monkeypatch):
    monkeypatch.setattr(piped_module, "MOST", 3 << 20)
    before, endless = leftovers(), stream(Endless())
    with pytest.raises(DataError, match=r"(?s)does not end.*0\.0 GB without.*head -n 1000000") as caught:
        fingerprint(STDIN)
    assert endless.taken <= 5 << 20  # no more than the limit and what was read ahead
    del caught
    assert leftovers() <= before  # and nothing of it stays on the disk


def test_a_stream_stops_before_the_disk_is_full(stream, monkeypatch):
    usage = namedtuple("usage", "total used free")
    free = iter(range(10**9 + (4 << 20), 0, -(1 << 20)))
    monkeypatch.setattr(piped_module.shutil, "disk_usage", lambda _: usage(0, 0, next(free)))
    endless = stream(Endless())
    with pytest.raises(DataError, match=r"(?s)1\.0 GB are free.*1\.0 GB stay free.*TMPDIR=FOLDER"):
        fingerprint(STDIN)
    assert endless.taken <= 7 << 20


def test_a_stream_that_ends_is_data_like_a_file(stream, tmp_path):
    rows = b"".join(b'{"prompt": "q%d", "response": "r"}\n' % i for i in range(40))
    stream(io.BytesIO(rows))
    (tmp_path / "rows.jsonl").write_bytes(rows)
    wanted = dict(validation=0.25, bad_rows="stop", consecutive_replies="merge", seed=3)
    piped = load([STDIN], ledger=Ledger(), **wanted)
    filed = load([DataSource(path=str(tmp_path / "rows.jsonl"))], ledger=Ledger(), **wanted)
    assert piped.fingerprint == filed.fingerprint
    for a, b in ((piped.train, filed.train), (piped.validation, filed.validation)):
        assert [c.messages for c in a] == [c.messages for c in b]
    assert piped.train[7].messages == filed.train[7].messages  # in any order, as often as is asked
    assert list(piped.prompts) == list(filed.prompts)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_named_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "rows.jsonl")  # nobody writes into it: to open it would wait for ever
    for use in (locate, fingerprint, read):
        with pytest.raises(
            DataError, match=r"(?s)rows\.jsonl: .*a pipe or a device.*COMMAND \| imprint … data=-"
        ):
            use(DataSource(path=str(tmp_path / "rows.jsonl")))


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="this system has no /dev/zero")
def test_a_device_is_refused():
    with pytest.raises(DataError, match=r"a pipe or a device"):
        locate(DataSource(path="/dev/zero"))


def test_pipes_in_a_folder_are_passed_over(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(ROW)
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "b.jsonl")
    for path in (str(tmp_path), f"{tmp_path}/*.jsonl"):
        assert [file.path.name for file in locate(DataSource(path=path)).files] == ["a.jsonl"]
