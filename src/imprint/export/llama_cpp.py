"""llama.cpp itself, asked: its own tokenizer, its own arithmetic, on the file that was written.

The user's `llama-server` is started on a GGUF file and asked over HTTP (loopback). It is found on PATH, or
named by IMPRINT_LLAMA_SERVER, a command that takes the same arguments. Where there is none, nothing is
claimed: an export then says that it was not verified in llama.cpp.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from imprint.errors import RunFailed

VARIABLE = "IMPRINT_LLAMA_SERVER"
START_SECONDS = 300  # a large file on a slow disk
_LIKELIEST = 100  # tokens whose probabilities are asked for at each place


def find_server() -> list[str] | None:
    """The command that starts a llama-server, without arguments; None where there is none."""
    given = os.environ.get(VARIABLE)
    if given:
        return shlex.split(given)
    found = shutil.which("llama-server")
    return [found] if found else None


class LlamaServer:
    """A running llama-server with one model."""

    def __init__(self, url: str, timeout: float = 600):
        self.url, self.timeout = url, timeout

    def ask(self, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The answer to a request, read as JSON. Raises RunFailed with what the server said against it."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=self.timeout) as answer:
                return dict(json.loads(answer.read()))
        except urllib.error.HTTPError as error:
            said = error.read().decode(errors="replace")[:300]
            raise RunFailed("llama-server refuses a request", where=self.url + path, found=said) from error

    def tokenize(self, text: str, around: bool = False) -> list[int]:
        """The ids of a text with its control tokens read as such; `around`: bos and eos as it adds them."""
        body = {"content": text, "add_special": around, "parse_special": True}
        return list(self.ask("/tokenize", body)["tokens"])

    def detokenize(self, ids: Sequence[int]) -> str:
        return str(self.ask("/detokenize", {"tokens": list(ids)})["content"])

    def likeliest(self, ids: Sequence[int], most: int = _LIKELIEST) -> dict[int, float]:
        """The log-probabilities of the likeliest tokens behind `ids`, at temperature 1."""
        body = {
            "prompt": list(ids), "n_predict": 1, "n_probs": most, "temperature": 0, "cache_prompt": True,
            "ignore_eos": True,  # else a stop token comes without probabilities; those told are the raw ones
        }  # fmt: skip
        answer = self.ask("/completion", body)
        (place,) = answer["completion_probabilities"][:1]
        return {one["id"]: one["logprob"] for one in place["top_logprobs"]}

    def render(self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] = ()) -> str:
        """The prompt of a chat by the file's template, in llama.cpp's own template engine."""
        body: dict[str, Any] = {"messages": [dict(message) for message in messages]}
        if tools:
            body["tools"] = [dict(tool) for tool in tools]
        return str(self.ask("/apply-template", body)["prompt"])

    def greedy(self, ids: Sequence[int], limit: int) -> tuple[list[int], str, bool]:
        """(ids, text, whether it ended by itself) of the greedy reply behind `ids`; its stop may be the last id."""
        body = {
            "prompt": list(ids), "n_predict": limit, "temperature": 0, "top_k": 1, "return_tokens": True,
            "cache_prompt": False,
        }  # fmt: skip
        answer = self.ask("/completion", body)
        return list(answer["tokens"]), answer["content"], answer["stop_type"] == "eos"


@contextmanager
def serving(path: Path, command: Sequence[str], context: int = 0) -> Iterator[LlamaServer]:
    """A llama-server on a GGUF file, ended at the end. Raises RunFailed if it does not come up.

    Its cache is kept in float32 and its attention not fused, so that what differs is the file.
    """
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    arguments = ["--model", str(path), "--host", "127.0.0.1", "--port", str(port), "--ctx-size", str(context)]
    arguments += ["--parallel", "1", "--cache-type-k", "f32", "--cache-type-v", "f32", "--flash-attn", "off"]
    arguments += ["--no-warmup", "--jinja"]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen([*command, *arguments], stdout=log, stderr=subprocess.STDOUT)
        try:
            server = LlamaServer(f"http://127.0.0.1:{port}")
            _wait(server, process, log, command)
            yield server
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait(server: LlamaServer, process: subprocess.Popen[bytes], log: Any, command: Sequence[str]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        try:
            server.ask("/health")
            return
        except (OSError, RunFailed):
            time.sleep(0.1)
    log.seek(0)
    lines = [line for line in log.read().decode(errors="replace").splitlines() if line.strip()]
    telling = [line for line in lines if "error" in line.lower()] or lines
    raise RunFailed(
        "llama.cpp cannot serve the file",
        where=" ".join(command),
        found=telling[-1] if telling else f"it ended with code {process.poll()}",
        fix="a newer llama.cpp may know this model; the GGUF file itself is kept",
    )
