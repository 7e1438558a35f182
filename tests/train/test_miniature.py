"""What is foretold of a row's memory, held against rows that are really computed."""

import copy
from functools import partial

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from imprint.errors import ModelError
from imprint.model.adapters import add_lora
from imprint.model.fused import fuse
from imprint.model.load import set_dropout, use_attention
from imprint.model.rowmodel import RowModel
from imprint.train.budget import recompute_activations
from imprint.train.memory import observe, probe
from imprint.train.miniature import axes_of, copies, foretell, matrices, products, resized
from tiny import _SIZES, ARCHITECTURES

TOKENS = 700
LORA = partial(add_lora, rank=8, alpha=16, dropout=0.0, targets="all-linear")
SIZES = {
    "llama": dict(hidden_size=192, intermediate_size=512, num_attention_heads=6, num_key_value_heads=2, head_dim=32),
    "qwen2": dict(hidden_size=192, intermediate_size=640, num_attention_heads=6, num_key_value_heads=2),
    "gpt2": dict(n_embd=192, n_layer=4, n_head=6, n_positions=1024),
    "gemma2": dict(hidden_size=160, intermediate_size=512, num_attention_heads=5, num_key_value_heads=5, head_dim=32,
                   query_pre_attn_scalar=32),
}  # fmt: skip


def config_of(kind):
    sizes = dict(num_hidden_layers=4, vocab_size=1024, max_position_embeddings=1024, **SIZES[kind])
    if kind == "gpt2":
        sizes = dict(vocab_size=1024, bos_token_id=1, eos_token_id=2, **SIZES[kind])
    config = CONFIG_MAPPING[kind](**sizes)
    set_dropout(config, 0.0)
    return config


def computed(config, adapt, compute, recompute):
    """Bytes that a row of the model itself takes at its most, beyond what is there before and after."""
    model = AutoModelForCausalLM.from_config(copy.deepcopy(config), dtype=torch.float32)
    use_attention(model, "tiles")
    fuse(model)
    row_model = RowModel(adapt(model))
    if recompute:
        recompute_activations(row_model)
    if compute != torch.float32:
        row_model.hold_frozen(compute)
    row_model.train()
    for parameter in row_model.parameters():
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    vocab = config.get_text_config().vocab_size
    return observe(row_model, probe(TOKENS, 1, 64, vocab, True), compute).most, row_model


@pytest.mark.parametrize("kind", sorted(SIZES))
@pytest.mark.parametrize(
    ("method", "compute", "recompute"),
    [("full", torch.float32, False), ("lora", torch.bfloat16, False), ("full", torch.bfloat16, True)],
)
def test_a_row_takes_what_was_foretold(kind, method, compute, recompute):
    adapt = LORA if method == "lora" else (lambda model: model)
    config = config_of(kind)
    told = foretell(config, adapt=adapt, compute_type=compute, recompute=recompute)
    observed, model = computed(config, adapt, compute, recompute)
    foretold = told.need.of(TOKENS, told.at_once(64))
    # the scratch of the loss, and what a layer needs in passing, are a few MB whatever the model
    assert abs(foretold - observed) < 0.12 * observed + (8 << 20)
    assert told.counted == sum(p.numel() for p in model.parameters())
    assert told.trained == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert told.weights == sum(p.numel() * p.element_size() for p in model.parameters())


def test_a_longer_row_is_foretold_in_proportion_not_as_a_short_one():
    """The twin: what is kept of a token is most of it, so a forecast without it would miss by far."""
    config = config_of("llama")
    told = foretell(config)
    observed, _ = computed(config, lambda model: model, torch.float32, False)
    blind = told.need.of(0, told.at_once(64))
    assert abs(blind - observed) > 0.5 * observed


def test_the_copies_are_small_and_tell_all_terms_apart():
    for kind in SIZES:
        axes = axes_of(config_of(kind))
        *known, _ = copies(axes)
        terms = torch.tensor([sizes.terms() for sizes in known], dtype=torch.float64)
        assert torch.linalg.matrix_rank(terms / terms.amax(0)) == terms.shape[1], kind
        for sizes in copies(axes):
            made = resized(config_of(kind), sizes)
            model = AutoModelForCausalLM.from_config(made)
            assert sum(p.numel() for p in model.parameters()) < 4_000_000
            assert axes_of(made).layers == sizes.layers


def test_the_users_config_is_left_alone():
    config = config_of("gemma2")
    before = config.to_dict()
    foretell(config)
    assert config.to_dict() == before


def test_random_numbers_are_as_before():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    foretell(config_of("llama"), adapt=LORA)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    "kind", ["llama", "qwen3", "phi", "gpt_neox", "olmo2", "granite", "mixtral", "qwen3_moe"]
)
def test_many_architectures_can_be_foretold(kind):
    sizes = {**_SIZES, **ARCHITECTURES[kind]}
    told = foretell(CONFIG_MAPPING[kind](**{k: v for k, v in sizes.items() if v is not None}))
    assert told.need.kept > 0
    assert told.counted > 0


def test_what_cannot_be_foretold_is_said():
    config = CONFIG_MAPPING["mamba"](hidden_size=32, num_hidden_layers=2, vocab_size=64, state_size=4)
    with pytest.raises(ModelError, match="cannot be foretold"):
        foretell(config)


def test_a_tied_head_is_no_matrix_of_its_own():
    model = AutoModelForCausalLM.from_config(config_of("llama"))
    names = {id(p): name for name, p in model.named_parameters()}
    assert all("embed" not in names[id(p)] for p in matrices(model))


class Products(TorchDispatchMode):
    """The different matrix products that are made inside: sizes, and which of the two lies transposed."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm):
            a, b = args[-2:]
            self.seen.add((*a.shape, *b.shape, a.is_contiguous(), b.is_contiguous()))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("method", ["full", "lora"])
def test_the_products_of_a_row_are_counted(method):
    """Each is a kernel that is kept, for each length of rows."""
    config = config_of("llama")
    model = AutoModelForCausalLM.from_config(config)
    use_attention(model, "tiles")
    fuse(model)
    adapted = LORA(model) if method == "lora" else model
    row_model, vocab = RowModel(adapted), config.vocab_size
    with Products() as made:
        row_model(probe(100, 1, 64, vocab, True)).sum().backward()
    layers = {sizes for sizes in made.seen if vocab not in sizes}
    assert len(layers) == products(adapted, row_model.base.get_output_embeddings().weight)
