"""The README is true: its commands run, its files are there."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the demo's base model and the README's file of demonstrations."""
    from imprint.demo.base import copy_base

    folder = tmp_path_factory.mktemp("readme")
    copy_base(folder / "imprint-demo" / "base")
    (folder / "my.jsonl").write_text(blocks("json")[0], encoding="utf-8")
    return folder


def run(code: list[str], folder: Path) -> str:
    done = subprocess.run(code, cwd=folder, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_two_commands_are_targets_of_make() -> None:
    targets = re.findall(r"^make (\w+)", blocks("bash")[0], re.MULTILINE)
    assert targets == ["demo", "test"]
    for target in targets:
        subprocess.run(["make", "--dry-run", target], cwd=ROOT, check=True, capture_output=True)


@pytest.mark.slow
def test_the_commands_of_a_first_run(place: Path) -> None:
    commands = [line for block in blocks("bash")[1:] for line in block.splitlines()]
    assert len(commands) == 13
    for command in commands:
        words = [word.strip('"') for word in re.findall(r'"[^"]*"|\S+', command)]
        assert words[0] == "imprint"
        assert run([sys.executable, "-m", "imprint.cli", *words[1:]], place)
    promised = re.findall(r"`([\w.]+/?)`", README.split("`runs/mine` then holds")[1].split("\n\n")[0])
    assert len(promised) == 8
    for name in promised:
        assert (place / "runs" / "mine" / name).exists(), name


def test_the_python_example(place: Path) -> None:
    assert "model" in run([sys.executable, "-c", blocks("python")[0]], place)


def test_links_lead_somewhere() -> None:
    for link in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / link).exists(), link
    for path in re.findall(r"`((?:tests|examples|docs)/[\w/.]+)`", README):
        assert (ROOT / path).exists(), path
