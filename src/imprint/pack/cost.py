"""What a row costs: the work of one forward pass, from the model's sizes."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from imprint.pack.row import Row


@dataclass(frozen=True, slots=True)
class Cost:
    """Multiply-adds of a forward pass by what a row holds; the backward pass multiplies all three alike.

    The defaults are those of a model of 12 layers, 768 wide, with 50,257 tokens. Windows and chunks are
    not counted: they only make the pairs cheaper.
    """

    token: float = 84_934_656.0  # through the layers
    pair: float = 18_432.0  # a query and a key that it sees
    prediction: float = 38_597_376.0  # through the head

    @classmethod
    def of_sizes(
        cls, width: int, layers: int, inner: int, vocabulary: int, attention: int | None = None
    ) -> Cost:
        """The cost in a transformer: `inner` is the width of a gated MLP (times the experts that a token goes
        through), `attention` that of all query heads together, where it is not `width`."""
        heads = attention or width
        return cls(
            token=float(layers * (4 * width * heads + 3 * width * inner)),
            pair=float(layers * 2 * heads),
            prediction=float(width * vocabulary),
        )

    def of(self, tokens: int, pairs: int, predictions: int) -> float:
        return self.token * tokens + self.pair * pairs + self.prediction * predictions

    def of_row(self, row: Row) -> float:
        return self.of(row.num_tokens, num_pairs(row), row.num_predictions)


def num_pairs(row: Row) -> int:
    """How many (query, key) pairs are seen: key j is seen by the queries from j up to end[j]."""
    return int((row.end - torch.arange(row.num_tokens, device=row.end.device)).sum())
