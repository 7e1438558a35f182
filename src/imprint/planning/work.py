"""What the data asks for, by the rows of some steps, made as training makes them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from imprint.auto import ROW_TOKENS, detect_machine
from imprint.pack.cost import Cost
from imprint.pack.tree import multiple_for
from imprint.prepare import Prepared
from imprint.recipe import Recipe
from imprint.train.data import Data

LOOKED_AT = 12  # steps whose rows are made, spread over the run


@dataclass(frozen=True, slots=True)
class Work:
    """What the data asks for; costs are multiply-adds of forward passes."""

    steps: int
    conversations: int
    tokens: int  # of all turns one by one, over the run
    computed_tokens: float  # after sharing, over the run
    trained_tokens: int  # over the run
    cost: float  # over the run
    validation_cost: float
    largest_row: int
    most_predictions: int
    row_lengths: int  # how many different ones
    lengths: dict[str, int]
    left_out: int
    optimizer: str


def work_of(prepared: Prepared, cost: Cost) -> Work:
    """Rows of some steps, made as training makes them, and what follows for the run."""
    recipe, plan = prepared.recipe, prepared.plan
    budget = recipe.row_tokens if isinstance(recipe.row_tokens, int) else ROW_TOKENS[_device(recipe)]
    layout = recipe.layout if recipe.layout != "auto" else "shared"
    replay = prepared.replay.drawable if prepared.replay else ()
    data = Data(prepared.train, [], budget, layout, replay=replay, multiple=multiple_for(budget), cost=cost)
    number = min(LOOKED_AT, plan.total_steps)
    chosen = sorted({int(i) for i in np.linspace(0, plan.total_steps - 1, number)})
    multiple = data.multiple
    sizes: list[int] = []
    computed = total = tokens = trained = 0.0
    largest = most = 0
    for step in chosen:
        made = data.rows(plan.conversations(step), plan.drawn(step), 0, 1, budget)
        for row in made.rows:
            computed += row.num_tokens
            sizes.append(row.num_tokens)
            total += cost.of_row(row)
            trained += row.num_predictions
            largest, most = max(largest, row.num_tokens), max(most, row.num_predictions)
        tokens += made.tokens
    scale = plan.total_steps / len(chosen)
    lengths = np.sort(np.array([len(turn) for turns in _some(prepared) for turn in turns]))
    validated = prepared.validation.sums
    per_token = total / max(1.0, computed)
    return Work(
        steps=plan.total_steps,
        conversations=len(prepared.train),
        tokens=round(tokens * scale),
        computed_tokens=computed * scale,
        trained_tokens=round(trained * scale),
        cost=total * scale,
        validation_cost=per_token * (validated.tokens if len(prepared.validation) else 0),
        largest_row=max(largest, min(budget, prepared.longest)),
        most_predictions=most,
        row_lengths=different(sizes, round(len(sizes) * scale), -(-budget // multiple)),
        lengths={
            "median": int(lengths[len(lengths) // 2]),
            "95%": int(lengths[int(len(lengths) * 0.95)]),
            "longest": prepared.longest,
        },
        left_out=sum(tally.count for tally in prepared.ledger.turns.left.values()),
        optimizer=recipe.optimizer,
    )


def different(seen: Sequence[int], number: int, most: int) -> int:
    """How many lengths `number` rows have, `most` at the most, told from those of some of them.

    Chao's estimator (1984): the more of what was seen was seen once, the more there is that was not seen.
    """
    counts = Counter(seen)
    if number <= len(seen):
        return len(counts)
    once, twice = (sum(count == n for count in counts.values()) for n in (1, 2))
    unseen = once * (once - 1) / (2 * (twice + 1))
    return min(round(len(counts) + unseen), number, max(most, len(counts)))


def _some(prepared: Prepared, most: int = 2000) -> Iterator[Any]:
    every = max(1, len(prepared.train) // most)
    return (prepared.train[i] for i in range(0, len(prepared.train), every))


def _device(recipe: Recipe) -> str:
    return recipe.device if recipe.device != "auto" else detect_machine().best
