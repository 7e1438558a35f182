"""Attention on CUDA: compiled FlexAttention and flash attention against the reference. Skipped without a device."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters

from imprint.model import choose, varlen
from imprint.model.attention import NAMES, Rule, flex, reference
from imprint.model.attention import varlen as varlen_attention
from imprint.model.choose import Layer, choose_attention, difference
from imprint.model.cuda import prepare_cuda
from imprint.model.flex import make_blocks
from imprint.model.view import View
from imprint.pack.plan import share_out
from tiny import SHARING, random_turns, row_gradients, row_model, tiny_model
from tiny import difference as gradient_difference

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
    # torch.compile's compilers warn of many things
    pytest.mark.filterwarnings("default"),
]

BAR = {torch.bfloat16: 1e-2, torch.float32: 1e-4}


def packed(*sizes: int) -> Tensor:
    bounds = torch.tensor(sizes).cumsum(0)
    return torch.repeat_interleave(bounds, torch.tensor(sizes)).cuda()


def comb(prompt: int, *replies: int) -> Tensor:
    """The `end` of one prompt with many replies."""
    size, start = prompt + sum(replies), prompt
    ends = [size] * prompt
    for length in replies:
        start += length
        ends += [start] * length
    return torch.tensor(ends, device="cuda")


def layer(heads: int, groups: int, width: int, value_width: int | None = None, **rule: Any) -> Layer:
    if rule.pop("sinks", False):
        rule["sinks"] = torch.randn(heads, generator=torch.Generator().manual_seed(0)).cuda()
    return Layer(heads, groups, width, value_width or width, Rule(width**-0.5, **rule))


LAYERS: dict[str, dict[str, Any]] = {
    "llama": dict(heads=8, groups=2, width=128),
    "small heads": dict(heads=4, groups=4, width=8),
    "heads of 80": dict(heads=4, groups=4, width=80),
    "heads of 96": dict(heads=4, groups=2, width=96),
    "gemma 2": dict(heads=4, groups=2, width=256, window=300, softcap=50.0),
    "gemma 3": dict(heads=4, groups=1, width=256, window=512),
    "gpt_oss": dict(heads=16, groups=2, width=64, window=128, sinks=True),
    "llama 4": dict(heads=10, groups=2, width=128, chunk=400),
    "deepseek": dict(heads=4, groups=4, width=192, value_width=128),
}


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("compute", BAR)
def test_flex_equals_the_reference(kind: str, compute: torch.dtype) -> None:
    if compute == torch.float32 and LAYERS[kind]["width"] > 128:
        pytest.skip("in float32 heads this wide do not fit a multiprocessor's memory: tiles are taken")
    for end in (comb(500, 300, 200, 37, 450), packed(700, 1, 99, 411), comb(20, 30)):
        assert difference("flex", layer(**LAYERS[kind]), end, compute) <= BAR[compute]


@pytest.mark.parametrize("size", [1024, 4096, 16_384])
def test_long_rows(size: int) -> None:
    made = layer(heads=4, groups=2, width=128)
    part = size // 8
    for end in (comb(3 * part, *[part] * 5), packed(5 * part, part, 2 * part)):
        assert difference("flex", made, end, torch.bfloat16) <= BAR[torch.bfloat16]
        assert difference("varlen", made, end, torch.bfloat16) <= BAR[torch.bfloat16]


@pytest.mark.parametrize("kind", ["llama", "gemma 3", "llama 4", "heads of 80", "heads of 96"])
def test_sequences_equal_the_reference(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if not varlen.available(torch.device("cuda")):
        pytest.skip("this torch has no attention over sequences with a window and a scale")
    monkeypatch.setattr(flex, "compute", None)  # nothing may go the other way
    for end in (packed(700, 1, 99, 411), packed(2048)):
        assert difference("varlen", layer(**LAYERS[kind]), end, torch.bfloat16) <= BAR[torch.bfloat16]


@pytest.mark.parametrize("name", ["flex", "varlen"])
def test_planted_mistakes_are_off_a_hundredfold(name: str) -> None:
    made, end = layer(heads=4, groups=2, width=128), packed(300, 300)
    right = difference(name, made, end, torch.bfloat16)
    x = torch.randn(1, 4, 600, 128, device="cuda", dtype=torch.bfloat16)
    wrong = end.clone()
    wrong[150:300] = 600  # half of the first turn is seen by the second
    a, b = (
        reference.compute(x.float(), x[:, :2].float(), x[:, :2].float(), View(e), made.rule)
        for e in (end, wrong)
    )
    assert float((a - b).norm() / a.norm()) >= 0.1 >= 10 * right


@pytest.mark.parametrize("name", ["flex", "varlen"])
def test_gradients_are_the_same_to_the_bit_each_time(name: str) -> None:
    prepare_cuda()
    attend = flex if name == "flex" else varlen_attention
    end = packed(3000, 1000, 96)
    x = [
        torch.randn(1, h, 4096, 128, device="cuda", dtype=torch.bfloat16).requires_grad_() for h in (8, 2, 2)
    ]
    pull, found = torch.randn(1, 4096, 8, 128, device="cuda", dtype=torch.bfloat16), []
    for _ in range(3):
        out = attend.compute(*x, View(end), Rule(128**-0.5))
        found.append([out.detach(), *torch.autograd.grad(out, x, pull)])
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def test_one_kernel_for_rows_of_all_lengths() -> None:
    made = layer(heads=2, groups=2, width=64, softcap=7.0)
    difference("flex", made, packed(200), torch.bfloat16)
    before = counters["stats"]["unique_graphs"]
    for size in (40, 300, 640, 1111, 5000):
        difference("flex", made, packed(size), torch.bfloat16)
    assert counters["stats"]["unique_graphs"] == before


def test_a_layer_waits_for_nothing() -> None:
    """Blocks are made and layers are launched without a value fetched from the device."""
    end = comb(500, 300, 200)
    x = [torch.randn(1, 4, 1000, 64, device="cuda", dtype=torch.bfloat16).requires_grad_() for _ in range(3)]
    view, rule = View(end), Rule(0.125, window=200)
    flex.compute(*x, view, rule).sum().backward()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        make_blocks(view.end, view.position, 200)
        flex.compute(*x, view, rule).sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("name", ["flex", "varlen"])
def test_memory_grows_with_tokens_not_with_pairs(name: str) -> None:
    size, heads = 16_384, 8
    attend = flex if name == "flex" else varlen_attention
    x = [
        torch.randn(1, heads, size, 64, device="cuda", dtype=torch.bfloat16).requires_grad_()
        for _ in range(3)
    ]
    view, rule = View(packed(size)), Rule(0.125)
    attend.compute(*x, view, rule).sum().backward()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    attend.compute(*x, view, rule).sum().backward()
    whole_mask = size * size  # a byte each, for one head
    assert torch.cuda.max_memory_allocated() - before < whole_mask


@pytest.mark.parametrize("kind", SHARING)
def test_a_model_trains_alike(kind: str) -> None:
    model = tiny_model(kind).cuda()
    rows = [row.to(torch.device("cuda")) for row in share_out(random_turns(1), 400, 1)[0]]
    slow = row_gradients(row_model(model, "reference"), rows)[1]
    fast = row_gradients(row_model(model, "flex"), rows)[1]
    assert gradient_difference(fast, slow) <= BAR[torch.float32]


@pytest.mark.parametrize("layout", ["packed", "shared"])
def test_a_model_trains_alike_in_bfloat16(layout: str) -> None:
    model = tiny_model("llama", head_dim=32).cuda()
    rows = [row.to(torch.device("cuda")) for row in share_out(random_turns(1), 400, 1, layout)[0]]
    slow = row_gradients(row_model(model, "reference"), rows)[1]
    for name in ("flex", "varlen"):
        with torch.autocast("cuda", torch.bfloat16):
            fast = row_gradients(row_model(model, name), rows)[1]
        assert gradient_difference(fast, slow) <= 2e-2


def test_a_run_takes_what_is_best(monkeypatch: pytest.MonkeyPatch) -> None:
    model = row_model(tiny_model("llama", head_dim=32).cuda())
    name, reason = choose_attention(model, "auto", torch.bfloat16)
    assert name == choose.best(torch.device("cuda")) in ("varlen", "flex")
    assert "FlexAttention" in reason
    assert model.base.config._attn_implementation == NAMES[name]
    monkeypatch.setattr(choose, "difference", lambda *_: 0.5)
    name, reason = choose_attention(model, "auto", torch.bfloat16)
    assert name == "tiles"
    assert "it is off by 5.0e-01" in reason
