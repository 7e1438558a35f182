"""A GGUF file loaded again by transformers: the proof that what was written is what was trained.

transformers reads GGUF files, but not all of what they say: no softcaps, no scaling of rotary positions, no
head size of qwen3, no gemma 1, few pre-tokenizers. What it leaves out is read here from the file's own
metadata, never from the folder that the file was made of, so that a wrong value in the file shows.
What llama.cpp itself makes of a file, only llama.cpp can show (see `llama_cpp`).
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from imprint.export.gguf_pre import PRE_TOKENIZERS, built
from imprint.export.gguf_tokens import CONTROL, NORMAL, SPACE, UNKNOWN, USER_DEFINED

_NAMED = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
_MODEL_TYPE = {"gemma3": "gemma3_text"}  # where transformers' name is another


def read_metadata(path: Path) -> dict[str, Any]:
    """The keys of a GGUF file with their values; arrays as lists."""
    from gguf import GGUFReader

    return _metadata(GGUFReader(path))


def _metadata(reader: Any) -> dict[str, Any]:
    return {key: field.contents() for key, field in reader.fields.items()}


def load_model(path: Path) -> Any:
    """The model of a GGUF file in float32, as transformers computes it."""
    import torch
    from gguf import GGUFReader
    from transformers import AutoModelForCausalLM

    reader = GGUFReader(path)
    said = _metadata(reader)
    names = {tensor.name for tensor in reader.tensors}
    config = config_of(said, names)
    if said["general.architecture"] == "gemma":  # transformers refuses it
        model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        model.load_state_dict(_gemma_weights(reader, model), strict=False)
        model.tie_weights()
    else:
        with _Alone(path) as folder:
            model = AutoModelForCausalLM.from_pretrained(
                folder, gguf_file=path.name, config=config, dtype=torch.float32
            )
    if "rope_freqs.weight" in names:
        factors = next(tensor for tensor in reader.tensors if tensor.name == "rope_freqs.weight")
        model.model.rotary_emb.inv_freq /= torch.from_numpy(factors.data.copy())
    return model.eval()


def load_tokenizer(path: Path) -> Any:
    """The tokenizer that a file's metadata describe, as llama.cpp reads them, for transformers.

    transformers' own reader knows few pre-tokenizers and no space prefix, and respells added tokens.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers
    from transformers import PreTrainedTokenizerFast

    said = read_metadata(path)
    texts, types = said["tokenizer.ggml.tokens"], said["tokenizer.ggml.token_type"]
    vocabulary = {text: number for number, text in enumerate(texts)}
    if said["tokenizer.ggml.model"] == "gpt2":
        expressions, whole = PRE_TOKENIZERS.get(said["tokenizer.ggml.pre"], PRE_TOKENIZERS["gpt-2"])
        merges = [tuple(pair.split(" ")) for pair in said["tokenizer.ggml.merges"] if pair]
        backend = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=whole))
        backend.pre_tokenizer = built(expressions)
        backend.decoder = decoders.ByteLevel()
    else:
        merges = _merges(texts, types, said["tokenizer.ggml.scores"])
        backend = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, byte_fallback=True, fuse_unk=True))
        steps = [normalizers.Prepend(SPACE)] if said.get("tokenizer.ggml.add_space_prefix", True) else []
        backend.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", SPACE)])
        backend.decoder = decoders.Sequence(
            [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
        )
    _add_tokens(backend, texts, types)
    _texts_around(backend, said)
    named = {name: said.get(f"tokenizer.ggml.{key}_token_id") for name, key in _NAMED.items()}
    special = {name: texts[number] for name, number in named.items() if number is not None}
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, chat_template=said.get("tokenizer.chat_template"),
        clean_up_tokenization_spaces=False, **special,
    )  # fmt: skip


def _merges(texts: list[str], types: list[int], scores: list[float]) -> list[tuple[str, str]]:
    """Every pair of tokens that spells a token, that of the highest score first, as llama.cpp joins them."""
    plain = {text: score for text, type, score in zip(texts, types, scores, strict=True) if type == NORMAL}
    pairs = [
        (score, text[:cut], text[cut:])
        for text, score in plain.items()
        for cut in range(1, len(text))
        if text[:cut] in plain and text[cut:] in plain
    ]
    pairs.sort(key=lambda pair: -pair[0])
    return [(left, right) for _, left, right in pairs]


def _add_tokens(backend: Any, texts: list[str], types: list[int]) -> None:
    from tokenizers import AddedToken

    backend.add_special_tokens(
        [
            AddedToken(text, normalized=False, special=True)
            for text, type in zip(texts, types, strict=True)
            if type in (CONTROL, UNKNOWN)
        ]
    )
    backend.add_tokens(
        [
            AddedToken(text, normalized=False)
            for text, type in zip(texts, types, strict=True)
            if type == USER_DEFINED
        ]
    )


def stop_ids(said: Mapping[str, Any]) -> list[int]:
    """The ids at which llama.cpp ends a reply because a key says so."""
    keys = [f"tokenizer.ggml.{key}_token_id" for key in ("eos", "eot", "eom")]
    return [said[key] for key in keys if key in said]


def config_of(said: Mapping[str, Any], names: set[str]) -> Any:
    """A transformers config from a file's metadata; `names` are those of its tensors."""
    from transformers import AutoConfig

    architecture = said["general.architecture"]

    def key(name: str, default: Any = None) -> Any:
        return said.get(f"{architecture}.{name}", default)

    values = {
        "vocab_size": len(said["tokenizer.ggml.tokens"]),
        "max_position_embeddings": key("context_length"),
        "hidden_size": key("embedding_length"),
        "num_hidden_layers": key("block_count"),
        "intermediate_size": key("feed_forward_length"),
        "num_attention_heads": key("attention.head_count"),
        "num_key_value_heads": key("attention.head_count_kv"),
        "head_dim": key("attention.key_length"),
        "rms_norm_eps": key("attention.layer_norm_rms_epsilon"),
        "tie_word_embeddings": "output.weight" not in names,
        "rope_parameters": _rotary(key, architecture),
        "bos_token_id": said.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": stop_ids(said) or None,
        "pad_token_id": said.get("tokenizer.ggml.padding_token_id"),
    }
    if architecture in ("gemma2", "gemma3"):
        values["sliding_window"] = key("attention.sliding_window")
        values["query_pre_attn_scalar"] = key("attention.key_length")
    if architecture == "gemma2":
        values["attn_logit_softcapping"] = key("attn_logit_softcapping")
        values["final_logit_softcapping"] = key("final_logit_softcapping")
    if architecture == "llama":
        values["attention_bias"] = any(name.endswith("attn_q.bias") for name in names)
        values["mlp_bias"] = any(name.endswith("ffn_up.bias") for name in names)
    return AutoConfig.for_model(_MODEL_TYPE.get(architecture, architecture), **values)


def _rotary(key: Any, architecture: str) -> dict[str, Any]:
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": key("rope.freq_base", 10000.0)}
    scaling = key("rope.scaling.type", "none")
    if scaling != "none":
        rope |= {"rope_type": scaling, "factor": key("rope.scaling.factor")}
    if scaling == "yarn":
        rope |= {
            "original_max_position_embeddings": key("rope.scaling.original_context_length"),
            "beta_fast": key("rope.scaling.yarn_beta_fast", 32.0),
            "beta_slow": key("rope.scaling.yarn_beta_slow", 1.0),
        }
    if architecture != "gemma3":
        return rope
    local = {"rope_type": "default", "rope_theta": key("rope.freq_base_swa", 10000.0)}
    return {"full_attention": rope, "sliding_attention": local}


def _gemma_weights(reader: Any, model: Any) -> dict[str, Any]:
    """The weights of a gemma 1 file under transformers' names."""
    import gguf
    import torch

    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.GEMMA, model.config.num_hidden_layers)
    found = {tensor.name: tensor for tensor in reader.tensors}
    weights = {}
    for name in model.state_dict():
        base, _, suffix = name.rpartition(".")
        tensor = found.get(f"{names.get_name(base)}.{suffix}")
        if tensor is None:
            continue
        values = torch.from_numpy(gguf.dequantize(tensor.data, tensor.tensor_type).copy())
        weights[name] = values - 1 if name.endswith("norm.weight") else values
    missing = set(model.state_dict()) - set(weights) - {"lm_head.weight"}
    assert not missing, f"not in the file: {missing}"
    return weights


def _texts_around(backend: Any, said: Mapping[str, Any]) -> None:
    """bos before and eos after a text, where the file says so."""
    from tokenizers import processors

    tokens = said["tokenizer.ggml.tokens"]
    before, after, special = "", "", []
    if said.get("tokenizer.ggml.add_bos_token"):
        number = said["tokenizer.ggml.bos_token_id"]
        before, special = "bos:0 ", [("bos", number, tokens[number])]
    if said.get("tokenizer.ggml.add_eos_token"):
        number = said["tokenizer.ggml.eos_token_id"]
        after, special = " eos:0", [*special, ("eos", number, tokens[number])]
    backend.post_processor = processors.TemplateProcessing(
        single=f"{before}$A:0{after}",
        special_tokens=[{"id": name, "ids": [number], "tokens": [text]} for name, number, text in special],
    )


class _Alone:
    """A folder that holds nothing but a file, so that no other file in its own folder is read with it."""

    def __init__(self, path: Path):
        self.path = path

    def __enter__(self) -> str:
        self.folder = tempfile.TemporaryDirectory()
        (Path(self.folder.name) / self.path.name).symlink_to(self.path.resolve())
        return self.folder.name

    def __exit__(self, *_: object) -> None:
        self.folder.cleanup()
