"""Why an export may say something else: what the first difference looks like, in words."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile

from imprint.export.golden import Example, Golden

ROUNDED = 5e-2  # nats: more than rounding weights to 8 bits does to a log-probability
AROUND = 24  # characters shown of two texts from where they part


def cause_of_prompt(
    golden: Golden, example: Example, ids: Sequence[int] | None, text: str | None, count: int | None = None
) -> str:
    """Why a prompt that is not the golden one differs: BOS, template or tokenizer."""
    bos = golden.bos.id
    if ids is None and text is None and count is not None:
        more = count - len(example.prompt_ids)
        likely = "BOS" if golden.bos.id is not None and abs(more) == 1 else "template or tokenizer"
        return f"{likely}: a prompt has {count:,} tokens where training had {len(example.prompt_ids):,}"
    if ids is not None and bos is not None:
        ours, theirs = list(example.prompt_ids), list(ids)
        if ours.count(bos) != theirs.count(bos) and _without(ours, bos) == _without(theirs, bos):
            return (
                f"BOS: {theirs.count(bos)} × {golden.bos.token} in the prompt, "
                f"where training had {ours.count(bos)}"
            )
    if text is not None and text != example.prompt:
        at = common(text, example.prompt)
        return (
            f"template: the text parts from the trained one at character {at + 1:,}, "
            f"{text[at : at + AROUND]!r} where {example.prompt[at : at + AROUND]!r} was trained"
        )
    if text is not None:
        return "tokenizer: the same text becomes other tokens"
    return "template or tokenizer: the messages become other tokens"


def cause_of_difference(golden: Golden, difference: float, as_without_adapter: bool) -> str:
    """Why log-probabilities behind the same ids differ: adapter, weights or precision."""
    if as_without_adapter:
        return "adapter: it answers as the base model does, so the adapter is not applied"
    if difference <= ROUNDED:
        return (
            "precision: the differences are small, as rounded weights or products give them "
            f"(the golden file was computed in {golden.precision})"
        )
    return "weights or adapter: the same ids get other probabilities"


def common(a: Sequence[object], b: Sequence[object]) -> int:
    """The length of what two texts, or two lists of ids, begin with alike."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False)))


def _without(ids: Sequence[int], number: int) -> list[int]:
    return [i for i in ids if i != number]
