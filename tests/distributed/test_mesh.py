"""The processes of a run: what they sum and agree on; one process is not a special case."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from imprint.distributed.mesh import Mesh, start_mesh, stop_mesh

Ranks = Callable[[int], list[dict[str, Any]]]


def test_one_process() -> None:
    mesh = Mesh()
    value = torch.tensor([1.0, 2.0])
    assert mesh.sum(value) is value
    box = object()
    assert mesh.agree(box) is box
    assert (mesh.any(False), mesh.any(True), mesh.is_main) == (False, True, True)
    mesh.wait()


def test_without_torchrun_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    assert start_mesh("cpu") == Mesh(0, 1, torch.device("cpu"))
    assert not torch.distributed.is_initialized()
    stop_mesh()


def test_two_processes(ranks: Ranks) -> None:
    found = [rank["talk"] for rank in ranks(2)]
    for talk in found:
        assert talk["sum"] == [3.0, 20.0]
        assert talk["untouched"]
        assert talk["agree"] == {"rank": 0}
        assert talk["any"] == [False, True, True]
    assert [talk["is_main"] for talk in found] == [True, False]


@pytest.mark.slow
@pytest.mark.parametrize("size", [3, 4])
def test_more_processes(ranks: Ranks, size: int) -> None:
    for talk in (rank["talk"] for rank in ranks(size)):
        assert talk["sum"] == [size * (size + 1) / 2, 10.0 * size]
        assert talk["any"] == [False, True, True]
