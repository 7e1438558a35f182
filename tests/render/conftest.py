from __future__ import annotations

from collections.abc import Iterator

import pytest

from render.corpus import fixed_clock


@pytest.fixture(autouse=True, scope="session")
def the_clock_of_transformers_stands_still() -> Iterator[None]:
    with fixed_clock():
        yield
