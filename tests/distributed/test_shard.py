"""Many ranks make the update of one: FSDP2 over unequal shares, empty rows included."""

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from cells import CELLS, CLIP, NUM_STEPS, build, run_cell
from torch import nn

from imprint.distributed.mesh import Mesh
from imprint.distributed.shard import _is_layers, copy_whole, shard, whole
from tiny import difference

Ranks = Callable[[int], list[dict[str, Any]]]
SIZES = [2, pytest.param(3, marks=pytest.mark.slow), pytest.param(4, marks=pytest.mark.slow)]


@cache
def alone(name: str) -> dict[str, Any]:
    return run_cell(CELLS[name], Mesh())


def moved(found: dict[str, Any]) -> dict[str, torch.Tensor]:
    return {name: after - found["before"][name] for name, after in found["after"].items()}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", CELLS)
def test_ranks_update_as_one_process_does(ranks: Ranks, name: str, size: int) -> None:
    one, many = alone(name), [rank[name] for rank in ranks(size)]
    # plain descent shows the gradients themselves; AdamW divides the smallest of them by themselves
    loose = 1e-4 if CELLS[name].sgd else 1e-3
    bar = loose if CELLS[name].dtype == torch.float32 else 1e-6
    # a third is no binary number: RMSNorm's float32 inside then rounds otherwise, and AdamW divides by small gradients
    update_bar = max(bar, 2e-5) if size == 3 and not CELLS[name].sgd else bar
    for found in many:
        assert found["loss"] == pytest.approx(one["loss"], rel=bar)
        assert found["norm"] == pytest.approx(one["norm"], rel=bar)
        assert found["computed"] == one["computed"]
        assert found["balance"] == pytest.approx(one["balance"], rel=bar)
        assert found["trained"] == one["trained"]
        assert all(torch.equal(found["before"][n], p) for n, p in one["before"].items())
        assert difference(moved(found), moved(one)) <= update_bar
        assert all(torch.equal(found["after"][n], p) for n, p in many[0]["after"].items())
        assert found["evaluated"] == pytest.approx(one["evaluated"], rel=bar)
        assert torch.equal(found["generated"], one["generated"])
    assert len(one["loss"]) == NUM_STEPS
    if not CELLS[name].sgd:
        assert min(one["norm"]) > CLIP, "clipping was not active"


def test_without_the_factor_for_the_average_the_test_would_fail(ranks: Ranks) -> None:
    one, (wrong, _) = alone("gpt2, plain descent"), (rank["forgetful"] for rank in ranks(2))
    assert wrong["norm"][0] == pytest.approx(one["norm"][0] / 2, rel=1e-6)
    off = difference({n: p - one["before"][n] for n, p in wrong["after"].items()}, moved(one))
    assert off >= 100 * 1e-6
    assert off > 0.3


def test_fractions_by_rank_would_miss_the_bar(ranks: Ranks) -> None:
    one, wrong = alone("experts, balanced"), ranks(2)[0]["selfish"]
    assert wrong["loss"][0] == pytest.approx(one["loss"][0], rel=1e-6)
    assert difference(moved(wrong), moved(one)) >= 100 * 1e-6


def test_whole_tensors_out_of_shards_and_back(ranks: Ranks) -> None:
    for rank in ranks(2):
        found = rank["round_trip"]
        assert found["equal"]
        assert found["sharded"] == found["parameters"] > 0


def test_what_is_not_finite_on_one_rank_stops_all(ranks: Ranks) -> None:
    for rank in ranks(2):
        assert "not finite at step 1" in rank["failure"]["said"]
        assert rank["failure"]["same"]


def test_one_process_is_left_as_it_is() -> None:
    model = build(CELLS["full, tied"])
    assert shard(model, Mesh()) is model
    parameter = next(model.parameters())
    assert whole(parameter) is parameter
    with torch.no_grad():
        copy_whole(parameter, torch.ones(parameter.shape, dtype=torch.float32))
    assert bool((parameter == 1).all())


def test_which_lists_are_layers() -> None:
    model = build(CELLS["full, untied"])
    lists = [m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) and _is_layers(m)]
    assert lists == [model.base.model.layers]
    assert not _is_layers(nn.ModuleList([nn.Linear(1, 1), nn.LayerNorm(1)]))
