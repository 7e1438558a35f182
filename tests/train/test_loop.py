"""The loop on real, tiny models: when it validates, stops, saves, and what it says."""

from __future__ import annotations

import json
import math
import os
import signal
import threading

import pytest
import torch
from safetensors.torch import load_file

from conftest import ROWS, events_of, settings, tree, write_rows
from imprint.distributed.mesh import Mesh
from imprint.errors import Interrupted, RunFailed
from imprint.pack.plan import Plan, share_out
from imprint.train.checkpoint import Counters, latest_checkpoint
from imprint.train.data import Data
from imprint.train.loop import Outcome, Watch, seed_noise, stop_signals, train
from imprint.train.optim import Schedule, adamw
from imprint.train.step import TrainState, evaluate
from tiny import random_turns, row_model, tiny_model


class Told:
    """A log that keeps what it is told."""

    def __init__(self) -> None:
        self.events: list[dict] = []

    def log(self, kind: str, **fields) -> None:
        self.events.append({"kind": kind, **fields})

    def sync(self) -> None:
        self.events.append({"kind": "sync"})

    def steps(self, kind: str) -> list[int]:
        return [event["step"] for event in self.events if event["kind"] == kind]


def run_loop(folder, steps=6, peak=1e-2, validation=True, stop_at=None, **watch) -> tuple[Outcome, Told]:
    model = row_model(tiny_model("llama")).train()
    optimizer = adamw(model, weight_decay=0.0, betas=(0.9, 0.99), epsilon=1e-8)
    state = TrainState(model, optimizer, Schedule(peak, steps), Mesh())
    turns = random_turns(conversations=8)
    held_out = share_out(random_turns(seed=1), 64, 1)[0] if validation else []
    data = Data([[turn] for turn in turns], held_out, row_tokens=128)
    plan = Plan(len(turns), 4, epochs=99, seed=0, fingerprint="x", max_steps=steps)
    told = Told()
    given = {"validate_every": 2, "save_every": 3, **watch}
    if stop_at is not None:
        original = told.log

        def log(kind, **fields):
            original(kind, **fields)
            if kind == "step" and fields["step"] == stop_at:
                os.kill(os.getpid(), signal.SIGTERM)

        told.log = log
    return train(state, data, plan, Watch(told, folder, **given), Counters()), told


def test_when_it_validates_and_saves(tmp_path):
    outcome, told = run_loop(tmp_path, steps=7)
    assert told.steps("step") == [1, 2, 3, 4, 5, 6, 7]
    assert told.steps("validation") == [0, 2, 4, 6, 7]
    best = [event["step"] for event in told.events if event["kind"] == "validation" and event["best"]]
    assert set(told.steps("checkpoint")) == {3, 6, 7} | set(best)
    assert outcome.reason == "all steps done"
    assert outcome.counters.best_step == best[-1]


def test_without_validation(tmp_path):
    outcome, told = run_loop(tmp_path, steps=4, validation=False, patience=1)
    assert told.steps("validation") == []
    assert told.steps("checkpoint") == [3, 4]
    assert outcome.counters.best_loss is None


def test_samples_are_asked_for_at_each_validation(tmp_path):
    asked = []
    run_loop(tmp_path, steps=5, validation=False, sample=asked.append)
    assert asked == [0, 2, 4, 5]


def test_before_training_is_never_the_best(tmp_path):
    """With steps that only make it worse, the untrained model would win every comparison."""
    outcome, told = run_loop(tmp_path, peak=5.0)
    validations = [event for event in told.events if event["kind"] == "validation"]
    assert validations[0]["loss"] < min(event["loss"] for event in validations[1:])
    assert not validations[0]["best"]
    assert outcome.counters.best_step > 0
    assert outcome.counters.best_loss > validations[0]["loss"]


def test_early_stopping_says_why(tmp_path):
    outcome, told = run_loop(tmp_path, steps=40, peak=5.0, validate_every=1, patience=3)
    (stop,) = [event for event in told.events if event["kind"] == "early_stop"]
    best, counters = outcome.counters.best_step, outcome.counters
    assert outcome.reason == stop["reason"]
    assert stop["reason"] == (
        f"no validation in 3 was better than the loss of {counters.best_loss:.4f} at step {best}"
    )
    assert told.steps("step")[-1] == stop["step"] == best + 3 < 40
    assert told.steps("checkpoint")[-1] == stop["step"]  # a stopped run stays stopped when resumed
    saved = json.loads((latest_checkpoint(tmp_path) / "state.json").read_text())
    assert saved["counters"]["stopped"] == stop["reason"]


def test_a_validation_loss_that_is_no_number_ends_the_run(tmp_path, monkeypatch):
    """It is no reason to stop early, and never the best: it is a failure, told at once."""
    monkeypatch.setattr("imprint.train.loop.evaluate", lambda state, rows: (float("nan"), 7))
    with pytest.raises(RunFailed, match="validation loss is not finite after step 0"):
        run_loop(tmp_path, steps=2, patience=1)


def test_min_improvement_is_what_better_means(tmp_path):
    free, _ = run_loop(tmp_path / "free", steps=8)
    strict, told = run_loop(tmp_path / "strict", steps=8, min_improvement=99.0, patience=2)
    assert free.counters.best_step > 2
    assert strict.counters.best_step == 2
    assert told.steps("early_stop") == [6]


def test_a_signal_saves_and_stops(tmp_path):
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted, match="stopped by SIGTERM after step 4 of 6") as caught:
        run_loop(tmp_path, stop_at=4)
    assert caught.value.exit_code == 130
    assert latest_checkpoint(tmp_path).name == "step-000004"
    assert signal.getsignal(signal.SIGTERM) is handler


def test_the_noise_of_a_step_is_its_own():
    """Of the step, the seed and the rank alone: what was drawn before does not matter."""
    drawn = {}
    for key in [(0, 1, 0), (0, 2, 0), (1, 1, 0), (0, 1, 1)]:
        seed_noise(*key)
        drawn[key] = tuple(torch.rand(3).tolist())
    assert len(set(drawn.values())) == 4
    seed_noise(0, 1, 0)
    assert tuple(torch.rand(3).tolist()) == drawn[0, 1, 0]


def test_a_second_signal_ends_at_once():
    with stop_signals() as received:
        os.kill(os.getpid(), signal.SIGINT)
        assert received == ["Ctrl-C"]
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_a_signal_that_nobody_heeded_ends_what_follows():
    received = []

    def unheeded():
        with stop_signals() as names:
            os.kill(os.getpid(), signal.SIGINT)
            received.extend(names)

    with pytest.raises(KeyboardInterrupt):
        unheeded()
    assert received == ["Ctrl-C"]


def test_beside_the_main_thread_signals_are_left_alone():
    found = []

    def look():
        with stop_signals() as received:
            found.append(received)

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert found == [[]]


def test_validation_does_not_depend_on_the_rows():
    """A mean of means over rows would: rows hold different numbers of tokens."""
    model = row_model(tiny_model("llama")).eval()
    state = TrainState(model, torch.optim.SGD(model.parameters()), lambda _: 0.0, Mesh())
    turns = random_turns(conversations=9)
    losses, counts = [], set()
    for budget, layout in [(16, "shared"), (64, "shared"), (4096, "shared"), (64, "packed"), (1, "separate")]:
        rows = share_out(turns, budget, 1, layout)[0]
        loss, count = evaluate(state, rows)
        losses.append(loss)
        counts.add(count)
    assert counts == {sum(len(turn.completion) for turn in turns)}
    assert max(losses) - min(losses) < 1e-5 * losses[0]
    means = [evaluate(state, [row])[0] for row in share_out(turns, 64, 1)[0]]
    assert abs(sum(means) / len(means) - losses[0]) > 1e-3  # the planted twin: a mean of means
    assert model.training is False
    model.train()
    evaluate(state, share_out(turns, 64, 1)[0])
    assert model.training is True


# ---- whole runs


@pytest.fixture
def trained(tiny, rows, tmp_path, cli):
    def trained(*given: str, name: str = "run"):
        done = cli("train", *settings(tiny, rows, tmp_path / name, "validation=0.25", *given))
        assert done.code == 0, done.err
        return tmp_path / name

    return trained


def test_the_validation_loss_of_a_run_does_not_depend_on_its_batches(trained):
    found = []
    for i, given in enumerate(
        (["row_tokens=40"], ["row_tokens=4096"], ["layout=separate"], ["batch_size=1"])
    ):
        run = trained("max_steps=1", *given, name=f"run{i}")
        found.append(events_of(run, "validation")[0])
    assert len({event["trained_tokens"] for event in found}) == 1
    values = [event["loss"] for event in found]
    assert max(values) - min(values) < 1e-5


# only the first validation is far enough below nothing: the best is step 2, whatever comes later
FIRST = ("max_steps=8", "validate_every=2", "min_improvement=99", "learning_rate=1e-2")


def tensors(path):
    """Weights by name; a checkpoint's begin with the part of RowModel that they lie in."""
    found = load_file(path)
    begins = "model." if all(name.startswith("model.model.") or "lm_head" in name for name in found) else ""
    return {name.removeprefix(begins): tensor for name, tensor in found.items()}


def test_the_best_weights_are_served(trained):
    run = trained(*FIRST, "patience=2")
    (end,) = events_of(run, "end")
    assert (end["best_step"], end["model_step"], end["step"]) == (2, 2, 6)
    assert end["reason"].startswith("no validation in 2 was better")
    served = tensors(run / "model" / "model.safetensors")
    best = tensors(run / "checkpoints" / "step-000002" / "weights.safetensors")
    last = tensors(run / "checkpoints" / "step-000006" / "weights.safetensors")
    assert served.keys() == best.keys()
    assert all(served[name].numpy().tobytes() == best[name].numpy().tobytes() for name in served)
    assert not any(torch.equal(served[name], last[name]) for name in served)


def test_the_best_is_the_lowest(trained):
    run = trained("max_steps=10", "validate_every=1", "learning_rate=0.3", "schedule=constant")
    (end,) = events_of(run, "end")
    validations = {event["step"]: event["loss"] for event in events_of(run, "validation") if event["step"]}
    assert end["model_step"] == end["best_step"] == min(validations, key=validations.get)
    assert end["best_loss"] == min(validations.values())


def test_the_last_weights_are_served_where_asked_for(trained):
    run = trained(*FIRST, "final=last")
    (end,) = events_of(run, "end")
    assert (end["best_step"], end["model_step"], end["step"]) == (2, 8, 8)
    assert {path.name for path in (run / "checkpoints").iterdir()} == {"step-000006", "step-000008"}
    served = tensors(run / "model" / "model.safetensors")
    last = tensors(run / "checkpoints" / "step-000008" / "weights.safetensors")
    assert all(served[name].numpy().tobytes() == last[name].numpy().tobytes() for name in served)


def test_a_validation_file(tiny, rows, tmp_path, cli):
    held_out = write_rows(tmp_path / "held-out.jsonl", ROWS[:3])
    run = tmp_path / "run"
    done = cli("train", *settings(tiny, rows, run, f"validation={held_out}", "max_steps=2"))
    assert done.code == 0, done.err
    ledger = json.loads((run / "ledger.json").read_text())
    assert ledger["conversations"]["kept"] == {"train": 16, "validation": 3}
    assert ledger["files"] == {str(rows): 16, str(held_out): 3}
    assert ledger["warnings"]["a validation conversation is also trained on"]["count"] == 3
    assert events_of(run, "validation")[0]["trained_tokens"] == trained_tokens(cli, tiny, held_out)


def trained_tokens(cli, tiny, data) -> int:
    shown = cli("show", f"model={tiny}", f"data={data}", "template=chatml", "--json").out
    return sum(len(json.loads(line)["completion_ids"]) for line in shown.splitlines())


def test_the_samples_of_a_run(trained):
    run = trained("max_steps=4", "validate_every=2", "samples=3", "sample_tokens=5")
    samples = [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]
    assert [sample["step"] for sample in samples] == [0] * 3 + [2] * 3 + [4] * 3
    assert len({sample["prompt"] for sample in samples}) == 3  # the same prompts at each step
    for sample in samples:
        assert sample["prompt"].endswith("<|im_start|>assistant\n")
        assert f"<|im_start|>user\n{sample['question']}<|im_end|>" in sample["prompt"]
        assert sample["reference"]
        assert "<|im_end|>" not in sample["reference"]
        assert isinstance(sample["stopped"], bool)
    asked = {row["messages"][-1]["content"] for row in ROWS}
    assert {sample["reference"] for sample in samples} <= asked
    assert not events_of(run, "sample")


def test_what_a_step_tells(trained):
    run = trained("max_steps=5")
    for event in events_of(run, "step"):
        assert math.isfinite(event["loss"])
        assert event["grad_norm"] > 0
        assert event["peak_bytes"] > 1e6
        assert 0 < event["trained_tokens"] < event["computed_tokens"] <= event["tokens"]
        assert event["conversations"] in (4, 1, 2, 3)
    (start,) = events_of(run, "start")
    assert start["num_parameters"] == start["num_trainable"] > 10_000
    assert start["total_steps"] == 5
    assert start["stop"] == ["<|im_end|>", "<|endoftext|>"]
    assert {decision["key"] for decision in start["decisions"]} >= {"learning_rate", "layout", "attention"}
    assert tree(run)["recipe.yaml"]
