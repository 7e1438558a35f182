from __future__ import annotations

from collections.abc import Iterator

import pytest

from render.corpus import NOW


@pytest.fixture(autouse=True, scope="session")
def the_clock_of_transformers_stands_still() -> Iterator[None]:
    """`strftime_now` in transformers shows the date that the tests render with."""
    from transformers.utils import chat_template_utils as module

    class Clock(module.datetime):
        @classmethod
        def now(cls, tz=None):
            return NOW

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "datetime", Clock)
        yield
