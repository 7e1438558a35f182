"""Padding: rows of few lengths, whose tokens nobody sees, and which change no gradient."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from imprint.pack.ranks import share_out
from imprint.pack.row import Row, check_row, empty_row, positions
from imprint.pack.tree import FULL, MULTIPLE, Tree, build_rows, filled_up, multiple_for
from tiny import difference, make_turn, random_turns, row_gradients, row_model, tiny_model

LAYOUTS = ("shared", "packed")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("budget", [1, 200, 300, 10**6])
def test_rows_are_filled_up(budget: int, layout: str) -> None:
    turns = [make_turn(range(90), range(150)), *random_turns(1, conversations=24)]
    plain, padded = (build_rows(turns, budget, layout, multiple=multiple) for multiple in (1, 16))
    for a, b in zip(plain, padded, strict=True):
        check_row(b)
        size = a.num_tokens
        assert (a.num_padding, b.num_padding) == (0, b.num_tokens - size)
        assert b.num_tokens % 16 == 0 or b.num_tokens == budget or size < 256
        assert 0 <= b.num_padding < 16
        assert b.num_tokens <= max(budget, -(-size // 16) * 16)
        assert torch.equal(b.tokens[:size], a.tokens)
        assert torch.equal(b.end[:size], a.end)
        assert not b.tokens[size:].any()
        assert b.end[size:].tolist() == list(range(size + 1, b.num_tokens + 1))
        assert b.is_padding.tolist() == [False] * size + [True] * b.num_padding
        for name in ("source", "target", "weight"):
            assert torch.equal(getattr(b, name), getattr(a, name))
        assert positions(b.end).tolist() == positions(a.end).tolist() + [0] * b.num_padding
    assert any(row.num_padding for row in padded)


def test_rows_of_one_turn_are_not_filled_up() -> None:
    """A model that does not follow `end` would read on into the padding, and may run out of positions."""
    turns = random_turns(1)
    for rows in (
        build_rows(turns, 64, "separate", multiple=8),
        *share_out(turns, 64, 2, "separate", multiple=8),
    ):
        assert {row.num_padding for row in rows if row.num_predictions} == {0}


@given(st.integers(1, 5000), st.integers(1, 5000), st.integers(1, 100))
@settings(max_examples=200, deadline=None, database=None)
def test_lengths(size: int, budget: int, multiple: int) -> None:
    length = filled_up(size, budget, multiple)
    assert size <= length < size + multiple
    assert length <= size * (1 + 1 / 16)
    assert length % multiple == 0 or (length == budget and size <= budget) or size < 16 * multiple
    assert not (size <= budget < length)


def test_there_are_few_lengths() -> None:
    lengths = {filled_up(size, 4096, 64) for size in range(1, 4097)}
    assert len([length for length in lengths if length >= 1024]) == 49
    assert len([length for length in lengths if 256 <= length < 512]) == 16
    assert len(lengths) == 49 + 6 * 16 + 15  # of those below 16, each has its own


def test_small_budgets_are_left_alone() -> None:
    assert (multiple_for(FULL - 1), multiple_for(FULL), multiple_for(4096)) == (1, MULTIPLE, MULTIPLE)


def test_a_turn_of_one_token_is_no_padding() -> None:
    tree = Tree.of([make_turn([5], [6]), make_turn([7], [8], [0.0])], share=False)
    (piece,) = tree.pieces(10, "packed")
    assert tree.lay(piece, 4).is_padding.tolist() == [False, False, True, True]
    assert empty_row().num_padding == 1


def spoilt(row: Row) -> Row:
    """A row whose last padding token is part of its last turn: what a wrong `end` would do."""
    end = row.end.clone()
    end[~row.is_padding & (row.end == row.num_tokens - row.num_padding)] = row.num_tokens
    source = row.source.clone()
    source[-1] = row.num_tokens - 1
    return Row(row.tokens, end, source, row.target, row.weight)


@pytest.mark.parametrize("attention", ["reference", "tiles"])
@pytest.mark.parametrize("kind", ["llama", "gemma3_text", "gpt2", "mixtral"])
def test_padding_changes_no_gradient(kind: str, attention: str) -> None:
    turns = random_turns(2, conversations=5)
    model = row_model(tiny_model(kind, torch.float64), attention)
    loss, wanted = row_gradients(model, build_rows(turns, 120))
    tree = Tree.of(turns)
    rows = [tree.lay(piece, piece.size + 7) for piece in tree.pieces(120, "shared")]
    assert sum(row.num_padding for row in rows) > 10
    padded_loss, found = row_gradients(model, rows)
    assert padded_loss == pytest.approx(loss, rel=1e-7)
    assert difference(found, wanted) <= 1e-6
    _, wrong = row_gradients(model, list(map(spoilt, rows)))
    assert difference(wrong, wanted) > 1e-4
