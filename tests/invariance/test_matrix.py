"""The second law, as one matrix: however an update is computed, its loss and gradients are the same.

{separate, packed, shared} x {row budgets} x {one backward pass, one for each row} x {1, 2 processes} x
{reference, tiles, tiles with fused layers} x {dense, chunked loss} x {full, LoRA}, each against padded
examples in the model's own attention; and each with a planted mistake that misses the bar a hundredfold.
"""

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from matrix import ATTENTION, CELLS, KIN, LOSS, METHODS, SHARED_OUT, TURNS, Cell, model_of, update

from imprint.pack.plan import share_out
from imprint.pack.row import Row
from processes import launch
from tiny import Gradients, difference, own_attention, own_rotary_functions, padded_gradients

QUICK = ("gpt2", "llama")
KINDS = ("gemma2", "mistral", "gpt_oss", "qwen3_moe")
TYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])


def bar(kind: str, dtype: torch.dtype) -> float:
    """gpt2 is float64 throughout in transformers; norms and softmax of the others pass through float32."""
    return 2e-5 if dtype == torch.float32 else 1e-12 if kind == "gpt2" else 1e-6


@pytest.fixture(autouse=True, scope="module")
def originals() -> Iterator[None]:
    """Families' modules get their own rotary function back."""
    yield
    own_rotary_functions()


@cache
def padded(kind: str, method: str, dtype: torch.dtype) -> tuple[float, Gradients]:
    model = model_of(kind, method, dtype, "reference", "dense").model
    base: Any = model.get_base_model() if method in KIN else model  # type: ignore[operator]
    together = own_attention(base) == "sdpa" or dtype == torch.float32
    return padded_gradients(model, TURNS, together)


def one_token_unseen(row: Row) -> None:
    first = int(row.source[0])  # the end of a prompt, near to what is trained: no window hides it
    row.end[first] = first + 1


def one_weight_lost(row: Row) -> None:
    row.weight[int(row.weight.argmax())] = 0.0


MISTAKES: tuple[Callable[[Row], None], ...] = (one_token_unseen, one_weight_lost)


def check(kind: str, method: str, dtype: torch.dtype) -> None:
    loss, wanted = padded(kind, method, dtype)
    models = {(a, n): model_of(kind, method, dtype, a, n) for a in ATTENTION for n in LOSS}
    for number, cell in enumerate(CELLS):
        model = models[cell.attention, cell.loss]
        found_loss, found = update(model, cell)
        off = difference(found, wanted)
        assert off <= bar(kind, dtype), f"{cell}: {off:.1e}"
        assert found_loss == pytest.approx(loss, rel=1e-5 if dtype == torch.float32 else 1e-7)
        _, wrong = update(model, cell, MISTAKES[number % 2])
        assert difference(wrong, wanted) >= 100 * bar(kind, dtype), f"{cell}: the mistake does not show"


@TYPES
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", QUICK)
def test_every_cell_makes_the_same_update(kind: str, method: str, dtype: torch.dtype) -> None:
    check(kind, method, dtype)


@pytest.mark.slow
@TYPES
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_cell_of_other_families(kind: str, method: str, dtype: torch.dtype) -> None:
    check(kind, method, dtype)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["dora", "pissa"])
@pytest.mark.parametrize("kind", QUICK)
def test_every_cell_of_other_adapters(kind: str, method: str) -> None:
    check(kind, method, torch.float64)


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> list[dict[Any, Any]]:
    """What `matrix.py` finds on each of two processes."""
    return launch(Path(__file__).with_name("matrix.py"), 2, tmp_path_factory.mktemp("matrix"))


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", QUICK)
def test_two_processes_make_the_same_update(
    kind: str, method: str, two_processes: list[dict[Any, Any]]
) -> None:
    loss, wanted = padded(kind, method, torch.float64)
    for found in two_processes:
        for cell in SHARED_OUT:
            found_loss, gradients = found[kind, method, tuple(cell)]
            assert difference(gradients, wanted) <= bar(kind, torch.float64), cell
            assert found_loss == pytest.approx(loss, rel=1e-7)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["dora", "pissa"])
def test_two_processes_make_the_same_update_of_other_adapters(
    method: str, two_processes: list[dict[Any, Any]]
) -> None:
    loss, wanted = padded("llama", method, torch.float64)
    for found in two_processes:
        cells = [cell for cell in SHARED_OUT if (cell.attention, cell.loss) == ("fused", "chunked")]
        assert cells
        for cell in cells:
            found_loss, gradients = found["llama", method, tuple(cell)]
            assert difference(gradients, wanted) <= bar("llama", torch.float64), cell
            assert found_loss == pytest.approx(loss, rel=1e-7)


def test_the_cells_differ() -> None:
    """The matrix would prove nothing if all its cells laid the same rows or took the same way."""
    laid = {
        (cell.layout, cell.budget): tuple(
            row.num_tokens for row in share_out(TURNS, cell.budget, 1, cell.layout)[0]
        )
        for cell in CELLS
    }
    assert len(set(laid.values())) == len(laid) == 5
    assert Cell("shared", 40, "fused", "chunked", True) in CELLS
    assert len(CELLS) == 60
