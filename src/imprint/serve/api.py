"""The routes of the server, and what guards them. Every fault of a request's is an error of OpenAI's shape."""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import logging
from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from imprint import __version__
from imprint.errors import nearest
from imprint.serve.answer_chat import ChatAnswer
from imprint.serve.answer_completion import CompletionAnswer
from imprint.serve.body import parse, read
from imprint.serve.events import GONE, EventStream, json_response, problem_response, while_there
from imprint.serve.hosted import Host, Hosted
from imprint.serve.measure import Measured, Measures
from imprint.serve.problems import Problem, ended
from imprint.serve.prompt import chat_prompt, check_ids, text_prompt
from imprint.serve.replies import (
    ChatCompletion,
    Completion,
    Detokenized,
    ErrorReply,
    Health,
    ModelCard,
    ModelList,
    Tokenized,
)
from imprint.serve.schema import ChatRequest, CompletionRequest, DetokenizeRequest, TokenizeRequest

log = logging.getLogger(__name__)

_REFUSALS: dict[int | str, dict[str, Any]] = {
    400: {"model": ErrorReply, "description": "the request cannot be honoured; `param` says what of it"},
    401: {"model": ErrorReply, "description": "the token is missing or wrong"},
    404: {"model": ErrorReply, "description": "no such model"},
    408: {"model": ErrorReply, "description": "not finished within the server's time limit"},
    413: {"model": ErrorReply, "description": "the body is too large"},
    415: {"model": ErrorReply, "description": "the body is not application/json"},
    429: {"model": ErrorReply, "description": "the queue is full; Retry-After says when to try again"},
    503: {"model": ErrorReply, "description": "the server is stopping"},
}
_OPEN = frozenset({"/health"})  # answered without a token
_LOCAL_NAMES = ("127.0.0.1", "localhost", "[::1]")


def make_app(host: Host, *, token: str | None = None, origins: Sequence[str] = ()) -> ASGIApp:
    """The server's app. With `token`, everything but /health needs it; `origins` are pages that may ask (CORS).

    Without a token, only a Host header of this machine's own names is answered: a stranger's page could
    else reach a loopback address through a name of its own.
    """
    app = FastAPI(title="imprint", version=__version__, docs_url=None, redoc_url=None)
    measures = Measures(host.engine)
    _add_generation(app, host, measures)
    _add_tokens(app, host)
    _add_facts(app, host, measures)
    _add_errors(app)
    paths = frozenset(getattr(route, "path", "") for route in app.routes)
    app.openapi = lambda: _schema(app)  # type: ignore[method-assign]
    guarded: ASGIApp = Guard(app, token)
    if origins:
        guarded = CORSMiddleware(guarded, list(origins), allow_methods=["*"], allow_headers=["*"])
    return Measured(guarded, measures, paths)


def _takes(model: type[BaseModel]) -> dict[str, Any]:
    """The part of the schema that says what a route's body may be."""
    content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{model.__name__}"}}}
    return {"requestBody": {"required": True, "content": content}}


def _streams(model: type[BaseModel]) -> dict[int | str, dict[str, Any]]:
    stream: dict[str, Any] = {"text/event-stream": {}}  # OpenAPI 3.1 has no words for what single events are
    return {200: {"model": model, "content": stream, "description": "the reply, or its chunks"}, **_REFUSALS}


def _add_generation(app: FastAPI, host: Host, measures: Measures) -> None:
    async def answer(request: Request, made: ChatAnswer | CompletionAnswer) -> Response:
        if host.stopping:
            raise ended("cancelled")
        made.start()
        try:
            if made.request.stream:
                return EventStream(made.chunks(), {"x-request-id": made.id})
            found = await while_there(request, made.whole())
        except BaseException:
            made.asked.cancel()
            raise
        if found is None:
            return Response(status_code=GONE)
        return json_response(found, headers={"x-request-id": made.id})

    @app.post("/v1/chat/completions", openapi_extra=_takes(ChatRequest), responses=_streams(ChatCompletion))
    async def chat_completions(request: Request) -> Response:
        """The reply to a conversation."""
        asked, sent = parse(await read(request, host.limits.bytes), ChatRequest)
        return await answer(request, await asyncio.to_thread(ChatAnswer, host, asked, sent, measures))

    @app.post("/v1/completions", openapi_extra=_takes(CompletionRequest), responses=_streams(Completion))
    async def completions(request: Request) -> Response:
        """What the model writes behind a text, or behind ids; with `echo` and `logprobs`, how likely they are."""
        asked, _ = parse(await read(request, host.limits.bytes), CompletionRequest)
        return await answer(request, await asyncio.to_thread(CompletionAnswer, host, asked, measures))


def _add_tokens(app: FastAPI, host: Host) -> None:
    @app.post(
        "/tokenize",
        openapi_extra=_takes(TokenizeRequest),
        responses={200: {"model": Tokenized}, **_REFUSALS},
    )
    async def tokenize(request: Request) -> Response:
        """The ids of a text, or of a conversation as a chat completion would have them."""
        asked, sent = parse(await read(request, host.limits.bytes), TokenizeRequest)
        return json_response(await asyncio.to_thread(_tokenized, host, asked, sent))

    @app.post(
        "/detokenize",
        openapi_extra=_takes(DetokenizeRequest),
        responses={200: {"model": Detokenized}, **_REFUSALS},
    )
    async def detokenize(request: Request) -> Response:
        """The text of ids."""
        asked, _ = parse(await read(request, host.limits.bytes), DetokenizeRequest)
        hosted = host.find(asked.model)
        ids = check_ids(hosted, asked.tokens, "tokens") if asked.tokens else []
        return json_response({"prompt": hosted.rendering.encoder.decode(ids) if ids else ""})


def _tokenized(host: Host, asked: TokenizeRequest, sent: dict[str, Any]) -> dict[str, Any]:
    hosted = host.find(asked.model)
    if (asked.prompt is None) == (asked.messages is None):
        raise Problem("give one of `prompt` and `messages`", param="prompt", code="invalid_value")
    if asked.messages is not None:
        if asked.add_special_tokens:
            raise Problem(
                "`add_special_tokens`: a conversation has those that its template writes, and no others",
                param="add_special_tokens",
            )
        ids = chat_prompt(
            hosted,
            asked.messages,
            sent["messages"],
            sent.get("tools") or (),
            asked.chat_template_kwargs,
            add_generation_prompt=asked.add_generation_prompt,
            continue_final_message=asked.continue_final_message,
        ).ids
    else:
        for key in ("tools", "chat_template_kwargs", "add_generation_prompt", "continue_final_message"):
            if getattr(asked, key) is not None:
                raise Problem(f"`{key}` belongs to `messages`, not to `prompt`", param=key)
        assert asked.prompt is not None
        ids = text_prompt(hosted, asked.prompt, asked.add_special_tokens)
    made: dict[str, Any] = {"count": len(ids), "max_model_len": host.engine.context, "tokens": ids}
    if asked.return_token_strs:
        names = host.names(hosted)
        made["token_strs"] = [names.text_of(i) for i in ids]
    return made


def _add_facts(app: FastAPI, host: Host, measures: Measures) -> None:
    def card(hosted: Hosted) -> dict[str, Any]:
        return {
            "id": hosted.name,
            "object": "model",
            "created": host.created,
            "owned_by": "imprint",
            "parent": hosted.parent,
            "max_model_len": host.engine.context,
        }

    refusals: dict[int | str, dict[str, Any]] = {status: _REFUSALS[status] for status in (401, 404)}

    @app.get("/v1/models", responses={200: {"model": ModelList}, 401: _REFUSALS[401]})
    async def models() -> Response:
        """The names that `model` may say: the model, and its adapters."""
        return json_response({"object": "list", "data": [card(one) for one in host.models]})

    @app.get("/v1/models/{name:path}", responses={200: {"model": ModelCard}, **refusals})
    async def model(name: str) -> Response:
        return json_response(card(host.find(name)))

    @app.get("/health", responses={200: {"model": Health}, 503: {"model": Health}})
    async def health() -> Response:
        """Whether new requests are taken."""
        return json_response({"status": "stopping" if host.stopping else "ok"}, 503 if host.stopping else 200)

    plain = {"content": {"text/plain": {"schema": {"type": "string"}}}, "description": "for Prometheus"}

    @app.get("/metrics", responses={200: plain, 401: _REFUSALS[401]}, response_class=Response)
    async def metrics() -> Response:
        return Response(measures.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


def _add_errors(app: FastAPI) -> None:
    paths = sorted({getattr(route, "path", "") for route in app.routes})

    @app.exception_handler(Problem)
    async def refused(_: Request, problem: Problem) -> Response:
        return problem_response(problem)

    @app.exception_handler(HTTPException)
    async def no_route(request: Request, error: HTTPException) -> Response:
        path = request.url.path
        if error.status_code == 405:
            message = f"{path} does not take {request.method}"
        else:
            like = nearest(path, paths)
            message = f"there is no {path}" + (f"; the nearest is {like}" if like else "")
        problem = Problem(message, status=error.status_code, code="unknown_url", headers=error.headers)
        return problem_response(problem)

    @app.exception_handler(ClientDisconnect)
    async def gone(_: Request, error: ClientDisconnect) -> Response:
        return Response(status_code=GONE)  # in the middle of its body: nobody reads this

    @app.exception_handler(Exception)
    async def broken(_: Request, error: Exception) -> Response:
        return problem_response(ended("error"))  # starlette raises it once more, for the log


def _schema(app: FastAPI) -> dict[str, Any]:
    """The app's OpenAPI, with the bodies that its routes read by themselves."""
    if app.openapi_schema is None:
        made = get_openapi(title=app.title, version=app.version, routes=app.routes)
        known = made.setdefault("components", {}).setdefault("schemas", {})
        for model in (ChatRequest, CompletionRequest, TokenizeRequest, DetokenizeRequest):
            schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
            known.update(schema.pop("$defs", {}))
            known[model.__name__] = schema
        app.openapi_schema = made
    return app.openapi_schema


def _is_this_machine(name: str) -> bool:
    """Whether a Host header names this machine: no stranger's name resolves to an address that is written out."""
    if name in _LOCAL_NAMES:
        return True
    try:
        return ipaddress.ip_address(name.removeprefix("[").removesuffix("]")).is_loopback
    except ValueError:
        return False


class Guard:
    """Lets those in who know the token; where there is none, those who ask for this machine by its own names."""

    def __init__(self, app: ASGIApp, token: str | None):
        self.app = app
        self.token = None if token is None else token.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        problem = self._fault(scope) if scope["type"] == "http" else None
        if problem is None:
            await self.app(scope, receive, send)
        else:
            await problem_response(problem)(scope, receive, send)

    def _fault(self, scope: Scope) -> Problem | None:
        headers: dict[bytes, bytes] = dict(scope["headers"])
        if self.token is None:
            named = headers.get(b"host", b"").decode("latin-1")
            name = named.rpartition(":")[0] if named.rpartition(":")[2].isdigit() else named
            if _is_this_machine(name.lower()):
                return None
            return Problem(
                f"this server answers to {', '.join(_LOCAL_NAMES)}, not to {name[:100] or 'no Host'}; "
                "other names need a token",
                status=403,
                code="wrong_host",
            )
        if scope["path"] in _OPEN:
            return None
        kind, _, given = headers.get(b"authorization", b"").partition(b" ")
        if kind.lower() == b"bearer" and hmac.compare_digest(given.strip(), self.token):
            return None
        return Problem(
            "the token is missing or wrong: send Authorization: Bearer …",
            status=401,
            code="invalid_api_key",
            kind="authentication_error",
            headers={"WWW-Authenticate": "Bearer"},
        )
