"""The fingerprint of a model folder: every byte counts, and a large file is not read twice."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from conftest import build_model
from imprint.model import fingerprint
from imprint.model.fingerprint import model_fingerprint


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return build_model(tmp_path / "model")


def test_the_fingerprint_changes_with_a_byte(folder: Path) -> None:
    first = model_fingerprint(folder)
    assert model_fingerprint(folder) == first
    (folder / "README.md").write_text("words")
    assert model_fingerprint(folder) == first
    seen = {first}
    for name in ("model.safetensors", "config.json", "generation_config.json"):
        path = folder / name
        data = bytearray(path.read_bytes())
        data[-2] ^= 1
        path.write_bytes(data)
        seen.add(model_fingerprint(folder))
    (folder / "tokenizer.json").write_text("{}")
    seen.add(model_fingerprint(folder))
    assert len(seen) == 5


@pytest.fixture
def large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a file of which the hash is kept."""
    monkeypatch.setattr(fingerprint, "LARGE", 1 << 20)
    monkeypatch.setenv("IMPRINT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "large").mkdir()
    (tmp_path / "large" / "model.safetensors").write_bytes(bytes(3 << 20))
    return tmp_path / "large"


@pytest.mark.parametrize("at", [0, 3 << 19, -1])
def test_a_byte_anywhere_in_a_large_file_counts(large: Path, at: int) -> None:
    file = large / "model.safetensors"
    first = model_fingerprint(large)
    data = bytearray(file.read_bytes())
    data[at] ^= 1
    before = file.stat()
    file.write_bytes(data)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))  # as rsync and cp -p leave it
    assert model_fingerprint(large) != first
    data[at] ^= 1
    file.write_bytes(data)
    assert model_fingerprint(large) == first


def test_a_large_file_is_read_once(large: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Path] = []
    original = fingerprint.file_hash

    def counted(path: Path) -> str:
        read.append(path)
        return original(path)

    monkeypatch.setattr(fingerprint, "file_hash", counted)
    first = model_fingerprint(large)
    assert model_fingerprint(large) == first
    fingerprint._kept.cache_clear()  # another process
    assert model_fingerprint(large) == first
    assert len(read) == 1
    (entry,) = (tmp_path / "cache" / "hashes").iterdir()
    entry.write_text("{")  # damaged: read again
    fingerprint._kept.cache_clear()
    assert model_fingerprint(large) == first
    assert len(read) == 2
    monkeypatch.setenv("IMPRINT_CACHE", "off")
    fingerprint._kept.cache_clear()
    assert model_fingerprint(large) == model_fingerprint(large) == first
    assert len(read) == 3
