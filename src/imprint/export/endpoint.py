"""A server over HTTP as a candidate: whatever speaks OpenAI's API.

Asked are /chat/completions (greedy replies, with log-probabilities where it gives them), /completions with
`echo` (log-probabilities of given ids), and /tokenize as vLLM, imprint, SGLang and llama.cpp have it. Each may
be missing: what then cannot be seen is told.
"""

from __future__ import annotations

import ipaddress
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit, urlunsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from imprint.errors import RunFailed, UserError
from imprint.export.candidate import Asked, Reply
from imprint.export.golden import TOP, Example, Golden

KEY = (
    "IMPRINT_API_KEY"  # in the environment; OPENAI_API_KEY is never sent to a server that is only named here
)
SECONDS = 300.0  # for one answer
LARGEST = 64 << 20  # bytes of one answer
MISSING = (400, 404, 405, 422, 501)  # how servers say that they have no such thing


class _NoRedirect(HTTPRedirectHandler):
    """A key must not follow a redirection to somebody else."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


class EndpointCandidate:
    """A server that is asked for its greedy replies, its tokens and its log-probabilities."""

    def __init__(self, url: str, golden: Golden, model: str = ""):
        self.url = checked_url(url)
        self.golden = golden
        self.texts = {
            number: text
            for example in golden.examples
            for given in (example.reply, example.greedy)
            for number, text in zip(given.ids, given.tokens, strict=True)
        } | dict(zip(golden.stop_ids, golden.stops, strict=True))
        self.offers = {"tokenize": True, "echo": True, "logprobs": True}
        self.model = self._model(model)
        self.name = f"{self.model} at {self.url}"
        self.scored: dict[tuple[int, ...], list[dict[int, float]]] = {}  # of greedy replies, by their ids
        self.replies: dict[str, Reply] = {}  # by their prompts
        self.counts: dict[str, int] = {}  # tokens of each prompt, where a reply told it

    # ---- what is asked

    def stops(self) -> None:
        return None

    def bos(self) -> None:
        return None

    def prompt(self, example: Example) -> Asked | None:
        if self.offers["tokenize"]:
            found = self._tokenized(example)
            if found is not None:
                return found
            self.offers["tokenize"] = False
        self.greedy(example)
        count = self.counts.get(example.prompt)
        return None if count is None else Asked(None, None, count)

    def logprobs(
        self, prompt: Sequence[int], continuation: Sequence[int], wanted: Sequence[Sequence[int]]
    ) -> Sequence[Mapping[int, float]] | None:
        found = self._echoed(prompt, continuation) if self.offers["echo"] else None
        if found is None:
            self.offers["echo"] = False
            for example in self.golden.examples:  # its own replies may come with theirs
                if list(example.prompt_ids) == list(prompt):
                    self.greedy(example)
            return self.scored.get((*prompt, -1, *continuation), [{} for _ in continuation])
        return found

    def greedy(self, example: Example) -> Reply:
        if example.prompt not in self.replies:
            self.replies[example.prompt] = self._answered(example)
        return self.replies[example.prompt]

    def _answered(self, example: Example) -> Reply:
        body: dict[str, Any] = {
            "model": self.model,
            "messages": as_sent(example.messages),
            "temperature": 0,
            "max_tokens": example.limit,
        }
        if example.tools:
            body["tools"] = list(example.tools)
        found = None
        if self.offers["logprobs"]:
            found = self._post("/chat/completions", {**body, "logprobs": True, "top_logprobs": TOP})
            self.offers["logprobs"] = found is not None
        if found is None:
            found = self._post("/chat/completions", body, needed=True)
        return self._reply(example, found or {})

    def token(self, number: int) -> str:
        return self.texts.get(number, f"token {number}")

    def notes(self) -> list[str]:
        """What this server could not show of log-probabilities."""
        if self.offers["echo"]:
            return []
        if any(some for rows in self.scored.values() for some in rows):
            return [
                "log-probabilities: only those of its own replies; /completions has no echo for given tokens"
            ]
        return ["it tells no log-probabilities"]

    # ---- how it answers

    def _reply(self, example: Example, found: Mapping[str, Any]) -> Reply:
        try:
            (choice,) = found["choices"]
            message = choice["message"]
            usage = found.get("usage") or {}
            if isinstance(usage.get("prompt_tokens"), int):
                self.counts[example.prompt] = usage["prompt_tokens"]
            told = (choice.get("logprobs") or {}).get("content") or []
            tokens = [str(one["token"]) for one in told]
            self._remember(example, told)
            stopped = choice.get("finish_reason") in ("stop", "tool_calls", "function_call")
            if message.get("tool_calls") or message.get("reasoning_content"):  # taken apart by the server
                text = "".join(tokens) or None
                for stop in self.golden.stops if text else ():
                    text = text.removesuffix(stop) if text else text
            else:
                text = message.get("content") or ""
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise _strange(
                self.url, f"{type(error).__name__}: {error} in {json.dumps(found)[:200]}"
            ) from error
        if text is not None and text.strip() == example.text.strip():  # servers strip white space
            text = example.text
        return Reply(None, text, stopped)

    def _remember(self, example: Example, told: Sequence[Mapping[str, Any]]) -> None:
        """Keep the log-probabilities of a reply, as far as its tokens are those of the golden one."""
        rows: list[dict[int, float]] = []
        for place, number in enumerate(example.greedy.ids):
            same = place < len(told) and str(told[place]["token"]) == example.greedy.tokens[place]
            if not same:
                break
            rows.append({number: float(told[place]["logprob"])})
        rows += [{} for _ in range(len(example.greedy.ids) - len(rows))]
        self.scored[(*example.prompt_ids, -1, *example.greedy.ids)] = rows

    def _tokenized(self, example: Example) -> Asked | None:
        """A prompt's ids: of its messages (vLLM, imprint, SGLang), or of llama.cpp's rendering."""
        body = {"model": self.model, "messages": as_sent(example.messages), "add_generation_prompt": True}
        if example.tools:
            body["tools"] = list(example.tools)
        root = self.url.removesuffix("/v1")
        for place in (root, self.url):
            found = self._post("/tokenize", body, place)
            if found and isinstance(found.get("tokens"), list) and found["tokens"]:
                return Asked([int(i) for i in found["tokens"]])
        rendered = self._post("/apply-template", body, root)
        if not rendered or not isinstance(rendered.get("prompt"), str):
            return None
        text: str = rendered["prompt"]
        found = self._post("/tokenize", {"content": text, "add_special": True, "parse_special": True}, root)
        if not found or not isinstance(found.get("tokens"), list):
            return Asked(None, text)
        return Asked([int(i) for i in found["tokens"]], text)

    def _echoed(self, prompt: Sequence[int], continuation: Sequence[int]) -> list[dict[int, float]] | None:
        body = {
            "model": self.model,
            "prompt": [*prompt, *continuation],
            "max_tokens": 1,
            "temperature": 0,
            "echo": True,
            "logprobs": 1,
        }
        found = self._post("/completions", body)
        try:
            values = found["choices"][0]["logprobs"]["token_logprobs"] if found else []
        except (KeyError, TypeError, IndexError):
            return None
        values = values[len(prompt) : len(prompt) + len(continuation)]
        if len(values) < len(continuation) or any(value is None for value in values):
            return None
        return [{number: float(value)} for number, value in zip(continuation, values, strict=True)]

    def _model(self, asked: str) -> str:
        found = self._request("/models", None) or {}
        names = [str(one.get("id")) for one in found.get("data") or [] if isinstance(one, Mapping)]
        if asked or len(names) == 1:
            return asked or names[0]
        raise UserError(
            "the server has several models" if names else "the server does not list its models",
            where=self.url,
            found=", ".join(names[:8]) or "no names under /models",
            expected="the one that is compared",
            fix=f"--model {names[0] if names else 'NAME'}",
        )

    def _post(
        self, path: str, body: Mapping[str, Any], place: str = "", needed: bool = False
    ) -> dict[str, Any] | None:
        return self._request(path, body, place or self.url, needed)

    def _request(
        self, path: str, body: Mapping[str, Any] | None, place: str = "", needed: bool = True
    ) -> dict[str, Any] | None:
        """The JSON object that the server answers; None where it has no such thing, unless it is `needed`."""
        url = (place or self.url) + path
        headers = {"Content-Type": "application/json"}
        if os.environ.get(KEY):
            headers["Authorization"] = f"Bearer {os.environ[KEY]}"
        data = None if body is None else json.dumps(body).encode()
        try:
            with build_opener(_NoRedirect()).open(Request(url, data, headers), timeout=SECONDS) as answer:
                value = json.loads(answer.read(LARGEST))
        except HTTPError as error:
            if error.code in MISSING and not needed:
                return None
            said = " ".join(error.read(2000).decode(errors="replace").split())[:300]
            key = error.code in (401, 403)
            raise UserError(
                "the server refuses what it is asked",
                where=url,
                found=f"{error.code} {error.reason}: {said}",
                fix=f"give its key in the environment: {KEY}=…" if key else "see what it says in its own log",
            ) from error
        except (URLError, OSError) as error:
            raise RunFailed(
                "the server cannot be reached",
                where=url,
                found=str(getattr(error, "reason", error)),
                fix="start it, or check the address: --url http://127.0.0.1:8000/v1",
            ) from error
        except ValueError as error:
            if not needed:
                return None
            raise _strange(url, f"no JSON: {error}") from error
        return value if isinstance(value, dict) else None


def checked_url(url: str) -> str:
    """The URL without what belongs to none; UserError where it is none, or would tell a key to everybody."""
    parts = urlsplit(url.strip().rstrip("/"))
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.query:
        raise UserError(
            "this is not the address of a server",
            where=f"--url {url if not parts.username else '…'}",
            expected="http or https, a host, and the path of its OpenAI API",
            fix="--url http://127.0.0.1:8000/v1",
        )
    if parts.scheme == "http" and os.environ.get(KEY) and not _is_here(parts.hostname):
        raise UserError(
            "the key would go over the network unencrypted",
            where=f"--url {url}",
            found=f"{KEY} is set, and the address is http",
            fix=f"use https, a tunnel to 127.0.0.1, or unset {KEY}",
        )
    return urlunsplit((parts.scheme, parts.netloc, parts.path, "", ""))


def _is_here(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def as_sent(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Messages as a client sends them: contents as texts, the arguments of calls as JSON text."""
    return [_sent(message) for message in messages]


def _sent(message: Mapping[str, Any]) -> dict[str, Any]:
    out = {key: value for key, value in message.items() if key != "thinking"}  # one name for it is enough
    if isinstance(out.get("content"), list):
        out["content"] = "".join(str(part.get("text", "")) for part in out["content"])
    if "tool_calls" in out:
        out["tool_calls"] = [_sent_call(call) for call in out["tool_calls"]]
    if out["role"] == "tool":
        out.pop("name", None)  # OpenAI's tool messages have none: a server takes it from the call
    return out


def _sent_call(call: Mapping[str, Any]) -> dict[str, Any]:
    function = dict(call.get("function", call))
    arguments = function.get("arguments", {})
    if not isinstance(arguments, str):
        arguments = json.dumps(arguments, ensure_ascii=False)
    return {
        "id": str(call.get("id", "")),
        "type": "function",
        "function": {"name": function.get("name", ""), "arguments": arguments},
    }


def _strange(url: str, found: str) -> UserError:
    return UserError(
        "the server's answer is not what OpenAI's API gives",
        where=url,
        found=found,
        fix="check that --url ends where its OpenAI API begins, as in http://127.0.0.1:8000/v1",
    )
