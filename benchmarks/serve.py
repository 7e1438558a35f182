"""The server under many clients, against the same requests one at a time, both over HTTP with streams.

python benchmarks/serve.py [--model FOLDER] [--clients 64] [--requests 256] [--tokens 48] [--write]

Prints requests/s and tokens/s of both, their ratio (goal: 4), and the time to the first token; a reply
that differs between the two is counted.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from _common import machine, write_result

from imprint.demo.base import copy_base

THINGS = ("the sea", "a cornflower", "snow", "coal", "a tomato", "grass", "the sky", "a lemon")
WORDS = ("colour", "size", "use", "price", "weight", "smell", "taste", "name")
QUESTIONS = [f"What is the {word} of {thing}?" for word in WORDS for thing in THINGS]


@dataclass
class Reply:
    question: str
    text: str
    tokens: int
    first: float  # seconds to the first text
    seconds: float


@contextmanager
def running(folder: Path, *arguments: str) -> Iterator[tuple[str, int]]:
    """`imprint serve FOLDER` in a process of its own: its address, and its process."""
    command = [sys.executable, "-m", "imprint.cli", "serve", str(folder), "--port", "0", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        lines = iter(process.stdout.readline, "")
        line = next((line for line in lines if line.startswith("serving")), "")
        if not line:
            raise SystemExit("the server did not start")
        yield line.split()[1].removesuffix("/v1"), process.pid
    finally:
        process.terminate()
        if process.wait(60):
            raise SystemExit(f"the server ended with {process.returncode}")


async def ask(url: str, question: str, tokens: int) -> Reply:
    """A streamed reply, over a plain socket: a client on the same cores shall cost little."""
    body = {
        "messages": [{"role": "user", "content": question}],
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": 0,
        "max_tokens": tokens,
    }
    host, _, port = url.removeprefix("http://").rpartition(":")
    content = json.dumps(body).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
    begun, first, parts = time.perf_counter(), 0.0, []
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(head.encode() + content)
    while part := await reader.read(1 << 16):
        parts.append(part)
        if not first and b'"delta":{"content":"' in part:
            first = time.perf_counter() - begun
    writer.close()
    seconds = time.perf_counter() - begun
    answer = b"".join(parts)
    assert answer.startswith(b"HTTP/1.1 200"), answer[:500]
    lines = [line.removeprefix(b"data: ") for line in answer.split(b"\r\n") if line.startswith(b"data: ")]
    assert lines[-1].strip() == b"[DONE]"
    events = [json.loads(line) for line in lines[:-1]]
    text = "".join(e["choices"][0]["delta"].get("content", "") for e in events if e["choices"])
    return Reply(question, text, events[-1]["usage"]["completion_tokens"], first, seconds)


async def clients_of(url: str, clients: int, requests: int, tokens: int) -> tuple[list[Reply], float]:
    """All replies, and the seconds that they took together."""
    left, replies = iter(range(requests)), []

    async def one() -> None:
        for number in left:
            replies.append(await ask(url, QUESTIONS[number % len(QUESTIONS)], tokens))

    begun = time.perf_counter()
    await asyncio.gather(*(one() for _ in range(clients)))
    return replies, time.perf_counter() - begun


def told(replies: list[Reply], seconds: float) -> dict[str, Any]:
    firsts = sorted(reply.first for reply in replies)
    return {
        "requests": len(replies),
        "seconds": round(seconds, 2),
        "requests_per_second": round(len(replies) / seconds, 2),
        "tokens_per_second": round(sum(reply.tokens for reply in replies) / seconds, 1),
        "first_token_median": round(statistics.median(firsts), 4),
        "first_token_p95": round(firsts[int(0.95 * (len(firsts) - 1))], 4),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--requests", type=int, default=256)
    parser.add_argument("--alone", type=int, default=64, help="requests one at a time")
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--write", action="store_true", help="keep the result in benchmarks/results")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = given.model or copy_base(Path(folder) / "base")
        template = () if given.model else ("--template", "chatml")
        with running(model, *template) as (url, _):
            asyncio.run(clients_of(url, 4, 8, 8))  # warm
            alone, alone_seconds = asyncio.run(clients_of(url, 1, given.alone, given.tokens))
            many, many_seconds = asyncio.run(clients_of(url, given.clients, given.requests, given.tokens))
    known = {reply.question: reply.text for reply in alone}
    one, all_ = told(alone, alone_seconds), told(many, many_seconds)
    result = {
        "clients": given.clients,
        "tokens_a_reply": given.tokens,
        "one_at_a_time": one,
        "together": all_,
        "ratio": round(all_["tokens_per_second"] / one["tokens_per_second"], 2),
        "wrong": sum(known.get(reply.question, reply.text) != reply.text for reply in many),
        "machine": machine(),
    }
    print(json.dumps(result, indent=1))
    if given.write:
        write_result("serve", result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
