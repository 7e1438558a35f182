"""What tests of the engine begin with: engines on tiny models, and replies gathered from their streams."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from imprint.serve.batching import BatchEngine
from imprint.serve.engine import Ask, Scored
from imprint.serve.loading import make_engine
from tiny import VOCAB, own_attention

SMALL: dict[str, Any] = dict(cache_bytes=1 << 24, prefix_bytes=1 << 20, step_tokens=24)


@contextmanager
def engine_on(model: Any, **options: Any) -> Iterator[BatchEngine]:
    engine = make_engine(model, **{**SMALL, **options})
    try:
        yield engine
    finally:
        engine.close()


async def gather(stream: Any) -> list[Scored]:
    return [token async for token in stream]


def replies(engine: BatchEngine, asks: Sequence[Ask], every: float = 0.0) -> list[tuple[list[Scored], Any]]:
    """(tokens, stream) of each ask, sent `every` seconds, taken at the same time."""

    async def all_of_them() -> list[tuple[list[Scored], Any]]:
        tasks = []
        for ask in asks:
            stream = engine.submit(ask)
            tasks.append((asyncio.create_task(gather(stream)), stream))
            await asyncio.sleep(every)
        return [(await asyncio.wait_for(task, 60), stream) for task, stream in tasks]

    return asyncio.run(all_of_them())


def one_by_one(engine: BatchEngine, asks: Sequence[Ask]) -> list[tuple[list[Scored], Any]]:
    return [replies(engine, [ask])[0] for ask in asks]


def prompts(count: int, seed: int = 0, most: int = 40, shared: int = 0) -> list[list[int]]:
    """Random prompts of many lengths, which begin with the same `shared` tokens."""
    generator = torch.Generator().manual_seed(seed)

    def ids(size: int) -> list[int]:
        return torch.randint(3, VOCAB, (size,), generator=generator).tolist()

    head = ids(shared)
    return [head + ids(1 + int(torch.randint(most, (1,), generator=generator))) for _ in range(count)]


@torch.no_grad()
def plainly(model: Any, ids: Sequence[int]) -> Tensor:
    """Log-probabilities [T, V] of one plain forward in transformers' own attention."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    before = base.config._attn_implementation
    if before.startswith("imprint"):
        base.set_attn_implementation(own_attention(base))
    try:
        logits = model(input_ids=torch.tensor([list(ids)]), use_cache=False).logits[0]
    finally:
        if before.startswith("imprint"):
            base.set_attn_implementation(before)
    return logits.float().log_softmax(-1)


def assert_told_truly(model: Any, ask: Ask, said: Sequence[Scored], bar: float = 1e-5) -> None:
    """Greedy tokens are the likeliest of a plain forward over prompt and reply, with its log-probabilities."""
    ids = [*ask.prompt, *(token.id for token in said)]
    if not said:
        return
    table = plainly(model, ids)[len(ask.prompt) - 1 : -1]
    for token, row in zip(said, table, strict=True):
        assert token.logprob is not None
        assert abs(token.logprob - float(row[token.id])) < bar
        assert float(row.max() - row[token.id]) < bar
