"""Whether a model can be served many asks at once: tried on the model itself, not looked up in a list."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from imprint.errors import ModelError
from imprint.model.ropes import sides_of
from imprint.model.shrink import far_limits, shrunk
from imprint.serve.engine import Ask
from imprint.serve.flat import NAME, Probe
from imprint.serve.runners import FlatRunner, Generation, SoloRunner, Work
from imprint.serve.sampling import Chance
from imprint.serve.slots import Layers, Slots
from imprint.serve.stream import TokenStream

SIZES = (9, 41, 24, 2)  # tokens of the sequences that are tried
SHRUNK = 8
TOLERANCE = 1e-3  # relative, in float32: as in model/checks.py
COARSE = 0.1  # in narrower types


@torch.no_grad()
def try_together(base: Any, context: int | None) -> tuple[Layers, torch.dtype] | str:
    """What each layer keeps of a token, and in which type; or why asks must be computed one by one.

    Sequences go through the model in stretches and token by token, beside each other: their logits must
    be those of the model's own attention on each alone. Windows that these do not reach are shrunk.
    """
    config = base.config.get_text_config()
    if getattr(config, "attn_temperature_tuning", False):
        return "it scales attention by the place in the row, not in the text"
    sides = sides_of(base)
    if sides is not None and (context is None or sides.limit < context):
        return f"its rotary scaling changes for texts of more than {sides.limit:,} tokens"
    try:
        base.set_attn_implementation(NAME)
        if base.config._attn_implementation != NAME:
            return "its code does not take another attention"
        probe = Probe()
        ids = _sequences(config.vocab_size)
        device = next(base.parameters()).device
        base(input_ids=ids[0][None].to(device), use_cache=False, served=probe)
        if not probe.shapes or probe.dtype is None:
            return "its layers do not use the attention that they are given"
        slots = Slots(probe.shapes, [16, 64], len(ids), 1 << 32, probe.dtype, device)
        worst = _difference(base, slots, ids)
        for limit in far_limits(base, max(SIZES), context or 1 << 20):
            if not limit.is_rope:
                with shrunk(limit, SHRUNK):
                    worst = max(worst, _difference(base, slots, ids))
    except (TypeError, ValueError, RuntimeError, NotImplementedError, AttributeError, KeyError) as error:
        return f"its code does not take rows of several texts: {' '.join(str(error).split())[:120]}"
    finally:
        base.set_attn_implementation(_own_name(base))
    most = TOLERANCE if probe.dtype in (torch.float32, torch.float64) else COARSE
    if not worst <= most:
        return f"computed together, its logits differ by {worst:.1e} from those of each text alone"
    return probe.shapes, probe.dtype


def _difference(base: Any, slots: Slots, sequences: list[Tensor]) -> float:
    """How far the logits of staggered steps are from those of each sequence alone (relative).

    The largest difference of the ordinary row counts in narrow types, where an expert may be chosen
    otherwise for one token; in float32 the worst row does.
    """
    device = next(base.parameters()).device
    with _own(base):
        alone = [base(input_ids=ids[None].to(device), use_cache=False).logits[0].float() for ids in sequences]
    runner = FlatRunner(base, slots, None)
    under_way = []
    for ids in sequences:
        ask = Ask(ids.tolist(), 1)
        generation = Generation(ask, TokenStream(lambda: None), ids.tolist(), Chance(ask))
        runner.begin(generation)
        under_way.append(generation)
    found: list[list[Tensor]] = [[] for _ in sequences]
    for step in range(max(SIZES)):
        work = []
        for number, generation in enumerate(under_way):
            left = len(generation.ids) - generation.computed
            count = min(left, (1, 7, 3)[(step + number) % 3])
            if count and step >= number:  # one joins with each step
                runner.extend(generation, generation.computed + count)
                work.append(Work(generation, count, count))
        if not work:
            break
        parts = runner.compute(work).split([piece.count for piece in work])
        for piece, part in zip(work, parts, strict=True):
            found[under_way.index(piece.of)].append(part)
            piece.of.computed += piece.count
    for generation in under_way:
        runner.end(generation)
    off = torch.cat([(torch.cat(a) - b).abs().amax(1) for a, b in zip(found, alone, strict=True)])
    size = torch.cat(alone).abs().max().clamp_min(1e-12)
    exact = slots.pools[0].dtype in (torch.float32, torch.float64)
    return float((off.max() if exact else off.median()) / size)


@torch.no_grad()
def try_by_turns(base: Any, runner: SoloRunner) -> bool:
    """Whether several asks may be under way by turns; False where the state lies in the model itself.

    ModelError where the model does not go on from its cache as it computes a text in one pass.
    """
    ids = _sequences(base.config.get_text_config().vocab_size)[:3]
    found = "token by token it computes other logits than in one pass"
    try:
        if _goes_on(base, runner, ids):
            return True
        if all(_goes_on(base, runner, [one]) for one in ids):
            return False
    except (TypeError, ValueError, RuntimeError, AttributeError, KeyError) as error:
        found = f"transformers does not go on from its cache: {' '.join(str(error).split())[:200]}"
    raise ModelError(
        "this model cannot be served",
        found=found,
        expected="a causal language model that generates token by token",
        fix="another version of transformers may help",
    )


def _goes_on(base: Any, runner: SoloRunner, ids: list[Tensor]) -> bool:
    """Whether texts whose last tokens come by turns have the logits of one pass over each."""
    under_way = [
        Generation(Ask(one.tolist(), 1), TokenStream(lambda: None), one.tolist(), Chance(Ask([0], 1)))
        for one in ids
    ]
    found: list[list[Tensor]] = [[] for _ in ids]
    for step in range(4):
        for number, generation in enumerate(under_way):
            count = len(generation.ids) - 3 if not step else 1
            found[number].append(runner.compute([Work(generation, count, count)]))
            generation.computed += count
    device = next(base.parameters()).device
    alone = [base(input_ids=one[None].to(device), use_cache=False).logits[0].float() for one in ids]
    off = torch.cat([(torch.cat(a) - b).abs().amax(1) for a, b in zip(found, alone, strict=True)])
    narrow = base.dtype not in (torch.float32, torch.float64)
    worst = float((off.median() if narrow else off.max()) / torch.cat(alone).abs().max().clamp_min(1e-12))
    return worst <= (COARSE if narrow else TOLERANCE)


@contextmanager
def _own(base: Any) -> Iterator[None]:
    before = base.config._attn_implementation
    base.set_attn_implementation(_own_name(base))
    try:
        yield
    finally:
        base.set_attn_implementation(before)


def _own_name(base: Any) -> str:
    """transformers' own attention, as `generate` would use it."""
    return "sdpa" if getattr(base, "_supports_sdpa", True) else "eager"


def _sequences(vocab: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(7)
    return [torch.randint(vocab, (size,), generator=generator) for size in SIZES]


def fit_context(context: int | None, layers: Layers, dtype: torch.dtype, most_bytes: int) -> int | None:
    """The longest text whose keys and values fit in `most_bytes`, if that is less than the context."""
    each = sum(shape.features for shape in layers.values()) * dtype.itemsize
    fits = most_bytes // each
    if fits < 1:
        raise ModelError(
            "there is no memory for keys and values",
            found=f"{most_bytes:,} bytes",
            expected=f"at least {each:,}, for one token",
            fix="give more",
        )
    return fits if context is None else min(context, fits)
