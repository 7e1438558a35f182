import json

import pytest
from rich.console import Console

from imprint.data.conversation import Place
from imprint.data.ledger import Ledger


def filled():
    ledger = Ledger()
    for line in range(1, 21):
        place = Place("a.jsonl" if line < 16 else "b.parquet", line, "line" if line < 16 else "row")
        ledger.read(place)
        if line % 2:
            ledger.refuse(place, "the reply is empty" if line % 3 else "unknown role")
            continue
        ledger.use(place)
        ledger.conversation(place)
        ledger.turn(place)
        if line == 16:
            ledger.leave_out(place, "two replies in a row")
            ledger.leave_turn_out(place, "too long", "900 tokens")
        else:
            ledger.keep_turn(place)
    ledger.keep("train", 7)
    ledger.keep("validation", 2)
    ledger.warn("a validation conversation is also trained on", Place("a.jsonl", 2))
    return ledger


def test_sums_hold_and_reasons_add_up():
    ledger = filled()
    ledger.check()
    assert ledger.files == {"a.jsonl": 15, "b.parquet": 5}
    assert ledger.records.kept == {"used": 10}
    empty = ledger.records.left["the reply is empty"]
    assert (empty.count, [place.line for place in empty.places]) == (7, [1, 5, 7, 11, 13])
    assert ledger.records.left["unknown role"].count == 3


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda ledger: ledger.read(Place("a.jsonl", 30)), "21 records, but 10 used \\+ 10 refused"),
        (lambda ledger: ledger.refuse(Place("a.jsonl", 30), "x"), "20 records, but 10 used \\+ 11 refused"),
        (
            lambda ledger: ledger.keep("train", 1),
            "10 conversations, but 8 train \\+ 2 validation \\+ 1 left out",
        ),
        (lambda ledger: ledger.turn(Place("a.jsonl", 30)), "11 turns, but 9 trained \\+ 1 left out"),
        (lambda ledger: ledger.files.update({"a.jsonl": 14}), "20 records, but 19 in the files"),
    ],
)
def test_a_wrong_sum_is_caught_with_its_numbers(spoil, says):
    ledger = filled()
    spoil(ledger)
    with pytest.raises(AssertionError, match=says):
        ledger.check()


def test_a_withdrawn_conversation_moves_to_the_left_out():
    ledger = filled()
    ledger.withdraw("train", Place("a.jsonl", 2), "none of its replies can be trained")
    ledger.check()
    assert ledger.conversations.kept == {"train": 6, "validation": 2}
    assert ledger.conversations.left["none of its replies can be trained"].count == 1


def test_kept_turns_may_be_validated_and_the_first_detail_of_a_reason_is_kept():
    ledger = filled()
    for detail, kind in (("950 tokens", "trained"), ("999 tokens", "validated")):
        ledger.turn(Place("a.jsonl", 2))
        ledger.turn(Place("a.jsonl", 2))
        ledger.keep_turn(Place("a.jsonl", 2), kind)
        ledger.leave_turn_out(Place("a.jsonl", 2), "too long", detail)
    ledger.check()
    assert ledger.turns.kept == {"trained": 10, "validated": 1}
    assert ledger.details == {"too long": "900 tokens"}


def test_json_round_trip():
    ledger = filled()
    text = json.dumps(ledger.to_json())
    again = Ledger.from_json(json.loads(text))
    assert json.dumps(again.to_json()) == text
    assert again.records.left["the reply is empty"].places[0] == Place("a.jsonl", 1)
    again.check()


@pytest.mark.parametrize(("columns", "widest"), [(40, 40), (80, 80), (200, 80)])
def test_no_column_of_the_table_is_lost(columns, widest):
    console = Console(width=columns, force_terminal=False)
    with console.capture() as captured:
        console.print(filled().table())
    lines = captured.get().splitlines()
    assert max(map(len, lines)) == widest
    assert any("where" in line for line in lines)


def test_table_fits_80_columns_and_says_everything():
    ledger = filled()
    ledger.refuse(
        Place("a/very/long/folder/name/that/does/not/fit/in/one/column/at/all.jsonl", 123456), "unknown role"
    )
    console = Console(width=80, record=True, force_terminal=False)
    with console.capture() as captured:
        console.print(ledger.table())
    lines = captured.get().splitlines()
    assert max(map(len, lines)) <= 80
    # the table folds long texts inside their columns: join each column's pieces again
    cells = [line.split("│")[1:-1] for line in lines if line.count("│") == 4]
    columns = ["".join(cell[i].strip() for cell in cells).replace(" ", "") for i in range(3)]
    for text in ("the reply is empty", "unknown role", "two replies in a row", "too long", "also trained on"):
        assert text.replace(" ", "") in columns[0]
    assert "all.jsonl:123456" in columns[2]
    assert "15ina.jsonl" in columns[2]
    assert "b.parquet:row16" in columns[2]
    assert {"20", "10", "7", "2"} <= {cell[1].strip() for cell in cells}


def told(ledger):
    console = Console(width=80, force_terminal=False)
    with console.capture() as captured:
        console.print(ledger.table())
    return captured.get()


def test_of_one_file_the_table_says_the_name_once():
    file = "../a/rather/long/folder/oasst_en_100_trees.jsonl"
    ledger = Ledger()
    for line in (2, 2, 2, 3, 3, 5):
        ledger.read(Place(file, line))
        ledger.refuse(Place(file, line), "too long")
    ledger.warn("odd", Place(file, 7))
    text = told(ledger)
    assert "".join(text.replace("│", " ").split()).count(".jsonl") == 1
    assert "lines 2, 3, 5 " in text
    assert "line 7" in text
    assert str(ledger.records.left["too long"]) == f"{file}:2, {file}:3, {file}:5"


def test_of_several_files_the_table_says_short_names_that_tell_them():
    ledger = Ledger()
    for file, unit in (("a/x.jsonl", "line"), ("a/y.parquet", "row"), ("a/y.parquet", "row")):
        ledger.read(Place(file, ledger.records.total + 1, unit))
        ledger.refuse(Place(file, ledger.records.total, unit), "too long")
    assert "x.jsonl:1; y.parquet:rows" in told(ledger)
    for number in range(8):
        ledger.read(Place(f"{number}/x.jsonl", 1))
        ledger.refuse(Place(f"{number}/x.jsonl", 1), "empty")
    text = told(ledger)
    assert "1 in 2/x.jsonl; …" in " ".join(text.replace("│", " ").split())
    assert "(10 files)" in text
    assert "0/x.jsonl:1; 1/x.jsonl:1;" in " ".join(text.replace("│", " ").split())
