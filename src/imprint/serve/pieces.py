"""A reply's text as its tokens come: no half characters, nothing of a stop string, and which tokens made it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

from imprint.render.tokens import Encoder
from imprint.serve.engine import Scored, Stream
from imprint.serve.problems import ended

BEFORE = 8  # ids of a prompt behind which a continuation is decoded
_HALF = "\ufffd"


class TokenText:
    """The text of ids that come one by one; all pieces together are the decoding of all ids.

    Behind the ids `before`, it is the text that these ids add to theirs: decoders drop the space of
    a first word, and a continuation has none.
    """

    def __init__(self, encoder: Encoder, before: Sequence[int] = ()):
        self.encoder = encoder
        self.ids = [int(i) for i in before[-BEFORE:]]
        self.known, self.read = 0, len(self.ids)  # decoded from `known` on; text up to `read` is out
        # half a character at the prompt's end is told with its other half
        self.shown = encoder.decode(self.ids).rstrip(_HALF) if self.ids else ""

    def add(self, token: int) -> str:
        self.ids.append(token)
        text = self.encoder.decode(self.ids[self.known :])
        if text.endswith(_HALF):  # half of a character may still become a whole one
            return ""
        new = text[len(self.shown) :]
        self.known, self.read = self.read, len(self.ids)
        self.shown = self.encoder.decode(self.ids[self.known :])
        return new

    def end(self) -> str:
        """What is held back, once nothing can complete it."""
        text = self.encoder.decode(self.ids[self.known :])[len(self.shown) :]
        self.known = self.read = len(self.ids)
        self.shown = ""
        return text


class StopStrings:
    """Cuts a text that comes in pieces before the first of some texts; what may become one is held back."""

    def __init__(self, stops: Sequence[str]):
        self.stops = tuple(stops)
        self.longest = max(map(len, self.stops), default=0)
        self.held = ""

    def add(self, text: str) -> tuple[str, bool]:
        """(text that is sure now, whether a stop was met); however it is cut into pieces, the same."""
        if not self.stops:
            return text, False
        self.held += text
        found = [(at + len(stop), at) for stop in self.stops if (at := self.held.find(stop)) >= 0]
        if found:  # the one that is complete first; of several, the longest
            at = min(found)[1]
            out, self.held = self.held[:at], ""
            return out, True
        keep = held_back(self.held, self.stops)
        cut = len(self.held) - keep
        out, self.held = self.held[:cut], self.held[cut:]
        return out, False

    def end(self) -> str:
        out, self.held = self.held, ""
        return out


def held_back(text: str, wanted: Sequence[str]) -> int:
    """How many characters at the end of a text may be the beginning of one of `wanted`."""
    most = 0
    for one in wanted:
        for size in range(min(len(one) - 1, len(text)), most, -1):
            if text.endswith(one[:size]):
                most = size
                break
    return most


@dataclass(frozen=True, slots=True)
class Token:
    """A token of a reply and where its text begins in that of the reply."""

    scored: Scored
    start: int


@dataclass(frozen=True, slots=True)
class Piece:
    """What has come of a reply: text that is sure, the tokens that made it; the last one says how it ended."""

    text: str = ""
    tokens: tuple[Token, ...] = ()
    finish: str | None = None


@dataclass
class Pieces:
    """The pieces of one generation. `num_tokens` counts what the model has written so far."""

    stream: Stream
    text: TokenText
    stops: StopStrings
    stop_ids: frozenset[int] = frozenset()  # where the engine is not to stop, but this is
    num_tokens: int = 0
    _waiting: list[Token] = field(default_factory=list)
    _made: int = 0  # characters decoded
    _sent: int = 0  # characters given out

    async def follow(self) -> AsyncIterator[Piece]:
        """Problem where the engine gives up. However this ends, the place is free afterwards."""
        try:
            async for scored in self.stream:
                self.num_tokens += 1
                self._waiting.append(Token(scored, self._made))
                if scored.id in self.stop_ids:
                    yield self._last("stop")
                    return
                text = self.text.add(scored.id)
                self._made += len(text)
                sure, met = self.stops.add(text)
                if met:
                    self._sent += len(sure)
                    yield Piece(sure, self._due(False), "stop")
                    return
                if sure:
                    self._sent += len(sure)
                    yield Piece(sure, self._due(False))
            finish = self.stream.finish
            if finish not in ("stop", "length"):
                raise ended(str(finish))
            yield self._last(finish)
        finally:
            self.stream.cancel()

    def _last(self, finish: str) -> Piece:
        """What was held back: it may still hold a stop, in half a character's place."""
        tail = self.text.end()
        self._made += len(tail)
        sure, met = self.stops.add(tail)
        sure += "" if met else self.stops.end()
        self._sent += len(sure)
        return Piece(sure, self._due(not met), "stop" if met else finish)

    def _due(self, everything: bool) -> tuple[Token, ...]:
        """The tokens whose text has begun to be out."""
        count = len(self._waiting)
        if not everything:
            count = next((i for i, token in enumerate(self._waiting) if token.start >= self._sent), count)
        due, self._waiting = tuple(self._waiting[:count]), self._waiting[count:]
        return due
