"""Devices that are not there are refused by name."""

import pytest

from imprint.errors import ModelError
from imprint.model.devices import check_device


def test_the_processor_is_there() -> None:
    check_device("cpu")


@pytest.mark.parametrize("name", ["abacus", "meta", "cuda:99"])
def test_what_cannot_be_used_is_named(name: str) -> None:
    with pytest.raises(ModelError, match="this device cannot be used") as refused:
        check_device(name)
    assert refused.value.where == f"device={name}"
