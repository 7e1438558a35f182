"""Cost: pairs counted from `end`, against asking each; and the same for a piece that is not laid yet."""

import numpy as np
import pytest
import torch

from imprint.pack.cost import Cost, num_pairs
from imprint.pack.ranks import piece_cost
from imprint.pack.row import Row, positions
from imprint.pack.tree import Tree, filled_up
from tiny import random_row, random_turns


@pytest.mark.parametrize("seed", range(5))
def test_pairs_are_those_that_are_seen(seed: int) -> None:
    row = random_row(40, np.random.default_rng(seed))
    index = torch.arange(row.num_tokens)
    seen = (index[None, :] <= index[:, None]) & (index[:, None] < row.end[None, :])
    assert num_pairs(row) == int(seen.sum()) == int((positions(row.end) + 1).sum())


def test_a_cost_by_hand() -> None:
    row = Row(
        torch.tensor([5, 6, 7, 8, 9]),
        torch.tensor([4, 3, 3, 4, 5]),  # the last is padding
        torch.tensor([1, 3]),
        torch.tensor([7, 9]),
        torch.ones(2),
    )
    assert num_pairs(row) == 1 + 2 + 3 + 2 + 1
    assert Cost(100.0, 10.0, 1.0).of_row(row) == 5 * 100 + 9 * 10 + 2


def test_the_sizes_of_a_model() -> None:
    cost = Cost.of_sizes(width=768, layers=12, inner=2048, vocabulary=50257)
    assert cost == Cost()
    assert Cost.of_sizes(8, 2, 16, 100, attention=4) == Cost(2 * (4 * 8 * 4 + 3 * 8 * 16), 2 * 2 * 4, 800)


def test_multiply_adds_of_a_real_model() -> None:
    """Per token as many as the layers' matrices have weights, per prediction as the head."""
    from imprint.build import cost_of
    from tiny import row_model, tiny_model

    model = tiny_model("llama", num_key_value_heads=4)
    cost = cost_of(row_model(model))
    matrices = [p.numel() for n, p in model.model.layers.named_parameters() if p.dim() == 2]
    assert cost.token == sum(matrices)
    assert cost.prediction == model.lm_head.weight.numel()
    assert cost.pair == 2 * 2 * 32  # layers, scores and values, width


@pytest.mark.parametrize("kind", ["gpt2", "opt", "mixtral", "qwen3_moe", "deepseek_v3", "mamba", "bloom"])
def test_every_model_has_a_cost(kind: str) -> None:
    from imprint.build import cost_of
    from tiny import row_model, tiny_model

    cost = cost_of(row_model(tiny_model(kind)))
    assert min(cost.token, cost.pair, cost.prediction) > 0


@pytest.mark.parametrize("layout", ["shared", "packed", "separate"])
@pytest.mark.parametrize("multiple", [1, 64])
def test_a_piece_costs_what_its_row_does(layout: str, multiple: int) -> None:
    cost, tree = Cost(1e6, 1e3, 1.0), Tree.of(random_turns(3, conversations=12), layout == "shared")
    for piece in tree.pieces(90, layout):
        length = filled_up(piece.size, 90, multiple)
        assert piece_cost(tree, piece, length, cost) == cost.of_row(tree.lay(piece, length))
