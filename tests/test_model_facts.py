"""What is known of a model from its folder alone, and what is said of one that is not there."""

import json
from pathlib import Path

import pytest

from imprint.errors import ModelError
from imprint.model_facts import facts_of, read_model_facts


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("config", "width", "context"),
    [
        ({"hidden_size": 576, "max_position_embeddings": 2048}, 576, 2048),
        ({"n_embd": 768, "n_positions": 1024}, 768, 1024),
        ({"d_model": 512, "max_seq_len": 4096}, 512, 4096),
        ({"hidden_size": 1024, "word_embed_proj_dim": 512, "n_ctx": 77}, 1024, 77),
        ({"hidden_size": 9, "text_config": {"hidden_size": 64, "seq_length": 128}}, 64, 128),
        ({}, None, None),
    ],
)
def test_facts_have_many_names(config, width, context):
    facts = facts_of({**config, "vocab_size": 11, "model_type": "x"})
    assert (facts.width, facts.context, facts.vocab, facts.model_type) == (width, context, 11, "x")


def test_a_model_folder_is_read():
    Path("base").mkdir()
    Path("base/config.json").write_text(json.dumps({"hidden_size": 64, "tie_word_embeddings": False}))
    facts = read_model_facts("base")
    assert (facts.width, facts.tied) == (64, False)


@pytest.mark.parametrize("text", ["{", "[]"])
def test_a_broken_config(text):
    Path("base").mkdir()
    Path("base/config.json").write_text(text)
    with pytest.raises(ModelError, match=r"base/config\.json"):
        read_model_facts("base")


def test_a_missing_model_names_the_nearest():
    Path("models/smollm").mkdir(parents=True)
    with pytest.raises(ModelError, match="write models/smollm"):
        read_model_facts("models/smolm")
    with pytest.raises(ModelError, match="owner/name"):
        read_model_facts("smollm")
    with pytest.raises(ModelError, match=r"has no config\.json"):
        read_model_facts("models/smollm")


@pytest.mark.parametrize(
    ("config", "found", "fix"),
    [
        ('{"base_model_name_or_path": "models/a b"}', "base model is models/a b", "model='models/a b'"),
        ("{}", "base model is not recorded", "begin from its base model"),
        ("[]", "base model is not recorded", "begin from its base model"),
        ("{", "base model is not recorded", "begin from its base model"),
    ],
)
def test_an_adapter_is_no_whole_model(config, found, fix):
    Path("tuned").mkdir()
    Path("tuned/adapter_config.json").write_text(config)
    with pytest.raises(ModelError, match=r"tuned: this is a LoRA adapter.* a whole model") as caught:
        read_model_facts("tuned")
    assert found in caught.value.found
    assert fix in caught.value.fix
    assert "imprint chat tuned" in caught.value.fix
    Path("tuned/config.json").write_text('{"hidden_size": 64}')
    assert read_model_facts("tuned").width == 64


def test_a_hub_model_in_the_cache_is_read(monkeypatch, tmp_path):
    cached = tmp_path / "config.json"
    cached.write_text('{"hidden_size": 64}')
    asked = []
    monkeypatch.setattr(
        "huggingface_hub.try_to_load_from_cache", lambda *a, **k: asked.append((a, k)) or str(cached)
    )
    assert read_model_facts("owner/name", "abc").width == 64
    assert asked == [(("owner/name", "config.json"), {"revision": "abc"})]
