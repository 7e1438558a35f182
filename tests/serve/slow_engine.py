"""The engine as obvious as it can be: one ask at a time, a whole forward pass for each token."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence

import torch

from imprint.serve.engine import Ask, Finish, Full, Load, Scored


class SlowStream:
    def __init__(self, ask: Ask):
        self.ask = ask
        self.finish: Finish | None = None
        self.prompt: Sequence[Scored] = ()
        self.cached_tokens = 0
        self.cancelled = threading.Event()
        self.tokens: deque[Scored] = deque()

    def cancel(self) -> None:
        self.cancelled.set()

    async def __aiter__(self) -> AsyncIterator[Scored]:
        while True:
            finish = self.finish
            while self.tokens:
                yield self.tokens.popleft()
            if finish is not None:
                return
            await asyncio.sleep(0.002)


class SlowEngine:
    """`forward` gives the logits [T, V] of ids [T]; `delay`: seconds that each token takes longer."""

    adapters: Sequence[str] = ()

    def __init__(
        self,
        forward: Callable[[list[int], str], torch.Tensor],
        context: int | None = None,
        max_waiting: int = 64,
        delay: float = 0.0,
    ):
        self.forward, self.context, self.max_waiting, self.delay = forward, context, max_waiting, delay
        self.waiting: deque[SlowStream] = deque()
        self.running: SlowStream | None = None
        self.finished = self.prompt_tokens = self.new_tokens = 0
        self.closed = False
        self.changed = threading.Condition()
        self.thread = threading.Thread(target=self._work, daemon=True)
        self.thread.start()

    def submit(self, ask: Ask) -> SlowStream:
        with self.changed:
            self.waiting = deque(stream for stream in self.waiting if not stream.cancelled.is_set())
            if len(self.waiting) >= self.max_waiting:
                raise Full
            self.waiting.append(SlowStream(ask))
            self.changed.notify()
            return self.waiting[-1]

    def load(self) -> Load:
        with self.changed:
            waiting = sum(not stream.cancelled.is_set() for stream in self.waiting)
            return Load(
                int(self.running is not None),
                waiting,
                self.finished,
                self.prompt_tokens,
                0,
                self.new_tokens,
                0,
            )

    def close(self) -> None:
        with self.changed:
            self.closed = True
            self.changed.notify()
        self.thread.join()

    def _work(self) -> None:
        while True:
            with self.changed:
                self.changed.wait_for(lambda: self.waiting or self.closed)
                if self.closed:
                    for stream in self.waiting:
                        stream.finish = "cancelled"
                    return
                stream = self.running = self.waiting.popleft()
            try:
                stream.finish = self._generate(stream)
            except Exception:
                stream.finish = "error"
                raise
            finally:
                self.running, self.finished = None, self.finished + 1

    @torch.inference_mode()
    def _generate(self, stream: SlowStream) -> Finish:
        ask = stream.ask
        ids = [int(i) for i in ask.prompt]
        self.prompt_tokens += len(ids)
        drawn = torch.Generator().manual_seed(ask.seed if ask.seed is not None else 0)
        logits = self.forward(ids, ask.adapter)
        if ask.score_prompt:
            scores = logits.log_softmax(-1)
            first = Scored(ids[0], None)
            stream.prompt = [
                first, *(_scored(scores[i - 1], ids[i], ask.top_logprobs) for i in range(1, len(ids)))
            ]  # fmt: skip
        for _ in range(ask.max_new_tokens):
            if stream.cancelled.wait(self.delay) or self.closed:
                return "cancelled"
            last = logits[-1]
            token = _choose(last, ask, ids[len(ask.prompt) :], drawn)
            if token in ask.stop_ids:
                return "stop"
            self.new_tokens += 1
            stream.tokens.append(_scored(last.log_softmax(-1), token, ask.top_logprobs))
            ids.append(token)
            logits = self.forward(ids, ask.adapter)
        return "length"


def _choose(logits: torch.Tensor, ask: Ask, said: list[int], drawn: torch.Generator) -> int:
    logits = logits.clone()
    for token in set(said):
        logits[token] -= ask.presence_penalty + ask.frequency_penalty * said.count(token)
    if not ask.temperature:
        return int(logits.argmax())
    chances, order = (logits / ask.temperature).softmax(-1).sort(descending=True)
    chances[1:][chances.cumsum(-1)[:-1] >= ask.top_p] = 0
    if ask.top_k:
        chances[ask.top_k :] = 0
    return int(order[torch.multinomial(chances, 1, generator=drawn)])


def _scored(logprobs: torch.Tensor, token: int, top: int) -> Scored:
    best = logprobs.topk(top) if top else None
    alternatives = tuple(zip(best.indices.tolist(), best.values.tolist(), strict=True)) if best else ()
    return Scored(token, float(logprobs[token]), alternatives)


def scripted(
    tokens: Callable[[list[int]], Sequence[int]], vocab: int, stop: int
) -> Callable[[list[int], str], torch.Tensor]:
    """A forward that writes what `tokens` says of a prompt, whatever stands there; then, `stop`.

    Its prompt ends where its script begins: at the longest prefix for which there is one.
    """

    begun: dict[tuple[int, ...], int] = {}  # a prompt and what was said of its script → the prompt's size

    def forward(ids: list[int], adapter: str) -> torch.Tensor:
        logits = torch.zeros(len(ids), vocab)
        known = begun.pop(tuple(ids[:-1]), 0)
        for size in [known] if known else range(len(ids), 0, -1):
            script = tokens(ids[:size])
            if script and list(script[: len(ids) - size]) == ids[size:]:
                begun[tuple(ids)] = size
                rest = [*script[len(ids) - size :], stop]
                logits[-1, rest[0]] = 20.0
                return logits
        logits[-1, stop] = 20.0
        return logits

    return forward
