"""Replay in the steps: which places of a step are replay's, which pieces stand there, and how much they weigh."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Literal

import numpy as np

from imprint.pack.shuffle import shuffled
from imprint.render.turns import Turn

ShareOf = Literal["conversations", "weight"]


@dataclass(frozen=True)
class Replay:
    """What is mixed into the steps of a plan: pure functions of its fields, without memory.

    All steps laid end to end are one row of places. Of the first n of them, floor(n·share) are
    replay's, so a step of b places holds floor((k+1)·b·share) - floor(k·b·share) pieces, and what is
    left of a fraction is carried to the next step.
    """

    num_pieces: int
    share: Fraction  # of the places
    seed: int
    fingerprint: str

    def before(self, place: int) -> int:
        """How many of the first `place` places are replay's."""
        return int(place * self.share)

    def places(self, num_conversations: int) -> int:
        """How many places there are up to the one with the n-th conversation that is not replay's."""
        if not num_conversations:
            return 0
        return int((num_conversations - 1) / (1 - self.share)) + 1

    def piece(self, number: int) -> int:
        """The piece that is drawn where `number` were drawn before: all of them, in an order, and round again."""
        again, at = divmod(number, self.num_pieces)
        return int(shuffled(self.num_pieces, f"replay/{self.fingerprint}/{self.seed}/{again}")[at])


def share_of_places(share: float, share_of: ShareOf, batch_size: int) -> Fraction:
    """Which share of the places is replay's; where a share of the weight is asked for, one in each step at least."""
    exact = Fraction(str(share))  # 0.1 is a tenth, and not the float next to it
    return max(exact, Fraction(1, batch_size)) if share_of == "weight" else exact


def weighed(
    own: Sequence[Turn], replayed: Sequence[Turn], share: float | None = None
) -> tuple[list[Turn], float]:
    """The turns of replay in a step, and their share of the step's weight.

    With `share` their weights are scaled so that this is their share, where the step holds both kinds.
    """
    mine, theirs = total_weight(own), total_weight(replayed)
    turns = list(replayed)
    if share is not None and mine and theirs:
        factor = share / (1 - share) * mine / theirs
        turns = [replace(turn, weight=(turn.weight * factor).astype(np.float32)) for turn in turns]
        theirs = total_weight(turns)
    return turns, theirs / (mine + theirs) if theirs else 0.0


def total_weight(turns: Sequence[Turn]) -> float:
    return float(sum(turn.weight.sum(dtype=np.float64) for turn in turns))
