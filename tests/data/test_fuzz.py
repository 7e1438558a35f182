"""Whatever happened to a file: it loads as the design says, or one message tells where and what to do."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import pytest

from data import oracle
from data.damage import BYTE_DAMAGE, ROW_DAMAGE
from data.mutants import PACK, Mutant, mutant, seeds, write
from data.oracle import Verdict, examine
from imprint.data import open as opening
from imprint.data import parse_document, parse_json, spool, text
from imprint.data.conversation import Place
from imprint.data.ledger import Ledger
from imprint.errors import DataError

# The mutants of a tier are those of the seed 0 from 0 on; IMPRINT_FUZZ_SEED=1 gives others.
SEED = int(os.environ.get("IMPRINT_FUZZ_SEED", "0"))
FAST, SLOW, FULL = 200, 2_000, 20_000


def run(folder: Path, numbers: range) -> dict[str, int]:
    """The mutants of these numbers, all of them even where some fail; what became of them."""
    outcomes: dict[str, int] = {}
    failed: list[str] = []
    for number in numbers:
        made = mutant(SEED, number)
        try:
            outcome = examine(made, folder).outcome
        except (Exception, oracle.TooSlow) as error:
            failed.append(
                f"mutant({SEED}, {number}) {made.name} {made.done}: {type(error).__name__}: {error}"[:600]
            )
            continue
        outcomes[outcome] = outcomes.get(outcome, 0) + 1
    assert not failed, f"{len(failed)} of {len(numbers)}:\n" + "\n".join(failed[:20])
    return outcomes


def test_mutants_load_or_are_refused(tmp_path):
    outcomes = run(tmp_path, range(FAST))
    assert all(outcomes[name] > FAST // 20 for name in ("loaded", "in part", "refused")), outcomes


def test_mutants_through_small_windows(tmp_path, monkeypatch):
    """Read a few bytes at a time, so that every token of JSON is cut somewhere: nothing changes."""
    for module, name in (
        (parse_document, "CHUNK"),
        (parse_document, "WHOLE"),
        (text, "CHUNK"),
        (opening, "PIECE"),
    ):
        monkeypatch.setattr(module, name, 50)
    run(tmp_path, range(FAST))


@pytest.mark.slow
def test_more_mutants(tmp_path):
    run(tmp_path, range(FAST, FAST + SLOW))


@pytest.mark.full
def test_all_mutants(tmp_path):
    run(tmp_path, range(FULL))


def test_mutants_are_a_function_of_two_numbers():
    assert mutant(3, 7) == mutant(3, 7)
    assert mutant(3, 7) != mutant(3, 8)
    done = {name.removeprefix("packed ") for number in range(FAST * 5) for name in mutant(0, number).done}
    assert {damage.__name__ for damage in (*ROW_DAMAGE, *BYTE_DAMAGE)} <= done


# ---- what changes nothing


def _file(name: str, rows: tuple[Any, ...], data: bytes, written: str) -> Mutant:
    return Mutant(name, data, rows, written, ("nothing",), data)


def _jsonl(rows: tuple[Any, ...], end: str = "\n", **how: Any) -> bytes:
    return "".join(json.dumps(row, **how) + end for row in rows).encode()


HARMLESS = {
    "as it is": lambda rows: ("rows.jsonl", _jsonl(rows)),
    "a byte order mark": lambda rows: ("rows.jsonl", b"\xef\xbb\xbf" + _jsonl(rows)),
    "Windows line ends": lambda rows: ("rows.jsonl", _jsonl(rows, "\r\n")),
    "old Mac line ends": lambda rows: ("rows.jsonl", _jsonl(rows, "\r")),
    "blank lines": lambda rows: ("rows.jsonl", b"\n" + _jsonl(rows, "\n\n \n")),
    "no last line end": lambda rows: ("rows.jsonl", _jsonl(rows).rstrip()),
    "nothing escaped": lambda rows: ("rows.jsonl", _jsonl(rows, ensure_ascii=False)),
    "white space inside": lambda rows: ("rows.jsonl", _jsonl(rows, separators=(" ,\t", " :  "))),
    "an array": lambda rows: ("rows.json", json.dumps(rows).encode()),
    "an array over lines": lambda rows: ("rows.json", json.dumps(rows, indent=4).encode()),
    "lines in a .json": lambda rows: ("rows.json", _jsonl(rows)),
    "a capital suffix": lambda rows: ("rows.JSONL", _jsonl(rows)),
    "keys in another order": lambda rows: ("rows.jsonl", _jsonl(tuple(map(_turned, rows)))),
    **{
        f"packed {suffix}": lambda rows, suffix=suffix: (f"rows.jsonl{suffix}", PACK[suffix](_jsonl(rows)))
        for suffix in PACK
    },
    **{
        f"packed {suffix} without the suffix": lambda rows, suffix=suffix: ("rows.jsonl", PACK[suffix](_jsonl(rows)))
        for suffix in PACK
    },
    "two packed in one": lambda rows: (
        "rows.jsonl.gz",
        b"".join(PACK[".gz"](_jsonl((row,))) for row in rows),
    ),
}  # fmt: skip


def _turned(value: Any) -> Any:
    """The value with the keys of its objects the other way round."""
    if isinstance(value, dict):
        return {key: _turned(inner) for key, inner in reversed(value.items())}
    return [_turned(inner) for inner in value] if isinstance(value, list) else value


@pytest.mark.parametrize("how", HARMLESS)
def test_what_changes_nothing(how, tmp_path):
    """The same rows in another dress, of all formats in one file, give the same conversations."""
    rows = tuple(row for group in seeds() for row in group)
    assert _contents(tmp_path, *HARMLESS[how](rows)) == _contents(tmp_path, "rows.jsonl", _jsonl(rows))


def _contents(folder: Path, name: str, data: bytes) -> list[str]:
    """What the conversations of a file say, and how many rows were refused for what."""
    path = folder / name
    path.write_bytes(data)
    ledger = Ledger()
    loaded = oracle.load_file(path, ledger)
    talks = [loaded.train.spool[row] for row in sorted([*loaded.train.rows, *loaded.validation.rows])]
    told = [f"{reason} × {tally.count}" for reason, tally in ledger.records.left.items()]
    said = [
        dataclasses.asdict(dataclasses.replace(talk, source=Place("", 0), id="", group="")) for talk in talks
    ]
    return [*told, *(json.dumps(talk, sort_keys=True) for talk in said)]


# ---- the properties see what they are there for


ROWS = ({"prompt": "Why?", "response": "So."}, {"prompt": "And?", "response": "Thus."})


def test_a_dropped_row_is_seen(tmp_path, monkeypatch):
    before = parse_json.json_lines
    monkeypatch.setattr(
        parse_json, "json_lines", lambda *given: (row for row in before(*given) if row.place.line != 2)
    )
    with pytest.raises((AssertionError, ValueError)):
        examine(_file("rows.jsonl", ROWS, _jsonl(ROWS), "jsonl"), tmp_path)


def test_a_changed_text_is_seen(tmp_path, monkeypatch):
    real = spool._to_line
    monkeypatch.setattr(spool, "_to_line", lambda *given: real(*given).replace(b"Thus", b"thus"))
    with pytest.raises(AssertionError, match="what came from the disk"):
        examine(_file("rows.jsonl", ROWS, _jsonl(ROWS), "jsonl"), tmp_path)


def test_a_key_that_stands_twice_and_is_taken_is_seen(tmp_path, monkeypatch):
    monkeypatch.setattr(parse_json, "UNIQUE", json.JSONDecoder())
    data = _jsonl(ROWS) + b'{"prompt": "One.", "prompt": "Two.", "response": "Three."}\n'
    with pytest.raises(AssertionError, match="was read"):
        examine(_file("rows.jsonl", ROWS, data, "jsonl"), tmp_path)


def test_an_error_without_a_remedy_is_seen(tmp_path, monkeypatch):
    def bare(*_: object, **__: object) -> None:
        raise DataError("no", where="rows.jsonl:1")

    monkeypatch.setattr(oracle, "load", bare)
    with pytest.raises(AssertionError, match="no remedy"):
        examine(_file("rows.jsonl", (), b"[", "jsonl"), tmp_path)


def test_a_file_refused_for_one_row_is_seen(tmp_path, monkeypatch):
    def whole(*_: object, **__: object) -> None:
        raise DataError("no", where="rows.jsonl:1", fix="yes")

    monkeypatch.setattr(oracle, "load", whole)
    with pytest.raises(AssertionError, match="2 good rows were refused as a whole"):
        examine(_file("rows.jsonl", ROWS, _jsonl(ROWS), "jsonl"), tmp_path)


def test_a_hang_is_seen(tmp_path, monkeypatch):
    def hang(*_: object, **__: object) -> None:
        while True:
            pass

    monkeypatch.setattr(oracle, "load", hang)
    monkeypatch.setattr(oracle, "SECONDS", 0.05)
    with pytest.raises(oracle.TooSlow):
        examine(_file("rows.jsonl", ROWS, _jsonl(ROWS), "jsonl"), tmp_path)


def test_a_cut_off_file_is_refused_in_every_packing(tmp_path):
    from random import Random

    plain = write(list(ROWS) * 50, "jsonl", Random(0))
    for suffix, pack in PACK.items():
        packed = pack(plain)
        for left in (len(packed) - 1, len(packed) // 2, 12):
            made = Mutant(f"rows.jsonl{suffix}", packed[:left], (), "jsonl", ("packed truncated",), None)
            assert examine(made, tmp_path) == Verdict("refused", "the file cannot be read"), (suffix, left)
