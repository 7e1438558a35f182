"""Every file of real data is read with no flag, or refused for the right reason, row by row and reply by reply."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from data.counts import FILES, Reply, call_of
from imprint.data.conversation import Conversation
from imprint.data.ledger import Ledger
from imprint.data.load import REPEATS, Loaded, load
from imprint.errors import DataError
from imprint.recipe import DataSource

DATA = Path(__file__).parents[3] / "shared" / "data"
FOLDERS = ("sft", "tools")

pytestmark = pytest.mark.skipif(
    not (DATA / "sft").is_dir(), reason="the real data sets are not beside the repository (shared/data)"
)


def read(path: Path, ledger: Ledger) -> Loaded:
    """The conversations of a file, as a run without any flag but bad_rows=leave_out has them."""
    return load(
        [DataSource(path=path.name)],
        validation=0.05,
        bad_rows="leave_out",
        consecutive_replies="merge",
        seed=0,
        ledger=ledger,
        base=path.parent,
    )


def arguments_of(given: Any) -> Any:
    return json.loads(given) if isinstance(given, str) else given


def replies_of(conversation: Conversation) -> list[Reply]:
    """The replies that are trained, by the rule of the design: weight not 0, and a prompt before."""
    replies = []
    before: list[str] = []
    prompted = False
    for message in conversation.messages:
        if message.role == "assistant" and prompted and message.weight != 0:
            functions = [call["function"] for call in message.tool_calls]
            calls = tuple(call_of(one["name"], arguments_of(one["arguments"])) for one in functions)
            replies.append(Reply(tuple(before), message.content, message.reasoning or "", calls))
        prompted = prompted or message.role in ("user", "tool")
        before.append(message.content)
    return replies


def test_every_file_is_in_the_table():
    there = {f"{name}/{path.name}" for name in FOLDERS for path in (DATA / name).iterdir()}
    assert there == set(FILES)


@pytest.mark.parametrize("name", FILES)
def test_a_file_holds_what_was_counted(name):
    path, file, ledger = DATA / name, FILES[name], Ledger()
    held = file.count(path)
    counted = (held.rows, held.conversations, held.replies.total())
    assert counted == (file.rows, file.conversations, file.replies), "the counter itself is wrong"

    found: Counter[Reply] = Counter()
    conversations: list[Conversation] = []
    if held.conversations:
        loaded = read(path, ledger)
        conversations = [*loaded.train, *loaded.validation]
        found.update(reply for conversation in conversations for reply in replies_of(conversation))
        assert loaded.validation
    else:
        with pytest.raises(DataError, match="0 trainable rows") as told:
            read(path, ledger)
        assert all(reason in told.value.found for reason in held.refused)
    ledger.check()
    assert ledger.records.total == file.rows
    assert {reason: tally.count for reason, tally in ledger.records.left.items()} == held.refused
    assert len(conversations) == ledger.conversations.total == file.conversations
    assert found == held.replies
    warned = {warning: tally.count for warning, tally in ledger.warnings.items()}
    repeats = warned.pop(REPEATS, 0) + sum(tally.count for tally in ledger.remarks.values())
    assert warned == {warning: count for warning, count in held.warnings.items() if count}
    if conversations:
        said = [repr((one.messages, one.tools, one.tokens)) for one in loaded.train]
        assert repeats == len(said) - len(set(said))
        assert (REPEATS in ledger.warnings) == (repeats > len(said) / 100)
    if path.suffix == ".jsonl":
        for reason, tally in ledger.records.left.items():
            lines = held.lines.get(reason) or range(1, file.rows + 1)
            assert [place.line for place in tally.places] == list(lines[: len(tally.places)])


@pytest.mark.parametrize("folder", [pytest.param("sft", marks=pytest.mark.slow), "tools"])
def test_a_folder_holds_what_its_files_hold(folder):
    """All at once: each row is refused for the same reason as alone, but for answers that lie beside questions."""
    ledger = Ledger()
    loaded = read(DATA / folder, ledger)
    ledger.check()
    files = [file for name, file in FILES.items() if name.startswith(folder)]
    assert ledger.records.total == sum(file.rows for file in files)
    assert len(loaded.train) + len(loaded.validation) == sum(file.conversations for file in files)
    replies = sum(len(replies_of(one)) for part in (loaded.train, loaded.validation) for one in part)
    assert replies == sum(file.replies for file in files)


def test_without_a_flag_the_first_bad_row_stops_the_run():
    """libre's own first bad row is named with its line, and how many more there are."""
    with pytest.raises(DataError) as told:
        load(
            [DataSource(path="alpaca_libre_v2.jsonl")],
            validation=0.05,
            bad_rows="stop",
            consecutive_replies="merge",
            seed=0,
            ledger=Ledger(),
            base=DATA / "sft",
        )
    held = FILES["sft/alpaca_libre_v2.jsonl"].count(DATA / "sft/alpaca_libre_v2.jsonl")
    lines = sorted(line for lines in held.lines.values() for line in lines)
    assert told.value.where == f"alpaca_libre_v2.jsonl:{lines[0]}"
    assert f"and {len(lines) - 1} more" in told.value.found
