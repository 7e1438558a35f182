"""The small operations in fewer passes: equal to the originals, found where they are, left alone elsewhere."""

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from imprint.model import fused
from imprint.model.fused import fuse
from imprint.pack.tree import build_rows
from tiny import (
    ARCHITECTURES,
    SHARING,
    VOCAB,
    difference,
    own_rotary_functions,
    random_turns,
    row_gradients,
    row_model,
    tiny_model,
)

TURNS = random_turns(3)


@pytest.fixture(autouse=True)
def originals() -> Iterator[None]:
    """Families' modules get their own rotary function back."""
    yield
    own_rotary_functions()


def gradients(model: Any) -> dict[str, Tensor]:
    return row_gradients(row_model(model), build_rows(TURNS, 10**6))[1]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("kind", SHARING)
def test_gradients_are_those_of_the_originals(kind: str, dtype: torch.dtype) -> None:
    plain = tiny_model(kind, dtype)
    wanted = gradients(plain)
    model = copy.deepcopy(plain)
    fuse(model)
    # transformers computes norms in float32 whatever the type of the model
    assert difference(gradients(model), wanted) <= (1e-6 if dtype == torch.float64 else 2e-5)


@pytest.mark.parametrize(
    ("kind", "found"),
    [
        ("llama", ["5 norms", "2 gates", "rotary embeddings"]),
        ("gemma", ["5 norms", "rotary embeddings"]),  # its norms are 1 + weight, its gate is no SiLU
        ("qwen3", ["9 norms", "2 gates", "rotary embeddings"]),
        ("gpt2", []),
        ("bloom", []),
    ],
)
def test_what_is_recognised(kind: str, found: list[str]) -> None:
    model = tiny_model(kind)
    assert fuse(model) == found


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_no_family_loses_its_forward(kind: str) -> None:
    model = tiny_model(kind)
    ids = torch.randint(VOCAB, (1, 12), generator=torch.Generator().manual_seed(0))
    before = model(input_ids=ids).logits
    fuse(model)
    after = model(input_ids=ids).logits
    assert torch.allclose(before, after, rtol=1e-4, atol=1e-5)
    with torch.no_grad():  # without gradients it is the very same code
        unfused = tiny_model(kind)(input_ids=ids).logits
        assert torch.equal(model(input_ids=ids).logits, unfused)


def test_under_autocast_they_round_where_the_next_product_would() -> None:
    plain = tiny_model("llama")
    exact = gradients(plain)
    model = copy.deepcopy(plain)
    fuse(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        wanted, found = gradients(plain), gradients(model)
    assert difference(found, exact) <= 1.3 * difference(wanted, exact)


def test_less_is_kept_for_the_backward_pass() -> None:
    def kept(model: Any) -> int:
        seen: dict[int, int] = {}

        def pack(x: Tensor) -> Tensor:
            if not isinstance(x, nn.Parameter):
                seen[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
            return x

        row = build_rows(TURNS, 10**6)[0]
        held = []
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            held.append(row_model(model).hidden(row))
        return sum(seen.values())

    model = tiny_model("llama")
    before = kept(model)
    fuse(model)
    assert kept(model) < 0.8 * before


def test_what_only_looks_like_a_norm_is_left_alone() -> None:
    class OddRMSNorm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(8))
            self.eps = 1e-6

        def forward(self, x: Tensor) -> Tensor:
            return x / x.abs().mean(-1, keepdim=True) * self.weight

    assert fuse(nn.Sequential(OddRMSNorm())) == []


@pytest.mark.parametrize("mistake", ["rotation", "norm", "gate"])
def test_a_wrong_derivative_misses_the_bar(mistake: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = tiny_model("llama", torch.float64)
    wanted = gradients(plain)
    model = copy.deepcopy(plain)
    fuse(model)
    if mistake == "rotation":
        right = fused._rotated
        monkeypatch.setattr(fused, "_rotated", lambda *a, back: right(*a, back=False))
    else:
        function = {"norm": fused._Norm, "gate": fused._Gate}[mistake]
        backward = function.backward
        monkeypatch.setattr(
            function, "backward", staticmethod(lambda *a: (backward(*a)[0] * 1.001, *backward(*a)[1:]))
        )
    assert difference(gradients(model), wanted) >= 1e-4


def test_a_rotary_function_that_takes_something_else_is_left_alone() -> None:
    import types

    import transformers.models.llama.modeling_llama as llama

    def older(
        q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, position_ids: Any = None, unsqueeze_dim: int = 1
    ) -> Any:
        return llama.apply_rotary_pos_emb(q, k, cos, sin, unsqueeze_dim)

    module: Any = types.ModuleType("older")
    module.apply_rotary_pos_emb = older
    assert not fused._fuse_rotary(module)
    assert module.apply_rotary_pos_emb is older
