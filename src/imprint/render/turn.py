"""A turn: one reply to learn, in its context; or why there is none."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from imprint.data.conversation import Place
from imprint.errors import DataError
from imprint.render.tokens import Ids

TooLong = Literal["leave_out", "truncate", "error"]


@dataclass(frozen=True, slots=True, eq=False)
class Turn:
    """One reply to learn, in its context.

    prompt      int32   [m]  the ids that a server would feed
    completion  int32   [n]  the ids that the model must then produce, the stop token last
    weight      float32 [n]  share of each in the loss
    """

    prompt: Ids
    completion: Ids
    weight: NDArray[np.float32]
    source: Place
    conversation: int  # index in the list that was rendered
    turn: int  # index of the reply's message
    case: str = "prefix"

    def __post_init__(self) -> None:
        assert len(self.prompt) > 0, "the first token to learn is predicted from a prompt"
        assert len(self.completion) == len(self.weight) > 0, "a turn has one weight per token to learn"

    @property
    def ids(self) -> Ids:
        return np.concatenate((self.prompt, self.completion))

    def __len__(self) -> int:
        return len(self.prompt) + len(self.completion)


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A reply that is not trained: why (a short, stable reason) and where (with what was seen)."""

    reason: str
    source: Place
    turn: int
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Noticed:
    """Something that the user should know of a conversation whose replies are trained all the same."""

    warning: str
    source: Place


def fit(turn: Turn | LeftOut, max_length: int, too_long: TooLong) -> Turn | LeftOut:
    """The turn as it is, cut, or left out, so that it has at most `max_length` tokens."""
    if isinstance(turn, LeftOut) or len(turn) <= max_length:
        return turn
    size = f"{len(turn):,} tokens, of which {len(turn.prompt):,} are its prompt"
    if too_long == "error":
        raise DataError(
            "a turn is longer than max_length",
            where=f"{turn.source}, message {turn.turn}",
            found=size,
            expected=f"at most {max_length:,} tokens",
            fix="raise max_length, shorten the row, or too_long=leave_out (too_long=truncate cuts replies)",
        )
    room = max_length - len(turn.prompt)
    if room < 1:
        return LeftOut("its prompt alone fills max_length", turn.source, turn.turn, size)
    if too_long == "leave_out":
        return LeftOut("it is longer than max_length", turn.source, turn.turn, size)
    return replace(turn, completion=turn.completion[:room], weight=turn.weight[:room], case="truncated")
