"""What a model will take of memory while it trains, told before its weights are loaded.

How many parameters it has is counted on the meta device. What a token takes in a row depends on how an
architecture is written, and is a sum of terms that each grow with one of its sizes. So some copies of the
architecture, a few thousand parameters each, are computed with real rows and looked at (see `memory`), one size
changed at a time, and the terms are put together again for the true sizes. One more copy, with all sizes
changed, tells how well that holds.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from imprint.errors import ModelError
from imprint.model.fused import fuse
from imprint.model.load import UNLOADABLE, set_dropout, unloadable, use_attention
from imprint.model.loss import SCRATCH, chunks
from imprint.model.rowmodel import RowModel
from imprint.train.budget import can_recompute, recompute_activations
from imprint.train.memory import observe, probe

VOCAB = 128  # of the copies
FEW, MANY = 128, 384  # tokens of the rows that they compute
HEAD_NAMES = ("num_attention_heads", "n_head", "num_heads")
LAYER_NAMES = ("num_hidden_layers", "n_layer", "num_layers")
WIDTH_NAMES = ("hidden_size", "n_embd", "d_model")
INNER_NAMES = ("intermediate_size", "ffn_dim", "n_inner")
ALIKE = 0.05  # how far the last copy may be from what the others foretell
# what counts layers one by one, in lists that must be as long as there are layers
PER_LAYER = ("layer_types", "no_rope_layers", "mlp_layer_types", "attention_layers")

Adapt = Callable[[Any], Any]  # a causal language model in, the same with adapters out


@dataclass(frozen=True)
class Axes:
    """The sizes of an architecture that its memory depends on, as its config holds them."""

    layers: int
    width: int
    heads: int
    kv_heads: int
    head_dim: int
    inner: int | None  # None: a multiple of the width that the config does not name
    apart: bool  # whether the width of a head is a number of its own

    def layer(self) -> list[float]:
        """What the bytes that a layer takes for a token are a linear function of."""
        inner = [] if self.inner is None else [float(self.inner)]
        if not self.apart:  # width and heads go together
            return [1.0, float(self.heads), *inner]
        return [1.0, float(self.width), float(self.heads), float(self.kv_heads), *inner]

    def terms(self) -> list[float]:
        """The same for the whole model."""
        return [1.0, float(self.width)] + [self.layers * term for term in self.layer()]


@dataclass(frozen=True)
class RowNeed:
    """Bytes that a row takes while it is computed, beside weights, their gradients and the optimizer's state.

    `kept` and `passing` are for each token: what the forward pass keeps for the backward pass, and what a layer's
    backward pass takes beside that. `logit` is for each prediction whose logits exist at one time. `casts` are
    the weights rounded for the matrix products, `head` those of the head, and the gradient of a trained one,
    `embedding` the gradient of a trained embedding.
    """

    kept: float
    passing: float
    logit: float
    casts: float
    head: float
    embedding: float

    def of(self, tokens: int, at_once: int) -> float:
        head = self.logit * at_once + SCRATCH
        computing = self.kept * tokens + self.head + max(self.passing * tokens, head)
        return self.casts + max(computing, self.embedding)


@dataclass(frozen=True)
class Foretold:
    """What a model takes by itself (bytes), and while it computes a row; `counted` parameters, `trained` of them.

    `frozen` of them lie in matrices that are not trained, which may be held in few bits. `products` are the different
    matrix products of a row, forward and backward: each length of rows has its own.
    """

    counted: int
    trained: int
    frozen: int
    weights: int
    gradients: int
    products: int
    need: RowNeed
    at_once: Callable[[int], int]
    off: float  # how far the last copy was from what was foretold of it, relative

    def quantized(self, num_bytes: float) -> Foretold:
        """The same where a parameter of a frozen matrix takes `num_bytes`: what a row takes does not change."""
        return replace(self, weights=int(num_bytes * self.frozen + 4 * (self.counted - self.frozen)))


@torch.no_grad()
def on_meta(config: Any, adapt: Adapt, num_tokens: int = 0) -> Any:
    """The model without its numbers, with its adapters."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        try:
            model = AutoModelForCausalLM.from_config(
                copy.deepcopy(config),
                dtype=torch.float32,
                # a config of the model's own code was loaded because that is trusted
                trust_remote_code=type(config).__module__.startswith("transformers_modules."),
            )
        except UNLOADABLE as error:
            raise unloadable(f"model={config.name_or_path or config.model_type}", error) from error
        if num_tokens > model.get_input_embeddings().weight.shape[0]:
            model.resize_token_embeddings(num_tokens, mean_resizing=False)
        return adapt(model)


def axes_of(config: Any) -> Axes:
    """ModelError where a config names its sizes in no way that is known."""
    text = config.get_text_config()

    def size(names: tuple[str, ...]) -> int | None:
        found = (getattr(text, name, None) for name in names)
        return next((value for value in found if isinstance(value, int) and value > 0), None)

    layers, width, heads = size(LAYER_NAMES), size(WIDTH_NAMES), size(HEAD_NAMES)
    if layers is None or width is None or heads is None:
        raise _unknown(config, f"a config of {config.model_type} that names no layers, width or heads")
    own = getattr(text, "head_dim", None)
    inner = size(("moe_intermediate_size", *INNER_NAMES))
    kv = getattr(text, "num_key_value_heads", None) or heads
    return Axes(layers, width, heads, kv, own or width // heads, inner, isinstance(own, int))


def _unknown(config: Any, found: str) -> ModelError:
    return ModelError(
        "the memory of this architecture cannot be foretold",
        where=str(config.model_type),
        found=found,
        fix="imprint train measures it on the loaded model",
    )


def resized(config: Any, axes: Axes) -> Any:
    """A copy of the config with these sizes and few tokens."""
    made = copy.deepcopy(config)
    text = made.get_text_config()
    old_layers = axes_of(config).layers
    wanted: dict[tuple[str, ...], int | None] = {
        LAYER_NAMES: axes.layers,
        WIDTH_NAMES: axes.width,
        HEAD_NAMES: axes.heads,
        ("num_key_value_heads",): axes.kv_heads,
        ("head_dim",): axes.head_dim if axes.apart else None,
        ("moe_intermediate_size", *INNER_NAMES): axes.inner,
        ("vocab_size",): VOCAB,
        ("num_local_experts", "num_experts", "n_routed_experts"): 4,
    }
    for names, value in wanted.items():
        for name in names:
            if value is not None and isinstance(getattr(text, name, None), int):
                setattr(text, name, value)
    if hasattr(text, "word_embed_proj_dim"):
        text.word_embed_proj_dim = axes.width
    for name in PER_LAYER:
        kinds = getattr(text, name, None)
        if isinstance(kinds, list) and len(kinds) == old_layers:  # in the proportion that the model has them
            setattr(text, name, [kinds[i * old_layers // axes.layers] for i in range(axes.layers)])
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        if isinstance(getattr(text, name, None), int):
            setattr(text, name, 0)
    return made


def copies(axes: Axes) -> list[Axes]:
    """The sizes of the copies: as many as there are terms, and one more that tells whether they hold."""
    ratio = max(1, axes.heads // axes.kv_heads)
    dim = min(axes.head_dim, 64)
    if not axes.apart:
        kv = 2 if ratio == 1 else 1
        inner = None if axes.inner is None else 4 * 2 * dim
        small = Axes(1, 2 * dim, 2, kv, dim, inner, False)
        two = replace(small, layers=2)
        wide = replace(small, width=4 * dim, heads=4, kv_heads=2 * kv)
        found = [small, two, wide, replace(wide, layers=2)]
        if inner is not None:
            found.append(replace(two, inner=2 * inner))
        return [*found, replace(wide, layers=3, inner=None if inner is None else 3 * inner)]
    small = Axes(1, 128, 2, 1, axes.head_dim, None if axes.inner is None else 128, True)
    two = replace(small, layers=2)
    found = [small, two, replace(small, width=256), replace(two, width=256)]
    found += [replace(two, heads=4), replace(two, heads=4, kv_heads=2)]
    if axes.inner is not None:
        found.append(replace(two, inner=256))
    inner = None if axes.inner is None else 384
    return [*found, Axes(3, 256, 4, 2, axes.head_dim, inner, True)]


# What an architecture raises whose sizes hang together in a way that nobody wrote down here.
_STRANGE = (RuntimeError, ValueError, TypeError, AttributeError, KeyError, IndexError, AssertionError)


def _copies_computed(
    config: Any, axes: Axes, slopes: Callable[[Any], tuple[float, float]]
) -> list[tuple[Axes, tuple[float, float]]]:
    """The sizes of each small copy beside what a token takes in it; random numbers are drawn as if none had been."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return [(sizes, slopes(resized(config, sizes))) for sizes in copies(axes)]


def foretell(
    config: Any,
    *,
    adapt: Adapt = lambda model: model,
    compute_type: torch.dtype = torch.float32,
    recompute: bool = False,
    fused: bool = True,
    num_tokens: int = 0,
    ranks: int = 1,
) -> Foretold:
    """The memory of training a model of this config; it takes some seconds.

    `adapt` adds the adapters, `fused` is how a processor computes it. Frozen matrices are held in the compute type;
    `ranks` share out weights, gradients and optimizer.
    """
    axes = axes_of(config)
    try:
        model = on_meta(config, adapt, num_tokens)
        seen = _copies_computed(
            config, axes, lambda small: _slopes(small, adapt, compute_type, recompute, fused)
        )
    except _STRANGE as error:
        raise _unknown(config, f"{type(error).__name__}: {' '.join(str(error).split())[:200]}") from error
    *known, (last, check) = seen
    kept = _solved([(sizes.terms(), slopes[0]) for sizes, slopes in known])
    passing = _solved([(sizes.layer(), slopes[1]) for sizes, slopes in known])
    told = kept(last.terms()) + max(0.0, passing(last.layer()))

    base = RowModel(model).base
    head, embedding = base.get_output_embeddings().weight, base.get_input_embeddings().weight
    vocab, trains_head = head.shape[0], head.requires_grad
    width = 4 if trains_head and compute_type == torch.float32 else compute_type.itemsize
    narrow = compute_type.itemsize if compute_type != torch.float32 else 0
    counted = sum(p.numel() for p in model.parameters())
    frozen = sum(p.numel() for p in matrices(model) if not p.requires_grad)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    need = RowNeed(
        kept=kept(axes.terms()),
        passing=max(0.0, passing(axes.layer())),
        logit=float(vocab * width + 8 * axes.width),
        casts=float(narrow * sum(p.numel() for p in matrices(model) if p.requires_grad)),
        head=float(((4 if trains_head else 0) + narrow) * head.numel()),
        embedding=float(4 * embedding.numel() if embedding.requires_grad else 0),
    )
    return Foretold(
        counted=counted,
        trained=trained,
        frozen=frozen,
        weights=(compute_type.itemsize * frozen + 4 * (counted - frozen)) // ranks,
        gradients=4 * trained // ranks,
        products=products(model, head) + (4 if trains_head else 2),
        need=need,
        at_once=lambda predictions: chunks(predictions, vocab, width, trains_head)[1],
        off=abs(told - sum(check)) / max(sum(check), 1.0),
    )


def _solved(points: list[tuple[list[float], float]]) -> Callable[[list[float]], float]:
    """The linear function through these points, by least squares where there are more than it needs."""
    matrix = torch.tensor([terms for terms, _ in points], dtype=torch.float64)
    scale = matrix.abs().amax(0)
    values = torch.tensor([value for _, value in points], dtype=torch.float64)
    found = torch.linalg.pinv(matrix / scale) @ values / scale
    return lambda terms: float(found @ torch.tensor(terms, dtype=torch.float64))


def matrices(model: nn.Module) -> list[nn.Parameter]:
    """What is multiplied, each once; embeddings, also as tied heads, are looked up."""
    looked_up = {
        id(p) for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters(recurse=False)
    }
    found = {
        id(weight): weight
        for module in model.modules()
        if isinstance(module, nn.Linear) or type(module).__name__.endswith(("Conv1D", "Experts"))
        for weight in module.parameters(recurse=False)
        if weight.dim() >= 2 and id(weight) not in looked_up
    }
    return list(found.values())


def products(model: nn.Module, head: nn.Parameter) -> int:
    """How many different matrix products a row takes in its layers: forward, and for the gradients."""
    layers = (weight for weight in matrices(model) if weight is not head)
    sizes = {(*weight.shape[-2:], weight.requires_grad) for weight in layers}
    return sum(3 if trained else 2 for *_, trained in sizes)


def _slopes(
    config: Any, adapt: Adapt, compute_type: torch.dtype, recompute: bool, fused: bool
) -> tuple[float, float]:
    """Bytes for each token of a copy: kept by the forward pass, and taken beside them by the backward pass."""
    from transformers import AutoModelForCausalLM

    set_dropout(config, 0.0)
    model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    follows = use_attention(model, "tiles")
    if fused:
        fuse(model)
    row_model = RowModel(adapt(model), follows_end=follows)
    if recompute and can_recompute(row_model):
        recompute_activations(row_model)
    if compute_type != torch.float32:
        row_model.hold_frozen(compute_type)
    row_model.train()
    for parameter in row_model.parameters():
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    short, long = (observe(row_model, probe(size, 1, 4, VOCAB, True), compute_type) for size in (FEW, MANY))
    tokens = MANY - FEW
    kept = (long.kept - short.kept) / tokens
    return kept, max(0.0, (long.early - short.early) / tokens - kept)
