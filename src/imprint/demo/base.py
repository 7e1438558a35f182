"""A small base model for the demo: a Llama with random weights, and a tokenizer of our own."""

from __future__ import annotations

import json
from importlib.resources import as_file, files
from pathlib import Path

from imprint.demo.tokenizer import train_tokenizer


def demonstrations() -> Path:
    """The file of demonstrations that comes with imprint."""
    with as_file(files("imprint.demo") / "demonstrations.jsonl") as path:
        return path


def build_base(folder: Path, seed: int = 0) -> int:
    """Write a model folder with random weights; the number of its parameters.

    It knows nothing: it stands in for a pretrained base until imprint ships one.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    lines = demonstrations().read_text(encoding="utf-8").splitlines()
    texts = [message["content"] for line in lines for message in json.loads(line)["messages"]]
    train_tokenizer(texts, folder)
    vocabulary = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    size = 1 + max(
        *vocabulary["model"]["vocab"].values(), *(token["id"] for token in vocabulary["added_tokens"])
    )
    torch.manual_seed(seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=size,
            hidden_size=160,
            intermediate_size=432,
            num_hidden_layers=4,
            num_attention_heads=5,
            num_key_value_heads=5,
            max_position_embeddings=512,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=0,
            pad_token_id=1,
        )
    )
    model.save_pretrained(folder)
    return int(sum(parameter.numel() for parameter in model.parameters()))
