"""Loading: what is refused, what is changed, and what is not."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig

from imprint.errors import ModelError
from imprint.model.attention import NAMES
from imprint.model.load import (
    find_model,
    grow_embeddings,
    load_model,
    set_dropout,
    set_stops,
)
from tiny import VOCAB, tiny_model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "model"
    tiny_model("llama").save_pretrained(path)
    return path


def change_config(folder: Path, **keys: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))


def test_a_folder_is_found_and_loaded_as_it_is(folder: Path) -> None:
    assert find_model(str(folder)) == folder
    model = load_model(folder, num_tokens=VOCAB)
    original = tiny_model("llama").state_dict()
    assert all(torch.equal(tensor, original[name]) for name, tensor in model.state_dict().items())
    assert model.config._attn_implementation == NAMES["tiles"]  # type: ignore[union-attr]
    assert load_model(folder, attention="reference").config._attn_implementation == NAMES["reference"]  # type: ignore[union-attr]


def test_half_precision_weights_are_loaded_in_float32(tmp_path: Path) -> None:
    tiny_model("llama", torch.bfloat16).save_pretrained(tmp_path)
    assert load_file(tmp_path / "model.safetensors")["lm_head.weight"].dtype == torch.bfloat16
    assert {p.dtype for p in load_model(tmp_path).parameters()} == {torch.float32}


def test_shards_are_read(tmp_path: Path) -> None:
    tiny_model("llama").save_pretrained(tmp_path, max_shard_size="20KB")
    assert (tmp_path / "model.safetensors.index.json").is_file()
    assert find_model(str(tmp_path)) == tmp_path
    assert torch.equal(
        load_model(tmp_path).state_dict()["lm_head.weight"], tiny_model("llama").lm_head.weight
    )


def test_no_such_folder_offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for name in (str(tmp_path / "nothing"), "nobody/no-such-model", "not a name"):
        with pytest.raises(ModelError, match="no such model folder"):
            find_model(name)


@pytest.mark.parametrize("given", ["{}/modle", "./modle", "../here/modle", "~/modle"])
def test_a_path_is_not_asked_of_the_hub(
    given: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ask(*_: Any, **__: Any) -> None:
        raise AssertionError("the hub was asked")

    monkeypatch.setattr("huggingface_hub.snapshot_download", ask)
    (tmp_path / "here" / "model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(ModelError, match="no such model folder") as caught:
        find_model(given.format(tmp_path))
    assert caught.value.fix.startswith("write ")
    assert caught.value.fix.endswith("model")
    with pytest.raises(AssertionError):
        find_model("gpt2")


def test_no_config(folder: Path) -> None:
    (folder / "config.json").unlink()
    with pytest.raises(ModelError, match="holds no model") as caught:
        find_model(str(folder))
    assert "model.safetensors" in caught.value.found


def test_an_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="an empty folder"):
        find_model(str(tmp_path))


def test_pickled_weights_are_never_read(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save(tiny_model("llama").state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match="no safetensors"):
        find_model(str(folder))
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_model(folder)


def test_remote_code_is_refused(folder: Path) -> None:
    change_config(folder, auto_map={"AutoModelForCausalLM": "modeling.Mine"})
    (folder / "modeling.py").write_text("raise SystemExit('this ran')")
    with pytest.raises(ModelError, match="its own Python code") as caught:
        load_model(folder)
    assert "modeling.Mine" in caught.value.found
    assert "trust_remote_code" in caught.value.fix


@pytest.mark.parametrize("damage", ["cut", "header", "text"])
def test_damaged_weights(folder: Path, damage: str) -> None:
    path = folder / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(
        {"cut": data[:-100], "header": b"\xff" * 16 + data[16:], "text": b"version https://git"}[damage]
    )
    with pytest.raises(ModelError, match="cannot be loaded") as caught:
        load_model(folder)
    assert str(folder) in caught.value.where


@pytest.mark.parametrize("content", ["{", '{"model_type": "no_such_kind"}', "[]", "{}"])
def test_a_config_that_says_nothing(folder: Path, content: str) -> None:
    (folder / "config.json").write_text(content)
    with pytest.raises(ModelError):
        load_model(folder)


def test_a_weight_that_is_missing_is_not_drawn_at_random(folder: Path) -> None:
    from safetensors.torch import save_file

    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"layers\.1\.mlp\.up_proj"):
        load_model(folder)


def test_a_weight_of_another_shape(folder: Path) -> None:
    change_config(folder, intermediate_size=64)
    with pytest.raises(ModelError):
        load_model(folder)


def test_ids_beyond_the_embedding(folder: Path) -> None:
    load_model(folder, num_tokens=VOCAB)
    with pytest.raises(ModelError, match="beyond the model's embedding") as caught:
        load_model(folder, num_tokens=VOCAB + 1)
    assert (caught.value.found, "97 rows" in caught.value.expected) == ("ids up to 97", True)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", ["llama", "gpt2", "phi"])
def test_grown_rows_are_the_mean_of_the_others(kind: str, tied: bool, tmp_path: Path) -> None:
    before = tiny_model(kind, tie_word_embeddings=tied)
    before.save_pretrained(tmp_path)
    model: Any = load_model(tmp_path, num_tokens=VOCAB + 3, grow=True)
    embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    assert (head is embedding) is tied
    assert model.config.vocab_size == VOCAB + 3
    for weight, old in (
        (embedding, before.get_input_embeddings().weight),
        (head, before.get_output_embeddings().weight),
    ):
        assert torch.equal(weight[:VOCAB], old)
        assert torch.equal(weight[VOCAB:], old.mean(dim=0).expand(3, -1))


def test_a_head_with_a_bias_grows_a_bias_of_the_mean() -> None:
    model = tiny_model("phi")
    old = model.lm_head.bias.detach().clone()
    grow_embeddings(model, VOCAB + 2)
    assert torch.equal(model.lm_head.bias[:VOCAB], old)
    assert torch.allclose(model.lm_head.bias[VOCAB:], old.mean())


def test_a_model_with_spare_rows_is_not_shrunk(folder: Path) -> None:
    model: Any = load_model(folder, num_tokens=10, grow=True)
    assert model.get_input_embeddings().weight.shape[0] == VOCAB


@pytest.mark.parametrize("kind", ["gpt2", "opt", "gpt_neox", "phi", "llama", "granite"])
def test_dropout_is_off_unless_asked_for(kind: str, tmp_path: Path) -> None:
    model = tiny_model(kind)
    set_dropout(model.config, 0.3)
    model.save_pretrained(tmp_path)

    def rates(**options: Any) -> set[float]:
        loaded = load_model(tmp_path, **options)
        found = {m.p for m in loaded.modules() if isinstance(m, torch.nn.Dropout)}
        return found | {
            value
            for module in loaded.modules()
            for key, value in vars(module).items()
            if "dropout" in key and isinstance(value, float)
        }

    assert rates() <= {0.0}
    assert 0.2 in rates(dropout=0.2)
    assert rates(dropout=0.2) <= {0.0, 0.2}


def test_a_switch_that_is_named_after_dropout_is_left_alone() -> None:
    config = AutoConfig.for_model("llama")
    config.use_dropout = True
    set_dropout(config, 0.0)
    assert config.use_dropout is True
    assert config.attention_dropout == 0.0


def test_stops_are_saved_with_the_model() -> None:
    model = tiny_model("llama")
    set_stops(model, [7, 2], None)
    made = model.generation_config
    assert (made.eos_token_id, made.pad_token_id, made.do_sample) == ([7, 2], 7, False)
    set_stops(model, [7], 0)
    assert model.generation_config.pad_token_id == 0


def test_other_noise_is_off(tmp_path: Path) -> None:
    """A router's jitter or a dropped layer would make an update depend on how its rows are cut."""
    config = tiny_model("mixtral").config
    config.router_jitter_noise = 0.2
    config.layerdrop = 0.1
    assert set_dropout(config, 0.3) > 0
    assert (config.router_jitter_noise, config.layerdrop, config.attention_dropout) == (0.0, 0.0, 0.3)


def test_dropout_that_a_model_does_not_have_is_refused(tmp_path: Path) -> None:
    tiny_model("mamba").save_pretrained(tmp_path)
    load_model(tmp_path)
    with pytest.raises(ModelError, match="no dropout"):
        load_model(tmp_path, dropout=0.1)
