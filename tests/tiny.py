"""Tiny models of real architectures, random turns, and the padded reference: what many tests begin with."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from imprint.data.conversation import Place
from imprint.model.load import set_dropout, use_attention
from imprint.model.rowmodel import RowModel
from imprint.pack.collate import IGNORED, collate
from imprint.pack.row import Row
from imprint.render.turns import Turn

torch.set_num_threads(1)

VOCAB = 97
WINDOW = 6  # small enough that every long turn reaches beyond it

_SIZES = dict(
    vocab_size=VOCAB,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    max_position_embeddings=256,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
    initializer_range=0.1,
)
_EXPERTS = dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16)
_SLIDING = dict(layer_types=["sliding_attention", "full_attention"], sliding_window=WINDOW)

# what each architecture needs beyond _SIZES; None takes a size away
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": dict(sliding_window=WINDOW),
    "qwen2": dict(use_sliding_window=True, **_SLIDING),
    "qwen3": {},
    "gemma": {},
    "gemma2": dict(
        query_pre_attn_scalar=8, attn_logit_softcapping=2.0, final_logit_softcapping=3.0, **_SLIDING
    ),
    "gemma3_text": dict(query_pre_attn_scalar=8, **_SLIDING),
    "phi": {},
    "phi3": dict(sliding_window=WINDOW),
    "gpt2": dict(n_embd=32, n_layer=2, n_head=4, n_positions=256),
    "gpt_neox": {},
    "opt": dict(ffn_dim=48, word_embed_proj_dim=32),
    "cohere": dict(logit_scale=0.5),
    "cohere2": dict(logit_scale=0.5, **_SLIDING),
    "olmo2": {},
    "olmo3": _SLIDING,
    "granite": dict(logits_scaling=3.0, embedding_multiplier=2.0, residual_multiplier=0.5),
    "starcoder2": dict(sliding_window=WINDOW),
    "smollm3": dict(no_rope_layers=[1, 0]),
    "glm4": {},
    "exaone4": _SLIDING,
    "qwen3_moe": _EXPERTS,
    "mixtral": dict(num_local_experts=4),
    "gpt_oss": dict(num_local_experts=4, num_experts_per_tok=2, **_SLIDING),
    "deepseek_v3": dict(
        num_key_value_heads=4,
        head_dim=None,
        n_routed_experts=4,
        n_group=1,
        topk_group=1,
        num_experts_per_tok=2,
        moe_intermediate_size=16,
        q_lora_rank=8,
        kv_lora_rank=8,
        qk_rope_head_dim=8,
        qk_nope_head_dim=8,
        v_head_dim=8,
        first_k_dense_replace=1,
    ),
    "llama4_text": dict(
        layer_types=["chunked_attention", "full_attention"],
        no_rope_layers=[1, 0],
        attention_chunk_size=WINDOW,
        num_local_experts=4,
        intermediate_size_mlp=48,
        attn_temperature_tuning=False,
    ),
    "falcon": dict(head_dim=None, num_kv_heads=2, new_decoder_architecture=True),
    "bloom": {},
    "mamba": dict(state_size=4),
    "lfm2": dict(layer_types=["conv", "full_attention"]),
}
# those that only some tests need
_GATED = dict(
    num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16, shared_expert_intermediate_size=16
)
OTHERS: dict[str, dict[str, Any]] = {
    "qwen2_moe": _GATED,
    "olmoe": dict(num_experts=4, num_experts_per_tok=2),
    "granitemoe": dict(num_local_experts=4, num_experts_per_tok=2, logits_scaling=3.0),
    "phimoe": dict(num_local_experts=4),
    "glm4_moe": dict(
        n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=16, first_k_dense_replace=0
    ),
    "gpt_neo": dict(
        num_layers=2, num_heads=4, attention_types=[[["global", "local"], 1]], window_size=WINDOW
    ),
    "mpt": dict(d_model=32, n_heads=4, n_layers=2, max_seq_len=256),
    "rwkv": dict(attention_hidden_size=32, context_length=256),
    "falcon_h1": dict(mamba_d_ssm=64, mamba_n_heads=4, mamba_d_head=16, mamba_d_state=8, mamba_chunk_size=8),
    "qwen3_next": dict(
        **_GATED,
        linear_num_value_heads=4,
        linear_num_key_heads=2,
        linear_key_head_dim=8,
        linear_value_head_dim=8,
        layer_types=["linear_attention", "full_attention"],
    ),
    "recurrent_gemma": dict(lru_width=32, attention_window_size=WINDOW),
    "jamba": dict(num_experts=4, num_experts_per_tok=2, mamba_d_state=4),
}
SEPARATE = ("falcon", "bloom", "mamba", "lfm2")  # those that cannot take several turns in a row
SHARING = tuple(kind for kind in ARCHITECTURES if kind not in SEPARATE)

_SHARP = ("q_proj", "k_proj", "q_b_proj", "kv_b_proj", "c_attn", "query_key_value", "qkv_proj")


def tiny_model(kind: str, dtype: torch.dtype = torch.float32, seed: int = 0, **extra: Any) -> Any:
    """A randomly drawn model of an architecture, without dropout, whose attention is far from uniform."""
    sizes = {
        k: v for k, v in {**_SIZES, **{**ARCHITECTURES, **OTHERS}[kind], **extra}.items() if v is not None
    }
    config = CONFIG_MAPPING[kind](**sizes)
    set_dropout(config, 0.0)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, experts_implementation="eager").to(dtype)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.dim() == 1 and "norm" not in name:
                    parameter.normal_(std=0.1)  # biases and sinks that matter
                if any(part in name for part in _SHARP):
                    parameter.mul_(3)
    return model.eval()


def row_model(model: Any, attention: str = "tiles", follows_end: bool = True) -> RowModel:
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    use_attention(base, attention)
    return RowModel(model, follows_end)


def make_turn(
    prompt: Sequence[int], completion: Sequence[int], weight: Sequence[float] | None = None
) -> Turn:
    share = np.ones(len(completion)) if weight is None else np.asarray(weight)
    return Turn(
        np.asarray(prompt, np.int32),
        np.asarray(completion, np.int32),
        share.astype(np.float32),
        Place("x", 1),
        0,
        1,
    )


def random_turns(seed: int = 0, conversations: int = 6, most: int = 24, system: int = 20) -> list[Turn]:
    """Turns that share system prompts of all lengths, with dialogues, several answers and a duplicate."""
    rng = np.random.default_rng(seed)

    def ids(size: int) -> list[int]:
        return rng.integers(3, VOCAB, size).tolist()

    begin, turns = ids(system), []
    for i in range(conversations):
        prompt = begin[: int(rng.integers(1, system + 1)) if i % 2 else system] + ids(
            int(rng.integers(1, 12))
        )
        completion = ids(int(rng.integers(2, most + 1)))
        weights = rng.choice([1.0, 0.5, 2.0, 0.0], len(completion), p=[0.6, 0.2, 0.1, 0.1])
        weights[0] = 1.0
        turns.append(make_turn(prompt, completion, weights))
        if i % 3 == 0:  # the dialogue goes on, and its first question is answered once more
            turns.append(make_turn(prompt + completion + ids(4), ids(5)))
            turns.append(make_turn(prompt, ids(7)))
    return [*turns, turns[0]]


def random_end(size: int, rng: np.random.Generator, stay: float = 0.7) -> Tensor:
    """A nested `end` [size] drawn at random."""
    end: list[int] = []
    still_open: list[int] = []
    for j in range(size):
        while still_open and still_open[-1] <= j:
            still_open.pop()
        limit = still_open[-1] if still_open else size
        end.append(limit if rng.random() < stay else int(rng.integers(j + 1, limit + 1)))
        still_open.append(end[-1])
    return torch.tensor(end)


def random_row(size: int, rng: np.random.Generator) -> Row:
    """A row of a random tree; every third token or so predicts something."""
    source = np.flatnonzero(rng.random(size) < 0.4)
    return Row(
        torch.from_numpy(rng.integers(0, VOCAB, size)),
        random_end(size, rng),
        torch.from_numpy(source),
        torch.from_numpy(rng.integers(0, VOCAB, len(source))),
        torch.from_numpy(rng.random(len(source)).astype(np.float32)),
    )


def own_attention(model: Any) -> str:
    """The attention of transformers' own that a model supports."""
    return "sdpa" if model._supports_sdpa else "eager"


Gradients = dict[str, Tensor]


def gradients(model: nn.Module) -> Gradients:
    return {n: p.grad.detach().clone() for n, p in model.named_parameters() if p.grad is not None}


def padded_gradients(model: Any, turns: Sequence[Turn], together: bool = True) -> tuple[float, Gradients]:
    """(loss, gradients) of padded examples in the model's own attention: the slow, obvious way.

    `together` off: a batch for each turn. Eager attention in float64 needs that: transformers writes
    a padded query that sees nothing as NaN there (float64's lowest number, cast to float32, is -inf).
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    before = base.config._attn_implementation
    base.set_attn_implementation(own_attention(base))
    model.zero_grad()
    total, loss = sum(float(turn.weight.sum()) for turn in turns), 0.0
    for group in [turns] if together else [[turn] for turn in turns]:
        batch = collate(group)
        logits = model(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False
        ).logits
        nll = F.cross_entropy(
            logits[:, :-1].flatten(0, 1),
            batch["labels"][:, 1:].flatten(),
            reduction="none",
            ignore_index=IGNORED,
        )
        part = (nll * batch["loss_weights"][:, 1:].flatten()).sum() / total
        part.backward()
        loss += part.item()
    found = gradients(model)
    model.zero_grad()
    base.set_attn_implementation(before)
    return loss, found


def row_gradients(
    model: RowModel, rows: Sequence[Row], total: float | None = None
) -> tuple[float, Gradients]:
    """(loss, gradients) of rows; the names are those of the model inside."""
    if total is None:
        total = sum(float(row.weight.sum()) for row in rows)
    model.zero_grad()
    loss = 0.0
    for row in rows:
        part = (row.weight * model(row)).sum() / total
        part.backward()
        loss += part.item()
    found = gradients(model.model)
    model.zero_grad()
    return loss, found


def difference(a: Gradients, b: Gradients) -> float:
    """|a - b| / |b| over all parameters."""
    assert a.keys() == b.keys()
    off = sum(float(((a[n].double() - b[n].double()) ** 2).sum()) for n in b)
    size = sum(float((b[n].double() ** 2).sum()) for n in b)
    return (off / size) ** 0.5


def own_rotary_functions() -> None:
    """Give families' modules back the rotary function that `fuse` replaced."""
    for module in list(sys.modules.values()):
        found = vars(module).get("apply_rotary_pos_emb")
        if isinstance(found, partial):
            module.apply_rotary_pos_emb = found.args[0]  # type: ignore[attr-defined]
