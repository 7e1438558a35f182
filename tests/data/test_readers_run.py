"""Runs on folders, globs and standard input: the same rows as of one file, and the same when resumed elsewhere."""

import gzip
import io
import json
import shutil
import sys

import pytest

from conftest import ROWS, settings, write_rows
from imprint.data import piped


@pytest.fixture
def here(tmp_path, tiny, monkeypatch):
    """A folder with a model, the same rows as one file and as a folder of two; the current directory."""
    (tmp_path / "parts/deep").mkdir(parents=True)
    shutil.copytree(tiny, tmp_path / "model")
    write_rows(tmp_path / "rows.jsonl", ROWS)
    write_rows(tmp_path / "parts/a.jsonl", ROWS[:5])
    rest = "".join(json.dumps(row) + "\n" for row in ROWS[5:])
    (tmp_path / "parts/deep/b.jsonl.gz").write_bytes(gzip.compress(rest.encode()))
    monkeypatch.chdir(tmp_path)
    piped.spooled.cache_clear()
    yield tmp_path
    piped.spooled.cache_clear()


def unfinish(run):
    """A run as it is when it is killed behind its last checkpoint."""
    shutil.rmtree(run / "model")
    events = (run / "events.jsonl").read_text().splitlines(keepends=True)
    (run / "events.jsonl").write_text("".join(line for line in events if '"end"' not in line))


def pipe(monkeypatch, data):
    stream = io.TextIOWrapper(io.BytesIO(data))
    monkeypatch.setattr(sys, "stdin", stream)
    piped.spooled.cache_clear()


def test_a_run_on_many_files_resumes_from_anywhere(here, cli, monkeypatch):
    assert cli("train", *settings("model", "parts/**/*.jsonl*", "run", "max_steps=2")).code == 0
    ledger = json.loads((here / "run/ledger.json").read_text())
    assert ledger["records"]["total"] == len(ROWS)
    assert sorted(ledger["files"].values()) == [5, len(ROWS) - 5]
    assert any(name.endswith("parts/deep/b.jsonl.gz") for name in ledger["files"])
    unfinish(here / "run")
    (here / "elsewhere").mkdir()
    monkeypatch.chdir(here / "elsewhere")
    assert cli("resume", here / "run").code == 0
    unfinish(here / "run")
    (here / "parts/c.jsonl").write_text((here / "rows.jsonl").read_text())
    done = cli("resume", here / "run")
    assert done.code == 2
    assert "the data changed since this run began" in done.err


def test_a_run_on_standard_input_needs_it_again(here, cli, monkeypatch):
    data = (here / "rows.jsonl").read_bytes()
    pipe(monkeypatch, data)
    assert cli("train", *settings("model", "-", "run", "max_steps=2")).code == 0
    ledger = json.loads((here / "run/ledger.json").read_text())
    assert ledger["files"] == {"standard input": len(ROWS)}
    unfinish(here / "run")
    pipe(monkeypatch, b"")
    done = cli("resume", "run")
    assert done.code == 2
    assert "nothing comes in on standard input" in done.err
    assert "the same that it began with" in done.err
    pipe(monkeypatch, data.replace(b"Name", b"Tell"))
    assert "the data changed" in cli("resume", "run").err
    pipe(monkeypatch, data)
    assert cli("resume", "run").code == 0


def test_a_row_of_a_folder_is_shown_by_its_place(here, cli):
    for spec in ("parts/a.jsonl:2", "a.jsonl:2"):
        done = cli("show", "model=model", "data=parts", "template=chatml", "--row", spec)
        assert done.code == 0, done.err
        assert "parts/a.jsonl:2" in done.out
    assert "parts/a.jsonl" in cli("show", "model=model", "data=parts", "--row", "3").err
