"""Makes helpers of tests/ and of this folder importable, wherever the run begins, and trains one run for all of it."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.append(str(Path(__file__).parent))


@pytest.fixture(scope="session")
def run(tiny, rows, tmp_path_factory):
    """A run of three LoRA steps."""
    from conftest import settings
    from imprint.run import train
    from imprint.settings import resolve

    path = tmp_path_factory.mktemp("serve") / "run"
    given = settings(tiny, rows, path, "max_steps=3", "method=lora", "learning_rate=1e-2")
    train(resolve(None, given).recipe)
    return path
