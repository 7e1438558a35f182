"""What a run says of its model before the first step: routers, frozen tokens, layouts that it cannot take."""

from __future__ import annotations

import json
import math
import shutil

import pytest

from conftest import events_of, settings
from imprint.evaluate.report import write_report


def notes_of(run):
    return [event["text"] for event in events_of(run, "note")]


@pytest.fixture(scope="module")
def twins(tiny, tmp_path_factory):
    """The tiny model, in which the tokens that open and close a message have one vector."""
    import torch
    from transformers import AutoTokenizer, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("twins") / "model"
    shutil.copytree(tiny, folder)
    tokenizer, model = AutoTokenizer.from_pretrained(folder), LlamaForCausalLM.from_pretrained(folder)
    begin, end = tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])
    with torch.no_grad():
        model.get_input_embeddings().weight[begin] = model.get_input_embeddings().weight[end]
    model.save_pretrained(folder)
    return folder


def test_frozen_tokens_that_are_alike_are_named_with_the_remedy(twins, rows, tmp_path, cli):
    run = tmp_path / "lora"
    assert cli("train", *settings(twins, rows, run, "method=lora", "max_steps=1")).code == 0
    (note,) = [text for text in notes_of(run) if "tell them apart" in text]
    assert "<|im_end|> = <|im_start|> (embedding)" in note or "<|im_start|> = <|im_end|> (embedding)" in note
    remedy = next(
        word for word in ("lora.train_tokens" + note.partition("lora.train_tokens")[2]).split(" trains")
    )
    write_report(run)
    assert "tell them apart" in (run / "report.html").read_text()
    mended = tmp_path / "mended"
    assert cli("train", *settings(twins, rows, mended, "method=lora", "max_steps=1", remedy)).code == 0
    assert not [text for text in notes_of(mended) if "tell them apart" in text]
    full = tmp_path / "full"
    assert cli("train", *settings(twins, rows, full, "max_steps=1")).code == 0
    assert not [text for text in notes_of(full) if "tell them apart" in text]


def test_tokens_that_differ_are_not_named(tiny, rows, tmp_path, cli):
    run = tmp_path / "run"
    assert cli("train", *settings(tiny, rows, run, "method=lora", "max_steps=1")).code == 0
    assert not [text for text in notes_of(run) if "tell them apart" in text]


def test_routers_are_spoken_of(tiny, rows, tmp_path, cli):
    from test_toggles import build_experts

    experts = tmp_path / "experts"
    build_experts(experts, tiny)
    plain, balanced = tmp_path / "plain", tmp_path / "balanced"
    assert cli("train", *settings(experts, rows, plain, "max_steps=2")).code == 0
    assert [text for text in notes_of(plain) if "2 routers is not balanced (balance_loss=0)" in text]
    assert all("balance" not in event for event in events_of(plain, "step"))
    assert cli("train", *settings(experts, rows, balanced, "max_steps=2", "balance_loss=0.1")).code == 0
    assert [text for text in notes_of(balanced) if "balanced over the whole step (balance_loss=0.1)" in text]
    assert all(1 < event["balance"] < 4 for event in events_of(balanced, "step"))
    assert all(math.isfinite(event["loss"]) for event in events_of(balanced, "step"))


def test_a_model_that_is_trained_one_turn_a_row_says_why(tiny, rows, tmp_path, cli):
    import torch
    from transformers import MambaConfig, MambaForCausalLM

    folder, run = tmp_path / "mamba", tmp_path / "run"
    shutil.copytree(tiny, folder)
    size = json.loads((tiny / "config.json").read_text())["vocab_size"]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        MambaForCausalLM(
            MambaConfig(vocab_size=size, hidden_size=16, state_size=4, num_hidden_layers=2, eos_token_id=0)
        ).save_pretrained(folder)
    assert cli("train", *settings(folder, rows, run, "max_steps=1", "max_length=128")).code == 0
    (note,) = [text for text in notes_of(run) if "one turn a row" in text]
    assert "isolation: " in note
    (start,) = events_of(run, "start")
    assert start["recipe"]["layout"] == "separate"
