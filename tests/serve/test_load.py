"""Many clients at once: nobody gets another one's reply, nothing is left behind; and lm-eval scores through it."""

from __future__ import annotations

import asyncio
import gc
import json
import subprocess
import sys

import httpx
import pytest

from conftest import environment
from imprint.data.conversation import Message
from imprint.demo.base import copy_base
from imprint.serve.chat import load_speaker
from imprint.serve.hosting import host_of
from serve.live import running, until

CLIENTS, REQUESTS, LONGEST = 64, 1000, 24
THINGS = ("the sea", "a cornflower", "snow", "coal", "a tomato", "grass", "the sky", "a lemon")
QUESTIONS = [f"What is the {word} of {thing}?" for word in ("colour", "size", "use") for thing in THINGS]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return copy_base(tmp_path_factory.mktemp("load") / "base")


@pytest.fixture(scope="module")
def host(base):
    made = host_of(base, template="chatml", cache_bytes=64 << 20, device="cpu")
    yield made
    made.engine.close()


async def streamed(client, url, question, **more):
    """The text of a streamed reply."""
    body = {"messages": [{"role": "user", "content": question}], "stream": True, "temperature": 0, **more}
    said, done = [], False
    async with client.stream("POST", f"{url}/v1/chat/completions", json=body) as answer:
        assert answer.status_code == 200, await answer.aread()
        async for line in answer.aiter_lines():
            if line == "data: [DONE]":
                done = True
            elif line:
                event = json.loads(line.removeprefix("data: "))
                assert "error" not in event, event
                said.append(event["choices"][0]["delta"].get("content") or "")
    assert done
    return "".join(said)


@pytest.mark.slow
def test_a_thousand_requests_of_64_clients(base, host):
    """Each reply is the one that the model gives alone; some clients vanish; afterwards all places are free."""
    speaker = load_speaker(base, template="chatml")
    alone = {q: speaker.reply([Message("user", q)], lambda _: None, LONGEST) for q in QUESTIONS}
    assert len(set(alone.values())) > len(QUESTIONS) // 2
    wrong: list[tuple[str, str]] = []

    async def all_of(url):
        left = iter(range(REQUESTS))
        limits = httpx.Limits(max_connections=CLIENTS)
        async with httpx.AsyncClient(timeout=300, limits=limits) as client:

            async def one():
                for number in left:
                    question = QUESTIONS[number % len(QUESTIONS)]
                    if number % 50 == 0:  # gone before the reply is there
                        task = asyncio.ensure_future(streamed(client, url, question, max_tokens=400))
                        await asyncio.sleep(0.05)
                        task.cancel()
                        continue
                    said = await streamed(client, url, question, max_tokens=LONGEST)
                    if said != alone[question]:
                        wrong.append((question, said))

            await asyncio.gather(*(one() for _ in range(CLIENTS)))

    with running(host) as url:
        asyncio.run(all_of(url))
        until(lambda: host.engine.load().running + host.engine.load().waiting == 0, 2)
        assert "imprint_open_requests 1.0" in httpx.get(f"{url}/metrics").text  # this one
    assert wrong == []
    gc.collect()
    assert not [stream for stream in host.streams if stream.finish is None]


TASK = """task: local_colours
dataset_path: json
dataset_kwargs:
  data_files: {file}
  cache_dir: {cache}
output_type: multiple_choice
test_split: train
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: answer
metric_list:
  - metric: acc
  - metric: acc_norm
"""
SCRIPT = """
import json, sys
from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager
kind, arguments, folder = sys.argv[1], json.loads(sys.argv[2]), sys.argv[3]
found = simple_evaluate(model=kind, model_args=arguments, tasks=["local_colours"], batch_size=4,
                        task_manager=TaskManager(include_path=folder, include_defaults=False), bootstrap_iters=0)
scores = {k: v for k, v in found["results"]["local_colours"].items() if k.startswith("acc") and "stderr" not in k}
likely = [[answer[0] for answer in one["filtered_resps"]] for one in found["samples"]["local_colours"]]
print("SCORES", json.dumps([scores, likely]))
"""


def scored(folder, kind, **arguments):
    command = [sys.executable, "-c", SCRIPT, kind, json.dumps(arguments), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=240)
    lines = [line for line in done.stdout.splitlines() if line.startswith("SCORES")]
    assert lines, done.stderr[-3000:]
    return json.loads(lines[0].removeprefix("SCORES"))


@pytest.mark.slow
def test_lm_eval_gets_the_same_score_in_process_and_through_the_server(base, host, tmp_path):
    pytest.importorskip("lm_eval")
    words = ("blue", "red", "white", "black", "green", "yellow")
    rows = [
        {
            "question": f"The colour of {thing} is",
            "choices": [f" {words[(i + j) % 6]}" for j in range(4)],
            "answer": i % 4,
        }
        for i in range(3)
        for thing in THINGS
    ]
    file = tmp_path / "colours.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    (tasks / "colours.yaml").write_text(TASK.format(file=file, cache=tmp_path / "cache"), encoding="utf-8")
    inside = scored(tasks, "hf", pretrained=str(base), dtype="float32", device="cpu")
    with running(host) as url:
        through = scored(
            tasks,
            "local-completions",
            base_url=f"{url}/v1/completions",
            model=host.models[0].name,
            tokenizer=str(base),
            tokenizer_backend="huggingface",
            num_concurrent=2,
            max_length=512,
        )
    assert through[0] == inside[0]
    assert 0 < inside[0]["acc,none"] < 1
    pairs = [
        (a, b) for one, two in zip(inside[1], through[1], strict=True) for a, b in zip(one, two, strict=True)
    ]
    assert len(pairs) == 4 * len(rows)
    assert max(abs(a - b) for a, b in pairs) < 1e-3


@pytest.mark.full
def test_ten_minutes_do_not_grow(tmp_path):
    """benchmarks/soak.py in a process of its own: mixed requests, vanishing clients, faults."""
    from pathlib import Path

    script = Path(__file__).parents[2] / "benchmarks" / "soak.py"
    done = subprocess.run(
        [sys.executable, str(script), "--minutes", "10", "--out", str(tmp_path / "soak.json")],
        capture_output=True,
        text=True,
        env=environment(),
        timeout=1200,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "soak.json").read_text(encoding="utf-8"))
    assert found["wrong"] == 0
    assert found["left"] == 0
    assert found["growth_mib"] < 20
