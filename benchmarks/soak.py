"""A server for some minutes under everything that clients do: does its memory grow, is anything left behind?

python benchmarks/soak.py [--minutes 10] [--clients 16] [--out FILE]

The server is `imprint serve` in a process of its own. Clients stream, ask for whole replies, score texts, send
nonsense and vanish; each reply is compared with the first one to the same question. Memory is that of the process, each
ten seconds; growth is from the mean of the second fifth of the time to that of the last.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
from _common import HERE, machine

from imprint.demo.base import copy_base
from serve import QUESTIONS, ask, running

EVERY = 10.0  # seconds between two looks at the memory


def resident(process: int) -> float:
    """MiB of a process's memory (Linux)."""
    lines = Path(f"/proc/{process}/status").read_text(encoding="ascii").splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("VmRSS"))) / 1024


async def one_request(client: httpx.AsyncClient, url: str, drawn: random.Random, seen: dict[str, str]) -> str:
    """What was done, and how it ended."""
    kind = drawn.choices(("stream", "whole", "score", "nonsense", "vanish"), (40, 20, 15, 10, 15))[0]
    question = drawn.choice(QUESTIONS)
    body: dict[str, Any] = {
        "messages": [{"role": "user", "content": question}],
        "temperature": 0,
        "max_tokens": 32,
    }
    if kind == "stream":
        text = (await ask(url, question, 32)).text
        return kind if seen.setdefault(question, text) == text else "wrong"
    if kind == "whole":
        answer = (await client.post(f"{url}/v1/chat/completions", json=body)).json()
        text = answer["choices"][0]["message"]["content"]
        return kind if seen.setdefault(question, text) == text else "wrong"
    if kind == "score":
        scored = {"prompt": question, "max_tokens": 1, "echo": True, "logprobs": 2, "temperature": 0}
        answer = await client.post(f"{url}/v1/completions", json=scored)
        return kind if len(answer.json()["choices"][0]["logprobs"]["tokens"]) > 3 else "wrong"
    if kind == "nonsense":
        spoiled = {
            **body,
            drawn.choice(("temperature", "messages", "zzz", "stop", "n")): drawn.choice((-1, "x", {})),
        }
        answer = await client.post(f"{url}/v1/chat/completions", json=spoiled)
        return kind if answer.status_code in (200, 400) else "wrong"
    body |= {"max_tokens": 300, "stream": drawn.random() < 0.5}
    task = asyncio.ensure_future(client.post(f"{url}/v1/chat/completions", json=body))
    await asyncio.sleep(drawn.random() * 0.3)
    task.cancel()
    return kind


async def soak(url: str, process: int, seconds: float, clients: int) -> tuple[Counter[str], list[float]]:
    end, done, seen, memory = (
        time.monotonic() + seconds,
        Counter[str](),
        dict[str, str](),
        [resident(process)],
    )

    async def look() -> None:
        while time.monotonic() < end:
            await asyncio.sleep(EVERY)
            memory.append(resident(process))

    async def work(number: int, client: httpx.AsyncClient) -> None:
        drawn = random.Random(number)
        while time.monotonic() < end:
            done[await one_request(client, url, drawn, seen)] += 1

    async with httpx.AsyncClient(timeout=300) as client:
        await asyncio.gather(look(), *(work(number, client) for number in range(clients)))
    return done, memory


def left_behind(url: str) -> int:
    """Requests that the server still computes, or has waiting, two seconds after the last client."""
    time.sleep(2)
    lines = httpx.get(f"{url}/metrics").text.splitlines()
    return sum(
        int(float(x.split()[1])) for x in lines if x.startswith(("imprint_running ", "imprint_waiting "))
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "soak.json")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        base = copy_base(Path(folder) / "base")
        with running(base, "--template", "chatml") as (url, process):
            done, memory = asyncio.run(soak(url, process, given.minutes * 60, given.clients))
            left = left_behind(url)
    fifth = max(len(memory) // 5, 1)
    early, late = memory[fifth : 2 * fifth] or memory[:1], memory[-fifth:]
    result = {
        "minutes": given.minutes,
        "clients": given.clients,
        "requests": sum(done.values()),
        "kinds": dict(done),
        "wrong": done["wrong"],
        "left": left,
        "memory_mib": [round(one, 1) for one in memory],
        "growth_mib": round(sum(late) / len(late) - sum(early) / len(early), 2),
        "machine": machine(),
    }
    given.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps({key: value for key, value in result.items() if key != "memory_mib"}, indent=1))
    return 0 if not (result["wrong"] or left) else 1


if __name__ == "__main__":
    sys.exit(main())
