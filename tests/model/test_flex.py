"""Attention through FlexAttention, op by op on the CPU, and rows as sequences: each against the dense reference.

Compiled kernels and those of flash attention need a CUDA device: tests/model/test_cuda.py.
"""

from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch.nn.attention import flex_attention as torch_flex

from imprint.model import attention, varlen
from imprint.model import flex as flex_module
from imprint.model.attention import flex, reference
from imprint.model.flex import BLOCK, LEAST_BLOCKS, Blocks, make_blocks
from imprint.model.view import View
from imprint.pack.row import positions
from tiny import difference, random_end, random_turns, row_gradients, row_model, tiny_model

# torch.compile looks at the gradients of its operands, and hides the warning by a way that errors do not take
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")

CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "window": dict(window=3),
    "window of one": dict(window=1),
    "chunk": dict(chunk=4),
    "window and chunk": dict(window=30, chunk=50),
    "softcap": dict(softcap=1.5),
    "sinks": dict(sinks=True),
    "window, softcap, sinks": dict(window=40, softcap=1.5, sinks=True),
    "grouped heads": dict(heads=(4, 2)),
    "one key head": dict(heads=(4, 1), window=3),
    "own scale": dict(scale=0.9),
    "wide values": dict(depth=(12, 20)),
    "all": dict(window=40, chunk=60, softcap=1.5, sinks=True, heads=(4, 2), scale=0.7),
}


@pytest.fixture(autouse=True)
def _gradients_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch refuses FlexAttention's gradients on the CPU, where it has no kernel for them; op by op there are some."""
    monkeypatch.setattr(torch_flex, "_validate_device", lambda *_: None)


def packed(*sizes: int) -> Tensor:
    """The `end` of turns without shared prompts."""
    bounds = np.cumsum(sizes)
    return torch.from_numpy(np.repeat(bounds, sizes))


def tree(size: int, prompt: int, *replies: int) -> Tensor:
    """The `end` of a prompt with replies, and of a turn of its own up to `size`."""
    ends, start = [prompt + sum(replies)] * prompt, prompt
    for length in replies:
        start += length
        ends += [start] * length
    return torch.tensor(ends + [size] * (size - start))


ROWS = {
    "tree": tree(330, 120, 60, 70, 9),
    "drawn": random_end(150, np.random.default_rng(3), stay=0.9),
    "flat": packed(40, 1, 130, 85),
    "padded": torch.cat([packed(200, 56), torch.arange(257, 321)]),
    "one block": tree(18, 5, 4, 6),
    "whole blocks": torch.full((2 * BLOCK,), 2 * BLOCK),
}


def draw(seed: int, size: int, case: dict[str, Any], dtype: torch.dtype = torch.float64) -> dict[str, Any]:
    """Random operands of a layer, with gradients, and how it attends."""
    facts = dict(heads=(2, 2), window=None, chunk=None, softcap=None, sinks=False, scale=None, depth=(8, 8))
    facts |= case
    rng = np.random.default_rng(seed)
    (heads, keys), (depth, wide) = facts["heads"], facts["depth"]
    shapes = [(1, heads, size, depth), (1, keys, size, depth), (1, keys, size, wide)]
    x = [torch.from_numpy(rng.normal(size=shape)).to(dtype).requires_grad_() for shape in shapes]
    sinks = torch.from_numpy(rng.normal(size=heads)).to(dtype).requires_grad_() if facts["sinks"] else None
    config = SimpleNamespace(attention_chunk_size=facts["chunk"], layer_types=["chunked_attention"])
    names = dict(scaling=facts["scale"], sliding_window=facts["window"], softcap=facts["softcap"])
    return {"x": x, "module": SimpleNamespace(config=config, layer_idx=0), "named": names | {"s_aux": sinks}}


def both(attend: Any, made: dict[str, Any], view: View) -> list[Tensor]:
    """What an attention gives, and the gradients of its operands under one random pull."""
    out, _ = attend(made["module"], *made["x"], None, **made["named"], end=view)
    sinks = made["named"]["s_aux"]
    leaves = [*made["x"], *([] if sinks is None else [sinks])]
    pull = torch.from_numpy(np.random.default_rng(9).normal(size=out.shape)).to(out.dtype)
    return [out.detach(), *torch.autograd.grad(out, leaves, pull)]


@pytest.mark.parametrize("case", CASES)
def test_flex_equals_the_reference(case: str) -> None:
    for end in (ROWS["tree"], ROWS["one block"]):
        made = draw(1, len(end), CASES[case])
        for ours, theirs in zip(both(flex, made, View(end)), both(reference, made, View(end)), strict=True):
            assert ours.dtype == torch.float64
            assert torch.allclose(ours, theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("row", ROWS)
def test_flex_equals_the_reference_in_every_row(row: str) -> None:
    end = ROWS[row]
    made = draw(2, len(end), dict(window=50, heads=(4, 2)))
    for ours, theirs in zip(both(flex, made, View(end)), both(reference, made, View(end)), strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-10, atol=1e-12)


def seen_in_blocks(blocks: Blocks, listed: tuple[Tensor, Tensor]) -> Tensor:
    """bool [n, n]: which blocks a pair of count and indices lists."""
    count, order = (x[0, 0] for x in listed)
    seen = torch.zeros(order.shape, dtype=torch.bool)
    for a, many in enumerate(count.tolist()):
        seen[a, order[a, :many].long()] = True
        assert order[a, :many].tolist() == sorted(order[a, :many].tolist())
    return seen


@pytest.mark.parametrize("limits", [(None, None), (50, None), (300, None), (None, 64), (40, 70)])
@pytest.mark.parametrize("row", [*ROWS, "long", "comb"])
def test_blocks_hold_all_that_is_seen(row: str, limits: tuple[int | None, int | None]) -> None:
    """A kernel skips what is in no list, and asks nothing about what is seen wholly."""
    longer = {"long": packed(900, 1500, 30, 400), "comb": tree(2000, 700, *[130] * 9)}
    end = (ROWS | longer)[row]
    view, size = View(end), len(end)
    blocks = make_blocks(end, view.position, *limits)
    assert blocks.size % BLOCK == 0
    assert blocks.size >= max(size, LEAST_BLOCKS * BLOCK)
    full = torch.cat([end, torch.arange(size + 1, blocks.size + 1)])
    allowed = View(full).allowed(*limits)
    # fillings stand at position 0 here, at another in a row of that length: both see themselves alone
    n = blocks.size // BLOCK
    tiled = allowed.view(n, BLOCK, n, BLOCK).transpose(1, 2)
    lists = blocks.lists
    part, whole = seen_in_blocks(blocks, lists[0:2]), seen_in_blocks(blocks, lists[2:4])
    assert not (part & whole).any()
    assert torch.equal(whole, tiled.all(-1).all(-1))
    assert ((part | whole) >= tiled.any(-1).any(-1)).all()
    assert torch.equal(seen_in_blocks(blocks, lists[4:6]), part.T)
    assert torch.equal(seen_in_blocks(blocks, lists[6:8]), whole.T)
    if limits == (None, None):
        assert torch.equal(part | whole, tiled.any(-1).any(-1))


def test_a_window_keeps_blocks_few_where_turns_meet() -> None:
    """The end of a long turn shares a block with the next one's start, whose window is open to the left."""
    end = packed(8 * BLOCK + 10, 8 * BLOCK - 10)
    blocks = make_blocks(end, positions(end), window=BLOCK)
    # the block itself, the one before, and at most one more
    assert int((blocks.lists[0] + blocks.lists[2]).max()) <= 3


def test_one_wrong_end_is_off_a_hundredfold() -> None:
    end = ROWS["tree"]
    made = draw(4, len(end), {})
    right, other = both(flex, made, View(end)), both(reference, made, View(end))
    wrong = end.clone()
    wrong[125] = end[0]  # a token of the first reply that later replies see
    planted = both(flex, made, View(wrong))
    for a, b, c in zip(planted, right, other, strict=True):
        assert (a - b).abs().max() >= 100 * max(float((b - c).abs().max()), 1e-12)


def test_a_window_by_row_index_is_off_a_hundredfold() -> None:
    end = ROWS["tree"]
    made = draw(5, len(end), dict(window=40))
    right, other = both(flex, made, View(end)), both(reference, made, View(end))
    view = View(end)
    view.position = torch.arange(len(end))
    planted = both(flex, made, view)
    for a, b, c in zip(planted, right, other, strict=True):
        assert (a - b).abs().max() >= 100 * max(float((b - c).abs().max()), 1e-12)


def test_one_graph_for_rows_of_all_lengths() -> None:
    """A number torch.compile has seen change becomes a variable: scales and caps must stay constants."""
    flex_module._kernel.cache_clear()
    before = counters["stats"]["unique_graphs"]
    for scale, softcap in ((0.31, None), (0.32, None), (0.31, 5.0), (0.31, 6.0)):
        for size in (40, 300, 511):
            end = torch.full((size,), size)
            made = draw(6, size, dict(scale=scale, softcap=softcap, window=9), torch.float32)
            both(flex, made, View(end))
    assert counters["stats"]["unique_graphs"] - before == 4


def test_blocks_are_made_once_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def counted(*given: Any) -> Blocks:
        calls.append(given[2:])
        return make_blocks(*given)

    monkeypatch.setattr(attention, "make_blocks", counted)
    view = View(ROWS["one block"])
    made = draw(7, 18, {})
    for window in (None, 3, None, 3):
        made["named"]["sliding_window"] = window
        flex(made["module"], *made["x"], None, **made["named"], end=view)
    assert calls == [(None, None), (3, None)]


def test_dropout_takes_the_obvious_way(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> Tensor:
        raise AssertionError("dropout has no kernel")

    monkeypatch.setattr(attention, "flexed", refuse)
    x = draw(8, 18, {})["x"]
    out, _ = flex(nn.Module(), *x, None, dropout=0.5, end=View(ROWS["one block"]))
    torch.manual_seed(0)
    assert out.shape == (1, 18, 2, 8)


@pytest.mark.parametrize("kind", ["llama", "gemma2", "gemma3_text", "gpt_oss", "llama4_text"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_model_trains_alike(kind: str, dtype: torch.dtype) -> None:
    from imprint.pack.plan import share_out

    rows = share_out(random_turns(1), 400, 1)[0]
    model = tiny_model(kind, dtype)
    found = {name: row_gradients(row_model(model, name), rows) for name in ("reference", "flex")}
    # transformers computes norms and rotary angles in float32, whatever the model's type
    bar = 1e-6 if dtype == torch.float64 else 1e-4
    assert difference(found["flex"][1], found["reference"][1]) <= bar
    assert found["flex"][0] == pytest.approx(found["reference"][0], rel=bar)
    if dtype == torch.float64:
        planted = [replace(row, end=torch.where(row.end == row.end[0], row.end - 1, row.end)) for row in rows]
        assert (
            difference(row_gradients(row_model(model, "flex"), planted)[1], found["reference"][1])
            >= 100 * bar
        )


def test_without_a_cuda_device_varlen_is_flex() -> None:
    assert not varlen.available(torch.device("cpu"))
    end = ROWS["flat"]
    made = draw(3, len(end), {})
    for ours, theirs in zip(
        both(attention.varlen, made, View(end)), both(flex, made, View(end)), strict=True
    ):
        assert torch.equal(ours, theirs)


def test_sequences_are_given_to_torch_as_it_wants_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """The call itself, with the rule computed densely behind it: operands, bounds, windows, scale, groups."""

    def dense(
        q: Tensor, k: Tensor, v: Tensor, bounds: Tensor, other: Tensor, longest: int, also: int, **named: Any
    ) -> Tensor:
        assert bounds is other
        assert longest == also == 130
        left, right = named["window_size"]
        assert right == 0
        out = torch.empty(q.shape[0], q.shape[1], v.shape[2], dtype=q.dtype)
        if q.shape[1] != k.shape[1]:
            assert named.get("enable_gqa", True)
            k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
        for a, b in pairwise(bounds.tolist()):
            back = torch.arange(b - a)[:, None] - torch.arange(b - a)
            sees = (back >= 0) & ((back <= left) | (left == -1))
            scores = torch.einsum("ihd,jhd->hij", q[a:b], k[a:b]) * named["scale"]
            weights = scores.masked_fill(~sees, float("-inf")).softmax(-1)
            out[a:b] = torch.einsum("hij,jhd->ihd", weights, v[a:b])
        return out

    monkeypatch.setattr(varlen, "varlen_attn", dense)
    monkeypatch.setattr(attention, "suits", lambda *_: True)
    end = ROWS["flat"]
    for case in (dict(window=20, heads=(4, 2), scale=0.4), {}):
        made = draw(10, len(end), case)
        for ours, theirs in zip(
            both(attention.varlen, made, View(end)), both(reference, made, View(end)), strict=True
        ):
            assert torch.allclose(ours, theirs, rtol=1e-10, atol=1e-12)
    for case in (dict(softcap=2.0), dict(sinks=True)):  # what those kernels lack goes to flex
        made = draw(11, len(end), case)
        for ours, theirs in zip(
            both(attention.varlen, made, View(end)), both(reference, made, View(end)), strict=True
        ):
            assert torch.allclose(ours, theirs, rtol=1e-10, atol=1e-12)
