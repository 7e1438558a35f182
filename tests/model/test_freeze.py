"""Which parameters are trained: patterns, tied names, and what is said where they fit nothing."""

from __future__ import annotations

import pytest
import torch

from imprint.errors import RecipeError
from imprint.model.freeze import fits_in, freeze
from imprint.model.rowmodel import RowModel
from tiny import tiny_model


def trained(model: torch.nn.Module) -> set[str]:
    return {name for name, p in model.named_parameters() if p.requires_grad}


def test_what_fits_is_frozen_and_nothing_else() -> None:
    model = tiny_model("llama")
    told = freeze(model, ["model.embed_tokens.*", "model.layers.0.*"])
    assert all("layers.0." not in name and "embed" not in name for name in trained(model))
    assert len(trained(model)) == 11  # nine of a layer, the last norm, the output matrix
    assert told.startswith("10 parameters frozen, ")


def test_train_only_and_freeze_together() -> None:
    model = tiny_model("llama")
    freeze(model, ["*.1.mlp.*"], ["*.mlp.*", "lm_head.*"])
    assert trained(model) == {
        *(f"model.layers.0.mlp.{n}_proj.weight" for n in ("gate", "up", "down")),
        "lm_head.weight",
    }


@pytest.mark.parametrize("name", ["lm_head.weight", "model.embed_tokens.weight"])
def test_a_tied_matrix_goes_by_either_name(name: str) -> None:
    model = tiny_model("llama", tie_word_embeddings=True)
    freeze(model, [name])
    assert not model.lm_head.weight.requires_grad
    assert not model.get_input_embeddings().weight.requires_grad


def test_a_pattern_that_fits_nothing_names_what_is_near() -> None:
    with pytest.raises(RecipeError) as caught:
        freeze(tiny_model("llama"), ["model.layers.*", "mlp.down_proj"])
    text = str(caught.value)
    assert "freeze=mlp.down_proj" in text
    assert "model.layers.0.mlp.down_proj.weight" in text
    assert 'freeze=["*mlp.down_proj*"]' in text
    with pytest.raises(RecipeError, match=r'train_only=\["model.layers.0.mlp.down_proj.weight"\]'):
        freeze(tiny_model("llama"), [], ["model.layers.0.mlp.downproj.weight"])


def test_nothing_left() -> None:
    with pytest.raises(RecipeError, match="nothing is left to train"):
        freeze(tiny_model("llama"), ["*"])


def test_frozen_matrices_are_held_only_where_nothing_is_lost() -> None:
    model = tiny_model("llama")
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "layers.0." in name:
                p.copy_(p.bfloat16())
    freeze(model, ["model.layers.*"])
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    rows = RowModel(model)
    saved = rows.hold_frozen(torch.bfloat16, exactly=True)
    types = {name: p.dtype for name, p in model.named_parameters()}
    assert all(types[n] == torch.bfloat16 for n in types if "layers.0." in n and "proj" in n)
    assert all(types[n] == torch.float32 for n in types if "layers.1." in n or "norm" in n)
    assert saved == 2 * sum(
        p.numel() for n, p in model.named_parameters() if "layers.0." in n and "proj" in n
    )
    assert all(torch.equal(p.float(), before[name]) for name, p in model.named_parameters())
    assert not fits_in(torch.tensor([[1.0, 1.001]]), torch.bfloat16)
