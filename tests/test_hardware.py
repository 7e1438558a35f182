import pytest

from imprint.errors import RecipeError
from imprint.hardware import MACHINES, find


def test_names_are_found_by_their_words():
    assert find("4090").name == "RTX 4090 24GB"
    assert find("a100 80gb").name == "A100 80GB"
    assert find("H200").kind == "cuda"


@pytest.mark.parametrize(
    ("name", "says"), [("A100", "several machines"), ("H1000", "H100 80GB"), ("", "no machine")]
)
def test_what_is_not_there_is_told_with_what_is(name, says):
    with pytest.raises(RecipeError) as caught:
        find(name)
    assert says in str(caught.value)


def test_the_table_is_sound():
    assert len({machine.name for machine in MACHINES}) == len(MACHINES)
    for machine in MACHINES:
        assert 10**9 < machine.memory < 10**12
        assert machine.price is None or 0 < machine.price[0] < machine.price[1]
