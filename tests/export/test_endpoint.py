"""A server over HTTP: compared with what it shows, and told what it does not."""

from __future__ import annotations

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from imprint.errors import RunFailed, UserError
from imprint.export.endpoint import KEY, EndpointCandidate, as_sent, checked_url
from imprint.export.folder import FolderCandidate
from imprint.export.golden import read_golden
from imprint.export.parity import bar_for, replay


@pytest.fixture(scope="module")
def golden(trained):
    return read_golden(trained / "lora")


@pytest.fixture(scope="module")
def brain(trained, golden):
    """What stands behind the servers of these tests: the run's own adapter, in float32."""
    return FolderCandidate(trained / "lora" / "model", golden.now)


class Answers:
    """OpenAI's API over a FolderCandidate; `offers` names what beyond plain chat it has."""

    def __init__(self, golden, brain, offers=("echo", "logprobs", "tokenize"), models=("tuned",), before=""):
        self.golden, self.brain, self.offers, self.models, self.before = golden, brain, offers, models, before
        self.seen: list[tuple[str, dict, dict]] = []

    def answer(self, path, body):
        if path == "/v1/models":
            return {"data": [{"id": name} for name in self.models]}
        if path == "/tokenize" and "tokenize" in self.offers:
            return {"tokens": self.ids(body)}
        if path == "/v1/completions" and "echo" in self.offers:
            (rows,) = (
                self.brain.logprobs(
                    body["prompt"][:1], body["prompt"][1:], [[i] for i in body["prompt"][1:]]
                ),
            )
            return {
                "choices": [
                    {
                        "logprobs": {
                            "token_logprobs": [None, *(next(iter(row.values())) for row in rows), -1.0]
                        }
                    }
                ]
            }
        if path == "/v1/chat/completions":
            return self.chat(body)
        return None

    def ids(self, body):
        given = {"tools": body.get("tools"), "add_generation_prompt": True}
        messages = [dict(message) for message in body["messages"]]
        for message in messages:  # servers parse arguments before they render
            for call in message.get("tool_calls", ()):
                call["function"]["arguments"] = json.loads(call["function"]["arguments"])
        text = self.before + self.brain.tokenizer.apply_chat_template(messages, tokenize=False, **given)
        return self.brain.tokenizer(text, add_special_tokens=False).input_ids

    def chat(self, body):
        import torch

        if body.get("logprobs") and "logprobs" not in self.offers:
            return None
        ids = self.ids(body)
        out = self.brain.model.generate(
            input_ids=torch.tensor([ids]), max_new_tokens=body["max_tokens"], do_sample=False,
            eos_token_id=list(self.golden.stop_ids), pad_token_id=1,
        )[0, len(ids) :].tolist()  # fmt: skip
        stopped = out[-1] in self.golden.stop_ids
        rows = self.brain.logprobs(ids, out, [[i] for i in out])
        told = [{"token": self.brain.token(i), "logprob": row[i]} for i, row in zip(out, rows, strict=True)]
        text = self.brain.tokenizer.decode(out, skip_special_tokens=True)
        choice = {
            "message": {"role": "assistant", "content": text},
            "finish_reason": "stop" if stopped else "length",
        }
        if body.get("logprobs"):
            choice["logprobs"] = {"content": told}
        return {"choices": [choice], "usage": {"prompt_tokens": len(ids)}}


@contextmanager
def served(answers, refuse=0):
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.handle_it({})

        def do_POST(self):
            self.handle_it(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

        def handle_it(self, body):
            answers.seen.append((self.path, body, dict(self.headers)))
            found = None if refuse else answers.answer(self.path, body)
            data = json.dumps(
                found if found is not None else {"error": {"message": "no such thing"}}
            ).encode()
            self.send_response(refuse or (200 if found is not None else 404))
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def compared(golden, url):
    candidate = EndpointCandidate(url, golden)
    found = replay(golden, candidate, "float32", bar_for("float32", golden))
    return found, candidate


def test_a_server_that_shows_everything(golden, brain):
    answers = Answers(golden, brain)
    with served(answers) as url:
        found, candidate = compared(golden, url)
    assert found.equal, found
    assert found.prompts_equal == found.replies_equal == found.examples
    assert 0 < found.difference <= found.bar < 1e-3
    assert found.compared > 50
    assert found.stops_equal is None
    assert any("stop ids cannot be seen" in note for note in found.notes)
    assert candidate.notes() == []
    sent = [body for path, body, _ in answers.seen if path.endswith("/chat/completions")]
    assert all(body["temperature"] == 0 for body in sent)


def test_a_server_that_shows_little(golden, brain):
    with served(Answers(golden, brain, offers=())) as url:
        found, candidate = compared(golden, url)
    assert found.equal, found
    assert found.compared == 0
    assert found.difference is None
    assert found.prompts_equal == found.examples  # by their lengths
    assert any("only how many tokens" in note for note in found.notes)
    assert candidate.notes() == ["it tells no log-probabilities"]


def test_log_probabilities_of_its_own_replies(golden, brain):
    with served(Answers(golden, brain, offers=("logprobs",))) as url:
        found, candidate = compared(golden, url)
    assert found.equal, found
    assert found.compared > 20
    assert "only those of its own replies" in candidate.notes()[0]


@pytest.mark.parametrize("offers", [("tokenize",), ()])
def test_a_server_that_puts_a_second_bos(golden, brain, offers):
    with served(Answers(golden, brain, offers=offers, before="<|endoftext|>")) as url:
        found, _ = compared(golden, url)
    assert not found.equal
    assert found.prompts_equal == 0
    assert found.cause.startswith("BOS")


def test_a_server_with_other_weights(golden, trained):
    from transformers import AutoModelForCausalLM

    other = FolderCandidate(trained / "lora" / "model", golden.now)
    other.model = AutoModelForCausalLM.from_pretrained(trained / "base", dtype="float32").eval()
    with served(Answers(golden, other)) as url:
        found, _ = compared(golden, url)
    assert not found.equal
    assert found.difference > 100 * found.bar
    assert "the adapter is not applied" in found.cause
    assert found.divergence.inside == "reply"


def test_errors_say_what_to_do(golden, brain, monkeypatch):
    with served(Answers(golden, brain, models=("a", "b"))) as url:
        with pytest.raises(UserError, match="several models"):
            EndpointCandidate(url, golden)
        assert EndpointCandidate(url, golden, "b").name.startswith("b at http://127.0.0.1")
    with served(Answers(golden, brain), refuse=401) as url, pytest.raises(UserError, match=KEY):
        EndpointCandidate(url, golden)
    with pytest.raises(RunFailed, match="cannot be reached"):
        EndpointCandidate("http://127.0.0.1:9/v1", golden)
    for url in ("127.0.0.1:8000", "ftp://a/v1", "http://me:word@a/v1"):
        with pytest.raises(UserError, match="not the address") as caught:
            checked_url(url)
        assert "word" not in str(caught.value)


def test_a_key_is_sent_and_never_in_the_clear(golden, brain, monkeypatch):
    monkeypatch.setenv(KEY, "s3cret")
    answers = Answers(golden, brain)
    with served(answers) as url:
        EndpointCandidate(url, golden)
    assert answers.seen[0][2]["Authorization"] == "Bearer s3cret"
    with pytest.raises(UserError, match="unencrypted") as caught:
        checked_url("http://example.org/v1")
    assert "s3cret" not in str(caught.value)
    assert checked_url("https://example.org/v1/") == "https://example.org/v1"


def test_messages_as_a_client_sends_them():
    call = {"id": "a1", "function": {"name": "f", "arguments": {"x": 1}}}
    sent = as_sent(
        [
            {"role": "user", "content": [{"type": "text", "text": "Hi"}]},
            {
                "role": "assistant",
                "content": "",
                "tool_calls": [call],
                "reasoning_content": "r",
                "thinking": "r",
            },
            {"role": "tool", "content": "2", "name": "f", "tool_call_id": "a1"},
        ]
    )
    assert sent[0]["content"] == "Hi"
    assert sent[1]["tool_calls"] == [
        {"id": "a1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
    ]
    assert "thinking" not in sent[1]
    assert sent[2] == {"role": "tool", "content": "2", "tool_call_id": "a1"}
