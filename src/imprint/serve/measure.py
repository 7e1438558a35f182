"""What the server tells Prometheus of itself: requests, times, and how busy the engine is."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import fields

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from imprint.serve.engine import Engine

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_NOW = {
    "running": "Requests that are being computed",
    "waiting": "Requests that wait for a place",
}
_SINCE = {
    "finished": "Requests that the engine has finished",
    "prompt_tokens": "Tokens of prompts",
    "cached_tokens": "Tokens of prompts that were taken from the prefix cache",
    "new_tokens": "Tokens of replies",
    "steps": "Forward passes",
}


class Measures:
    """The counters of one server, in a registry of its own."""

    def __init__(self, engine: Engine):
        self.registry = CollectorRegistry()
        self.registry.register(_EngineLoad(engine))
        self.requests = Counter(
            "imprint_requests", "Requests answered", ["path", "status"], registry=self.registry
        )
        self.open = Gauge("imprint_open_requests", "Requests not answered yet", registry=self.registry)
        self.seconds = Histogram(
            "imprint_request_seconds",
            "From a request's first byte to the last one of its answer",
            ["path"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.first = Histogram(
            "imprint_first_token_seconds",
            "From a request to the first text of its reply",
            buckets=_SECONDS,
            registry=self.registry,
        )

    def first_token(self, seconds: float) -> None:
        self.first.observe(seconds)

    def text(self) -> bytes:
        return generate_latest(self.registry)


class _EngineLoad(Collector):
    """The engine's own counters, read when somebody asks."""

    def __init__(self, engine: Engine):
        self.engine = engine

    def collect(self) -> Iterator[Metric]:
        load = self.engine.load()
        for name in (field.name for field in fields(load)):
            value = getattr(load, name)
            if name in _NOW:
                yield GaugeMetricFamily(f"imprint_{name}", _NOW[name], value)
            else:
                yield CounterMetricFamily(f"imprint_{name}", _SINCE[name], value)


class Measured:
    """Counts every request of an app, under the path that it was routed to."""

    def __init__(self, app: ASGIApp, measures: Measures, paths: frozenset[str]):
        self.app, self.measures, self.paths = app, measures, paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begun, status = time.monotonic(), "gone"

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = str(message["status"])
            await send(message)

        self.measures.open.inc()
        try:
            await self.app(scope, receive, noted)
        finally:
            self.measures.open.dec()
            path = scope["path"] if scope["path"] in self.paths else "other"
            self.measures.requests.labels(path, status).inc()
            self.measures.seconds.labels(path).observe(time.monotonic() - begun)
