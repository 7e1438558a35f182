"""Rows as sequences: how they are cut, which is all that can be seen without a CUDA device.

The call itself is tried in tests/model/test_flex.py, the kernels in tests/model/test_cuda.py.
"""

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from imprint.model.varlen import make_spans
from imprint.model.view import View


def packed(*sizes: int) -> Tensor:
    """The `end` of turns without shared prompts."""
    bounds = torch.tensor(sizes).cumsum(0)
    return torch.repeat_interleave(bounds, torch.tensor(sizes))


def test_spans_of_packed_turns() -> None:
    spans = make_spans(packed(4, 1, 6))
    assert spans is not None
    assert spans.bounds.tolist() == [0, 4, 5, 11]
    assert spans.bounds.dtype == torch.int32
    assert spans.longest == 6


def test_padding_is_sequences_of_one() -> None:
    spans = make_spans(torch.tensor([3, 3, 3, 4, 5]))
    assert spans is not None
    assert spans.bounds.tolist() == [0, 3, 4, 5]


def test_chunks_cut_sequences_by_position() -> None:
    spans = make_spans(packed(5, 4), chunk=2)
    assert spans is not None
    assert spans.bounds.tolist() == [0, 2, 4, 5, 7, 9]
    assert spans.longest == 2


def test_shared_prompts_are_no_sequences() -> None:
    assert make_spans(torch.tensor([6, 6, 4, 4, 6, 6])) is None
    assert make_spans(torch.tensor([5, 5, 3, 5, 5])) is None
    assert make_spans(torch.tensor([1])) is not None


@pytest.mark.parametrize("sizes", [(40, 1, 130, 85), (200, 56, *[1] * 64), (18,)])
@pytest.mark.parametrize("limits", [(None, None), (7, None), (None, 16), (5, 16)])
def test_sequences_see_what_end_says(sizes: tuple[int, ...], limits: tuple[int | None, int | None]) -> None:
    """Causal attention inside each sequence, with a window by index, is the rule of `end`."""
    end, (window, chunk) = packed(*sizes), limits
    spans = make_spans(end, chunk)
    assert spans is not None
    sees = torch.zeros(len(end), len(end), dtype=torch.bool)
    for a, b in pairwise(spans.bounds.tolist()):
        inside = torch.ones(b - a, b - a, dtype=torch.bool).tril()
        sees[a:b, a:b] = inside if window is None else inside.triu(1 - window)
    assert torch.equal(sees, View(end).allowed(window, chunk))
