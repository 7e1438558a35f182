"""What tests of whole runs begin with: a tiny model folder, data files, and the command line at hand."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest

SOURCE = Path(__file__).parents[1] / "src"
CONTEXT = 128

# One thread, float32: what a run does must not depend on the machine that the tests run on.
SMALL = ("template=chatml", "threads=1", "precision=float32", "samples=0", "batch_size=4")

COLOURS = ("red", "blue", "green", "white", "black", "brown", "grey", "pink")
THINGS = ("a tomato", "the sea", "grass", "snow", "coal", "wood", "a mouse", "a pig")
ROWS: list[dict[str, Any]] = [
    {
        "messages": [
            {"role": "user", "content": f"What colour is {thing}?"},
            {"role": "assistant", "content": f"It is {colour}."},
        ]
    }
    for thing, colour in zip(THINGS, COLOURS, strict=True)
] + [
    {
        "messages": [
            {"role": "system", "content": "Answer with one word, and never with two or three of them."},
            {"role": "user", "content": f"Name {thing}'s colour."},
            {"role": "assistant", "content": f"{colour.title()}."},
            {"role": "user", "content": "Once more, please."},
            {"role": "assistant", "content": f"{colour.upper()}."},
        ]
    }
    for thing, colour in zip(THINGS, COLOURS, strict=True)
]


class Ended(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str


Events = list[dict[str, Any]]
Cli = Callable[..., Ended]


def build_model(folder: Path, *, texts: Sequence[str] = (), hidden: int = 32, **config: Any) -> Path:
    """Write a small random Llama with a tokenizer trained on imprint's own demonstrations."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from imprint.demo.base import demonstrations
    from imprint.demo.tokenizer import train_tokenizer

    train_tokenizer(texts or [demonstrations().read_text(encoding="utf-8")], folder, vocab_size=512)
    sizes = dict(
        vocab_size=512,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=CONTEXT,
        initializer_range=0.1,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=1,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForCausalLM(LlamaConfig(**{**sizes, **config})).save_pretrained(folder)
    return folder


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def environment() -> dict[str, str]:
    """For subprocesses: one thread, no hub, this source tree."""
    quiet = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    return {**os.environ, **quiet, "PYTHONPATH": str(SOURCE), "COLUMNS": "80"}


def start(*arguments: object, cwd: Path | None = None) -> subprocess.Popen[str]:
    """`imprint …` in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "imprint.cli", *map(str, arguments)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(), cwd=cwd,
    )  # fmt: skip


def imprint(*arguments: object, cwd: Path | None = None, timeout: float = 120) -> Ended:
    """`imprint …` in a process of its own, from its start to its end."""
    process = start(*arguments, cwd=cwd)
    try:
        out, err = process.communicate(timeout=timeout)
    finally:
        process.kill()
    return Ended(process.returncode, out, err)


def signal_when(
    process: subprocess.Popen[str], seen: Callable[[], bool], number: int, timeout: float = 90
) -> Ended:
    """Send a signal to a process as soon as something is seen, and wait for its end."""
    deadline = time.monotonic() + timeout
    try:
        while not seen():
            assert process.poll() is None, f"ended before it was seen: {process.communicate()}"
            assert time.monotonic() < deadline, "never seen"
            time.sleep(0.0005)
        process.send_signal(number)
        out, err = process.communicate(timeout=timeout)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
    return Ended(process.returncode, out, err)


def events_of(run: Path, *kinds: str) -> Events:
    lines = (run / "events.jsonl").read_text(encoding="utf-8").splitlines()
    return [event for event in map(json.loads, lines) if not kinds or event["kind"] in kinds]


def losses(run: Path) -> list[tuple[int, float]]:
    return [(event["step"], event["loss"]) for event in events_of(run, "step")]


def weights_of(run: Path) -> bytes:
    """The bytes of what a run serves."""
    (file,) = (run / "model").glob("*.safetensors")
    return file.read_bytes()


def tree(folder: Path) -> dict[str, bytes | None]:
    """Every path below a folder, files with their bytes."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder of 60,000 random parameters, with a tokenizer and no chat template."""
    return build_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixteen conversations, half of them with two replies behind one system message."""
    return write_rows(tmp_path_factory.mktemp("data") / "rows.jsonl", ROWS)


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    """`imprint …` in this process."""
    from imprint.cli import main

    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.delenv("IMPRINT_DEBUG", raising=False)

    def run(*arguments: object) -> Ended:
        capsys.readouterr()
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as leave:
            code = int(leave.code or 0)
        return Ended(code, *capsys.readouterr())

    return run
