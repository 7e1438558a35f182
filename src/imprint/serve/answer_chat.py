"""/v1/chat/completions: the whole reply, or its chunks."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

from imprint.serve.asking import Asked, Wish, ask_of, check_stream, stops_of, timed, usage_of
from imprint.serve.calls import Called
from imprint.serve.hosted import Host, Hosted
from imprint.serve.logprobs import for_chat
from imprint.serve.measure import Measures
from imprint.serve.pieces import Piece, TokenText
from imprint.serve.problems import Problem
from imprint.serve.prompt import ChatPrompt, chat_prompt, check_ids, room_for
from imprint.serve.reader import Reader, ReplyForm
from imprint.serve.schema import ChatRequest


class ChatAnswer:
    """A chat request under way. Made in a thread: rendering takes time. Problem where it is refused."""

    def __init__(self, host: Host, request: ChatRequest, sent: dict[str, Any], measures: Measures):
        self.host, self.request, self.measures = host, request, measures
        self.hosted: Hosted = host.find(request.model)
        self.id, self.created = f"chatcmpl-{secrets.token_hex(12)}", int(time.time())
        self.begun = time.monotonic()
        self.top = _top_logprobs(request)
        check_stream(request)
        tools = [] if request.tool_choice == "none" else sent.get("tools") or []
        self.prompt: ChatPrompt = chat_prompt(
            self.hosted,
            request.messages,
            sent["messages"],
            tools,
            request.chat_template_kwargs,
            add_generation_prompt=request.add_generation_prompt,
            continue_final_message=request.continue_final_message,
        )
        check_ids(self.hosted, self.prompt.ids, "messages")
        self.form: ReplyForm = host.form(self.hosted, self.prompt.template)
        if tools and self.form.calls is None:
            raise Problem(
                "the chat template writes tool calls in a way that this server cannot read back",
                param="tools",
            )
        self.tools = tools
        self.limit = room_for(
            host.engine.context, len(self.prompt.ids), _max_tokens(request), host.limits.reply, "messages"
        )

    def start(self) -> None:
        """Put the choices into the engine; Problem 429 where it is full."""
        encoder, ids = self.hosted.rendering.encoder, self.prompt.ids
        before = ids if self.prompt.continued else ()
        self.asked = Asked(
            self.host,
            [
                Wish(
                    ask_of(self.request, self.hosted, ids, self.limit, choice, top_logprobs=max(self.top, 0)),
                    TokenText(encoder, before),
                    stops_of(self.request),
                )
                for choice in range(self.request.n or 1)
            ],
        )
        self.readers = [
            Reader(self.form, self.tools, self.prompt.within, self.prompt.continued)
            for _ in self.asked.wishes
        ]

    async def whole(self) -> dict[str, Any]:
        says: list[dict[str, list[str]]] = [{"reasoning": [], "content": []} for _ in self.readers]
        finishes = [""] * len(self.readers)
        logprobs: list[list[dict[str, Any]]] = [[] for _ in self.readers]
        async for choice, piece in self._pieces():
            logprobs[choice] += self._logprobs(piece)
            for kind, text in self._read(choice, piece):
                says[choice][kind].append(text)
            finishes[choice] = piece.finish or ""
        choices = [
            {
                "index": choice,
                "message": self._message(reader, "".join(said["content"]), "".join(said["reasoning"])),
                "logprobs": {"content": logprobs[choice], "refusal": None} if self.top >= 0 else None,
                "finish_reason": "tool_calls" if reader.calls else finishes[choice],
            }
            for choice, (reader, said) in enumerate(zip(self.readers, says, strict=True))
        ]
        return {**self._head("chat.completion"), "choices": choices, "usage": self._usage()}

    async def chunks(self) -> AsyncIterator[dict[str, Any]]:
        options = self.request.stream_options
        with_usage = bool(options and options.include_usage)
        begun: set[int] = set()
        waiting: list[list[dict[str, Any]]] = [[] for _ in self.readers]

        def chunk(choice: int, delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
            one: dict[str, Any] = {"index": choice, "delta": delta, "logprobs": None, "finish_reason": finish}
            if waiting[choice]:
                one["logprobs"] = {"content": waiting[choice], "refusal": None}
                waiting[choice] = []
            made = {**self._head("chat.completion.chunk"), "choices": [one]}
            return {**made, "usage": None} if with_usage else made

        pieces = self._pieces()
        try:
            async for choice, piece in pieces:
                if choice not in begun:
                    begun.add(choice)
                    yield chunk(choice, {"role": "assistant", "content": ""})
                waiting[choice] += self._logprobs(piece)
                for kind, text in self._read(choice, piece):
                    yield chunk(choice, {"content" if kind == "content" else "reasoning_content": text})
                if piece.finish:
                    calls = self.readers[choice].calls
                    for index, call in enumerate(calls):
                        yield chunk(choice, {"tool_calls": [{"index": index, **_as_call(call)}]})
                    yield chunk(choice, {}, "tool_calls" if calls else piece.finish)
        finally:
            await pieces.aclose()
        if with_usage:
            yield {**self._head("chat.completion.chunk"), "choices": [], "usage": self._usage()}

    def _pieces(self) -> AsyncGenerator[tuple[int, Piece], None]:
        return timed(self.asked, self.host.limits.seconds, self.begun, self.measures)

    def _read(self, choice: int, piece: Piece) -> list[tuple[str, str]]:
        reader = self.readers[choice]
        found: list[tuple[str, str]] = [*reader.add(piece.text)]
        return [*found, *reader.end()] if piece.finish else found

    def _logprobs(self, piece: Piece) -> list[dict[str, Any]]:
        if self.top < 0:
            return []
        return for_chat(piece.tokens, self.host.names(self.hosted), self.top)

    def _message(self, reader: Reader, content: str, reasoning: str) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None}
        if reader.calls:
            message["content"] = content or None
            message["tool_calls"] = [_as_call(call) for call in reader.calls]
        if reasoning:
            message["reasoning_content"] = reasoning
        return message

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.hosted.name}

    def _usage(self) -> dict[str, Any]:
        return usage_of(len(self.prompt.ids), self.asked)


def _as_call(call: Called) -> dict[str, Any]:
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


def _top_logprobs(request: ChatRequest) -> int:
    """How many alternatives beside each token; -1 for no log-probabilities at all."""
    if request.top_logprobs is not None and not request.logprobs:
        raise Problem("`top_logprobs` needs `logprobs`: true", param="top_logprobs", code="invalid_value")
    return (request.top_logprobs or 0) if request.logprobs else -1


def _max_tokens(request: ChatRequest) -> int | None:
    """Its two names may not disagree."""
    one, two = request.max_completion_tokens, request.max_tokens
    if one is not None and two is not None and one != two:
        raise Problem(
            f"`max_completion_tokens` says {one} and `max_tokens` says {two}: give one of them",
            param="max_tokens",
            code="invalid_value",
        )
    return two if one is None else one
