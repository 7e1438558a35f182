"""The server's answers: what is asked is done or refused by name, and every fault has OpenAI's shape."""

from __future__ import annotations

import asyncio
import json
from contextlib import contextmanager

import httpx
import pytest

from imprint.serve.api import make_app
from imprint.serve.engine import Full
from imprint.serve.hosted import Limits
from serve.live import byte_rendering, scripted_host, until

ASKED = {"messages": [{"role": "user", "content": "Hi"}]}
CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
SHAPE = {"message", "type", "param", "code"}
REPLIES = {"Hi<|im_end|>\n<|im_start|>assistant\n": "Hello! How are you?", "once": " upon a time, – ☃ – so."}


@pytest.fixture(scope="module")
def host():
    made = scripted_host(REPLIES)
    yield made
    made.engine.close()


@contextmanager
def client_of(host, **options):
    async def asked(method, path, **more):
        transport = httpx.ASGITransport(make_app(host, **options), raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=60) as client:
            return await client.request(method, path, **more)

    yield lambda method, path, **more: asyncio.run(asked(method, path, **more))


@pytest.fixture
def ask(host):
    with client_of(host) as asked:
        yield lambda path, body: asked("POST", path, json=body)


def fault(response):
    """(status, param, message) of an error, which has OpenAI's shape."""
    error = response.json()["error"]
    assert set(error) == SHAPE
    return response.status_code, error["param"], error["message"]


def events(response):
    lines = [line for line in response.text.split("\n\n") if line]
    assert all(line.startswith("data: ") for line in lines)
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


def test_a_reply(ask):
    answer = ask(CHAT, {**ASKED, "temperature": 0}).json()
    (choice,) = answer["choices"]
    assert choice["message"] == {"role": "assistant", "content": "Hello! How are you?", "refusal": None}
    assert choice["finish_reason"] == "stop"
    assert answer["usage"]["completion_tokens"] == len("Hello! How are you?")
    assert answer["usage"]["total_tokens"] == answer["usage"]["prompt_tokens"] + len("Hello! How are you?")


def test_a_stream_begins_with_the_role_and_ends_with_the_usage(ask):
    found = events(ask(CHAT, {**ASKED, "stream": True, "stream_options": {"include_usage": True}}))
    assert found[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert "".join(e["choices"][0]["delta"].get("content", "") for e in found[:-1]) == "Hello! How are you?"
    assert found[-2]["choices"][0]["finish_reason"] == "stop"
    assert found[-1]["choices"] == []
    assert found[-1]["usage"]["completion_tokens"] == 19
    assert {e["usage"] for e in found[:-1]} == {None}
    assert len({e["id"] for e in found}) == 1
    assert all("usage" not in e for e in events(ask(CHAT, {**ASKED, "stream": True})))


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("stop", "said", "finish"),
    [
        ("How", "Hello! ", "stop"),
        (["zzz", "o! H"], "Hell", "stop"),
        ("!", "Hello", "stop"),
        ("you? Fine", "Hello! How are you?", "stop"),
        ("Hello", "", "stop"),
    ],
)
def test_stop_strings_across_tokens(ask, stream, stop, said, finish):
    body = {**ASKED, "stop": stop, "stream": stream, "logprobs": True}
    if stream:
        choices = [event["choices"][0] for event in events(ask(CHAT, body))]
        text = "".join(choice["delta"].get("content", "") for choice in choices)
        logprobs = [one for c in choices for one in (c["logprobs"] or {"content": []})["content"]]
    else:
        choices = ask(CHAT, body).json()["choices"]
        text, logprobs = choices[0]["message"]["content"], choices[0]["logprobs"]["content"]
    assert text == said
    assert choices[-1]["finish_reason"] == finish
    assert "".join(one["token"] for one in logprobs) == said


def test_a_length(ask):
    (choice,) = ask(CHAT, {**ASKED, "max_completion_tokens": 5}).json()["choices"]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("Hello", "length")


def test_several_choices(ask):
    answer = ask(CHAT, {**ASKED, "n": 3}).json()
    assert [c["index"] for c in answer["choices"]] == [0, 1, 2]
    assert {c["message"]["content"] for c in answer["choices"]} == {"Hello! How are you?"}
    found = events(ask(CHAT, {**ASKED, "n": 3, "stream": True}))
    for index in range(3):
        mine = [e["choices"][0] for e in found if e["choices"][0]["index"] == index]
        assert "".join(c["delta"].get("content", "") for c in mine) == "Hello! How are you?"
        assert [c["finish_reason"] for c in mine if c["finish_reason"]] == ["stop"]


def test_log_probabilities(ask):
    (choice,) = ask(CHAT, {**ASKED, "logprobs": True, "top_logprobs": 2, "max_tokens": 2}).json()["choices"]
    told = choice["logprobs"]["content"]
    assert [one["token"] for one in told] == ["H", "e"]
    assert [one["bytes"] for one in told] == [[72], [101]]
    assert all(
        len(one["top_logprobs"]) == 2 and one["top_logprobs"][0]["token"] == one["token"] for one in told
    )
    assert all(-0.1 < one["logprob"] <= 0 for one in told)


@pytest.mark.parametrize("stream", [False, True])
def test_completions_echo_and_offsets(ask, stream):
    body = {
        "prompt": "It was once",
        "max_tokens": 40,
        "echo": True,
        "logprobs": 1,
        "stream": stream,
    }
    answer = ask(TEXT, body)
    choices = [e["choices"][0] for e in events(answer)] if stream else answer.json()["choices"]
    text = "".join(choice["text"] for choice in choices)
    assert text == "It was once upon a time, – ☃ – so."
    told = {key: [x for c in choices for x in c["logprobs"][key]] for key in choices[0]["logprobs"]}
    assert told["token_logprobs"][0] is None
    assert told["top_logprobs"][0] is None
    assert told["tokens"][:3] == ["I", "t", " "]
    assert "bytes:\\xe2" in told["tokens"]
    whole = [i for i, token in enumerate(told["tokens"]) if not token.startswith("bytes") and token[0] != "<"]
    assert all(
        text[told["text_offset"][i] :].startswith(told["tokens"][i])
        for i in whole
        if told["tokens"][i] in text
    )
    assert told["tokens"][-1] == "<|im_end|>"  # where a score needs it: the stop, without a text
    assert len({len(values) for values in told.values()}) == 1
    assert choices[-1]["finish_reason"] == "stop"


def test_completions_of_several_prompts(ask):
    ids = ask("/tokenize", {"prompt": "It was once"}).json()["tokens"]
    answer = ask(TEXT, {"prompt": [ids, ids[-4:]], "max_tokens": 5, "n": 2}).json()
    assert [(c["index"], c["text"]) for c in answer["choices"]] == [(i, " upon") for i in range(4)]
    assert answer["usage"]["prompt_tokens"] == len(ids) + 4
    assert ask(TEXT, {"prompt": "once", "max_tokens": 0, "echo": True}).json()["choices"][0]["text"] == "once"


def test_tokens_and_back(ask):
    found = ask("/tokenize", {"prompt": "a – ☃", "return_token_strs": True}).json()
    assert found["count"] == len(found["tokens"]) == len(found["token_strs"])
    assert found["max_model_len"] == 4096
    assert ask("/detokenize", {"tokens": found["tokens"]}).json() == {"prompt": "a – ☃"}
    chat = ask("/tokenize", ASKED).json()["tokens"]
    assert (
        ask("/detokenize", {"tokens": chat})
        .json()["prompt"]
        .endswith("Hi<|im_end|>\n<|im_start|>assistant\n")
    )
    bare = ask("/tokenize", {**ASKED, "add_generation_prompt": False}).json()["tokens"]
    assert chat[: len(bare)] == bare
    assert len(bare) < len(chat)


def test_models(host):
    with client_of(host) as asked:
        listed = asked("GET", "/v1/models").json()
        assert [card["id"] for card in listed["data"]] == ["scripted"]
        assert asked("GET", "/v1/models/scripted").json() == listed["data"][0]
        assert fault(asked("GET", "/v1/models/other"))[0] == 404
        assert asked("GET", "/health").json() == {"status": "ok"}


@pytest.mark.parametrize(
    ("path", "more", "status", "param", "said"),
    [
        (CHAT, {"max_tokenz": 3}, 400, "max_tokenz", "nearest is `max_tokens`"),
        (CHAT, {"zzz": 3}, 400, "zzz", "no field `zzz`"),
        (CHAT, {"stream_options": {"include_usag": True}, "stream": True}, 400, "stream_options.include_usag",
         "`include_usage`"),
        (CHAT, {"messages": [{"role": "user", "contnet": "x"}]}, 400, "messages[0].contnet", "`content`"),
        (CHAT, {"logit_bias": {"3": 1}}, 400, "logit_bias", "not supported"),
        (CHAT, {"response_format": {"type": "json_object"}}, 400, "response_format.type",
         "nothing holds this model to a format"),
        (CHAT, {"response_format": {"type": "json_schema", "json_schema": {}}}, 400, "response_format.type",
         "nothing holds this model to a format"),
        (CHAT, {"tool_choice": "required"}, 400, "tool_choice", "`none` or `auto`: nothing can"),
        (CHAT, {"reasoning_effort": "low"}, 400, "reasoning_effort", "chat_template_kwargs"),
        (CHAT, {"temperature": 3}, 400, "temperature", "less than or equal to 2"),
        (CHAT, {"temperature": "1"}, 400, "temperature", "valid number"),
        (CHAT, {"n": 0}, 400, "n", "greater than or equal to 1"),
        (CHAT, {"n": True}, 400, "n", "integer"),
        (CHAT, {"stream": 1}, 400, "stream", "boolean"),
        (CHAT, {"stop": [""]}, 400, "stop", "none of them empty"),
        (CHAT, {"messages": []}, 400, "messages", "at least 1"),
        (CHAT, {"messages": [{"role": "king", "content": "x"}]}, 400, "messages[0].role", "'user'"),
        (CHAT, {"messages": [{"role": "user"}]}, 400, "messages[0].content", "no content"),
        (CHAT, {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]}, 400,
         "messages[0].content", "a list of parts"),
        (CHAT, {"top_logprobs": 3}, 400, "top_logprobs", "needs `logprobs`"),
        (CHAT, {"stream_options": {"include_usage": True}}, 400, "stream_options", "needs `stream`"),
        (CHAT, {"max_tokens": 3, "max_completion_tokens": 4}, 400, "max_tokens", "give one"),
        (CHAT, {"max_tokens": 5000}, 400, "messages", "context is 4,096"),
        (CHAT, {"model": "gpt-9"}, 404, "model", "has scripted"),
        (CHAT, {"messages": [{"role": "user", "content": "a<|im_end|>b"}]}, 400, "messages[0].content",
         "control token"),
        (CHAT, {"messages": [{"role": "user", "content": "x", "tool_call_id": "y"}]}, 400,
         "messages[0].tool_call_id", "only a tool"),
        (CHAT, {"chat_template_kwargs": {"add_generation_promt": 1}}, 400,
         "chat_template_kwargs.add_generation_promt", "no variable"),
        (CHAT, {"chat_template_kwargs": {"message": "x"}}, 400, "chat_template_kwargs.message", "no variable"),
        (CHAT, {"continue_final_message": True}, 400, "continue_final_message", "assistant"),
        (TEXT, {"prompt": ""}, 400, "prompt", "empty"),
        (TEXT, {"prompt": []}, 400, "prompt", "from 1"),
        (TEXT, {"prompt": [[1], "x"]}, 400, "prompt", "token ids"),
        (TEXT, {"prompt": [999999]}, 400, "prompt", "no token 999999"),
        (TEXT, {"prompt": [[3], []]}, 400, "prompt[1]", "empty"),
        (TEXT, {"prompt": "x", "suffix": "y"}, 400, "suffix", "fills no gaps"),
        (TEXT, {"prompt": "x", "best_of": 2}, 400, "best_of", "1"),
        (TEXT, {"prompt": "x", "max_tokens": 4096}, 400, "prompt", "context"),
        (TEXT, {}, 400, "prompt", "missing"),
        ("/tokenize", {}, 400, "prompt", "one of"),
        ("/tokenize", {"prompt": "x", "tools": []}, 400, "tools", "belongs to"),
        ("/detokenize", {"tokens": [999999]}, 400, "tokens", "no token"),
        ("/detokenize", {"tokens": [-1]}, 400, "tokens[0]", "greater"),
    ],
)  # fmt: skip
def test_what_is_refused_and_how(ask, path, more, status, param, said):
    body = {**ASKED, **more} if path == CHAT else more
    found = fault(ask(path, body))
    assert found[0] == status, found
    assert param is None or found[1] == param, found
    assert said in found[2], found


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b"", 400),
        (b"{", 400),
        (b"[]", 400),
        (b'"x"', 400),
        (b"\xff\xfe", 400),
        (b'{"messages": NaN}', 400),
        (b'{"prompt": "\\ud800"}', 400),
        (b'{"\\ud800": 1, "\\ud800": 2}', 400),
        (b'{"n": 1, "n": 2}', 400),
        (b'{"temperature": 1e999}', 400),
        (b'{"seed": ' + b"9" * 5000 + b"}", 400),
        (b'{"messages": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", 400),
        (b'{"chat_template_kwargs": ' + b'{"a":' * 200 + b"1" + b"}" * 201, 400),
        (b" " * 5000, 413),
    ],
)
def test_bodies_that_are_no_json(host, content, status):
    limited = type(host)(host.engine, host.models, Limits(bytes=4096 if status == 413 else 1 << 20))
    with client_of(limited) as asked:
        for path in (CHAT, TEXT, "/tokenize", "/detokenize"):
            answer = asked("POST", path, content=content, headers={"content-type": "application/json"})
            assert fault(answer)[0] == status
    answer = asked("POST", CHAT, content=b"{}", headers={"content-type": "text/plain"})
    assert fault(answer)[0] == 415


def test_a_body_without_a_length_is_limited_too(host):
    async def parts():
        for _ in range(100):
            yield b" " * 100

    limited = type(host)(host.engine, host.models, Limits(bytes=4096))
    with client_of(limited) as asked:
        answer = asked("POST", CHAT, content=parts(), headers={"content-type": "application/json"})
    assert fault(answer)[0] == 413


def test_other_paths_and_methods(host):
    with client_of(host) as asked:
        assert fault(asked("POST", "/v1/chat/completion", json={}))[2].endswith(CHAT)
        assert fault(asked("GET", CHAT))[0] == 405
        assert "chat" in asked("GET", "/openapi.json").text


def test_a_template_that_refuses_says_why():
    source = (
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('No system here') }}{% endif %}"
        "<|im_start|>{{ m.content }}<|im_end|>{% endfor %}{% if add_generation_prompt %}<|im_start|>{% endif %}"
    )
    host = scripted_host({}, byte_rendering(source))
    with client_of(host) as asked:
        body = {"messages": [{"role": "system", "content": "x"}, {"role": "user", "content": "y"}]}
        status, param, message = fault(asked("POST", CHAT, json=body))
        assert (status, param) == (400, "messages")
        assert "No system here" in message
        tools = [{"type": "function", "function": {"name": "f"}}]
        assert fault(asked("POST", CHAT, json={**ASKED, "tools": tools}))[1] == "tools"
        assert asked("POST", CHAT, json={**ASKED, "tools": tools, "tool_choice": "none"}).status_code == 200
    host.engine.close()


def test_typed_parts_are_the_text_that_they_hold(ask):
    parts = [{"type": "text", "text": "H"}, {"type": "text", "text": "i"}]
    body = {"messages": [{"role": "user", "content": parts}]}
    assert ask("/tokenize", body).json() == ask("/tokenize", ASKED).json()


def test_a_reply_goes_on(ask):
    messages = [*ASKED["messages"], {"role": "assistant", "content": "Hello!"}]
    answer = ask(CHAT, {"messages": messages, "continue_final_message": True}).json()
    assert answer["choices"][0]["message"]["content"] == " How are you?"


THINKING = """{% for m in messages %}<|im_start|>{{ m.role }}
{% if m.role == 'assistant' and m.reasoning_content %}<think>
{{ m.reasoning_content }}
</think>

{% endif %}{{ m.content }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% if enable_thinking is defined and not enable_thinking %}<think>

</think>

{% endif %}{% endif %}"""


def test_thoughts_stand_apart_and_can_be_switched_off():
    asked_by = "Hi<|im_end|>\n<|im_start|>assistant\n"
    host = scripted_host(
        {
            asked_by: "<think>\nThey greet.\n</think>\n\nHello!",
            asked_by + "<think>\n\n</think>\n\n": "Hello!",
        },
        byte_rendering(THINKING),
    )
    with client_of(host) as asked:
        message = asked("POST", CHAT, json=ASKED).json()["choices"][0]["message"]
        assert (message["reasoning_content"], message["content"]) == ("They greet.", "Hello!")
        found = events(asked("POST", CHAT, json={**ASKED, "stream": True}))
        deltas = [e["choices"][0]["delta"] for e in found]
        assert "".join(d.get("reasoning_content", "") for d in deltas) == "They greet."
        assert "".join(d.get("content", "") for d in deltas) == "Hello!"
        off = {**ASKED, "chat_template_kwargs": {"enable_thinking": False}}
        message = asked("POST", CHAT, json=off).json()["choices"][0]["message"]
        assert "reasoning_content" not in message
        assert message["content"] == "Hello!"
        # a reply that is sent back is rendered with its thought
        back = {
            "messages": [*ASKED["messages"], {"role": "assistant", "content": "A", "reasoning_content": "B"}]
        }
        ids = asked("POST", "/tokenize", json=back).json()["tokens"]
        assert (
            "<think>\nB\n</think>\n\nA" in asked("POST", "/detokenize", json={"tokens": ids}).json()["prompt"]
        )
    host.engine.close()


def test_a_full_queue(host):
    slow = scripted_host(REPLIES, delay=0.05, max_waiting=1)
    waiting = [slow.engine.submit(_ask(slow))]
    until(lambda: slow.engine.load().running == 1)
    waiting.append(slow.engine.submit(_ask(slow)))
    with pytest.raises(Full):
        slow.engine.submit(_ask(slow))
    with client_of(slow) as asked:
        for more in ({}, {"stream": True}, {"n": 2}):
            answer = asked("POST", CHAT, json={**ASKED, **more})
            assert fault(answer)[0] == 429
            assert int(answer.headers["retry-after"]) >= 1
        for stream in waiting:
            stream.cancel()
        until(lambda: slow.engine.load().running == 0)
        assert asked("POST", CHAT, json={**ASKED, "n": 4, "max_tokens": 2}).status_code == 200  # one by one
    slow.engine.close()


def _ask(host):
    from imprint.serve.engine import Ask

    ids = [int(i) for i in host.models[0].rendering.encoder.encode([next(iter(REPLIES))])[0]]
    return Ask(ids, 50)


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_that_takes_too_long(stream):
    slow = scripted_host(REPLIES, delay=0.05)
    slow.limits = Limits(seconds=0.3)
    with client_of(slow) as asked:
        answer = asked("POST", CHAT, json={**ASKED, "stream": stream})
        if stream:
            last = json.loads(answer.text.split("\n\n")[-2].removeprefix("data: "))
            assert last["error"]["code"] == "timeout"
            assert "[DONE]" not in answer.text
        else:
            assert fault(answer)[0] == 408
            assert answer.headers["x-should-retry"] == "false"
        until(lambda: slow.engine.load().running == 0, 1)
    slow.engine.close()


def test_an_engine_that_breaks_is_a_500_of_the_same_shape(host, monkeypatch):
    def broken(*_):
        raise RuntimeError("secret words")

    monkeypatch.setattr(host.engine, "submit", broken)
    with client_of(host) as asked:
        answer = asked("POST", CHAT, json=ASKED)
    assert fault(answer)[0] == 500
    assert "secret" not in answer.text


def test_who_may_ask(host):
    with client_of(host, token="abc") as asked:
        assert fault(asked("GET", "/v1/models"))[0] == 401
        for wrong in ("abd", "", "abcd", "ä"):
            headers = {"authorization": f"Bearer {wrong}".encode()}
            assert fault(asked("GET", "/v1/models", headers=headers))[0] == 401
        right = {"authorization": "Bearer abc", "host": "example.com"}
        assert asked("GET", "/v1/models", headers=right).status_code == 200
        assert fault(asked("GET", "/metrics"))[0] == 401
        assert asked("GET", "/health").status_code == 200
    with client_of(host) as asked:
        assert fault(asked("GET", "/v1/models", headers={"host": "evil.example"}))[0] == 403
        for name in ("localhost:8000", "127.0.0.1:80", "[::1]:8000", "localhost", "127.0.0.2:80"):
            assert asked("GET", "/v1/models", headers={"host": name}).status_code == 200
        for name in ("127.evil.example", "127.0.0.2.evil.example", "10.0.0.1:8000", "[::2]:8000", "0.0.0.0"):
            assert fault(asked("GET", "/v1/models", headers={"host": name}))[0] == 403, name


def test_no_page_may_ask_unless_it_is_named(host):
    page = {"origin": "https://a.example", "access-control-request-method": "POST"}
    with client_of(host) as asked:
        assert "access-control-allow-origin" not in asked("OPTIONS", CHAT, headers=page).headers
    with client_of(host, token="t", origins=["https://a.example"]) as asked:
        answer = asked("OPTIONS", CHAT, headers=page)
        assert answer.headers["access-control-allow-origin"] == "https://a.example"


def test_metrics(host):
    with client_of(host) as asked:
        asked("POST", CHAT, json=ASKED)
        asked("GET", "/nowhere/at/all")
    app = make_app(host)

    async def twice():
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(app), base_url="http://localhost"
        ) as client:
            await client.post(CHAT, json=ASKED)
            await client.post(CHAT, json={})
            await client.get("/nowhere")
            return (await client.get("/metrics")).text

    text = asyncio.run(twice())
    assert 'imprint_requests_total{path="/v1/chat/completions",status="200"} 1.0' in text
    assert 'imprint_requests_total{path="/v1/chat/completions",status="400"} 1.0' in text
    assert 'imprint_requests_total{path="other",status="404"} 1.0' in text
    assert "imprint_first_token_seconds_count 1.0" in text
    assert "imprint_running 0.0" in text
