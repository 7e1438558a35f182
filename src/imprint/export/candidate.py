"""A target that is asked what the golden file holds: a folder, a file, a server."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from imprint.export.golden import Example

TOKENIZER = "tokenizer"  # the place of a stop that holds one id only, the tokenizer's own eos


@dataclass(frozen=True, slots=True)
class Asked:
    """A prompt as the target itself makes it; None for what it does not show. `count`: how many ids it has."""

    ids: Sequence[int] | None
    text: str | None = None
    count: int | None = None


@dataclass(frozen=True, slots=True)
class Reply:
    """A greedy reply: its ids without the stop, and its text; None for what the target does not show."""

    ids: Sequence[int] | None
    text: str | None
    stopped: bool


class Candidate(Protocol):
    """A target that can be asked what the golden file holds. Each answer may be None: it cannot be shown."""

    name: str  # what is told to the user: a folder, a URL

    def stops(self) -> Mapping[str, Sequence[int]] | None:
        """The ids at which it ends a reply, by the place that says so (`config.json`).

        The place `tokenizer` holds the one eos id of the tokenizer; each other one the whole set.
        """

    def bos(self) -> int | None:
        """How many BOS its tokenizer puts before a text by itself (see `golden.Bos.added`)."""

    def prompt(self, example: Example) -> Asked | None:
        """The prompt of these messages and tools, rendered and tokenised by the target itself."""

    def logprobs(
        self, prompt: Sequence[int], continuation: Sequence[int], wanted: Sequence[Sequence[int]]
    ) -> Sequence[Mapping[int, float]] | None:
        """At each place of `continuation`, behind `prompt`: the log-probabilities of the wanted ids.

        Natural logarithms at temperature 1. Ids that it does not tell may be missing.
        """

    def greedy(self, example: Example) -> Reply | None:
        """Its own greedy reply to the example's messages, of at most `example.limit` tokens."""

    def token(self, number: int) -> str:
        """The text of a token, for a person."""
