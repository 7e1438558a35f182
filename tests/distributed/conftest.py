"""Runs tests/distributed/cells.py in several processes, once for all tests."""

import sys
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parent)]


@pytest.fixture(scope="session")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], list[dict[str, Any]]]:
    """The results of `size` processes, by rank."""
    from processes import launch

    script = Path(__file__).with_name("cells.py")
    return lru_cache(lambda size: launch(script, size, tmp_path_factory.mktemp(f"ranks{size}")))
