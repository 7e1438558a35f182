"""Merged weights against PEFT's own, for every kind of adapter and layout of a model on disk."""

from __future__ import annotations

import json
import shutil
import warnings
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from imprint.errors import ModelError
from imprint.export.base import open_base
from imprint.export.merge import Plan, plan_between, plan_merge
from imprint.export.standard import standard_config, write_json
from imprint.export.tensors import read_folder, write_model
from imprint.model.load import grow_embeddings
from tiny import VOCAB, tiny_model


@dataclass(frozen=True)
class Case:
    """A base and an adapter on it; `untied`: the merged head must become a tensor of its own."""

    kind: str
    lora: dict[str, Any]
    sizes: dict[str, Any] = field(default_factory=dict)
    num_tokens: int = 0
    untied: bool = False
    shard: str = "5GB"


TIED = {"tie_word_embeddings": True}
ATTENTION = ["q_proj", "v_proj"]
CASES = {
    "lora": Case("llama", {"target_modules": "all-linear"}, shard="20KB"),
    "scaled by the root of the rank": Case("llama", {"target_modules": ATTENTION, "use_rslora": True}),
    "other ranks by pattern": Case(
        "llama",
        {"target_modules": ATTENTION, "rank_pattern": {"q_proj": 5}, "alpha_pattern": {"v_proj": 7}},
    ),
    "dora": Case("llama", {"target_modules": "all-linear", "use_dora": True}),
    "biases of the adapter": Case("qwen2", {"target_modules": ATTENTION, "lora_bias": True}),
    "Conv1D": Case("gpt2", {"target_modules": ["c_attn", "c_proj", "c_fc"], "fan_in_fan_out": True}),
    "Conv1D, dora": Case(
        "gpt2", {"target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True, "use_dora": True}
    ),
    "layers that are fused": Case("phi3", {"target_modules": "all-linear"}),
    "experts, apart on disk": Case("qwen3_moe", {"target_modules": "all-linear"}),
    "experts of other names on disk": Case("mixtral", {"target_modules": "all-linear"}),
    "experts, joined on disk": Case(
        "gpt_oss",
        {"target_modules": ATTENTION, "target_parameters": ["experts.gate_up_proj", "experts.down_proj"]},
    ),
    "token rows, tied": Case("llama", {"target_modules": ATTENTION, "trainable_token_indices": [7, 3]}, TIED),
    "token rows, untied": Case(
        "llama",
        {"target_modules": ATTENTION, "trainable_token_indices": {"embed_tokens": [9, 3], "lm_head": [9, 3]}},
    ),
    "new tokens, tied": Case(
        "llama", {"target_modules": ATTENTION, "trainable_token_indices": [VOCAB + 1, VOCAB]}, TIED, VOCAB + 3
    ),
    "new tokens, untied": Case(
        "mistral",
        {
            "target_modules": ATTENTION,
            "trainable_token_indices": {"embed_tokens": [VOCAB, VOCAB + 1], "lm_head": [VOCAB, VOCAB + 1]},
        },
        num_tokens=VOCAB + 2,
    ),
    # peft 0.21 forgets the head's bias where rows of the head are trained, until it merges them
    "new tokens, a head with a bias": Case(
        "phi",
        {
            "target_modules": ATTENTION,
            "trainable_token_indices": {"embed_tokens": [VOCAB, VOCAB + 1], "lm_head": [VOCAB, VOCAB + 1]},
        },
        num_tokens=VOCAB + 2,
    ),
    "a trained head": Case("llama", {"target_modules": ATTENTION, "modules_to_save": ["lm_head"]}),
    "a trained embedding, tied": Case(
        "llama", {"target_modules": ATTENTION, "modules_to_save": ["embed_tokens"]}, TIED, untied=True
    ),
    "lora of a tied head": Case("llama", {"target_modules": [*ATTENTION, "lm_head"]}, TIED, untied=True),
    "a trained norm": Case("llama", {"target_modules": ATTENTION, "modules_to_save": ["norm"]}),
}


def make(case: Case, folder: Path) -> tuple[Path, Path, Any]:
    """(base folder, adapter folder, the model with its adapter, which is the reference)."""
    model = tiny_model(case.kind, **case.sizes)
    base, adapter = folder / "base", folder / "adapter"
    model.save_pretrained(base, max_shard_size=case.shard)
    if case.num_tokens:
        grow_embeddings(model, case.num_tokens)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with torch.random.fork_rng():
            torch.manual_seed(1)
            wrapped = get_peft_model(model, LoraConfig(r=3, lora_alpha=4, **case.lora))
            for parameter in wrapped.parameters():
                if parameter.requires_grad:
                    parameter.data.add_(0.1 * torch.randn_like(parameter))
        wrapped.save_pretrained(adapter, save_embedding_layers=False)
    return base, adapter, wrapped.eval()


def write(plan: Plan, base: Path, out: Path, most_bytes: int = 1 << 30) -> Path:
    out.mkdir()
    write_model(out, plan.tensors, most_bytes)
    config = json.loads((base / "config.json").read_text())
    write_json(out / "config.json", standard_config(config, plan, [2]))
    return out


@torch.no_grad()
def logits(model: Any, num_tokens: int = VOCAB) -> torch.Tensor:
    ids = torch.arange(3 * (num_tokens - 2)).reshape(3, -1) % num_tokens
    return model(ids).logits


def loaded(folder: Path) -> Any:
    model, info = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True, experts_implementation="eager"
    )
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    return model.eval()


@pytest.mark.parametrize("name", CASES)
def test_merged_is_what_peft_says(name, tmp_path):
    case = CASES[name]
    base, adapter, reference = make(case, tmp_path)
    plan = plan_merge(open_base(base), adapter, num_tokens=case.num_tokens)
    merged = loaded(write(plan, base, tmp_path / "merged"))
    size = case.num_tokens or VOCAB
    if "bias" in name and case.kind == "phi":
        reference = deepcopy(reference).merge_and_unload()
    wanted = logits(reference, size)
    bar = 1e-5 * float(wanted.abs().max())
    assert (logits(merged, size) - wanted).abs().max() < bar
    unchanged = loaded(base)
    if case.num_tokens:
        grow_embeddings(unchanged, case.num_tokens)
    assert (logits(unchanged, size) - wanted).abs().max() > 500 * bar
    assert plan.untied == case.untied
    tied = merged.get_input_embeddings().weight is merged.get_output_embeddings().weight
    assert tied == (loaded(base).config.tie_word_embeddings and not case.untied)
    assert plan.rounding.kept > 0.9999
    if not case.untied:
        theirs = getattr(reference, "merge_and_unload", lambda: reference)().state_dict()
        for key, value in merged.state_dict().items():
            torch.testing.assert_close(value, theirs[key], rtol=1e-5, atol=1e-6, msg=key)


def test_a_base_that_was_saved_without_its_head(tmp_path):
    """gpt2's first files: `h.0.…`, where the model in memory says `transformer.h.0.…`."""
    base, adapter, reference = make(CASES["Conv1D"], tmp_path)
    tensors = load_file(base / "model.safetensors")
    short = {name.removeprefix("transformer."): value for name, value in tensors.items()}
    assert short.keys() != tensors.keys()
    save_file(short, base / "model.safetensors", metadata={"format": "pt"})
    merged = write(plan_merge(open_base(base), adapter), base, tmp_path / "merged")
    assert set(read_folder(merged)) == set(short)
    torch.testing.assert_close(logits(loaded(merged)), logits(reference), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("differ", [False, True])
def test_a_tied_model_with_its_head_on_disk(differ, tmp_path):
    """Equal to the embedding it is a copy, and goes; where it differs, transformers ties nothing."""
    case = Case("llama", {"target_modules": ATTENTION, "trainable_token_indices": [7, 3]}, TIED)
    base, adapter, _ = make(case, tmp_path)
    tensors = load_file(base / "model.safetensors")
    head = tensors["model.embed_tokens.weight"].clone() + differ
    save_file(tensors | {"lm_head.weight": head}, base / "model.safetensors", metadata={"format": "pt"})
    opened = open_base(base)
    assert opened.tied != differ
    if differ:
        with pytest.raises(ModelError, match="lm_head"):  # it was trained on a tied one
            plan_merge(opened, strange_head(adapter, tmp_path))
        return
    merged = write(plan_merge(opened, adapter), base, tmp_path / "merged")
    assert "lm_head.weight" not in read_folder(merged)
    with warnings.catch_warnings():  # peft 0.21 asks transformers 5 by a name that is going away
        warnings.simplefilter("ignore", FutureWarning)
        reference = PeftModel.from_pretrained(loaded(base), adapter).eval()
    torch.testing.assert_close(logits(loaded(merged)), logits(reference), rtol=1e-5, atol=1e-5)


def strange_head(adapter: Path, folder: Path) -> Path:
    """The adapter, with the head's rows as well."""
    other = shutil.copytree(adapter, folder / "strange")
    tensors = load_file(other / "adapter_model.safetensors")
    rows = tensors["base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta"]
    name = "base_model.model.lm_head.token_adapter.trainable_tokens_delta"
    save_file(tensors | {name: rows.clone()}, other / "adapter_model.safetensors")
    return other


# ---- planted faults


def rename(adapter: Path, old: str, new: str) -> None:
    file = adapter / "adapter_model.safetensors"
    tensors = load_file(file)
    changed = {name.replace(old, new): value for name, value in tensors.items()}
    assert changed.keys() != tensors.keys()
    save_file(changed, file)


def test_a_renamed_tensor_is_named_with_its_nearest(tmp_path):
    base, adapter, _ = make(CASES["lora"], tmp_path)
    rename(adapter, "layers.1.self_attn.q_proj.lora_A", "layers.1.self_attn.q_porj.lora_A")
    with pytest.raises(ModelError) as told:
        plan_merge(open_base(base), adapter)
    assert "layers.1.self_attn.q_porj.lora_A.weight" in told.value.found
    assert "layers.1.self_attn.q_proj.lora_A.weight" in told.value.expected


def test_a_tensor_that_is_missing_is_named(tmp_path):
    base, adapter, _ = make(CASES["lora"], tmp_path)
    file = adapter / "adapter_model.safetensors"
    tensors = load_file(file)
    gone = next(name for name in tensors if "lora_B" in name)
    del tensors[gone]
    save_file(tensors, file)
    with pytest.raises(ModelError, match="lacks a tensor") as told:
        plan_merge(open_base(base), adapter)
    assert gone in told.value.expected


@pytest.mark.parametrize(
    "change", [{"init_lora_weights": "pissa"}, {"use_qalora": True}, {"peft_type": "LOHA"}]
)
def test_adapters_of_other_kinds_are_refused(change, tmp_path):
    base, adapter, _ = make(CASES["lora"], tmp_path)
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ModelError, match=r"cannot be merged here|belongs to a changed base"):
        plan_merge(open_base(base), adapter)


# ---- types, scales, shards


def test_an_update_below_the_types_steps_is_lost_and_told(tmp_path):
    """bfloat16 has 8 bits: an update of a thousandth of each weight is rounded back to the base's."""
    base, adapter, _ = make(Case("llama", {"target_modules": ATTENTION}), tmp_path)
    file = adapter / "adapter_model.safetensors"
    tensors = load_file(file)
    grid = {
        name: (value.bfloat16().float() if value.is_floating_point() else value)
        for name, value in load_file(base / "model.safetensors").items()
    }
    save_file(grid, base / "model.safetensors", metadata={"format": "pt"})

    def kept(size: float, dtype: torch.dtype) -> float:
        small = {name: value * (size if "lora_B" in name else 1) for name, value in tensors.items()}
        save_file(small, file)
        plan = plan_merge(open_base(base), adapter, dtype=dtype)
        for tensor in plan.tensors:
            for _ in tensor.pieces():
                pass
        return plan.rounding.kept

    assert kept(1e-4, torch.bfloat16) < 0.3
    assert kept(1e-4, torch.float32) > 0.999
    assert kept(3.0, torch.bfloat16) > 0.99


def test_float16_that_does_not_reach_far_enough_is_refused(tmp_path):
    base, adapter, _ = make(CASES["lora"], tmp_path)
    tensors = {name: e.read() for name, e in read_folder(base).items()}
    tensors["model.norm.weight"][0] = 1e5
    for file in base.glob("*.safetensors*"):
        file.unlink()
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    plan = plan_merge(open_base(base), adapter, dtype=torch.float16)
    (tmp_path / "out").mkdir()
    with pytest.raises(ModelError, match="does not reach"):
        write_model(tmp_path / "out", plan.tensors, 1 << 30)


@pytest.mark.parametrize("name", ["lora", "Conv1D, dora", "experts, apart on disk", "new tokens, tied"])
def test_scales_lie_between_base_and_tuned(name, tmp_path):
    case = CASES[name]
    base, adapter, _ = make(case, tmp_path)

    def at(scale: float) -> dict[str, torch.Tensor]:
        plan = plan_merge(open_base(base), adapter, scale=scale, num_tokens=case.num_tokens)
        folder = write(plan, base, tmp_path / f"at{scale}")
        return {name: entry.read() for name, entry in read_folder(folder).items()}

    first, half, last = at(0.0), at(0.5), at(1.0)
    known = {name: entry.read() for name, entry in read_folder(base).items()}
    for key, value in known.items():
        assert torch.equal(first[key][: len(value)], value), key
        torch.testing.assert_close(half[key], (first[key] + last[key]) / 2, rtol=1e-5, atol=1e-6)
    assert any(not torch.equal(first[key], last[key]) for key in known)


def test_a_whole_model_is_interpolated_too(tmp_path):
    base, tuned = tmp_path / "base", tmp_path / "tuned"
    tiny_model("llama", torch.bfloat16).save_pretrained(base)
    tiny_model("llama", torch.bfloat16, seed=1).save_pretrained(tuned)
    known, trained = (
        {name: entry.read() for name, entry in read_folder(folder).items()} for folder in (base, tuned)
    )

    def at(scale: float) -> dict[str, torch.Tensor]:
        folder = write(plan_between(base, tuned, scale), tuned, tmp_path / f"at{scale}")
        return {name: entry.read() for name, entry in read_folder(folder).items()}

    for scale, wanted in ((0.0, known), (1.0, trained)):
        assert all(torch.equal(value, wanted[key]) for key, value in at(scale).items())
    for key, value in at(0.25).items():
        middle = 0.75 * known[key].double() + 0.25 * trained[key].double()
        assert torch.equal(value, middle.float().bfloat16()), key


def test_shards_hold_everything_and_no_more_than_asked(tmp_path):
    base, adapter, _ = make(CASES["lora"], tmp_path)
    whole = write(plan_merge(open_base(base), adapter), base, tmp_path / "whole")
    parts = write(plan_merge(open_base(base), adapter), base, tmp_path / "parts", 20_000)
    files = sorted(parts.glob("*.safetensors"))
    assert len(files) > 3
    assert max(file.stat().st_size for file in files) < 24_000
    one, many = (
        {name: entry.read() for name, entry in read_folder(folder).items()} for folder in (whole, parts)
    )
    assert one.keys() == many.keys()
    assert all(torch.equal(value, many[name]) for name, value in one.items())
    index = json.loads((parts / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(v.numel() * v.itemsize for v in one.values())
    assert all(torch.equal(load_file(parts / f)[n], one[n]) for n, f in index["weight_map"].items())
    torch.testing.assert_close(logits(loaded(parts)), logits(loaded(whole)), rtol=0, atol=0)
