"""The tokens of one ask on their way from the engine's thread to whoever awaits them."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Sequence

from imprint.serve.engine import Finish, Scored


class TokenStream:
    """A Stream. One thread puts tokens in, one event loop takes them out; neither waits for a lock."""

    def __init__(self, on_cancel: Callable[[], None]):
        self.finish: Finish | None = None
        self.prompt: Sequence[Scored] = ()
        self.cached_tokens = 0
        self.cancelled = False
        self._on_cancel = on_cancel
        self._tokens: deque[Scored] = deque()
        self._waiter: tuple[asyncio.AbstractEventLoop, asyncio.Future[None]] | None = None

    def cancel(self) -> None:
        if self.finish is None and not self.cancelled:
            self.cancelled = True
            self._on_cancel()

    def put(self, token: Scored) -> None:
        """From the engine's thread; `wake` makes it known."""
        self._tokens.append(token)

    def __aiter__(self) -> AsyncIterator[Scored]:
        return self

    async def __anext__(self) -> Scored:
        while True:
            if self._tokens:
                return self._tokens.popleft()
            if self.finish is not None:  # set after the last token was put in
                if self._tokens:
                    continue
                raise StopAsyncIteration
            loop = asyncio.get_running_loop()
            future: asyncio.Future[None] = loop.create_future()
            self._waiter = (loop, future)
            if self._tokens or self.finish is not None:  # came between the look and the waiter
                self._waiter = None
                continue
            try:
                await future
            finally:
                self._waiter = None


def wake(streams: Iterable[TokenStream]) -> None:
    """Tell those who wait that there is something new: one call into each event loop, not one a stream."""
    by_loop: dict[asyncio.AbstractEventLoop, list[TokenStream]] = {}
    for stream in streams:
        if (waiter := stream._waiter) is not None:
            by_loop.setdefault(waiter[0], []).append(stream)
    for loop, waiting in by_loop.items():
        try:
            loop.call_soon_threadsafe(_resolve, waiting)
        except RuntimeError:  # the loop is closed: nobody will take these tokens
            for stream in waiting:
                stream.cancel()


def _resolve(streams: Sequence[TokenStream]) -> None:
    for stream in streams:
        if (waiter := stream._waiter) is not None and not waiter[1].done():
            waiter[1].set_result(None)
