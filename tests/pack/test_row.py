"""Row: its checks, and positions against an obvious quadratic reference."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from imprint.pack.row import Row, check_row, empty_row, positions
from tiny import random_end, random_row

FEW = settings(max_examples=80, deadline=None, database=None)


def a_row(**changed: object) -> Row:
    parts: dict[str, object] = dict(
        tokens=torch.tensor([5, 6, 7, 8]),
        end=torch.tensor([4, 3, 3, 4]),
        source=torch.tensor([1, 2]),
        target=torch.tensor([7, 9]),
        weight=torch.tensor([1.0, 0.5]),
    )
    return Row(**{**parts, **changed})  # type: ignore[arg-type]


def seen(end: Tensor) -> Tensor:
    """bool [T, T]: does i see j? The rule as the design states it, one pair after the other."""
    size = len(end)
    return torch.tensor([[j <= i < int(end[j]) for j in range(size)] for i in range(size)])


def slow_positions(end: Tensor) -> Tensor:
    return seen(end).sum(dim=1) - 1


def test_the_example_of_the_docstring() -> None:
    end = torch.tensor([5, 5, 4, 4, 5, 7, 7])
    assert positions(end).tolist() == [0, 1, 2, 3, 2, 0, 1] == slow_positions(end).tolist()


@FEW
@given(size=st.integers(1, 40), seed=st.integers(0, 2**32 - 1), stay=st.floats(0, 1))
def test_positions_count_what_is_seen(size: int, seed: int, stay: float) -> None:
    end = random_end(size, np.random.default_rng(seed), stay)
    assert torch.equal(positions(end), slow_positions(end))


@FEW
@given(size=st.integers(1, 40), seed=st.integers(0, 2**32 - 1))
def test_random_trees_are_well_formed_and_seen_sets_are_paths(size: int, seed: int) -> None:
    row = random_row(size, np.random.default_rng(seed))
    check_row(row)
    see = seen(row.end)
    for i in range(size):
        path = torch.where(see[i])[0]
        for depth, j in enumerate(path.tolist()):  # what i sees, each of them sees too, up to itself
            assert torch.equal(torch.where(see[j])[0], path[: depth + 1])


@FEW
@given(size=st.integers(2, 30), seed=st.integers(0, 2**32 - 1))
def test_a_crossing_end_is_refused(size: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    row = random_row(size, rng)
    inside = [(j, i) for j in range(size) for i in range(j + 1, int(row.end[j])) if int(row.end[j]) < size]
    if inside:
        j, i = inside[int(rng.integers(len(inside)))]
        row.end[i] = int(row.end[j]) + 1  # i outlives a token that it sees
        with pytest.raises(ValueError, match="nested"):
            check_row(row)


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        (dict(end=torch.tensor([4, 3, 3, 5])), "within the row"),
        (dict(end=torch.tensor([4, 1, 3, 4])), "lies after j"),
        (dict(end=torch.tensor([2, 3, 3, 4])), "not nested: token 1"),
        (dict(source=torch.tensor([1, 4])), "source lies outside"),
        (dict(source=torch.tensor([-1, 2])), "source lies outside"),
        (dict(weight=torch.tensor([1.0, float("nan")])), "finite"),
        (dict(weight=torch.tensor([1.0, float("inf")])), "finite"),
        (dict(weight=torch.tensor([1.0, -0.1])), "not negative"),
    ],
)
def test_check_row_refuses(changed: dict[str, Tensor], why: str) -> None:
    check_row(a_row())
    with pytest.raises(ValueError, match=why):
        check_row(a_row(**changed))


def test_check_row_refuses_a_row_without_tokens() -> None:
    nothing = torch.empty(0, dtype=torch.int64)
    with pytest.raises(ValueError, match="at least one token"):
        check_row(Row(nothing, nothing, nothing, nothing, torch.empty(0)))


@pytest.mark.parametrize("name", ["tokens", "end", "source", "target", "weight"])
def test_lengths_must_agree(name: str) -> None:
    with pytest.raises(ValueError, match="T tokens and ends"):
        a_row(**{name: getattr(a_row(), name)[:-1]})


def test_sizes_and_moving() -> None:
    row = a_row().to(torch.device("cpu"))
    assert (row.num_tokens, row.num_predictions) == (4, 2)
    with pytest.raises(AttributeError):
        row.end = row.tokens  # type: ignore[misc]


def test_an_empty_row_is_well_formed_and_trains_nothing() -> None:
    row = empty_row()
    check_row(row)
    assert (row.num_tokens, row.num_predictions, float(row.weight.sum())) == (1, 0, 0.0)
    assert positions(row.end).tolist() == [0]
