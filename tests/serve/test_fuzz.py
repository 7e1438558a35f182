"""Whatever a body holds, the answer is of the schema's and no 5xx: drawn from the schema, and spoiled."""

from __future__ import annotations

import asyncio
import json

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from imprint.serve import replies
from imprint.serve.api import make_app
from imprint.serve.hosted import Host, Limits
from serve.live import byte_rendering, running, scripted_host

PATHS = {
    "/v1/chat/completions": replies.ChatCompletion,
    "/v1/completions": replies.Completion,
    "/tokenize": replies.Tokenized,
    "/detokenize": replies.Detokenized,
}
USUAL = {"deadline": None, "suppress_health_check": list(HealthCheck)}


@pytest.fixture(scope="module")
def host():
    made = scripted_host({}, byte_rendering(), context=1024)
    made.limits = Limits(seconds=20, reply=8)
    yield made
    made.engine.close()


@pytest.fixture(scope="module")
def app(host):
    return make_app(host)


def sent(app, path, content, method="POST"):
    async def once():
        transport = httpx.ASGITransport(app)  # an exception in the app is raised here
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=60) as client:
            return await client.request(
                method, path, content=content, headers={"content-type": "application/json"}
            )

    return asyncio.run(once())


def schema_of(app):
    return sent(app, "/openapi.json", b"", "GET").json()


def checked(whole, path, answer):
    """The status of an answer, which is one that the schema knows, of the form that it says."""
    assert answer.status_code < 500, answer.text
    assert str(answer.status_code) in whole["paths"][path]["post"]["responses"], answer.text
    if answer.headers["content-type"] == "application/json":
        model = PATHS[path] if answer.status_code == 200 else replies.ErrorReply
        model.model_validate_json(answer.content)
    return answer.status_code


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)
GOOD = {
    "/v1/chat/completions": {
        "messages": [
            {"role": "system", "content": "x"},
            {"role": "user", "content": [{"type": "text", "text": "y"}]},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [{"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
            },
            {"role": "tool", "content": "z", "tool_call_id": "a"},
        ],
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
        "temperature": 0.5,
        "top_p": 0.5,
        "n": 2,
        "stop": ["a"],
        "max_tokens": 3,
        "logprobs": True,
        "top_logprobs": 2,
        "stream": True,
        "stream_options": {"include_usage": True},
        "seed": 3,
        "chat_template_kwargs": {},
    },
    "/v1/completions": {
        "prompt": [[3, 4], [5]],
        "max_tokens": 3,
        "echo": True,
        "logprobs": 2,
        "stop": "x",
        "seed": -1,
        "presence_penalty": 1,
    },
    "/tokenize": {"prompt": "x", "add_special_tokens": True, "return_token_strs": True},
    "/detokenize": {"tokens": [3, 4, 5]},
}


def places(value, at=()):
    yield at
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from places(inner, (*at, key))
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            yield from places(inner, (*at, i))


def spoiled(body, place, value):
    made = json.loads(json.dumps(body))
    if not place:
        return value
    inner = made
    for part in place[:-1]:
        inner = inner[part]
    inner[place[-1]] = value
    return made


@pytest.mark.parametrize("path", PATHS)
def test_good_bodies_with_one_thing_spoiled(app, path):
    whole, good = schema_of(app), GOOD[path]
    assert checked(whole, path, sent(app, path, json.dumps(good).encode())) == 200

    @settings(max_examples=40, **USUAL)
    @given(st.sampled_from(list(places(good))), JSON)
    def each(place, value):
        content = json.dumps(spoiled(good, place, value)).encode()
        checked(whole, path, sent(app, path, content))

    each()


@pytest.mark.parametrize("path", PATHS)
def test_bytes(app, path):
    whole = schema_of(app)

    @settings(max_examples=25, **USUAL)
    @given(st.binary(max_size=60), st.integers(0, 400))
    def each(noise, at):
        good = json.dumps(GOOD[path]).encode()
        checked(whole, path, sent(app, path, good[:at] + noise + good[at + len(noise) :]))

    each()


WANTED = {
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
    "negative_data_rejection",
    "unsupported_method",
}


def by_schema(host, examples):
    """Every path and method with what the schema allows and what it does not; what is not allowed is refused."""
    import schemathesis
    from schemathesis import checks as known

    known.load_all_checks()
    checks = [check for check in known.CHECKS.get_all() if check.__name__ in WANTED]
    assert {check.__name__ for check in checks} == WANTED
    drawn = 0
    with running(Host(host.engine, host.models, Limits(seconds=20, reply=4))) as url:
        for result in schemathesis.openapi.from_url(f"{url}/openapi.json").get_all_operations():
            operation = result.ok()
            modes = [schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE]

            @settings(max_examples=examples, **USUAL)
            @given(case=st.one_of([operation.as_strategy(generation_mode=mode) for mode in modes]))
            def each(case):
                nonlocal drawn
                drawn += 1
                if isinstance(case.body, dict):  # hundreds of choices would test the engine's patience
                    for key, most in (("n", 3), ("max_tokens", 8), ("max_completion_tokens", 8)):
                        if type(case.body.get(key)) is int and case.body[key] > most:
                            case.body[key] = most
                case.call_and_validate(checks=checks)

            each()
    return drawn


def test_bodies_of_the_schema(host):
    assert by_schema(host, 8) > 40


@pytest.mark.slow
def test_many_bodies_of_the_schema(host):
    assert by_schema(host, 150) > 600
