"""Continuous batching: a thread that steps the model, while asks join and leave between the steps."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from imprint.errors import ModelError
from imprint.serve.engine import Ask, Finish, Full, Load, Scored
from imprint.serve.runners import Generation, Runner, Work
from imprint.serve.sampling import Chance, choose, top_logprobs
from imprint.serve.slots import NoRoom
from imprint.serve.stream import TokenStream, wake

log = logging.getLogger(__name__)


class Switch(Protocol):
    """Makes one adapter the one that the model answers with."""

    def __call__(self, adapter: str) -> None: ...


class BatchEngine:
    """An Engine. Everything that touches the model happens in its thread.

    `step_tokens`: most prompt tokens of a step, so that a long prompt does not hold up those who speak.
    `most_logits`: most numbers of logits at once, while a prompt is scored.
    """

    def __init__(
        self,
        runner: Runner,
        *,
        context: int | None,
        vocab: int,
        adapters: Sequence[str] = (),
        switch: Switch | None = None,
        max_running: int = 64,
        max_waiting: int = 256,
        step_tokens: int = 512,
        most_logits: int = 1 << 25,
        notes: Sequence[str] = (),
    ):
        self.context, self.adapters, self.notes = context, tuple(adapters), tuple(notes)
        self._runner, self._switch = runner, switch
        self._max_waiting, self._max_running = max_waiting, max_running
        self._step_tokens, self._most_logits = step_tokens, most_logits
        self._limit = max_running
        self._vocab = vocab
        self._adapter = ""
        self._lock = threading.Condition()
        self._waiting: deque[Generation] = deque()
        self._running: list[Generation] = []
        self._changed: list[TokenStream] = []
        self._closed = False
        self._finished = self._prompt_tokens = self._cached_tokens = self._new_tokens = self._steps = 0
        self._thread = threading.Thread(target=self._work, name="imprint-engine", daemon=True)
        self._thread.start()

    # from any thread

    def submit(self, ask: Ask) -> TokenStream:
        self._refuse_wrong(ask)
        stream = TokenStream(self._wake_up)
        generation = Generation(ask, stream, list(ask.prompt), Chance(ask))
        with self._lock:
            if self._closed:
                raise RuntimeError("the engine is closed")
            if len(self._waiting) >= self._max_waiting:
                raise Full(f"{len(self._waiting)} asks wait already")
            self._waiting.append(generation)
            self._lock.notify()
        return stream

    def load(self) -> Load:
        with self._lock:
            return Load(
                running=len(self._running),
                waiting=len(self._waiting),
                finished=self._finished,
                prompt_tokens=self._prompt_tokens,
                cached_tokens=self._cached_tokens,
                new_tokens=self._new_tokens,
                steps=self._steps,
            )

    def close(self) -> None:
        with self._lock:
            self._closed = True
            self._lock.notify()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _refuse_wrong(self, ask: Ask) -> None:
        if not ask.prompt:
            raise ModelError("a prompt has no tokens", fix="ask with at least one token")
        if self.context is not None and len(ask.prompt) > self.context:
            raise ModelError(
                "the prompt is longer than the model's context",
                found=f"{len(ask.prompt):,} tokens",
                expected=f"at most {self.context:,}",
                fix="ask with less text",
            )
        if ask.adapter and ask.adapter not in self.adapters:
            raise ModelError(
                "there is no such adapter",
                found=ask.adapter,
                expected=", ".join(self.adapters) or "none: the model was loaded without adapters",
                fix="name one of those, or none",
            )

    def _wake_up(self) -> None:
        with self._lock:
            self._lock.notify()

    # in the engine's thread

    def _work(self) -> None:
        with torch.inference_mode():
            while True:
                with self._lock:
                    while not (self._closed or self._running or self._waiting):
                        self._lock.wait()
                    if self._closed:
                        break
                try:
                    self._sweep()
                    self._admit()
                    self._step()
                except Exception:  # a fault of the engine itself: those under way end, the engine lives
                    log.exception("a step of the engine broke; %d asks end", len(self._running))
                    for generation in list(self._running):
                        self._finish(generation, "error", clean=False)
                self._tell()
            for generation in [*self._running, *self._waiting]:
                self._finish(generation, "cancelled")
            self._tell()

    def _tell(self) -> None:
        changed, self._changed = self._changed, []
        if changed:
            wake(changed)

    def _sweep(self) -> None:
        """End what was cancelled."""
        for generation in [*self._running, *self._waiting]:
            if generation.stream.cancelled:
                self._finish(generation, "cancelled")

    def _admit(self) -> None:
        """Begin the asks that wait, the longest waiting first, as long as there is room."""
        while self._waiting and len(self._running) < self._limit:
            generation = self._waiting[0]
            try:
                self._runner.begin(generation)
            except NoRoom as error:
                if self._running:
                    return
                log.error("an ask of %d tokens has no room: %s", len(generation.ids), error)
                self._finish(generation, "error")
                continue
            except Exception:
                log.exception("an ask of %d tokens cannot begin", len(generation.ids))
                self._finish(generation, "error", clean=False)
                continue
            with self._lock:
                self._waiting.popleft()
                self._running.append(generation)
                if not generation.counted:
                    generation.counted = True
                    generation.stream.cached_tokens = generation.computed
                    self._prompt_tokens += generation.prompt_size
                    self._cached_tokens += generation.computed

    def _step(self) -> None:
        """One forward pass for each adapter that someone speaks with, beginning with the one that is on."""
        groups: dict[str, list[Generation]] = {}
        for generation in self._running:
            groups.setdefault(generation.ask.adapter, []).append(generation)
        for adapter in sorted(groups, key=lambda name: name != self._adapter):
            if adapter != self._adapter and self._switch is not None:
                self._switch(adapter)
            self._adapter = adapter
            if self._runner.together:
                self._forward(self._plan(groups[adapter]))
            else:
                for generation in groups[adapter]:
                    self._forward(self._plan([generation]))
        self._steps += bool(groups)

    def _plan(self, group: Sequence[Generation]) -> list[Work]:
        """Everyone who speaks goes on by one token; prompts share what is left of the step's tokens."""
        work: list[Work] = []
        prompts: list[Generation] = []
        for generation in group:
            if len(generation.ids) - generation.computed == 1 and not generation.scoring:
                work.append(Work(generation, 1, 1))
            else:
                prompts.append(generation)
        left = self._step_tokens
        for generation in prompts:
            rest = len(generation.ids) - generation.computed
            count = min(rest, left) if self._runner.together else rest
            if generation.scoring and self._runner.together:
                count = min(count, max(1, self._most_logits // self._vocab))
            if count < 1:
                break
            left -= count
            work.append(Work(generation, count, count if generation.scoring else int(count == rest)))
        return [piece for piece in work if self._has_room(piece)]

    def _has_room(self, piece: Work) -> bool:
        """Whether it can go on; where memory is short, the last to come goes back to the queue, or it itself."""
        while piece.of in self._running:
            try:
                self._runner.extend(piece.of, piece.of.computed + piece.count)
                return True
            except NoRoom:
                self._put_back(self._running[-1])
        return False

    def _put_back(self, generation: Generation) -> None:
        """Let an ask wait again, as the next to come; what it has said stays said."""
        self._runner.end(generation)
        generation.computed = 0
        if not generation.prompt_done:
            generation.scored.clear()
        with self._lock:
            self._running.remove(generation)
            self._waiting.appendleft(generation)

    def _forward(self, work: Sequence[Work]) -> None:
        work = [piece for piece in work if piece.of in self._running]
        if not work:
            return
        try:
            self._take(work, self._runner.compute(work))
        except Exception as error:
            if len(work) == 1:
                log.error("an ask of %d tokens ends: %s", len(work[0].of.ids), error, exc_info=True)
                self._finish(work[0].of, "error", clean=False)
            elif out_of_memory(error):
                torch.cuda.empty_cache()
                self._limit = max(1, len(self._running) // 2)
                log.warning("memory ran out: at most %d asks run at once from now on", self._limit)
                for generation in self._running[self._limit :]:
                    self._put_back(generation)
            else:  # whose fault it is shows when each goes alone: nothing was changed yet
                for piece in work:
                    self._forward([piece])

    def _take(self, work: Sequence[Work], logits: Tensor) -> None:
        """Go on with what a forward pass has found."""
        speaking: list[Generation] = []
        rows: list[int] = []
        row = 0
        for piece in work:
            if piece.of.scoring:
                self._score(piece, logits[row : row + piece.wanted])
            row += piece.wanted
            if piece.of.computed + piece.count == len(piece.of.ids):
                speaking.append(piece.of)
                rows.append(row - 1)
        if len(rows) < len(logits):
            logits = logits[torch.tensor(rows, dtype=torch.int64, device=logits.device)]
        said = choose(logits, [generation.chance for generation in speaking]) if speaking else []
        for piece in work:
            piece.of.computed += piece.count
        for generation, token in zip(speaking, said, strict=True):
            self._hear(generation, token)

    def _score(self, piece: Work, logits: Tensor) -> None:
        """Note what the model thought of the prompt's tokens behind those of `piece`."""
        generation, ask = piece.of, piece.of.ask
        start = generation.computed
        if not start:
            generation.scored = [Scored(ask.prompt[0], None)]
        target = ask.prompt[start + 1 : start + 1 + piece.count]
        logits = logits[: len(target)]
        if not target:
            return
        table = logits.log_softmax(dim=-1)
        index = torch.tensor(list(target), device=table.device)
        values = table.gather(1, index[:, None])[:, 0].tolist()
        tops = top_logprobs(table, [ask.top_logprobs] * len(target))
        generation.scored += [Scored(*one) for one in zip(target, values, tops, strict=True)]

    def _hear(self, generation: Generation, token: Scored | None) -> None:
        """Take the next token of an ask: None where its logits are not finite."""
        ask, stream = generation.ask, generation.stream
        if not generation.prompt_done:
            generation.prompt_done = True
            stream.prompt = generation.scored
            if token is not None:
                self._runner.keep(generation)
        said = len(generation.ids) - generation.prompt_size
        room = self.context is None or len(generation.ids) < self.context
        if token is None:
            log.error("the model's logits are not finite: an ask of %d tokens ends", len(generation.ids))
            self._finish(generation, "error", clean=False)
        elif said >= ask.max_new_tokens or not room:  # it was asked for no reply, or has no place for one
            self._finish(generation, "length")
        elif token.id in ask.stop_ids:
            self._finish(generation, "stop")
        else:
            generation.ids.append(token.id)
            stream.put(token)
            self._new_tokens += 1
            self._changed.append(stream)
            if said + 1 >= ask.max_new_tokens or (
                self.context is not None and len(generation.ids) >= self.context
            ):
                self._finish(generation, "length")

    def _finish(self, generation: Generation, finish: Finish, clean: bool = True) -> None:
        running = generation in self._running
        if running and clean and generation.prompt_done:
            self._runner.keep(generation)
        self._runner.end(generation, clean)
        with self._lock:
            (self._running if running else self._waiting).remove(generation)
            self._finished += 1
        generation.stream.finish = finish
        self._changed.append(generation.stream)


def out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory ran out, on the CPU or on CUDA."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )
