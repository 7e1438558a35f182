"""TRL's training templates against our turns: the same tokens, or a difference that is argued."""

from pathlib import Path

import pytest

from render.corpus import needs_templates
from render.twins import ARGUMENTS, PAIRS, compare
from render.twins_page import every_pair, twins_page

PAGE = Path(__file__).parents[2] / "docs" / "trl-twins.md"


@pytest.fixture(scope="module")
def compared():
    return list(every_pair())


@needs_templates
def test_every_difference_is_argued(compared):
    assert len(compared) == 15
    assert sum(pair.equal + len(pair.differences) for pair in compared) > 1500
    unexplained = [one for pair in compared for one in pair.differences if one.why is None]
    assert not unexplained, unexplained[:5]


@needs_templates
def test_every_argument_is_of_use(compared):
    found = {one.shape for pair in compared for one in pair.differences}
    assert not set(ARGUMENTS) - found


@needs_templates
def test_where_marks_and_turns_can_agree_they_do(compared):
    """Llama 3's template writes nothing behind a stop: there both train the same tokens."""
    (llama,) = (pair for pair in compared if pair.template == "llama3")
    assert llama.equal > 80
    assert not [one for one in llama.differences if "[" in one.shape]


@needs_templates
def test_a_shifted_mask_would_be_seen(monkeypatch):
    """The comparison itself: one token more in TRL's mask is a difference that nobody argued for."""
    from render import twins

    honest = twins.spans_of
    monkeypatch.setattr(twins, "spans_of", lambda *given: [[run[0], *run] for run in honest(*given)])
    (pair,) = (pair for pair in PAIRS if pair[0].stem == "llama3")
    found = compare(*pair)
    assert found.equal == 0
    assert sum(one.why is None for one in found.differences) > 80


@needs_templates
def test_the_page_of_twins_is_up_to_date(compared):
    assert PAGE.read_text(encoding="utf-8") == twins_page(compared), (
        "run: python tools/write_docs.py trl-twins.md"
    )
