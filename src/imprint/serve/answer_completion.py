"""/v1/completions: texts or ids continued, with `echo` and `logprobs` for those who score through it."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

from imprint.serve.asking import Asked, Wish, ask_of, check_stream, stops_of, timed, usage_of
from imprint.serve.engine import Scored
from imprint.serve.hosted import Host, Hosted
from imprint.serve.logprobs import for_completion, places
from imprint.serve.measure import Measures
from imprint.serve.pieces import Piece, TokenText
from imprint.serve.problems import Problem
from imprint.serve.prompt import check_ids, room_for, text_prompt
from imprint.serve.schema import CompletionRequest

MOST_PROMPTS = 2048
_MAX_TOKENS = 16  # OpenAI's default


class CompletionAnswer:
    """A completion request under way; choices are numbered prompt by prompt. Problem where it is refused."""

    def __init__(self, host: Host, request: CompletionRequest, measures: Measures):
        self.host, self.request, self.measures = host, request, measures
        self.hosted: Hosted = host.find(request.model)
        self.id, self.created = f"cmpl-{secrets.token_hex(12)}", int(time.time())
        self.begun = time.monotonic()
        check_stream(request)
        self.prompts = self._prompts()
        asked = _MAX_TOKENS if request.max_tokens is None else request.max_tokens
        for ids in self.prompts:
            room_for(host.engine.context, len(ids), asked, asked, "prompt")
        self.limit = asked
        self.logprobs, self.top = request.logprobs is not None, request.logprobs or 0

    def _prompts(self) -> list[list[int]]:
        given = self.request.prompt
        several: list[Any] = [given] if isinstance(given, str) or _is_ids(given) else list(given)
        if not 0 < len(several) <= MOST_PROMPTS:
            raise Problem(f"`prompt`: from 1 to {MOST_PROMPTS} prompts a request", param="prompt")
        self.texts = [one for one in several if isinstance(one, str)]
        made = []
        for number, one in enumerate(several):
            place = "prompt" if len(several) == 1 else f"prompt[{number}]"
            is_text = isinstance(one, str)
            ids = text_prompt(self.hosted, one, self.request.add_special_tokens) if is_text else one
            made.append(check_ids(self.hosted, ids, place))
        return made

    def start(self) -> None:
        """Put the choices into the engine; Problem 429 where it is full."""
        hosted, request = self.hosted, self.request
        stop_ids = frozenset(hosted.rendering.stop_ids) if self.logprobs else frozenset()
        self.of = [i for i in range(len(self.prompts)) for _ in range(request.n or 1)]  # choice → prompt
        self.asked = Asked(
            self.host,
            [
                Wish(
                    ask_of(
                        request,
                        hosted,
                        self.prompts[prompt],
                        self.limit,
                        choice % (request.n or 1),
                        top_logprobs=self.top,
                        score_prompt=bool(request.echo and self.logprobs),
                        stops_here=self.logprobs,  # the stop token is told with the others
                    ),
                    TokenText(hosted.rendering.encoder, self.prompts[prompt]),
                    stops_of(request),
                    stop_ids,
                )
                for choice, prompt in enumerate(self.of)
            ],
        )
        self.offsets = [0] * len(self.of)  # where each choice's text begins: behind its prompt's

    async def whole(self) -> dict[str, Any]:
        texts = [""] * len(self.of)
        tokens: list[list[tuple[Scored, int]]] = [[] for _ in self.of]
        finishes = ["length"] * len(self.of)
        begun: set[int] = set()
        async for choice, piece in self._pieces():
            if choice not in begun:
                begun.add(choice)
                texts[choice], tokens[choice] = self._echo(choice)
            texts[choice] += piece.text
            tokens[choice] += self._scored(choice, piece)
            finishes[choice] = piece.finish or ""
        choices = [
            {
                "index": choice,
                "text": texts[choice],
                "logprobs": self._logprobs(tokens[choice]),
                "finish_reason": finishes[choice],
            }
            for choice in range(len(self.of))
        ]
        return {**self._head(), "choices": choices, "usage": self._usage()}

    async def chunks(self) -> AsyncIterator[dict[str, Any]]:
        options = self.request.stream_options
        with_usage = bool(options and options.include_usage)
        begun: set[int] = set()
        pieces = self._pieces()
        try:
            async for choice, piece in pieces:
                text, tokens = piece.text, self._scored(choice, piece) if choice in begun else []
                if choice not in begun:
                    begun.add(choice)
                    echoed, told = self._echo(choice)
                    text, tokens = echoed + text, [*told, *self._scored(choice, piece)]
                one = {
                    "index": choice,
                    "text": text,
                    "logprobs": self._logprobs(tokens),
                    "finish_reason": piece.finish,
                }
                made = {**self._head(), "choices": [one]}
                yield {**made, "usage": None} if with_usage else made
        finally:
            await pieces.aclose()
        if with_usage:
            yield {**self._head(), "choices": [], "usage": self._usage()}

    def _pieces(self) -> AsyncGenerator[tuple[int, Piece], None]:
        return timed(self.asked, self.host.limits.seconds, self.begun, self.measures)

    def _echo(self, choice: int) -> tuple[str, list[tuple[Scored, int]]]:
        """What stands before a choice's own text: with `echo`, its prompt, and that one's tokens."""
        if not self.request.echo:
            return "", []
        encoder, prompt = self.hosted.rendering.encoder, self.of[choice]
        decoded = encoder.decode(self.prompts[prompt])
        text = self.texts[prompt] if self.texts else decoded
        self.offsets[choice] = len(text)
        if not self.logprobs:
            return text, []
        taken = self.asked.choices[choice]
        assert taken is not None
        added = len(decoded) - len(text)  # what the tokenizer put before it
        return text, [(one, max(at - added, 0)) for one, at in places(encoder, taken.stream.prompt)]

    def _scored(self, choice: int, piece: Piece) -> list[tuple[Scored, int]]:
        return [(token.scored, self.offsets[choice] + token.start) for token in piece.tokens]

    def _logprobs(self, tokens: list[tuple[Scored, int]]) -> dict[str, Any] | None:
        if not self.logprobs:
            return None
        return for_completion(tokens, self.host.names(self.hosted), self.top)

    def _head(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": "text_completion",
            "created": self.created,
            "model": self.hosted.name,
        }

    def _usage(self) -> dict[str, Any]:
        return usage_of(sum(map(len, self.prompts)), self.asked)


def _is_ids(prompt: list[Any] | str) -> bool:
    return isinstance(prompt, list) and bool(prompt) and isinstance(prompt[0], int)
