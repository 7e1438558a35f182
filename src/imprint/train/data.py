"""What is trained on, and the rows that it makes at each step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from imprint.pack.cost import Cost
from imprint.pack.replay import weighed
from imprint.pack.row import Row
from imprint.pack.sides import Sides, share_out_by_side
from imprint.pack.tree import multiple_for
from imprint.render.turns import Turn


@dataclass(frozen=True)
class Data:
    """What is trained on: the turns of each conversation, and this rank's validation rows.

    Rows are filled up to a `multiple` of tokens, and shared out among ranks by their `cost` (see `share_out`).
    `replay` are the pieces that may be drawn, `held_out` this rank's rows of those that may not, and
    `replay_weight` the share of a step's weight that they get; None: what they have by themselves.
    """

    train: Sequence[Sequence[Turn]]
    validation: Sequence[Row]
    row_tokens: int
    layout: str = "shared"
    replay: Sequence[Sequence[Turn]] = ()
    held_out: Sequence[Row] = ()
    replay_weight: float | None = None
    multiple: int = 1
    cost: Cost | None = None
    sides: Sides | None = None  # which turns must not lie in one row

    def turns(self, conversations: Sequence[int], drawn: Sequence[int]) -> tuple[list[Turn], float]:
        """The turns of these conversations and these pieces of replay, and replay's share of their weight."""
        own = [turn for index in conversations for turn in self.train[index]]
        replayed, weight = weighed(
            own, [turn for index in drawn for turn in self.replay[index]], self.replay_weight
        )
        return own + replayed, weight

    def rows(
        self,
        conversations: Sequence[int],
        drawn: Sequence[int],
        rank: int,
        num_ranks: int,
        row_tokens: int | None = None,
    ) -> StepRows:
        """This rank's rows of a step with these conversations and these pieces of replay.

        `row_tokens`: the most tokens of a row, where that is no longer what the run began with.
        """
        turns, weight = self.turns(conversations, drawn)
        budget = row_tokens or self.row_tokens
        options = {"multiple": min(self.multiple, multiple_for(budget)), "cost": self.cost}
        rows = share_out_by_side(turns, budget, num_ranks, self.layout, self.sides, **options)[rank]
        return StepRows(rows, sum(len(turn) - 1 for turn in turns), weight)


class StepRows(NamedTuple):
    """A rank's rows of a step; of all ranks: tokens of the turns one by one, replay's share of the weight."""

    rows: list[Row]
    tokens: int
    replay_weight: float
