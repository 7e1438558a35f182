"""The public names: all there, and none of them costs anything before it is used."""

import subprocess
import sys
from pathlib import Path

import pytest

import imprint


def test_every_public_name_is_there():
    assert set(imprint.__all__) == {"__version__", "train", *imprint._HOMES}
    for name in imprint.__all__:
        assert getattr(imprint, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        imprint.trian  # noqa: B018


def test_importing_imprint_imports_nothing_heavy():
    code = "import imprint, sys; print(sorted({'torch', 'transformers', 'pydantic'} & set(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_train_is_a_function_and_a_package():
    import imprint.train.step as step

    assert callable(imprint.train)
    assert imprint.train.step is step
    with pytest.raises(imprint.ImprintError, match="model"):
        imprint.train(data="nowhere.jsonl")
    with pytest.raises(TypeError, match="not both"):
        imprint.train(imprint.Recipe(model="m", data=[{"path": "d"}]), epochs=2)


@pytest.mark.slow
def test_the_flat_loop_trains(tmp_path: Path):
    from imprint.demo.base import copy_base, demonstrations

    copy_base(tmp_path / "base")
    script = Path(__file__).parent.parent / "examples" / "loop.py"
    assert len(script.read_text().splitlines()) <= 110
    arguments = [str(tmp_path / "base"), str(demonstrations()), str(tmp_path / "model")]
    out = subprocess.run(
        [sys.executable, str(script), *arguments], capture_output=True, text=True, check=True, timeout=300
    ).stdout
    losses = [float(line.split("loss ")[1].split()[0]) for line in out.splitlines() if "validation" in line]
    assert losses[-1] < losses[0] - 1
    assert (tmp_path / "model" / "model.safetensors").is_file()
    assert imprint.load_speaker(tmp_path / "model").rendering.template.source
