"""What is checked on the user's own model before the first step.

A model that fails a check is not refused: it is trained in a simpler layout, and told so.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from imprint.model.attention import generating, own_attention
from imprint.model.pairs import nll
from imprint.model.ropes import sides_of
from imprint.model.rowmodel import RowModel
from imprint.model.shrink import far_limits, shrunk
from imprint.pack.row import Row

Layout = Literal["shared", "packed", "separate"]

# Relative, in float32. Experts round anew as their tokens are grouped; a leak changes states by 1e-2,
# a wrong position by more (tests/model/test_checks.py).
LEAK = 1e-5
TOLERANCE = 1e-3

# Tokens of the longest turn of a probe; what only bites beyond that is tried with windows shrunk to SMALL.
PROBE = 512
SMALL_PROBE, SMALL = 96, 24
LOUD = 30.0


@dataclass(frozen=True)
class Finding:
    """The result of one check."""

    name: str
    passed: bool
    detail: str


@torch.no_grad()
def choose_layout(model: RowModel, wanted: str, longest: int, vocab: int) -> tuple[Layout, list[Finding]]:
    """The layout in which this model trains exactly, and what was found out.

    `wanted` is the recipe's; `auto` takes `shared` where the checks pass, `separate` otherwise.
    Both checks run in float32 without autocast, on random tokens.
    """
    training = model.training
    model.eval()
    try:
        findings = [] if wanted == "separate" else [check_ropes(model, longest), isolation(model, vocab)]
        if all(finding.passed for finding in findings) and wanted != "separate":
            findings.append(position(model, vocab, longest))
        passed = bool(findings) and all(finding.passed for finding in findings)
        layout: Layout = "separate" if not passed else "packed" if wanted == "packed" else "shared"
        model.follows_end = layout != "separate"
        if not model.follows_end:
            own_attention(model.base)
        findings.append(head(model, vocab))
        model.own_head = not findings[-1].passed
    finally:
        model.train(training)
    return layout, findings


def isolation(model: RowModel, vocab: int) -> Finding:
    """Change one turn's tokens in the same layout: states that do not see it stay bit-equal.

    Mixtures of experts may differ by rounding: how many tokens an expert gets decides the order of its sums.
    """
    tokens, end = _probe_row(vocab, prompt=9, replies=(7, 5), alone=8)
    other = tokens.clone()
    other[9:16] = (tokens[9:16] + 1) % vocab  # the first reply, which nothing else sees
    name = "isolation"
    try:
        before, after = (_hidden(model, ids, end) for ids in (tokens, other))
    except (TypeError, ValueError, RuntimeError, NotImplementedError) as error:
        return Finding(name, False, f"the model does not take rows: {_short(error)}")
    unseen = torch.ones(len(tokens), dtype=torch.bool)
    unseen[9:16] = False
    worst = _difference(after[unseen], before[unseen])
    if not worst <= LEAK:
        return Finding(
            name, False, f"a turn changes the states of turns that do not see it (by up to {worst:.1e})"
        )
    if torch.equal(before[~unseen], after[~unseen]):
        return Finding(name, False, "the states do not depend on the tokens")
    how = f"to rounding ({worst:.1e})" if worst else "to the bit"
    return Finding(name, True, f"turns in one row do not see each other: equal {how}")


def position(model: RowModel, vocab: int, longest: int) -> Finding:
    """A short and a long turn behind one prompt: packed and shared equal separate, in float32.

    The probe is as long as the longest turn, or PROBE tokens. Windows, chunks and the limit of longrope
    that turns reach but the probe does not are then tried on the same weights, shrunk until they bite.
    """
    sides = sides_of(model.base)
    size = min(longest, PROBE, sides.limit if sides else longest)
    worst = _rows_against_turns(model, vocab, size)
    detail = f"rows equal separate turns to {worst:.1e} (relative, at most {TOLERANCE:.0e})"
    if not worst <= TOLERANCE:
        return Finding("position", False, detail)
    for limit in far_limits(model.base, size, longest):
        small, probe = min(SMALL, limit.value // 2), min(longest, SMALL_PROBE)
        plain = _probe_row(vocab, prompt=min(probe, limit.value), replies=(), alone=0)[0]
        before = _alone(model, plain)
        with shrunk(limit, 8 if limit.is_rope else small):
            bites = _difference(_alone(model, plain), before) > LEAK
            worst = _rows_against_turns(model, vocab, probe)
        if not worst <= TOLERANCE:
            detail = f"beyond {limit.name} {limit.value:,}, tried as {small}, rows differ by {worst:.1e}"
            return Finding("position", False, detail)
        detail += (
            f"; also beyond {limit.name} {limit.value:,}, shrunk for the probe ({worst:.1e})"
            if bites
            else f"; {limit.name} {limit.value:,} has no effect on this model when it is shrunk: "
            f"what it does beyond {size:,} tokens was not tried"
        )
    return Finding("position", True, detail)


def _rows_against_turns(model: RowModel, vocab: int, size: int) -> float:
    """How far the states of a row are from those of its turns one by one, the longest of `size` tokens."""
    long = max(8, size - 9)
    tokens, end = _probe_row(vocab, prompt=9, replies=(6, long), alone=max(4, long // 2))
    hidden = _hidden(model, tokens, end)
    start, worst = 9, 0.0
    for length in (6, long):
        path = torch.cat([torch.arange(9), torch.arange(start, start + length)])
        worst = max(worst, _difference(hidden[path], _alone(model, tokens[path])))
        start += length
    return max(worst, _difference(hidden[start:], _alone(model, tokens[start:])))


def head(model: RowModel, vocab: int) -> Finding:
    """The logits that the loss uses are those of the model's own forward.

    Both are made loud, so that a soft cap shows that ordinary logits hardly reach.
    """
    tokens, _ = _probe_row(vocab, prompt=12, replies=(), alone=0)
    row = _plain_row(tokens)
    target = tokens.roll(-1)
    probe = Row(row.tokens, row.end, torch.arange(12), target, torch.ones(12)).to(_device(model))
    with suppress(TypeError, AttributeError), _louder(model):
        ours = nll(model.logits(model.hidden(probe)[0]), probe.target)
        own = model.base(**model._inputs(probe)).logits[0]
        worst = _difference(ours, nll(own, probe.target))
        if worst <= TOLERANCE:
            return Finding("head", True, f"the loss is that of the model's own logits, to {worst:.1e}")
    return Finding("head", False, "this family computes its logits in its own way: its own forward is used")


def check_ropes(model: RowModel, longest: int) -> Finding:
    """Positions mean the same whatever else lies in the row, or which turns must be kept apart for that."""
    config = model.base.config.get_text_config()
    if getattr(config, "attn_temperature_tuning", False):  # llama4, by the index in the row
        return Finding(
            "rotary", False, "this family scales attention by the place in the row, not in the turn"
        )
    sides = sides_of(model.base)
    if sides is None or longest - 1 <= sides.limit:
        return Finding("rotary", True, "positions mean the same in every row")
    beyond = "each longer one has a row of its own" if sides.alone else "and longer ones share other rows"
    return Finding(
        "rotary",
        True,
        f"rotary scaling looks at the longest turn of a row: turns of up to {sides.limit:,} tokens share rows, "
        f"{beyond}",
    )


def _probe_row(vocab: int, prompt: int, replies: tuple[int, ...], alone: int) -> tuple[Tensor, Tensor]:
    """(tokens, end) of a prompt, replies that branch from it, and a turn of its own."""
    size = prompt + sum(replies)
    generator = torch.Generator().manual_seed(7)
    tokens = torch.randint(vocab, (size + alone,), generator=generator)
    ends, start = [size] * prompt, prompt
    for length in replies:
        start += length
        ends += [start] * length
    return tokens, torch.tensor(ends + [size + alone] * alone)


@contextmanager
def _louder(model: RowModel) -> Iterator[None]:
    """Inside this block what the output matrix gives is multiplied by LOUD."""
    hook = model.base.get_output_embeddings().register_forward_hook(lambda _, __, out: out * LOUD)
    try:
        yield
    finally:
        hook.remove()


def _plain_row(tokens: Tensor) -> Row:
    nothing = torch.empty(0, dtype=torch.int64)
    return Row(tokens, torch.full_like(tokens, len(tokens)), nothing, nothing, torch.empty(0))


def _hidden(model: RowModel, tokens: Tensor, end: Tensor) -> Tensor:
    nothing = torch.empty(0, dtype=torch.int64)
    row = Row(tokens, end, nothing, nothing, torch.empty(0))
    return model.hidden(row.to(_device(model)))[0].cpu()


def _alone(model: RowModel, tokens: Tensor) -> Tensor:
    """States [T, H] of one turn in the model's own attention, as a server would compute them."""
    with generating(model.model):
        out = model.backbone(input_ids=tokens[None].to(_device(model)), use_cache=False)
    return out.last_hidden_state[0].cpu()  # type: ignore[no-any-return]


def _device(model: RowModel) -> torch.device:
    return next(model.parameters()).device


def _difference(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max().clamp_min(1e-12))


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:120]
