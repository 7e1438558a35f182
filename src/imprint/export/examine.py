"""What the trained model itself says to given prompts: the numbers of a golden file.

Scored on the path that training uses (rows, its attention, its head), so that a golden file also proves
that path against whatever serves the model later.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from imprint.distributed.mesh import Mesh
from imprint.evaluate.generate import answer
from imprint.export.golden import TOP, Continuation, Example
from imprint.model.rowmodel import RowModel
from imprint.pack.row import Row

Ids = NDArray[np.int32]

BATCH = 4  # prompts answered together
BLOCK = 32  # weights that share a scale in Q8_0

_PRODUCTS = {
    torch.nn.functional.linear,
    torch.matmul,
    torch.Tensor.matmul,
    torch.Tensor.__matmul__,
    torch.mm,
    torch.Tensor.mm,
    torch.bmm,
    torch.Tensor.bmm,
    torch.addmm,
    torch.baddbmm,
    torch.einsum,
}


@dataclass(frozen=True, slots=True)
class Question:
    """A prompt of the user's data, as text, as ids, and as a server is given it; the demonstration's reply."""

    source: str
    part: str
    messages: tuple[Mapping[str, Any], ...]
    tools: tuple[Mapping[str, Any], ...]
    prompt: str
    prompt_ids: Ids
    reply_ids: Ids


@dataclass
class Examined:
    """The examples in the order of their questions."""

    examples: list[Example] = field(default_factory=list)
    without_adapter: tuple[float, ...] = ()
    out_of_time: bool = False


class _WideProducts(TorchFunctionMode):
    """Products of wide states with matrices kept in a narrow type are made in the wide one."""

    def __init__(self, narrow: torch.dtype):
        super().__init__()
        self.narrow, self.wide = narrow, torch.float32

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if function in _PRODUCTS:

            def widened(value: Any) -> Any:
                narrow = isinstance(value, Tensor) and value.dtype == self.narrow
                return value.to(self.wide) if narrow else value

            args, kwargs = tree_map(widened, args), tree_map(widened, dict(kwargs or {}))
        return function(*args, **(kwargs or {}))


@contextmanager
def in_float32(model: RowModel) -> Iterator[None]:
    """Inside, every product is made in float32, also with matrices that are kept in a narrower type."""
    held, model.held = model.held, None
    training = model.training
    model.eval()
    try:
        with torch.no_grad(), _WideProducts(held) if held is not None else nullcontext():
            yield
    finally:
        model.held = held
        model.train(training)


def examine(
    model: RowModel,
    mesh: Mesh,
    questions: Sequence[Question],
    *,
    stop_ids: Sequence[int],
    decode: Callable[[Sequence[int], bool], str],
    limit: int,
    seconds: float,
) -> Examined:
    """Ask every question; every rank calls this with the same questions. Ends early after `seconds`.

    `limit` is the most tokens of a reply, given or greedy; `decode(ids, plainly)` leaves control tokens
    away where `plainly`.
    """
    started, found = time.perf_counter(), Examined()
    with in_float32(model):
        for first in range(0, len(questions), BATCH):
            if mesh.any(first > 0 and time.perf_counter() - started > seconds):
                found.out_of_time = True
                break
            some = questions[first : first + BATCH]
            replies = answer(
                model, [question.prompt_ids for question in some], stop_ids=stop_ids, max_new_tokens=limit
            )
            for question, (body, stopped) in zip(some, replies, strict=True):
                found.examples.append(_example(model, question, body, stopped, stop_ids, decode, limit))
        inner: Any = model.model
        if found.examples and hasattr(inner, "disable_adapter"):
            with inner.disable_adapter():
                reply = questions[0].reply_ids[:limit]
                rows = _logprobs(model, questions[0].prompt_ids, reply)
            own = rows.gather(1, torch.as_tensor(reply[:, None].astype(np.int64)))
            found.without_adapter = tuple(own[:, 0].tolist())
    return found


def _example(
    model: RowModel,
    question: Question,
    body: Ids,
    stopped: bool,
    stop_ids: Sequence[int],
    decode: Callable[[Sequence[int], bool], str],
    limit: int,
) -> Example:
    prompt = question.prompt_ids
    room = limit if model.context is None else min(limit, model.context - len(prompt))
    reply = question.reply_ids[: max(room, 0)]
    if stopped:  # which of the stops it was: the likeliest of them
        behind = _logprobs(model, prompt, np.append(body, stop_ids[0]).astype(np.int32))[-1]
        body = np.append(body, max(stop_ids, key=lambda number: float(behind[number]))).astype(np.int32)
    return Example(
        source=question.source,
        part=question.part,
        messages=question.messages,
        tools=question.tools,
        prompt=question.prompt,
        prompt_ids=tuple(prompt.tolist()),
        reply=_continuation(model, prompt, reply, decode),
        greedy=_continuation(model, prompt, body, decode),
        text=decode(body[:-1].tolist() if stopped else body.tolist(), True),
        stopped=stopped,
        limit=max(room, 0),
    )


def _continuation(
    model: RowModel, prompt: Ids, ids: Ids, decode: Callable[[Sequence[int], bool], str]
) -> Continuation:
    if not len(ids):
        return Continuation((), (), (), ())
    rows = _logprobs(model, prompt, ids)  # [n, V]
    best = rows.topk(min(TOP, rows.shape[1]))
    own = rows.gather(1, torch.as_tensor(ids[:, None].astype(np.int64)))[:, 0]
    numbers: list[int] = ids.tolist()
    return Continuation(
        ids=tuple(numbers),
        tokens=tuple(decode([number], False) for number in numbers),
        logprobs=tuple(own.tolist()),
        top=tuple(
            tuple(zip(place, values, strict=True))
            for place, values in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ),
    )


def _logprobs(model: RowModel, prompt: Ids, ids: Ids, plain: bool = False) -> Tensor:
    """Log-probabilities of every token at the place of each of `ids` behind the prompt, on the CPU [n, V]."""
    device = next(model.parameters()).device
    tokens = torch.from_numpy(np.concatenate((prompt, ids[:-1])).astype(np.int64))
    source = torch.arange(len(prompt) - 1, len(tokens))
    target = torch.from_numpy(ids.astype(np.int64))
    end = torch.full_like(tokens, len(tokens))
    row = Row(tokens, end, source, target, torch.ones(len(ids))).to(device)
    return model.logprobs(row, plain=plain).cpu()


def moved(model: RowModel, examples: Sequence[Example]) -> float:
    """How far a model's log-probabilities, by its own forward, now are from those of examples, in nats."""
    most = 0.0
    with in_float32(model):
        for example in examples:
            prompt = np.array(example.prompt_ids, np.int32)
            for given in filter(lambda one: one.ids, (example.reply, example.greedy)):
                rows = _logprobs(model, prompt, np.array(given.ids, np.int32), plain=True)
                for place, row in enumerate(rows):
                    known = given.known(place).items()
                    most = max(most, *(abs(float(row[number]) - logprob) for number, logprob in known))
    return most


def rounded(value: Tensor, name: str) -> Tensor:
    """A tensor as a type of weights holds it, in the type that it has: bfloat16, float16 or q8_0.

    Q8_0 (ggml): blocks of BLOCK weights along the last axis, each its largest magnitude / 127 as a float16 scale
    and whole numbers from -127 to 127. Vectors, and rows that are no multiple of a block, stay as they are.
    """
    if name != "q8_0":
        return value.to(getattr(torch, name)).to(value.dtype)
    if value.dim() < 2 or value.shape[-1] % BLOCK:
        return value
    blocks = value.float().reshape(-1, BLOCK)
    scale = blocks.abs().amax(dim=1, keepdim=True) / 127
    whole = torch.where(scale > 0, blocks / scale, 0).round()
    return (whole * scale.half().float()).reshape(value.shape).to(value.dtype)
