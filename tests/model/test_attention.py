"""Attention by `end`: both implementations against brute force, and the way to generation and back."""

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from imprint.model.adapters import add_lora
from imprint.model.attention import NAMES, flex, generating, reference, tiles, varlen
from imprint.model.view import View
from imprint.pack.row import positions
from tiny import VOCAB, own_attention, random_end, row_model, tiny_model

BOTH = pytest.mark.parametrize("attention", [reference, tiles])


def brute_force(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    end: Tensor,
    *,
    scale: float,
    window: int | None,
    chunk: int | None,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    """One query and one head at a time: a softmax over a list of those that it sees. [1, T, H, D]"""
    position = positions(end).tolist()
    groups = query.shape[1] // key.shape[1]
    rows = []
    for i in range(len(end)):
        heads = []
        for h in range(query.shape[1]):
            seen = [j for j in range(i + 1) if i < int(end[j])]
            if window is not None:
                seen = [j for j in seen if position[i] - position[j] < window]
            if chunk is not None:
                seen = [j for j in seen if position[i] // chunk == position[j] // chunk]
            scores = torch.stack([query[0, h, i] @ key[0, h // groups, j] * scale for j in seen])
            if softcap is not None:
                scores = softcap * torch.tanh(scores / softcap)
            weights = scores.exp()
            total = weights.sum() + (0 if sinks is None else sinks[h].exp())
            heads.append(sum(weights[n] / total * value[0, h // groups, j] for n, j in enumerate(seen)))
        rows.append(torch.stack(heads))
    return torch.stack(rows)[None]


CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "window": dict(window=3),
    "window of one": dict(window=1),
    "chunk": dict(chunk=4),
    "window and chunk": dict(window=3, chunk=5),
    "softcap": dict(softcap=1.5),
    "sinks": dict(sinks=True),
    "window, softcap, sinks": dict(window=4, softcap=1.5, sinks=True),
    "grouped heads": dict(heads=(4, 2)),
    "one key head": dict(heads=(4, 1), window=3),
    "own scale": dict(scale=0.9),
    "all": dict(window=4, chunk=6, softcap=1.5, sinks=True, heads=(4, 2), scale=0.7),
}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("case", CASES)
@BOTH
def test_attention_equals_brute_force(
    attention: Any, case: str, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = dict(heads=(2, 2), window=None, chunk=None, softcap=None, sinks=False, scale=None) | CASES[case]
    rng = np.random.default_rng(seed)
    size, depth, (num_heads, num_keys) = 18, 4, facts["heads"]
    monkeypatch.setattr("imprint.model.view.TILE", [3, 7, 64][seed])
    end = random_end(size, rng, stay=0.8)

    def draw(*shape: int) -> Tensor:
        return torch.from_numpy(rng.normal(size=shape)).requires_grad_()

    inputs = [draw(1, num_heads, size, depth), draw(1, num_keys, size, depth), draw(1, num_keys, size, depth)]
    sinks = draw(num_heads) if facts["sinks"] else None
    leaves = [*inputs, *([sinks] if sinks is not None else [])]
    config = SimpleNamespace(attention_chunk_size=facts["chunk"], layer_types=["chunked_attention"])
    module: Any = SimpleNamespace(config=config, layer_idx=0)
    out, weights = attention(
        module,
        *inputs,
        None,
        scaling=facts["scale"],
        sliding_window=facts["window"],
        softcap=facts["softcap"],
        s_aux=sinks,
        end=View(end),
        something_else=1,
    )
    assert weights is None
    slow = brute_force(
        *inputs,
        end,
        scale=facts["scale"] or 1 / math.sqrt(depth),
        window=facts["window"],
        chunk=facts["chunk"],
        softcap=facts["softcap"],
        sinks=sinks,
    )
    assert out.dtype == torch.float64
    assert torch.allclose(out, slow, rtol=1e-12, atol=1e-13)
    pull = torch.from_numpy(rng.normal(size=out.shape))
    for ours, theirs in zip(
        torch.autograd.grad(out, leaves, pull), torch.autograd.grad(slow, leaves, pull), strict=True
    ):
        assert torch.allclose(ours, theirs, rtol=1e-10, atol=1e-12)


@BOTH
def test_a_chunk_holds_only_in_chunked_layers(attention: Any) -> None:
    x = torch.randn(1, 1, 8, 4, generator=torch.Generator().manual_seed(0))
    config = SimpleNamespace(attention_chunk_size=2, layer_types=["chunked_attention", "full_attention"])
    chunked, full = (
        attention(SimpleNamespace(config=config, layer_idx=i), x, x, x, None, end=View(torch.full((8,), 8)))[
            0
        ]
        for i in (0, 1)
    )
    plain = attention(SimpleNamespace(), x, x, x, None, end=View(torch.full((8,), 8)))[0]
    assert torch.equal(full, plain)
    assert not torch.allclose(chunked, plain)


@BOTH
def test_a_window_by_row_index_is_off_a_hundredfold(attention: Any) -> None:
    """The branches of a tree lie far from their prompt in the row, and next to it in position."""
    rng = np.random.default_rng(0)
    size = 40
    end = torch.tensor([size] * 10 + [20] * 10 + [30] * 10 + [size] * 10)
    x = [torch.from_numpy(rng.normal(size=(1, 2, size, 4))) for _ in range(3)]
    right = attention(nn.Module(), *x, None, sliding_window=6, end=View(end))[0]
    view = View(end)
    view.position = torch.arange(size)
    wrong = attention(nn.Module(), *x, None, sliding_window=6, end=view)[0]
    other = (tiles if attention is reference else reference)(
        nn.Module(), *x, None, sliding_window=6, end=View(end)
    )[0]
    assert (wrong - right).abs().max() >= 100 * max(float((other - right).abs().max()), 1e-12)


def test_tiles_hold_what_someone_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imprint.model.view.TILE", 2)
    runs = [tile.runs for tile in View(torch.full((5,), 5)).tiles()]
    assert runs == [((0, 2),), ((0, 4),), ((0, 5),)]
    tree = View(torch.tensor([8, 8, 4, 4, 6, 6, 8, 8]))
    assert [tile.runs for tile in tree.tiles()] == [((0, 2),), ((0, 4),), ((0, 2), (4, 6)), ((0, 2), (6, 8))]
    assert [tile.runs for tile in tree.tiles(window=2)] == [
        ((0, 2),),
        ((0, 4),),
        ((0, 2), (4, 6)),
        ((0, 2), (6, 8)),
    ]
    assert [tile.runs for tile in tree.tiles(window=1)] == [((0, 2),), ((2, 4),), ((4, 6),), ((6, 8),)]
    seen = tree.tiles()[2].mask == 0
    assert seen.tolist() == [[True, True, True, False], [True, True, True, True]]


def test_masks_are_made_once() -> None:
    view = View(torch.tensor([5, 5, 4, 4, 5]))
    assert view.allowed(3) is view.allowed(3)
    assert view.tiles(3) is view.tiles(3)


@pytest.mark.parametrize("name", NAMES)
def test_without_end_attention_refuses(name: str) -> None:
    assert AttentionInterface()[NAMES[name]] in (reference, tiles, flex, varlen)
    model = tiny_model("llama")
    row_model(model, name)
    ids = torch.tensor([[5, 6, 7]])
    with pytest.raises(RuntimeError, match="without `end`"):
        model(input_ids=ids)
    with pytest.raises(RuntimeError, match="without `end`"):
        model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=2)


@pytest.mark.parametrize("kind", ["llama", "gpt_oss"])
def test_generating_switches_and_switches_back(kind: str) -> None:
    model = tiny_model(kind)
    row_model(model)
    model.train()
    with generating(model):
        assert model.config._attn_implementation == own_attention(model)
        assert not model.training
    assert model.config._attn_implementation == NAMES["tiles"]
    assert model.training
    with pytest.raises(KeyError), generating(model):
        raise KeyError
    assert model.config._attn_implementation == NAMES["tiles"]
    assert model.training


def test_generating_leaves_another_attention_alone() -> None:
    model = tiny_model("llama")
    model.set_attn_implementation("eager")
    with generating(model):
        assert model.config._attn_implementation == "eager"
    assert model.config._attn_implementation == "eager"


@pytest.mark.parametrize("kind", ["llama", "mistral", "gpt2", "gemma2", "gpt_oss", "qwen3_moe"])
@pytest.mark.parametrize("adapted", [False, True])
def test_a_left_padded_batch_generates_what_each_prompt_alone_does(kind: str, adapted: bool) -> None:
    model = tiny_model(kind)
    plain: Any = tiny_model(kind)
    if adapted:
        model, plain = (
            add_lora(m, rank=4, alpha=32, dropout=0.0, targets="attention", seed=3) for m in (model, plain)
        )
        for m in (model, plain):
            with torch.no_grad():
                for name, parameter in m.named_parameters():
                    if "lora_B" in name:
                        parameter.normal_(generator=torch.Generator().manual_seed(len(name)))
    rows_of = row_model(model)
    prompts = [torch.randint(3, VOCAB, (n,), generator=torch.Generator().manual_seed(n)) for n in (3, 9, 14)]
    longest = max(map(len, prompts))
    padded = torch.stack([torch.cat([torch.zeros(longest - len(p), dtype=torch.int64), p]) for p in prompts])
    mask = torch.stack([(torch.arange(longest) >= longest - len(p)).long() for p in prompts])
    options = dict(max_new_tokens=6, min_new_tokens=6, do_sample=False, pad_token_id=0)
    together = rows_of.generate(input_ids=padded, attention_mask=mask, **options)
    for i, prompt in enumerate(prompts):
        alone = plain.generate(
            input_ids=prompt[None], attention_mask=torch.ones(1, len(prompt)).long(), **options
        )
        assert together[i, longest:].tolist() == alone[0, len(prompt) :].tolist()
