"""Runs with replay: what is drawn, measured, told and kept; resumed as uninterrupted, and two processes as one."""

from __future__ import annotations

import json
import random
from itertools import count

import pytest

import imprint.train.loop as loop
from conftest import ROWS, events_of, losses, settings, weights_of, write_rows
from imprint.pack.replay import Replay
from imprint.run import resume, train
from imprint.settings import resolve
from test_torchrun import STEPS as TWO_STEPS
from test_torchrun import near, two

STEPS = ("max_steps=9", "validation=0.2", "validate_every=3", "save_every=2", "learning_rate=1e-2")
MIXED = ("replay_share=0.3", "replay_length=24")
SENTENCE = "The {} is near the {}, and nobody minds it much. "
WORDS = ("walrus", "river", "clock", "garden", "letter", "winter", "bridge", "needle")


@pytest.fixture(scope="module")
def general(tmp_path_factory):
    """Sixty documents of one to eight sentences."""
    chance = random.Random(0)
    texts = [
        "".join(SENTENCE.format(*chance.sample(WORDS, 2)) for _ in range(i % 8 + 1)).strip()
        for i in range(60)
    ]
    return write_rows(tmp_path_factory.mktemp("replay") / "general.jsonl", [{"text": text} for text in texts])


@pytest.fixture
def trained(tiny, rows, general, tmp_path):
    """Trains into a folder of this name, with the given settings beside STEPS."""

    def trained(name, *given, mixed=(f"replay={general}", *MIXED)):
        every = settings(tiny, rows, tmp_path / name, *STEPS, *mixed, *given)
        return train(resolve(None, list({one.partition("=")[0]: one for one in every}.values())).recipe).run

    return trained


def shares(run):
    return [(event["replay"], event["replay_weight"]) for event in events_of(run, "step")]


def account_of(run):
    return json.loads((run / "ledger.json").read_text(encoding="utf-8"))


def test_what_a_run_says_and_keeps(trained, general):
    run = trained("run")
    told = shares(run)
    assert 10 <= sum(number for number, _ in told) <= 11  # 0.3 of 9 steps of 4, of which two end an epoch
    assert all((weight > 0) == (number > 0) for number, weight in told)
    (end,) = events_of(run, "end")
    assert end["replay"] == sum(number for number, _ in told)
    assert end["replay_weight"] == pytest.approx(sum(weight for _, weight in told) / len(told))
    measured = [(event["step"], event["loss"]) for event in events_of(run, "replay_loss")]
    assert [step for step, _ in measured] == [0, 3, 6, 9]
    assert measured[-1][1] < measured[0][1], "some of it was trained"
    account = account_of(run)["replay"]
    assert account["records"]["total"] == account["records"]["kept"]["used"] == 60
    assert account["files"] == {str(general): 60}
    pieces = account["pieces"]
    assert pieces["total"] == sum(pieces["kept"].values()) == account["turns"]["kept"]["cut"]
    assert pieces["kept"]["to be drawn"] == end["replay"]  # fewer than there are
    assert 0 < pieces["kept"]["held out"] <= pieces["total"] // 20
    assert account_of(run)["records"]["total"] == len(ROWS), "the data's own account knows nothing of it"
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "On general text that was held out the loss went from" in page
    assert "Replay, general text that is mixed in" in page


def test_a_share_of_zero_measures_and_draws_nothing(trained):
    run, without, some = trained("zero", "replay_share=0"), trained("without", mixed=()), trained("some")
    assert losses(run) == losses(without) != losses(some)
    assert weights_of(run) == weights_of(without)
    assert [event["step"] for event in events_of(run, "replay_loss")] == [0, 3, 6, 9]
    assert not events_of(without, "replay_loss")
    assert all("replay" not in event for event in events_of(run, "step", "end"))
    assert "replay" not in account_of(without)
    assert "No replay was trained: replay_share is 0." in (run / "report.html").read_text(encoding="utf-8")
    before = [events_of(one, "replay_loss")[0]["loss"] for one in (run, some)]
    assert before[0] == before[1], "the same pieces are held out"


def test_validation_never_comes_from_replay(trained):
    few = [event["trained_tokens"] for event in events_of(trained("run"), "validation")]
    assert few == [event["trained_tokens"] for event in events_of(trained("without", mixed=()), "validation")]


def test_a_share_of_the_weight_is_met_in_every_step(trained):
    run = trained("run", "replay_share_of=weight", "validation=0", "max_steps=null", "epochs=3")
    steps = events_of(run, "step")
    full = [event["conversations"] + event["replay"] == 4 for event in steps]
    assert sum(full) >= len(full) - 3
    for event, is_full in zip(steps, full, strict=True):
        assert event["replay"] > 0 or not is_full
        assert event["replay_weight"] == pytest.approx(0.3 if event["replay"] else 0, rel=1e-6)
    (end,) = events_of(run, "end")
    assert 0.2 < end["replay_weight"] <= 0.3 + 1e-6


@pytest.mark.parametrize("share_of", ["conversations", "weight"])
def test_the_update_depends_on_the_examples_alone(trained, share_of):
    plain = trained("plain", f"replay_share_of={share_of}")
    for name, *given in (("a", "layout=separate"), ("b", "row_tokens=40", "layout=packed")):
        other = trained(name, f"replay_share_of={share_of}", *given)
        assert shares(plain) == shares(other)
        for (_, mine), (_, theirs) in zip(losses(plain), losses(other), strict=True):
            assert mine == pytest.approx(theirs, abs=1e-4)


def test_conversations_may_be_replayed(trained, tmp_path):
    rows = [{"prompt": f"What is {i} and {i}?", "response": f"It is {2 * i}."} for i in range(40)]
    chat = write_rows(tmp_path / "chat.jsonl", rows)
    run = trained("run", f"replay={chat}")
    assert account_of(run)["replay"]["pieces"]["total"] == 40
    assert len(events_of(run, "replay_loss")) == 4


def test_replay_is_drawn_again_when_all_of_it_was(trained, tmp_path):
    text = write_rows(tmp_path / "few.jsonl", [{"text": f"Only {word}."} for word in WORDS[:3]])
    run = trained("run", f"replay={text}")
    assert account_of(run)["replay"]["pieces"]["kept"] == {"to be drawn": 2, "not drawn": 0, "held out": 1}
    assert sum(number for number, _ in shares(run)) >= 10


# ---- killed and resumed


class Broken(BaseException):
    """The process ends here."""


drawn_before = [0]
straight = Replay.piece


def from_random(replay, number):
    """A planted twin: whatever Python's random state says."""
    return random.randrange(replay.num_pieces)


def remembers(replay, number):
    """A planted twin: it counts its draws, in the memory of its process."""
    drawn_before[0] += 1
    return straight(replay, drawn_before[0] - 1)


def new_process(seed):
    random.seed(seed)
    drawn_before[0] = 0


def resumed_is_uninterrupted(trained, tmp_path, monkeypatch) -> bool:
    """Whether a run that dies in its sixth step, two after a checkpoint, ends as one that does not."""
    new_process(1)
    whole = trained("whole")
    new_process(1)
    original, calls = loop.train_step, count(1)

    def dies(state, rows):
        if next(calls) == 6:
            raise Broken
        return original(state, rows)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "train_step", dies)
        with pytest.raises(Broken):
            trained("run")
    new_process(2)
    run = resume(tmp_path / "run").run
    assert [event["step"] for event in events_of(run, "resume")] == [4]
    assert len(losses(run)) == len(losses(whole)) == 9
    return losses(run) == losses(whole) and weights_of(run) == weights_of(whole)


def test_resumed_is_uninterrupted(trained, tmp_path, monkeypatch):
    assert resumed_is_uninterrupted(trained, tmp_path, monkeypatch)
    whole, run = tmp_path / "whole", tmp_path / "run"
    for kind in ("step", "replay_loss", "validation", "end"):
        kept = [
            [
                {k: v for k, v in event.items() if k not in ("time", "seconds", "peak_bytes")}
                for event in events_of(folder, kind)
            ]
            for folder in (whole, run)
        ]
        assert kept[0] == kept[1], kind


@pytest.mark.parametrize("twin", [from_random, remembers])
def test_a_draw_that_is_no_function_of_the_step_is_seen(twin, trained, tmp_path, monkeypatch):
    monkeypatch.setattr(Replay, "piece", twin)
    assert not resumed_is_uninterrupted(trained, tmp_path, monkeypatch)


def test_replay_that_changed_is_refused(trained, general, tmp_path, monkeypatch, cli):
    mine = tmp_path / "mine.jsonl"
    mine.write_text(general.read_text(encoding="utf-8"), encoding="utf-8")

    def dies(state, rows):
        raise Broken

    with monkeypatch.context() as patch:
        patch.setattr(loop, "train_step", dies)
        with pytest.raises(Broken):
            trained("run", f"replay={mine}")
    with mine.open("a", encoding="utf-8") as file:
        file.write('{"text": "One more."}\n')
    done = cli("resume", tmp_path / "run")
    assert done.code != 0
    assert "the replay changed since this run began" in done.err


@pytest.mark.slow
def test_two_processes_replay_what_one_does(tiny, rows, general, tmp_path, cli):
    given = (*TWO_STEPS, f"replay={general}", *MIXED, "replay_share_of=weight")
    whole, run = tmp_path / "one" / "whole", tmp_path / "run"
    whole.parent.mkdir()
    assert cli("train", *settings(tiny, rows, whole, *given)).code == 0
    done = two("train", *settings(tiny, rows, run, *given))
    assert done.code == 0, done.err
    near(run, whole)
    assert shares(run) == shares(whole)
    for mine, theirs in zip(events_of(run, "replay_loss"), events_of(whole, "replay_loss"), strict=True):
        assert mine["trained_tokens"] == theirs["trained_tokens"]
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-5)


# ---- looked at


def test_it_is_said_which_pieces_are_replay(tiny, rows, general, cli):
    given = (f"model={tiny}", f"data={rows}", "template=chatml", f"replay={general}", *MIXED)
    shown = cli("show", *given, "-n", "2")
    assert shown.code == 0, shown.err
    said = shown.out.replace("\n", " ").replace("  ", " ")
    assert f"replay {general}:1 piece 1" in said
    assert "held out and never trained" in said
    lines = [json.loads(line) for line in cli("show", *given, "--json").out.splitlines()]
    kinds = [line.get("replay") for line in lines]
    assert kinds[:24] == [None] * 24
    assert set(kinds[24:]) == {"to draw from", "held out"}
    assert all(line["source"].startswith(str(general)) for line in lines[24:])
    row = cli("show", *given, "--row", "general.jsonl:8")
    assert row.code == 0, row.err
    assert "this row is replay: " in row.out + row.err


def test_in_a_terminal(tiny, rows, general, tmp_path, cli):
    done = cli("train", *settings(tiny, rows, tmp_path / "run", *STEPS, *MIXED, f"replay={general}"))
    assert done.code == 0, done.err
    told = done.out + done.err
    assert "What becomes of replay" in told
    assert "general text at step 9 · loss " in told
    assert "general text " in told.split("done  ")[-1]
    assert "of the loss weight" in told.split("done  ")[-1]
    assert max(map(len, told.split("done  ")[-1].splitlines()[:3])) <= 80
    share = events_of(tmp_path / "run", "end")[0]["replay_weight"]
    assert f"{share:.1%} of the loss weight" in told


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (("replay_length=500",), ("replay_length=500", "from 2 to 128", "replay_length=128")),
        (("replay.0.path=nowhere.jsonl",), ("nowhere.jsonl", "there is no such file")),
        (("replay_length=1",), ("replay_length", "2 or more")),
        (("replay_share=1",), ("replay_share", "below 1")),
        (("replay_share=0", "replay_share_of=weight"), ("replay_share is 0",)),
        (("batch_size=1", "replay_share_of=weight"), ("batch_size is 1", "batch_size to 2 or more")),
        (("replay.0.revision=main",), ("only hub datasets",)),
        (("replay.0.format=alpaca",), ("is not of the format alpaca", "bad_rows=leave_out")),
        (("replay.0.fields.prompt=nope",), ("replay.0.fields",)),
    ],
)
def test_bad_settings(given, says, tiny, rows, general, tmp_path, cli):
    every = settings(tiny, rows, tmp_path / "run", f"replay.0.path={general}", *given)
    done = cli("train", *{one.partition("=")[0]: one for one in every}.values())
    assert done.code == 2
    assert all(part in done.err for part in says), done.err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("given", ["replay_share=0.2", "replay_share_of=weight", "replay_length=9"])
def test_settings_of_replay_without_replay(given, tiny, rows, tmp_path, cli):
    done = cli("train", *settings(tiny, rows, tmp_path / "run", given))
    assert done.code == 2
    assert "no replay is given" in done.err
    assert "replay=FILE" in done.err
