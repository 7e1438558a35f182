"""What a server asks of a model: many generations at once, token by token.

The HTTP side (`api`) speaks texts and JSON; an engine speaks ids only. Between them stand these types.
`serve.loading.load_engine` makes an engine of a run or a model folder.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

Finish = Literal["stop", "length", "cancelled", "error"]


@dataclass(frozen=True, slots=True)
class Ask:
    """One generation: what goes in, and how tokens are chosen.

    `temperature` 0 is greedy. `seed` makes a sampled reply a function of the ask alone, whatever
    else the engine computes beside it. `top_logprobs` alternatives are told beside each token;
    `score_prompt` also tells the log-probability of every prompt token. `adapter` names one of
    the engine's adapters; "" is the model as it was loaded.
    """

    prompt: Sequence[int]
    max_new_tokens: int
    stop_ids: frozenset[int] = frozenset()
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    top_logprobs: int = 0
    score_prompt: bool = False
    adapter: str = ""


@dataclass(frozen=True, slots=True)
class Scored:
    """A token with its log-probability under the model (nats, temperature 1), and the likeliest alternatives.

    `logprob` is None for the first token of a prompt, which nothing predicts.
    """

    id: int
    logprob: float | None
    top: tuple[tuple[int, float], ...] = ()


class Stream(Protocol):
    """The tokens of one ask as they come; the stop token is not among them."""

    finish: Finish | None  # None while tokens may still come
    prompt: Sequence[Scored]  # with score_prompt, once the first token is there or the stream has ended
    cached_tokens: int  # how many prompt tokens were taken from the prefix cache

    def __aiter__(self) -> AsyncIterator[Scored]: ...

    def cancel(self) -> None:
        """Give the place free, from any thread; tokens that were made already may still come."""


class Engine(Protocol):
    """A model that serves many asks at once. Thread-safe; `submit` never blocks."""

    @property
    def context(self) -> int | None:
        """Most tokens of prompt and reply."""

    @property
    def adapters(self) -> Sequence[str]: ...

    def submit(self, ask: Ask) -> Stream:
        """Begin a generation; Full where too many wait already, ModelError where the ask cannot be met.

        That is an empty prompt, one longer than the context, or the name of no adapter. A reply that
        reaches `max_new_tokens` or the end of the context finishes with "length"; with `max_new_tokens`
        0 nothing is said, only scored.
        """

    def load(self) -> Load: ...

    def close(self) -> None:
        """End all asks and the engine's thread."""


class Full(Exception):
    """The engine's queue is full: try again later."""


@dataclass(frozen=True, slots=True)
class Load:
    """How busy an engine is, and what it has done since it began."""

    running: int
    waiting: int
    finished: int
    prompt_tokens: int
    cached_tokens: int
    new_tokens: int
    steps: int
