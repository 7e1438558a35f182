"""A server as its users meet it: the official client, clients that vanish, signals, ports, tokens."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time

import httpx
import openai
import pytest

from conftest import environment
from imprint.errors import RunError
from imprint.serve.server import open_port, url_of
from render.corpus import named
from serve.live import byte_rendering, running, scripted_host, until

ASKED = [{"role": "user", "content": "Hi"}]
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Tells the weather.",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        },
    }
]
BEGIN = "<|im_end|>\n<|im_start|>assistant\n"
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Köln"}}\n</tool_call>'
REPLIES = {
    "Hi" + BEGIN: "Hello! How are you?",
    "weather?" + BEGIN: f"Let me look.\n{CALL}\n{CALL}",
    "long" + BEGIN: "word " * 400,
    "so" + BEGIN: "on",
}


@pytest.fixture(scope="module")
def host():
    made = scripted_host(
        REPLIES, byte_rendering(named("llamacpp/Qwen-Qwen2.5-7B-Instruct.jinja")), delay=0.001
    )
    yield made
    made.engine.close()


@pytest.fixture(scope="module")
def url(host):
    with running(host) as address:
        yield address


@pytest.fixture
def client(url):
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as made:
        yield made


def test_a_chat_with_the_official_client(client):
    answer = client.chat.completions.create(
        model="scripted",
        messages=ASKED,
        temperature=0,
        seed=3,
        n=2,
        logprobs=True,
        top_logprobs=2,
        stop=["zzz"],
    )
    assert [choice.message.content for choice in answer.choices] == ["Hello! How are you?"] * 2
    assert answer.choices[0].finish_reason == "stop"
    assert answer.choices[0].logprobs.content[0].token == "H"
    assert len(answer.choices[0].logprobs.content[0].top_logprobs) == 2
    assert answer.usage.completion_tokens == 38
    back = client.chat.completions.create(
        model="scripted",
        messages=[*ASKED, answer.choices[0].message, {"role": "user", "content": "so"}],  # the object itself
    )
    assert back.choices[0].message.content == "on"


def test_a_stream_with_the_official_client(client):
    stream = client.chat.completions.create(
        model="scripted", messages=ASKED, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "Hello! How are you?"
    assert chunks[-1].usage.total_tokens > 19


def test_tool_calls_go_out_and_their_results_come_in(client):
    messages = [{"role": "user", "content": "What is the weather?"}]
    answer = client.chat.completions.create(model="scripted", messages=messages, tools=TOOLS).choices[0]
    assert answer.finish_reason == "tool_calls"
    assert answer.message.content == "Let me look."
    assert [c.function.arguments for c in answer.message.tool_calls] == ['{"city": "Köln"}'] * 2
    results = [{"role": "tool", "tool_call_id": c.id, "content": "so"} for c in answer.message.tool_calls]
    more = [*messages, answer.message, *results, {"role": "user", "content": "Hi"}]
    assert (
        client.chat.completions.create(model="scripted", messages=more, tools=TOOLS)
        .choices[0]
        .message.content.startswith("Hello")
    )


def test_tool_calls_in_a_stream(client):
    messages = [{"role": "user", "content": "What is the weather?"}]
    with client.chat.completions.stream(model="scripted", messages=messages, tools=TOOLS) as stream:
        for _ in stream:
            pass
        final = stream.get_final_completion().choices[0]
    assert final.finish_reason == "tool_calls"
    assert final.message.content == "Let me look."
    assert [c.function.name for c in final.message.tool_calls] == ["get_weather"] * 2
    assert [c.function.arguments for c in final.message.tool_calls] == ['{"city": "Köln"}'] * 2


def test_errors_are_those_of_the_client(client):
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="scripted", messages=ASKED, extra_body={"top_kk": 3})
    assert caught.value.param == "top_kk"
    assert caught.value.code == "unknown_parameter"
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="other", messages=ASKED)
    with pytest.raises(openai.BadRequestError, match="context"):
        client.chat.completions.create(model="scripted", messages=ASKED, max_tokens=5000)
    assert [model.id for model in client.models.list()] == ["scripted"]


def test_many_at_once_with_the_asynchronous_client(url, host):
    async def all_of():
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:

            async def one(i):
                said = ""
                stream = await client.chat.completions.create(
                    model="scripted",
                    messages=ASKED if i % 2 else [{"role": "user", "content": "so"}],
                    stream=True,
                )
                async for chunk in stream:
                    said += chunk.choices[0].delta.content or ""
                return said

            return await asyncio.gather(*(one(i) for i in range(20)))

    assert asyncio.run(all_of()) == ["on", "Hello! How are you?"] * 10
    until(lambda: host.engine.load().running == 0)


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_vanishes_frees_its_place_within_a_second(url, host, stream):
    body = {"messages": [{"role": "user", "content": "long"}], "stream": stream, "n": 2}
    with httpx.Client(timeout=10) as client:
        with client.stream("POST", f"{url}/v1/chat/completions", json=body) if stream else _unread(url, body):
            until(lambda: host.engine.load().running == 1)
        assert until(lambda: host.engine.load().running + host.engine.load().waiting == 0, 5) < 1


class _unread:  # noqa: N801 - used as a function
    """A request whose sender goes before there is an answer."""

    def __init__(self, url, body):
        self.request = httpx.Request("POST", f"{url}/v1/chat/completions", json=body)

    def __enter__(self):
        host, port = self.request.url.host, self.request.url.port
        self.socket = socket.create_connection((host, port))
        head = f"POST {self.request.url.path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
        body = self.request.read()
        self.socket.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)

    def __exit__(self, *_):
        self.socket.close()


def test_a_port_that_is_taken():
    first = open_port("127.0.0.1", 0)
    port = int(url_of(first).rpartition(":")[2])
    with pytest.raises(RunError, match=f"port {port} is taken") as caught:
        open_port("127.0.0.1", port)
    assert "--port 0" in str(caught.value)
    with pytest.raises(RunError, match=r"none of this machine's|cannot be used"):
        open_port("203.0.113.7", 0)
    first.close()


def test_a_client_that_goes_in_the_middle_of_its_body_is_no_fault(url, caplog):
    name, _, port = url.removeprefix("http://").rpartition(":")
    with socket.create_connection((name, int(port))) as one:
        head = f"POST /v1/completions HTTP/1.1\r\nHost: {name}\r\nContent-Type: application/json\r\n"
        one.sendall(f"{head}Content-Length: 1000\r\n\r\n{{".encode())
        time.sleep(0.05)

    def counted():
        text = httpx.get(f"{url}/metrics").text
        return 'imprint_requests_total{path="/v1/completions",status="499"} 1.0' in text

    until(counted, 5)
    assert "Exception" not in caplog.text


class Served:
    """`imprint serve …` in a process of its own."""

    def __init__(self, *arguments, **more):
        self.process = subprocess.Popen(
            [sys.executable, "-m", "imprint.cli", "serve", *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**environment(), "COLUMNS": "80", **more},
        )
        self.lines = []
        for line in self.process.stdout:
            self.lines.append(line)
            if "Ctrl-C" in line:
                break
        (self.url,) = [line.split()[1] for line in self.lines if line.startswith("serving")] or [""]

    def end(self, number):
        self.process.send_signal(number)
        rest, _ = self.process.communicate(timeout=30)
        return self.process.returncode, rest


@pytest.mark.slow
def test_the_verb(tiny):
    """What it prints; a request under way is finished after SIGTERM; a second server finds the port taken."""
    served = Served(tiny, "--template", "chatml", "--port", "0", "--name", "small", IMPRINT_TOKEN="abc")
    try:
        printed = "".join(served.lines)
        assert "models     small" in printed
        assert "$IMPRINT_TOKEN" in printed
        assert "abc" not in printed
        with openai.OpenAI(base_url=served.url, api_key="abc", max_retries=0) as client:
            stream = client.chat.completions.create(
                model="small", messages=ASKED, stream=True, max_tokens=60, temperature=0
            )
            first = next(iter(stream))
            served.process.send_signal(signal.SIGTERM)
            finish = [chunk.choices[0].finish_reason for chunk in stream][-1]
        assert first.model == "small"
        assert finish in ("length", "stop")
    finally:
        code, rest = served.end(signal.SIGTERM)
    assert (code, rest) == (0, "")


@pytest.mark.slow
def test_ctrl_c_ends_with_130(tiny):
    served = Served(tiny, "--template", "chatml", "--port", "0", "--drain", "0")
    port = served.url.rpartition(":")[2].removesuffix("/v1")
    other = Served(tiny, "--template", "chatml", "--port", port)
    assert other.process.wait(60) == 2
    other.process.stdout.close()
    assert f"port {port} is taken" in "".join(other.lines)
    code, rest = served.end(signal.SIGINT)
    assert code == 130
    assert "Traceback" not in rest


def test_an_open_address_needs_a_token(cli, tiny, monkeypatch):
    monkeypatch.delenv("IMPRINT_TOKEN", raising=False)
    done = cli("serve", tiny, "--host", "0.0.0.0", "--port", "0")
    assert done.code == 2
    assert "IMPRINT_TOKEN" in done.err
    monkeypatch.setenv("EMPTY", " ")
    done = cli("serve", tiny, "--token-env", "EMPTY", "--port", "0")
    assert (done.code, "environment variable EMPTY" in done.err) == (2, True)
    done = cli("serve", tiny, "--adapter", "x", "--port", "0")
    assert (done.code, "NAME=FOLDER" in done.err) == (2, True)


@pytest.mark.parametrize(
    ("given", "right"),
    [
        ("http://page.example/", "http://page.example"),
        ("https://Page.example:3000/a?b", "https://page.example:3000"),
        ("page.example", "http://page.example"),
        ("localhost:3000", "http://localhost:3000"),
    ],
)
def test_an_origin_that_no_browser_sends_is_refused(given, right, cli, tiny):
    done = cli("serve", tiny, "--allow-origin", given, "--port", "0")
    assert done.code == 2
    assert done.err.rstrip().endswith(f"to fix    --allow-origin {right}")


def test_a_missing_extra_is_named(cli, tiny, monkeypatch):
    monkeypatch.setattr("imprint.cli_serve._NEEDED", ("fastapi", "no_such_package"))
    done = cli("serve", tiny)
    assert done.code == 2
    assert "pip install 'imprint-sft[web]'" in done.err


def test_nothing_of_a_request_is_printed(capfd, url):
    httpx.post(f"{url}/v1/chat/completions", json={"messages": [{"role": "user", "content": "SECRETWORD"}]})
    httpx.post(f"{url}/v1/chat/completions", json={"messages": [{"role": "SECRETWORD"}]})
    time.sleep(0.05)
    assert "SECRETWORD" not in "".join(capfd.readouterr())
    assert os.environ.get("IMPRINT_TOKEN") is None
