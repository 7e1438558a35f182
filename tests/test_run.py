"""What a run leaves behind, and when it counts as finished."""

from __future__ import annotations

import json
import shutil
import signal
import time
from pathlib import Path

import pytest
import yaml

from conftest import build_model, events_of, losses, settings, tree, weights_of
from imprint.errors import RunError

KILL = signal.SIGKILL


def test_what_a_run_leaves(tiny, rows, tmp_path, cli):
    run = tmp_path / "run"
    assert cli("train", *settings(tiny, rows, run, "max_steps=3", "samples=1")).code == 0
    assert {path.name for path in run.iterdir()} == {
        "recipe.yaml", "run.json", "ledger.json", "events.jsonl", "samples.jsonl", "report.html",
        "checkpoints", "model",
    }  # fmt: skip
    assert [path.name for path in tmp_path.iterdir()] == ["run"]  # nothing is left aside
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    autos = [key for key, value in recipe.items() if value == "auto"]
    assert autos == [], "what is auto is resolved once, and kept"
    assert (recipe["layout"], recipe["attention"]) == ("shared", "tiles")
    ledger = json.loads((run / "ledger.json").read_text())
    for level in ledger["records"], ledger["conversations"], ledger["turns"]:
        left = sum(tally["count"] for tally in level["left"].values())
        assert level["total"] == sum(level["kept"].values()) + left
    (start,) = events_of(run, "start")
    decided = [decision["key"] for decision in start["decisions"]]
    assert sorted(set(decided)) == sorted(decided), "what was settled later stands once"
    assert "auto" not in [decision["value"] for decision in start["decisions"]]
    assert "It is" in (run / "report.html").read_text() or "Name" in (run / "report.html").read_text()


def test_a_run_that_breaks_says_so_and_keeps_its_checkpoint(tiny, rows, tmp_path, cli, monkeypatch):
    """A loss that is not finite changes no weight, ends with code 1, and can be taken up."""
    import imprint.train.step as step

    run = tmp_path / "run"
    original, calls = step.accumulate, 0

    def breaks(state, rows, load):
        nonlocal calls
        calls += 1
        loss = original(state, rows, load)
        return loss * float("nan") if calls == 3 else loss

    with monkeypatch.context() as patch:
        patch.setattr(step, "accumulate", breaks)
        done = cli("train", *settings(tiny, rows, run, "max_steps=4", "save_every=1"))
    assert done.code == 1
    assert "not finite at step 3" in done.err
    assert "Traceback" not in done.err
    assert not (run / "model").exists()
    assert cli("resume", run).code == 0
    assert [step for step, _ in losses(run)] == [1, 2, 3, 4]
    whole = tmp_path / "whole"
    assert cli("train", *settings(tiny, rows, whole, "max_steps=4", "save_every=1")).code == 0
    assert weights_of(run) == weights_of(whole)


def test_killed_when_the_model_is_there_and_its_end_is_not_told(tiny, rows, tmp_path, start, cli):
    """The model is whole by then: resume adds the end and the report."""
    run, whole = tmp_path / "run", tmp_path / "whole"
    assert cli("train", *settings(tiny, rows, whole, "max_steps=3")).code == 0
    last = ("imprint.disk.sync", sync_of_the_model(tiny, rows, tmp_path / "count"), KILL)
    given = settings(tiny, rows, run, "max_steps=3")
    assert start("train", *given, signal_before=last).wait().code == -KILL
    assert weights_of(run) == weights_of(whole)
    assert events_of(run, "end") == []
    done = cli("resume", run)
    assert done.code == 0, done.err
    assert weights_of(run) == weights_of(whole)
    assert losses(run) == losses(whole)
    assert len(events_of(run, "end")) == 1
    assert (run / "report.html").is_file()


def sync_of_the_model(tiny, rows, run) -> int:
    """Which of the syncs of such a run, from 1, is that of the folder that its model has just moved into."""
    import imprint.disk as checkpoint
    from imprint.run import train
    from imprint.settings import resolve

    calls = 0
    original = checkpoint.sync

    def counted(path):
        nonlocal calls
        calls += not moved
        if (run / "model").is_dir():
            moved.append(path)
        original(path)

    moved: list[Path] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "sync", counted)
        train(resolve(None, settings(tiny, rows, run, "max_steps=3")).recipe)
    assert moved[0] == run
    return calls


def test_two_runs_into_one_folder(tiny, rows, tmp_path, start, cli):
    """The second finds the folder of the first and leaves it alone."""
    run = tmp_path / "run"
    first = start("train", *settings(tiny, rows, run, "validation=0"))
    done = start("train", *settings(tiny, rows, run, "max_steps=1"))
    codes = sorted((first.wait().code, done.wait().code))
    assert codes == [0, 2], "one of them trains"
    assert len(losses(run)) in (1, 12)
    before = tree(run)
    assert cli("train", *settings(tiny, rows, run, "max_steps=1")).code == 2
    assert tree(run) == before
    assert [path.name for path in tmp_path.glob("run*")] == ["run"]


def test_the_debug_switch_shows_the_traceback(tmp_path, cli, monkeypatch):
    monkeypatch.setenv("IMPRINT_DEBUG", "1")
    with pytest.raises(RunError, match="not a run folder"):
        cli("resume", tmp_path)


def test_a_run_that_is_worked_on_is_not_resumed(tiny, rows, tmp_path, start, cli):
    run = tmp_path / "run"
    running = start("train", *settings(tiny, rows, run, "epochs=20000", "validation=0"))

    def seen() -> bool:
        return (run / "events.jsonl").is_file() and len(events_of(run, "step")) > 2

    deadline = time.monotonic() + 60
    while not seen():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    done = cli("resume", run)
    assert done.code == 2
    assert "another process is working on this run" in done.err
    assert running.signal_when(seen, signal.SIGINT).code == 130


def test_each_sample_shows_its_own_question(tiny, tmp_path, cli):
    """One array on one line: places are rows of one file, and equal prompts are asked once."""
    rows = [{"prompt": f"Name {i}.", "response": f"It is {i}."} for i in (0, 1, 1, 2)]
    (tmp_path / "rows.json").write_text(json.dumps(rows), encoding="utf-8")
    run = tmp_path / "run"
    given = ("max_steps=1", "validation=0", "samples=4", "sample_tokens=2")
    assert cli("train", *settings(tiny, tmp_path / "rows.json", run, *given)).code == 0
    samples = [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]
    before = [sample for sample in samples if sample["step"] == 0]
    assert [sample["question"] for sample in before] == ["Name 0.", "Name 1.", "Name 2."]
    assert all(sample["question"] in sample["prompt"] for sample in samples)
    assert [sample["reference"] for sample in before] == ["It is 0.", "It is 1.", "It is 2."]


SMALL_MODELS = {
    "bloom": {"n_layer": 2, "n_head": 4},
    "falcon": {"num_hidden_layers": 2, "num_attention_heads": 4},
    "mamba": {"num_hidden_layers": 2},
    "lfm2": {
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 64,
        "layer_types": ["conv", "full_attention"],
    },
}


@pytest.mark.parametrize("kind", SMALL_MODELS)
def test_models_that_take_one_turn_a_row(kind, tiny, rows, tmp_path, cli):
    """Alibi, convolution, recurrent state, attention that knows no `end`: from the command to the chat."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(
        kind, vocab_size=512, hidden_size=32, bos_token_id=None, eos_token_id=0, **SMALL_MODELS[kind]
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / kind)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny / name, tmp_path / kind)
    run = tmp_path / "run"
    given = ("max_steps=2", "validation=0.2", "samples=1", "sample_tokens=4")
    done = cli("train", *settings(tmp_path / kind, rows, run, *given))
    assert done.code == 0, done.err
    assert "one turn a row" in " ".join(done.err.split())
    assert yaml.safe_load((run / "recipe.yaml").read_text())["layout"] == "separate"
    assert cli("chat", run, "--prompt", "hi", "--max-tokens", "2").code == 0


@pytest.mark.parametrize("kind", ["float32", "bfloat16"])
def test_a_tied_model_keeps_its_type_and_its_one_embedding(kind, tiny, rows, tmp_path, cli):
    """What config.json says of the weights is what they are, and a tied head is not written a second time."""
    import torch
    from safetensors import safe_open
    from transformers import AutoModelForCausalLM

    base = build_model(tmp_path / "base", tie_word_embeddings=True)
    wanted = getattr(torch, kind)
    AutoModelForCausalLM.from_pretrained(base, dtype=wanted).save_pretrained(base)
    run = tmp_path / "run"
    assert cli("train", *settings(base, rows, run, "max_steps=2", "validation=0")).code == 0
    assert json.loads((run / "model" / "config.json").read_text())["dtype"] == kind
    with safe_open(run / "model" / "model.safetensors", "pt") as saved:
        assert "lm_head.weight" not in saved.keys()  # noqa: SIM118 - not a mapping
        assert {saved.get_tensor(name).dtype for name in saved.keys()} == {wanted}  # noqa: SIM118
    assert len({file.stat().st_mode for file in (run / "model").iterdir()}) == 1
    told = any("bfloat16" in event["text"] for event in events_of(run, "note"))
    assert told == (kind == "bfloat16")
    model = AutoModelForCausalLM.from_pretrained(run / "model")
    assert model.dtype == wanted
    assert model.lm_head.weight is model.model.embed_tokens.weight
