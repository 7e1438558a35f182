"""GGUF files of every family, loaded again by transformers: equal ids, equal probabilities, faults caught."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf_models import FAMILIES, TEXT, apart, ids_of, load, logprobs, write_model

from conftest import build_model
from imprint.errors import ModelError, RecipeError, RunFailed, UserError
from imprint.export import gguf as writer
from imprint.export import gguf_config, gguf_tensors, gguf_tokens
from imprint.export.gguf import write_gguf
from imprint.export.gguf_reload import load_model, load_tokenizer, read_metadata

pytest.importorskip("gguf")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

BARS = {"f32": 1e-4, "f16": 1e-2, "q8_0": 5e-2}


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    """A folder with a byte-level tokenizer of 512 tokens."""
    return build_model(tmp_path_factory.mktemp("words"))


@pytest.fixture(scope="module")
def models(words, tmp_path_factory):
    """family → (folder, ids of TEXT, log-probabilities [T, V]), each made once."""
    made = {}

    def make(family):
        if family not in made:
            folder = write_model(tmp_path_factory.mktemp("models") / family, words, family)
            ids = ids_of(folder)
            made[family] = folder, ids, logprobs(load(folder), ids)
        return made[family]

    return make


@pytest.mark.parametrize("family", FAMILIES)
def test_a_file_says_what_the_folder_says(models, tmp_path, family):
    folder, ids, reference = models(family)
    for type, bar in BARS.items():
        written = write_gguf(folder, tmp_path / f"{type}.gguf", type)
        assert apart(reference, logprobs(load_model(written.path), ids)) < bar, type
        assert written.bytes == written.path.stat().st_size
    assert load_tokenizer(written.path)(TEXT)["input_ids"] == ids


def planted(models, tmp_path, family):
    folder, ids, reference = models(family)
    path = write_gguf(folder, tmp_path / "planted.gguf", "f32").path
    return apart(reference, logprobs(load_model(path), ids)) / BARS["f32"]


@pytest.mark.parametrize("family", ["llama", "llama-biases", "mistral"])
def test_an_unpermuted_query_and_key_miss_by_far(models, tmp_path, monkeypatch, family):
    monkeypatch.setattr(gguf_tensors, "interleaved", lambda values, heads: values)
    assert planted(models, tmp_path, family) > 100


@pytest.mark.parametrize("family", ["gemma", "gemma2", "gemma3_text"])
def test_a_norm_without_its_one_misses_by_far(models, tmp_path, monkeypatch, family):
    monkeypatch.setattr(gguf_tensors, "GEMMA", ())
    assert planted(models, tmp_path, family) > 100


PLANTED = {
    "rope.freq_base": 500.0, "rope.freq_base_swa": 500.0, "attention.layer_norm_rms_epsilon": 0.5,
    "final_logit_softcapping": 0.5, "rope.scaling.factor": 1.0, "attention.sliding_window": 2,
}  # fmt: skip


@pytest.mark.parametrize(
    ("family", "key"),
    [
        *((family, "rope.freq_base") for family in ("llama", "qwen2", "gemma", "gemma3_text")),
        ("gemma3_text", "rope.freq_base_swa"),
        ("qwen3", "attention.layer_norm_rms_epsilon"),
        ("gemma2", "final_logit_softcapping"),
        ("gemma2", "attention.sliding_window"),
        ("llama-yarn", "rope.scaling.factor"),
        ("llama-linear", "rope.scaling.factor"),
    ],
)
def test_a_wrong_value_misses_by_far(models, tmp_path, monkeypatch, family, key):
    def wrong(folder):
        shape = gguf_config.read_shape(folder)
        assert key in shape.keys
        object.__setattr__(shape, "keys", {**shape.keys, key: PLANTED[key]})
        return shape

    monkeypatch.setattr(writer, "read_shape", wrong)
    assert planted(models, tmp_path, family) > 100


def test_missing_rope_factors_miss_by_far(models, tmp_path, monkeypatch):
    monkeypatch.setattr(gguf_config, "_llama3_factors", lambda rope, head_dim: (1.0,) * (head_dim // 2))
    assert planted(models, tmp_path, "llama-3.1") > 100


def test_a_dropped_merge_changes_ids(models, tmp_path, monkeypatch):
    folder, ids, _ = models("llama")
    pairs = gguf_tokens._pairs
    monkeypatch.setattr(gguf_tokens, "_pairs", lambda spec: pairs(spec)[1:])
    path = write_gguf(folder, tmp_path / "a.gguf", "f32").path
    assert load_tokenizer(path)(TEXT)["input_ids"] != ids


def test_llama3_factors_are_those_of_transformers(models):
    """The frequencies of transformers' own rotary module are the plain ones divided by the factors."""
    folder, _, _ = models("llama-3.1")
    shape = gguf_config.read_shape(folder)
    plain = 1e4 ** (-torch.arange(0, 32, 2) / 32)
    ours = plain / torch.tensor(shape.rope_factors)
    assert torch.allclose(load(folder).model.rotary_emb.inv_freq, ours, rtol=1e-6)
    assert len(set(shape.rope_factors)) > 3  # the three parts of the rule


def test_slices_make_the_same_file_and_bound_what_is_held(models, tmp_path, monkeypatch):
    folder, _, _ = models("llama")
    whole = write_gguf(folder, tmp_path / "whole.gguf", "q8_0").path.read_bytes()
    most, encoded = [], gguf_tensors._encoded
    monkeypatch.setattr(
        gguf_tensors, "_encoded", lambda values, kind: most.append(values.size) or encoded(values, kind)
    )
    monkeypatch.setattr(gguf_tensors, "SLICE", 2500)
    assert write_gguf(folder, tmp_path / "sliced.gguf", "q8_0").path.read_bytes() == whole
    assert max(most) <= 2500


def test_types_norms_and_rows_that_blocks_do_not_divide(words, tmp_path):
    import gguf

    folder = write_model(tmp_path / "m", words, intermediate_size=72)
    written = write_gguf(folder, tmp_path / "m.gguf", "q4_0")
    types = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(written.path).tensors}
    assert types["blk.0.attn_q.weight"] == types["token_embd.weight"] == "Q4_0"
    assert types["blk.0.ffn_down.weight"] == "F16"
    assert {types[name] for name in types if "norm" in name} == {"F32"}
    assert any("2 of 21 tensors are f16" in note for note in written.notes)


def test_what_the_metadata_say(words, tmp_path):
    folder = write_model(tmp_path / "m", words)
    said = read_metadata(write_gguf(folder, tmp_path / "m.gguf", "q8_0", name="my Phi-3", licence="mit").path)
    assert said["general.name"] == "my phi 3"  # llama.cpp treats a model of that name otherwise
    assert (said["general.license"], said["general.file_type"]) == ("mit", 7)
    assert (said["llama.rope.dimension_count"], said["llama.attention.head_count_kv"]) == (32, 2)
    assert said["tokenizer.ggml.pre"] == "smollm"
    assert said["tokenizer.ggml.add_bos_token"] is False
    assert said["tokenizer.ggml.token_type"][:4] == [gguf_tokens.CONTROL] * 4
    assert said["tokenizer.ggml.tokens"][-1] == f"[PAD{512 + 2}]"
    assert said["tokenizer.ggml.token_type"][-3:] == [gguf_tokens.UNUSED] * 3


def test_stops_that_have_no_key_are_said(words, tmp_path):
    folder = write_model(tmp_path / "m", words)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [3, 0, 300, 301, 302]}))
    written = write_gguf(folder, tmp_path / "m.gguf", "f16")
    said = read_metadata(written.path)
    assert [said[f"tokenizer.ggml.{key}_token_id"] for key in ("eos", "eot", "eom")] == [0, 300, 301]
    (note,) = [note for note in written.notes if "will not stop" in note]
    assert said["tokenizer.ggml.tokens"][302] in note
    assert said["tokenizer.ggml.tokens"][3] not in note  # llama.cpp knows <|im_end|> by its text


def test_a_window_where_llama_cpp_has_none_limits_the_context(words, tmp_path):
    folder = write_model(tmp_path / "m", words, "mistral", sliding_window=48)
    written = write_gguf(folder, tmp_path / "m.gguf", "f16")
    assert read_metadata(written.path)["llama.context_length"] == 48
    assert "looks back 48 tokens" in written.notes[0]


@pytest.mark.parametrize(
    ("family", "changes", "where", "found"),
    [
        ("qwen2", dict(head_dim=32), "head_dim", "32"),
        ("gemma2", dict(query_pre_attn_scalar=64), "query_pre_attn_scalar", "64"),
        ("gemma2", dict(num_hidden_layers=3, layer_types=["full_attention"] * 3), "layer_types", "full"),
        ("llama", dict(hidden_act="gelu"), "hidden_act", "gelu"),
        ("gemma", dict(tie_word_embeddings=False), "tie_word_embeddings", "false"),
        (
            "llama",
            dict(rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}),
            "rope_parameters",
            "dynamic",
        ),
    ],
)
def test_what_a_file_cannot_carry_is_refused(words, tmp_path, family, changes, where, found):
    folder = write_model(tmp_path / "m", words, family, **changes)
    with pytest.raises(ModelError) as refused:
        write_gguf(folder, tmp_path / "m.gguf")
    assert where in refused.value.where
    assert found in refused.value.found
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m"]


def test_other_architectures_and_types_are_refused(words, tmp_path):
    folder = write_model(tmp_path / "m", words, "llama", kind="olmo2")
    with pytest.raises(ModelError, match="olmo2"):
        write_gguf(folder, tmp_path / "m.gguf")
    with pytest.raises(RecipeError, match="write type=q8_0"):
        write_gguf(folder, tmp_path / "m.gguf", "q8")


def test_a_tokenizer_larger_than_the_model_is_refused(words, tmp_path):
    folder = write_model(tmp_path / "m", words, spare=-1)
    with pytest.raises(ModelError, match="512 tokens, 511 rows"):
        write_gguf(folder, tmp_path / "m.gguf")


def test_weights_that_lack_a_layer_are_refused_and_nothing_is_left(words, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = write_model(tmp_path / "m", words)
    weights = load_file(folder / "model.safetensors")
    dropped = {name: value for name, value in weights.items() if "layers.1.mlp.up" not in name}
    save_file(dropped, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=re.escape("missing: blk.1.ffn_up.weight")):
        write_gguf(folder, tmp_path / "m.gguf")
    save_file({**weights, "score.weight": torch.ones(2)}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=re.escape("unknown: score.weight")):
        write_gguf(folder, tmp_path / "m.gguf")
    assert not list(tmp_path.glob("*.gguf*"))


def test_sharded_bfloat16_folders(words, tmp_path):
    folder = write_model(tmp_path / "m", words)
    narrow = load(folder).to(torch.bfloat16)
    (folder / "model.safetensors").unlink()
    narrow.save_pretrained(folder, max_shard_size="100KB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    written = write_gguf(folder, tmp_path / "m.gguf", "bf16")
    ids = ids_of(folder)
    assert apart(logprobs(load(folder), ids), logprobs(load_model(written.path), ids)) < 1e-5


# ---- llama-quantize ---------------------------------------------------------------------------


def fake_quantizer(folder: Path, script: str) -> None:
    tool = folder / "llama-quantize"
    tool.write_text(f"#!/bin/sh\n{script}\n")
    tool.chmod(0o755)


def test_finer_types_are_made_by_llama_quantize(words, tmp_path, monkeypatch):
    """The tool is stood in for: it is given an unquantised file, the type's name and a place to write."""
    folder = write_model(tmp_path / "m", words)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    fake_quantizer(tmp_path, f'cp "$1" "$2"; echo "$3" > {tmp_path}/said')
    written = write_gguf(folder, tmp_path / "m.gguf", "Q4_K_M")
    assert (tmp_path / "said").read_text().strip() == "Q4_K_M"
    ids = ids_of(folder)
    assert apart(logprobs(load(folder), ids), logprobs(load_model(written.path), ids)) < BARS["f32"]
    fake_quantizer(tmp_path, "echo it is broken >&2; exit 3")
    with pytest.raises(RunFailed, match="it is broken"):
        write_gguf(folder, tmp_path / "other.gguf", "q4_k_m")
    assert not list(tmp_path.glob("other*"))


def test_without_llama_quantize_it_is_said_where_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="no llama-quantize on PATH") as refused:
        write_gguf(tmp_path, tmp_path / "m.gguf", "q4_k_m")
    assert "github.com/ggml-org/llama.cpp" in refused.value.fix


def test_the_rule_of_rows_is_the_same_rotation():
    """Rotating neighbours of interleaved rows is rotating halves of the rows as they were."""
    rng = np.random.default_rng(0)
    weight, x, angle = rng.normal(size=(16, 5)).astype(np.float32), rng.normal(size=5), rng.normal(size=4)

    def halves(row):
        a, b = row[:4], row[4:]
        return np.concatenate([a * np.cos(angle) - b * np.sin(angle), b * np.cos(angle) + a * np.sin(angle)])

    def neighbours(row):
        a, b = row[0::2], row[1::2]
        return np.stack(
            [a * np.cos(angle) - b * np.sin(angle), b * np.cos(angle) + a * np.sin(angle)], 1
        ).ravel()

    for head in range(2):
        before = halves((weight @ x)[8 * head : 8 * head + 8])
        after = neighbours((gguf_tensors.interleaved(weight, 2) @ x)[8 * head : 8 * head + 8])
        assert np.allclose(before, np.concatenate([after[0::2], after[1::2]]))


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("model", "model"),
        ("../../x", "x"),
        ("-m", "m"),
        ("a b/c", "a-b-c"),
        ("v1.2", "v1.2"),
        ("模型", "模型"),
    ],
)
def test_a_name_becomes_that_of_a_file(name, file):
    assert writer._file_name(name) == file
