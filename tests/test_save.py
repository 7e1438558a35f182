"""What a saved model says of its stops: the same in every file, whichever of them a server reads."""

from __future__ import annotations

import json
import shutil

import pytest

from conftest import settings

EOS, STOP = "<|endoftext|>", "<|im_end|>"
TEMPLATE = (
    "{% for m in messages %}{{ '<|' + m.role + '|>' + m.content + '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def stops_of(folder) -> dict[str, list[str]]:
    """The stop tokens that each file of a model folder names."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    found = {"tokenizer": [tokenizer.eos_token]}
    for name in ("generation_config.json", "config.json"):
        if (folder / name).is_file():
            ids = json.loads((folder / name).read_text())["eos_token_id"]
            found[name] = tokenizer.convert_ids_to_tokens(ids if isinstance(ids, list) else [ids])
    return found


@pytest.fixture
def own(tiny, tmp_path):
    """Gives the tiny model, in a folder of its own, a template whose stop is not its eos."""
    from transformers import AutoTokenizer

    def make(source: str):
        folder = shutil.copytree(tiny, tmp_path / "own")
        tokenizer = AutoTokenizer.from_pretrained(folder)
        assert tokenizer.eos_token == EOS != STOP
        tokenizer.chat_template = source
        tokenizer.save_pretrained(folder)
        return folder

    return make


@pytest.mark.parametrize("method", ["full", "lora"])
def test_every_file_names_the_same_stops(method, own, rows, tmp_path, cli):
    run = tmp_path / "run"
    grown = ("template=auto", "max_steps=1", f"method={method}")
    ended = cli("train", *settings(own(TEMPLATE), rows, run, *grown))
    assert ended.code == 0, ended.err
    found = stops_of(run / "model")
    assert found.pop("tokenizer") == [STOP]
    assert set(found) == {"generation_config.json", *(["config.json"] if method == "full" else [])}
    assert all(stops == [STOP, EOS] for stops in found.values()), found


def test_a_template_that_writes_the_eos_token_keeps_it(own, rows, tmp_path, cli):
    """Were the tokenizer's eos another one, this template would write another text."""
    source = "{% if messages[0].content == 'x' %}{{ eos_token }}{% endif %}" + TEMPLATE
    run = tmp_path / "run"
    assert cli("train", *settings(own(source), rows, run, "template=auto", "max_steps=1")).code == 0
    found = stops_of(run / "model")
    assert found["tokenizer"] == [EOS]
    assert found["generation_config.json"] == found["config.json"] == [STOP, EOS]
