"""Answers that end when their reader does: whole ones, and streams of server-sent events."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from imprint.serve.problems import Problem, ended

log = logging.getLogger(__name__)
T = TypeVar("T")

GONE = 499  # what nginx calls it: the client closed the connection
DONE = "[DONE]"


def as_json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()


def json_response(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(as_json(value), status, dict(headers or {}), "application/json")


def problem_response(problem: Problem) -> Response:
    # ASCII: a message may quote what is no proper text
    body = json.dumps(problem.body).encode()
    return Response(body, problem.status, problem.headers, "application/json")


async def until_gone(receive: Callable[[], Awaitable[Message]]) -> None:
    """Returns once the client has closed the connection; the body was read before."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def while_there(request: Request, work: Awaitable[T]) -> T | None:
    """The result of `work`; None where the client goes first, and then the work has ended."""
    task = asyncio.ensure_future(work)
    return task.result() if await _raced(task, request.receive) else None


async def _raced(task: asyncio.Future[Any], receive: Callable[[], Awaitable[Message]]) -> bool:
    """Whether the task ended before its client went; afterwards, it has ended in either case."""
    gone = asyncio.ensure_future(until_gone(receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        return task.done()
    finally:
        gone.cancel()
        if not task.done():
            task.cancel()
            with suppress(asyncio.CancelledError, Problem):
                await task


class EventStream(Response):
    """Sends `data: …` for each value of `events`, then [DONE].

    A Problem before the first value is an answer with its status; later, it is the last event.
    """

    media_type = "text/event-stream"

    def __init__(self, events: AsyncIterator[Any], headers: Mapping[str, str] | None = None):
        super().__init__(
            headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no", **(headers or {})},
            media_type=self.media_type,
        )
        self.events = events
        del self.headers["content-length"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        task = asyncio.ensure_future(self._pump(scope, receive, send))
        if await _raced(task, receive):
            task.result()

    async def _pump(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False
        try:
            async for value in self.events:
                if not started:
                    started = True
                    start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
                    await send(start)
                await _send_event(send, as_json(value))
            await _send_event(send, DONE.encode(), more=False)
        except Exception as error:
            problem = error if isinstance(error, Problem) else ended("error")
            if problem is not error:
                log.exception("a stream broke")
            if not started:
                await problem_response(problem)(scope, receive, send)
            else:
                await _send_event(send, json.dumps(problem.body).encode(), more=False)
        finally:
            close = getattr(self.events, "aclose", None)
            if close is not None:
                await close()


async def _send_event(send: Send, data: bytes, more: bool = True) -> None:
    await send({"type": "http.response.body", "body": b"data: " + data + b"\n\n", "more_body": more})
