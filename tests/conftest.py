"""What tests of whole runs begin with: a tiny model folder, data files, and the command line at hand."""

from __future__ import annotations

import importlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import settings as hypothesis_settings

# The same examples each time; the full tier (render/test_properties.py) draws others.
hypothesis_settings.register_profile("repeated", derandomize=True)
hypothesis_settings.load_profile("repeated")

SOURCE = Path(__file__).parents[1] / "src"
CONTEXT = 128

# One thread, float32: what a run does must not depend on the machine that the tests run on.
SMALL = ("template=chatml", "threads=1", "precision=float32", "samples=0", "golden=0", "batch_size=4")

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


def settings(model: object, data: object, output: object, *given: str) -> list[str]:
    """The arguments of a small run; what is given replaces what is SMALL."""
    keys = {argument.partition("=")[0] for argument in given}
    small = [argument for argument in SMALL if argument.partition("=")[0] not in keys]
    return [f"model={model}", f"data={data}", f"output={output}", *small, *given]


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def environment() -> dict[str, str]:
    """For subprocesses: one thread, no hub, this source tree."""
    quiet = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    return {**os.environ, **quiet, "PYTHONPATH": str(SOURCE), "COLUMNS": "80"}


def _in_child(
    arguments: Sequence[str], output: str, planted: tuple[str, int, int] | None, environ: Mapping[str, str]
) -> None:
    """The main function of a process that `start` makes; `output` takes what it says.

    `environ` is that of the test: the server that is forked has the one of the test that began it.
    """
    os.environ.clear()
    os.environ.update(environ)
    with open(output, "wb", buffering=0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if planted is not None:
        _plant_signal(*planted)
    from imprint.cli import main

    sys.exit(main(arguments))


def _plant_signal(function: str, call: int, number: int) -> None:
    """Send this process a signal before the n-th call of `function`, a name where it is looked up."""
    module, _, name = function.rpartition(".")
    place = importlib.import_module(module)
    original, calls = getattr(place, name), 0

    def counted(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            os.kill(os.getpid(), number)
        return original(*arguments, **named)

    setattr(place, name, counted)


@dataclass
class Running:
    """`imprint …` in a process of its own that began with torch imported: a fork of a server."""

    process: Any
    output: Path

    def wait(self, timeout: float = 90) -> Ended:
        """How it ended; out and err come as one text."""
        self.process.join(timeout)
        if self.process.is_alive():
            self.process.kill()
            raise AssertionError(f"still running after {timeout} s: {self.output.read_text()}")
        told = self.output.read_text()
        return Ended(self.process.exitcode, told, told)

    def signal_when(self, seen: Callable[[], bool], number: int, timeout: float = 90) -> Ended:
        """Send a signal as soon as something is seen, and wait for the end."""
        deadline = time.monotonic() + timeout
        while not seen():
            assert self.process.is_alive(), f"ended before it was seen: {self.output.read_text()}"
            assert time.monotonic() < deadline, "never seen"
            time.sleep(0.0005)
        os.kill(self.process.pid, number)
        return self.wait(timeout)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Running]]:
    """Starts `imprint …` in a process of its own.

    `signal_before=(function, n, number)` plants a signal to itself before the n-th call of a function;
    `environ` is added to its environment.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["imprint.run", "imprint.serve.chat", "peft", "transformers.models.llama"])
    started: list[Running] = []

    def begin(
        *arguments: object,
        signal_before: tuple[str, int, int] | None = None,
        environ: Mapping[str, str] | None = None,
    ) -> Running:
        output = tmp_path / f"output-{len(started)}.txt"
        place = {**os.environ, **(environ or {})}
        process = context.Process(
            target=_in_child,
            args=([str(argument) for argument in arguments], str(output), signal_before, place),
        )
        process.start()
        started.append(Running(process, output))
        return started[-1]

    yield begin
    for running in started:
        if running.process.is_alive():
            running.process.kill()
        running.process.join()
        running.process.close()


@pytest.fixture
def small_disk(tmp_path):
    """`small_disk(n)`: the folder of a real file system of `n` MB."""
    mounted = []

    def mount(megabytes: int) -> Path:
        if os.geteuid() != 0:
            pytest.skip("mounting takes root")
        place = tmp_path / "small"
        place.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(place)]
        if subprocess.run(command, capture_output=True).returncode:
            pytest.skip("mounting is not permitted here")
        mounted.append(place)
        return place

    yield mount
    for place in mounted:
        subprocess.run(["umount", place], check=True)


def imprint(*arguments: object, stdin: str | None = None, timeout: float = 120) -> Ended:
    """`imprint …` as a user runs it: a new interpreter."""
    command = [sys.executable, "-m", "imprint.cli", *map(str, arguments)]
    done = subprocess.run(
        command, input=stdin, capture_output=True, text=True, env=environment(), timeout=timeout
    )
    return Ended(done.returncode, done.stdout, done.stderr)


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


@pytest.fixture(scope="session", autouse=True)
def prepared_data_apart(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Prepared data goes into a folder of these tests, in subprocesses too; the user's own cache is left alone."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IMPRINT_CACHE", str(folder))
        yield folder


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
