"""From a request's settings to asks of the engine, and their pieces back, several at once."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from imprint.serve.engine import Ask, Full
from imprint.serve.hosted import Host, Hosted
from imprint.serve.measure import Measures
from imprint.serve.pieces import Piece, Pieces, StopStrings, TokenText
from imprint.serve.problems import Problem, out_of_time, too_busy
from imprint.serve.schema import ChatRequest, CompletionRequest

_RETRY = 0.02  # seconds between two tries to put in what the queue had no place for
_AHEAD = 64  # pieces that wait for a slow reader


@dataclass(frozen=True, slots=True)
class Wish:
    """One choice of a request: what to ask, and how its tokens become text."""

    ask: Ask
    text: TokenText
    stops: tuple[str, ...]
    stop_ids: frozenset[int] = frozenset()


def ask_of(
    request: ChatRequest | CompletionRequest,
    hosted: Hosted,
    ids: Sequence[int],
    max_new_tokens: int,
    choice: int,
    *,
    top_logprobs: int = 0,
    score_prompt: bool = False,
    stops_here: bool = False,
) -> Ask:
    """The ask of a request's choice. Temperature and top_p are 1 where they are not given, as OpenAI's are.

    `stops_here`: the stop token is wanted, so the engine goes on behind it until it is cancelled.
    """
    seed = request.seed
    return Ask(
        prompt=ids,
        max_new_tokens=max_new_tokens,
        stop_ids=frozenset() if stops_here else frozenset(hosted.rendering.stop_ids),
        temperature=1.0 if request.temperature is None else float(request.temperature),
        top_p=1.0 if request.top_p is None else float(request.top_p),
        top_k=request.top_k or 0,
        seed=None if seed is None else (seed + 1_000_003 * choice) % 2**63,  # choices differ
        presence_penalty=float(request.presence_penalty or 0),
        frequency_penalty=float(request.frequency_penalty or 0),
        top_logprobs=top_logprobs,
        score_prompt=score_prompt,
        adapter=hosted.adapter,
    )


def stops_of(request: ChatRequest | CompletionRequest) -> tuple[str, ...]:
    given = request.stop
    return (given,) if isinstance(given, str) else tuple(given or ())


class Asked:
    """The choices of one request under way. `pieces` gives (choice, piece) as they come."""

    def __init__(self, host: Host, wishes: Sequence[Wish]):
        self.host, self.wishes = host, wishes
        self.choices: list[Pieces | None] = [None] * len(wishes)
        self._put_in(0)  # Problem 429 at once, where there is no place for the first
        for number in range(1, len(wishes)):
            if not self._put_in(number):
                break

    def _put_in(self, number: int) -> bool:
        """Whether there was a place for a choice."""
        wish = self.wishes[number]
        try:
            stream = self.host.submit(wish.ask)
        except Full as error:
            if number:  # later choices of this request wait for its first ones
                return False
            raise too_busy() from error
        self.choices[number] = Pieces(stream, wish.text, StopStrings(wish.stops), wish.stop_ids)
        return True

    async def pieces(self) -> AsyncGenerator[tuple[int, Piece], None]:
        """Every choice's pieces; when this is left, all of them have ended."""
        arrived: asyncio.Queue[tuple[int, Piece | BaseException]] = asyncio.Queue(_AHEAD)
        workers = [asyncio.create_task(self._follow(i, arrived)) for i in range(len(self.wishes))]
        left = len(workers)
        try:
            while left:
                number, piece = await arrived.get()
                if isinstance(piece, BaseException):
                    raise piece
                left -= piece.finish is not None
                yield number, piece
        finally:
            for worker in workers:
                worker.cancel()
            self.cancel()
            for worker in workers:
                with suppress(asyncio.CancelledError):
                    await worker

    async def _follow(self, number: int, arrived: asyncio.Queue[tuple[int, Piece | BaseException]]) -> None:
        try:
            while self.choices[number] is None and not self._put_in_later(number):
                await asyncio.sleep(_RETRY)
            choice = self.choices[number]
            assert choice is not None
            async for piece in choice.follow():
                await arrived.put((number, piece))
        except Exception as error:
            await arrived.put((number, error))

    def _put_in_later(self, number: int) -> bool:
        """In their order: a later choice does not take an earlier one's place."""
        return self.choices[number - 1] is not None and self._put_in(number)

    def cancel(self) -> None:
        for choice in self.choices:
            if choice is not None:
                choice.stream.cancel()

    @property
    def num_tokens(self) -> int:
        return sum(choice.num_tokens for choice in self.choices if choice is not None)

    @property
    def cached_tokens(self) -> int:
        return sum(choice.stream.cached_tokens for choice in self.choices if choice is not None)


async def timed(
    asked: Asked, seconds: float, begun: float, measures: Measures
) -> AsyncGenerator[tuple[int, Piece], None]:
    """The pieces of a request that began at `begun` (monotonic); Problem 408 where it takes longer than `seconds`."""
    pieces, first = asked.pieces(), True
    try:
        async with asyncio.timeout(max(seconds - (time.monotonic() - begun), 0)):
            async for found in pieces:
                if first:
                    first = False
                    measures.first_token(time.monotonic() - begun)
                yield found
    except TimeoutError as error:
        raise out_of_time(seconds) from error
    finally:
        await pieces.aclose()


def usage_of(prompt_tokens: int, asked: Asked) -> dict[str, Any]:
    """What a request took: its prompts once each, however many choices they have; tokens without the stop."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": asked.num_tokens,
        "total_tokens": prompt_tokens + asked.num_tokens,
        "prompt_tokens_details": {"cached_tokens": asked.cached_tokens},
    }


def check_stream(request: ChatRequest | CompletionRequest) -> None:
    if request.stream_options is not None and not request.stream:
        raise Problem("`stream_options` needs `stream`: true", param="stream_options", code="invalid_value")
