"""RowModel: its loss is the model's own, however it is cut into chunks."""

import gc
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM

from imprint.model import loss as losses
from imprint.model.adapters import add_lora
from imprint.model.checks import choose_layout
from imprint.model.pairs import nll
from imprint.model.rowmodel import RowModel
from imprint.pack.row import Row, empty_row
from imprint.pack.tree import build_rows
from tiny import VOCAB, difference, gradients, random_turns, row_gradients, row_model, tiny_model


def plain_row(size: int = 30) -> Row:
    """One text in which every token but the last predicts the next."""
    tokens = torch.randint(3, VOCAB, (size,), generator=torch.Generator().manual_seed(1))
    source = torch.arange(size - 1)
    return Row(tokens, torch.full((size,), size), source, tokens[1:], torch.ones(size - 1))


# every way in which a family changes its logits
@pytest.mark.parametrize(
    ("kind", "extra"),
    [
        ("llama", {}),
        ("llama", dict(tie_word_embeddings=True)),
        ("gpt2", {}),
        ("phi", {}),  # a head with a bias
        ("cohere", dict(logit_scale=0.3)),
        ("cohere2", dict(logit_scale=0.3)),
        ("granite", dict(logits_scaling=5.0)),
        ("gemma2", dict(final_logit_softcapping=1.0)),
        ("gemma3_text", dict(final_logit_softcapping=1.0)),
    ],
)
def test_the_loss_is_that_of_the_models_own_logits(kind: str, extra: dict[str, Any]) -> None:
    model, row = tiny_model(kind, **extra), plain_row()
    logits = model(input_ids=row.tokens[None], use_cache=False).logits[0, :-1]
    own = F.cross_entropy(logits, row.target, reduction="none")
    ours = row_model(model)(row)
    assert torch.allclose(ours, own, rtol=1e-5, atol=1e-5)
    _, findings = choose_layout(rows_of := row_model(model), "auto", 30, VOCAB)
    assert not rows_of.own_head
    assert findings[-1].name == "head"


@pytest.mark.parametrize("chunk", [1, 7, 29, 30, 1024])
def test_chunks_change_neither_value_nor_gradient(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = row_model(tiny_model("gemma2", torch.float64))
    rows = build_rows(random_turns(0), 10**6)
    assert rows[0].num_predictions > 30
    loss, wanted = row_gradients(model, rows)
    monkeypatch.setattr(losses, "chunks", lambda states, *_: (-(-states // chunk), chunk))
    found_loss, found = row_gradients(model, rows)
    assert found_loss == pytest.approx(loss, rel=1e-14)
    assert difference(found, wanted) < 1e-14
    with torch.no_grad():
        assert model(rows[0]).shape == (rows[0].num_predictions,)


@pytest.mark.parametrize("kind", ["llama", "gemma2", "granite", "phi"])
@pytest.mark.parametrize("follows_end", [True, False])
def test_the_own_head_gives_the_same(kind: str, follows_end: bool) -> None:
    model = row_model(tiny_model(kind, torch.float64))
    if not follows_end:
        choose_layout(model, "separate", 40, VOCAB)
    rows = build_rows(random_turns(0), 10**6, "shared" if follows_end else "separate")
    loss, wanted = row_gradients(model, rows)
    model.own_head = True
    found_loss, found = row_gradients(model, rows)
    assert found_loss == pytest.approx(loss, rel=1e-12)
    assert difference(found, wanted) < 1e-10


def test_a_family_that_computes_its_logits_otherwise_is_noticed() -> None:
    model = tiny_model("llama")
    forward = type(model).forward

    def hotter(*arguments: Any, **named: Any) -> Any:
        out = forward(model, *arguments, **named)
        out.logits = out.logits * 1.5
        return out

    model.forward = hotter
    rows_of = row_model(model)
    _, findings = choose_layout(rows_of, "auto", 30, VOCAB)
    assert rows_of.own_head
    assert not findings[-1].passed
    row = plain_row()
    model.set_attn_implementation("sdpa")
    own = F.cross_entropy(model(input_ids=row.tokens[None]).logits[0, :-1], row.target, reduction="none")
    row_model(model)
    assert torch.allclose(rows_of(row), own, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("dtype", "wide"),
    [(torch.float64, torch.float64), (torch.float32, torch.float32), (torch.bfloat16, torch.float32)],
)
def test_the_loss_is_in_float32_or_wider(dtype: torch.dtype, wide: torch.dtype) -> None:
    assert row_model(tiny_model("llama", dtype))(plain_row()).dtype == wide


def test_nll_of_bfloat16_logits_is_computed_in_float32() -> None:
    logits = torch.randn(5, VOCAB, generator=torch.Generator().manual_seed(0)).bfloat16()
    target = torch.arange(5)
    assert torch.equal(nll(logits, target), F.cross_entropy(logits.float(), target, reduction="none"))


@pytest.mark.parametrize("own_head", [False, True])
@pytest.mark.parametrize("adapted", [False, True])
@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma2", "qwen3_moe", "gpt_oss"])
def test_an_empty_row_gives_every_parameter_a_zero_gradient(kind: str, adapted: bool, own_head: bool) -> None:
    model: Any = tiny_model(kind)
    if adapted:
        model = add_lora(model, rank=2, alpha=4, dropout=0.0, targets="all-linear", new_tokens=[5])
    rows_of = row_model(model)
    rows_of.own_head = own_head
    row = empty_row()
    out = rows_of(row)
    assert out.shape == (0,)
    (row.weight * out).sum().backward()
    found = gradients(model)
    assert found.keys() == {name for name, p in model.named_parameters() if p.requires_grad}
    assert all(not gradient.any() for gradient in found.values())


def test_a_model_with_adapters_uses_them() -> None:
    model = add_lora(tiny_model("llama"), rank=2, alpha=4, dropout=0.0, targets="all-linear")
    rows_of, row = row_model(model), plain_row()
    before = rows_of(row).detach()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.1)
    assert not torch.allclose(rows_of(row), before)


@pytest.mark.parametrize("kind", ["llama", "mixtral", "gpt2"])
@pytest.mark.parametrize("tokens", [[], [5]])
def test_frozen_matrices_are_held_in_the_compute_type(kind: str, tokens: list[int]) -> None:
    """Autocast would round them so in each row: losses are equal, and what is looked up stays as it is."""
    row = build_rows(random_turns(0), 10**6)[0]
    losses = []
    for held in (False, True):
        base = tiny_model(kind, tie_word_embeddings=True)
        model = row_model(
            add_lora(base, rank=4, alpha=8, dropout=0.0, targets="attention", new_tokens=tokens, seed=1)
        )
        if held:
            assert model.hold_frozen(torch.bfloat16) > 0
            kinds = {name: p.dtype for name, p in model.named_parameters() if not p.requires_grad}
            assert any(dtype == torch.bfloat16 for dtype in kinds.values())
            for name, dtype in kinds.items():
                if "embed" in name or "wte" in name or "norm" in name or "ln_" in name:
                    assert dtype == torch.float32, name
                elif "mlp" in name and name.endswith(("weight", "_proj")) and "gate.weight" not in name:
                    assert dtype == torch.bfloat16, name
        with torch.autocast("cpu", dtype=torch.bfloat16):
            losses.append(model(row).detach())
        ids = torch.tensor([[5, 6, 7]])
        model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=2, pad_token_id=0)
    assert torch.equal(*losses)


@pytest.mark.skipif(sys.platform != "linux", reason="asks the kernel what is mapped")
def test_the_file_of_the_weights_is_let_go(tmp_path: Path) -> None:
    """One embedding in use would keep all pages of a mapped file resident, those of the matrices too."""
    tiny_model("llama", tie_word_embeddings=True).save_pretrained(tmp_path)
    (file,) = tmp_path.glob("*.safetensors")
    base = AutoModelForCausalLM.from_pretrained(tmp_path)
    model = row_model(add_lora(base, rank=4, alpha=8, dropout=0.0, targets="attention", seed=1))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    mapped = Path("/proc/self/maps")
    assert str(file) in mapped.read_text()
    model.hold_frozen(torch.bfloat16)
    gc.collect()
    assert str(file) not in mapped.read_text()
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name].to(parameter.dtype)), name


# ---- noise on embeddings (NEFTune)


def noise_of(model: RowModel, row: Row) -> torch.Tensor:
    """What is added to the embeddings [T, H] while a row is computed."""
    seen: list[torch.Tensor] = []
    layer = model.backbone.layers[0]
    hook = layer.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
    model(row)
    hook.remove()
    return seen[0][0] - model.base.get_input_embeddings().weight.detach()[row.tokens]


def test_noise_goes_by_the_length_of_the_turn_and_not_of_the_row() -> None:
    rows = build_rows(random_turns(0), 10**6, "packed", multiple=64)
    model = row_model(tiny_model("llama")).train()
    model.add_noise(5.0)
    (row,) = rows
    torch.manual_seed(1)
    noise = noise_of(model, row)
    start = 0
    for end in sorted(set(row.end.tolist())):
        length = end - start
        limit = 5.0 / (length * 32) ** 0.5
        most = float(noise[start:end].abs().max())
        assert most <= limit * (1 + 1e-5)
        assert most > 0.8 * limit or length < 3
        start = end
    assert start == row.num_tokens
    assert abs(float(noise.mean())) < 0.05 * float(noise.abs().max())


def test_noise_is_drawn_by_the_seed_and_in_training_only() -> None:
    (row,) = build_rows(random_turns(0), 10**6, "packed")
    model = row_model(tiny_model("llama"))
    model.add_noise(5.0)
    losses = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        losses.append(model.train()(row).detach())
    assert torch.equal(losses[0], losses[1])
    assert not torch.equal(losses[0], losses[2])
    plain = row_model(tiny_model("llama")).eval()(row)
    assert torch.equal(model.eval()(row), plain)
    assert not torch.equal(losses[0], plain)
    with torch.no_grad():
        model.train()
        assert torch.equal(model.hidden(row), model.hidden(row))  # generation and the like: no row, no noise
