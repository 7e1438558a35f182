"""Log-probabilities as OpenAI's two kinds of replies write them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from imprint.render.tokens import Encoder
from imprint.serve.engine import Scored
from imprint.serve.pieces import Token, TokenText
from imprint.serve.token_text import TokenNames

_LEAST = -9999.0  # JSON has no -inf


def _number(value: float | None) -> float:
    return max(value if value is not None else _LEAST, _LEAST)


def for_chat(tokens: Iterable[Token], names: TokenNames, top: int) -> list[dict[str, Any]]:
    def named(token: int, logprob: float | None) -> dict[str, Any]:
        return {
            "token": names.text_of(token),
            "logprob": _number(logprob),
            "bytes": list(names.bytes_of(token)),
        }

    return [
        {
            **named(token.scored.id, token.scored.logprob),
            "top_logprobs": [named(*one) for one in token.scored.top[:top]],
        }
        for token in tokens
    ]


def for_completion(tokens: Iterable[tuple[Scored, int]], names: TokenNames, top: int) -> dict[str, list[Any]]:
    """Of tokens, each with the place where its text begins.

    The alternatives hold the token itself, too; of two with one text, the likelier is told.
    """
    out: dict[str, list[Any]] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
    for scored, start in tokens:
        out["tokens"].append(names.text_of(scored.id))
        out["token_logprobs"].append(None if scored.logprob is None else _number(scored.logprob))
        out["text_offset"].append(start)
        likeliest: dict[str, float] | None = None
        if scored.logprob is not None:
            likeliest = {}
            for token, logprob in (*scored.top[:top], (scored.id, scored.logprob)):
                likeliest.setdefault(names.text_of(token), _number(logprob))
        out["top_logprobs"].append(likeliest)
    return out


def places(encoder: Encoder, prompt: Sequence[Scored]) -> list[tuple[Scored, int]]:
    """Each token of a prompt with the place where its text begins."""
    text, made, out = TokenText(encoder), 0, []
    for scored in prompt:
        out.append((scored, made))
        made += len(text.add(scored.id))
    return out
