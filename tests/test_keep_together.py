"""keep_together: from the data to the steps, with the split as it was, and exact when a run goes on."""

from __future__ import annotations

import io
import shutil
from collections import Counter
from datetime import datetime
from pathlib import Path

import pytest

from conftest import events_of, losses, settings, weights_of, write_rows
from imprint.prepare import Prepared, kept_together, overview, prepare
from imprint.recipe import Recipe
from imprint.settings import resolve

NOW = datetime(2026, 5, 4)
TOGETHER = "keep_together=prompt"
ANSWERS = [
    {"prompt": f"What is number {n}?", "response": f"{word} is number {n}."}
    for word in ("Red", "Blue", "Green", "Pink")
    for n in range(12)
]


def a_tree(n: int) -> dict[str, object]:
    """A question with two replies, each asked on, and each of those replied to twice: six replies."""

    def reply(text: str, replies: list[dict[str, object]]) -> dict[str, object]:
        return {"text": text, "role": "assistant", "replies": replies}

    def asked(text: str, replies: list[dict[str, object]]) -> dict[str, object]:
        return {"text": text, "role": "prompter", "replies": replies}

    leaves = [reply(f"Reply {i} of {n}.", []) for i in range(2)]
    first = [reply(f"First {i} of {n}.", [asked(f"And {i}?", leaves)]) for i in range(2)]
    return {"message_tree_id": f"t{n}", "prompt": asked(f"Question {n}?", first)}


@pytest.fixture
def here(tmp_path, tiny, monkeypatch):
    shutil.copytree(tiny, tmp_path / "model")
    write_rows(tmp_path / "answers.jsonl", ANSWERS)
    write_rows(tmp_path / "trees.jsonl", [a_tree(n) for n in range(6)])
    monkeypatch.setenv("IMPRINT_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def recipe_of(*given: str, data: str = "answers.jsonl") -> Recipe:
    every = settings("model", data, "run", *given)
    return resolve(None, list({one.partition("=")[0]: one for one in every}.values())).recipe


def prepared(*given: str, data: str = "answers.jsonl") -> Prepared:
    return prepare(recipe_of(*given, data=data), Path("model"), NOW)


def questions(made: Prepared, step: int) -> Counter[str]:
    """The first question of each conversation of a step."""
    numbers = made.train.conversations
    drawn = [made.loaded.train[int(numbers[i])] for i in made.plan.conversations(step)]
    return Counter(next(m.content for m in c.messages if m.role == "user") for c in drawn)


@pytest.mark.parametrize("validation", ["validation=0", "validation=0.3"])
def test_answers_of_a_question_meet_in_one_step(here, validation):
    made = prepared(TOGETHER, validation, "batch_size=8", "max_steps=null", "epochs=2")
    apart = prepared(validation, "batch_size=8", "max_steps=null", "epochs=2")
    assert made.plan.groups.largest == 4
    assert made.plan.groups.count * 4 == len(made.train)
    assert made.plan.total_steps == apart.plan.total_steps
    full = [s for s in range(made.plan.total_steps) if len(made.plan.conversations(s)) == 8]
    assert full
    assert all(set(questions(made, step).values()) == {4} for step in full)
    assert any(set(questions(apart, step).values()) != {4} for step in full)
    # what is held out, read and rendered is the same
    assert list(made.loaded.validation) == list(apart.loaded.validation)
    assert list(made.loaded.train) == list(apart.loaded.train)
    assert made.ledger.to_json() == apart.ledger.to_json()


def test_all_of_a_tree_meets_in_one_step(here):
    """Its branches have prompts of their own, because each reply is trained in one conversation only."""
    made = prepared(
        TOGETHER, "validation=0", "batch_size=4", "max_steps=null", "epochs=1", data="trees.jsonl"
    )
    assert (made.plan.groups.count, made.plan.groups.largest, len(made.train)) == (6, 4, 24)
    assert all(set(questions(made, step).values()) == {4} for step in range(made.plan.total_steps))


def test_what_is_left_out_moves_no_group(here):
    """Conversations without a turn have a number in the data, and none in the plan."""
    rows = [*ANSWERS]
    rows[5] = {"prompt": "What is long?", "response": "very " * 300}
    write_rows(here / "answers.jsonl", rows)
    made = prepared(TOGETHER, "validation=0", "batch_size=4", "max_steps=null", "epochs=1")
    assert len(made.train) == len(rows) - 1
    assert (made.plan.groups.count, made.plan.groups.largest) == (12, 4)
    met = [questions(made, step) for step in range(made.plan.total_steps)]
    assert sum(len(step) == 1 for step in met) >= 1
    assert sum(sum(step.values()) for step in met) == len(rows) - 1


def test_it_is_told(here):
    from rich.console import Console

    made = prepared(TOGETHER, "validation=0")
    (told,) = kept_together(made.plan)
    assert told == "kept together by their prompt: 48 conversations in 12 groups, the largest of 4"
    console = Console(width=200, record=True, file=io.StringIO())
    for part in overview(made):
        console.print(part)
    assert told in console.export_text()
    assert list(kept_together(prepared("validation=0").plan)) == []


def test_a_run_that_breaks_off_goes_on_as_if_it_had_not(here, monkeypatch):
    import imprint.train.loop as loop
    from imprint.run import resume, train

    def run(folder: str) -> Path:
        given = [
            TOGETHER,
            "max_steps=9",
            "batch_size=6",
            "validation=0",
            "save_every=2",
            "learning_rate=1e-2",
        ]
        train(recipe_of(*given, f"output={folder}"))
        return here / folder

    whole = run("whole")
    assert [event["text"] for event in events_of(whole, "note") if "kept together" in event["text"]]
    original, calls = loop.train_step, []

    def breaks(*given):
        calls.append(1)
        if len(calls) == 6:
            raise RuntimeError("planted")
        return original(*given)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "train_step", breaks)
        with pytest.raises(RuntimeError, match="planted"):
            run("broken")
    resume(here / "broken")
    assert losses(here / "broken") == losses(whole)
    assert weights_of(here / "broken") == weights_of(whole)
    plain = [event["trained_tokens"] for event in events_of(whole, "step")]
    assert plain == [event["trained_tokens"] for event in events_of(here / "broken", "step")]
