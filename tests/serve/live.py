"""Servers for tests: a whole one on a port of this machine's, in a thread; and replies that are known beforehand."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from typing import Any

import uvicorn

from imprint.render.resolve import Rendering, as_saved, prepare_rendering
from imprint.serve.api import make_app
from imprint.serve.hosted import Host, Hosted
from imprint.serve.server import open_port, url_of
from render.corpus import make_tokenizer
from serve.slow_engine import SlowEngine, scripted

NOW = datetime(2026, 1, 1)


@contextmanager
def running(host: Host, **options: Any) -> Iterator[str]:
    """The address of a server that runs inside the block."""
    opened = open_port("127.0.0.1", 0)
    config = uvicorn.Config(make_app(host, **options), lifespan="off", log_level="error")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=([opened],), daemon=True)
    thread.start()
    until(lambda: server.started)
    try:
        yield url_of(opened)
    finally:
        server.should_exit = True
        thread.join(20)
        opened.close()


def until(true: Callable[[], bool], seconds: float = 20.0) -> float:
    """Wait until something is true; the seconds that took."""
    begun = time.monotonic()
    while not true():
        assert time.monotonic() - begun < seconds, "it did not become true"
        time.sleep(0.005)
    return time.monotonic() - begun


def byte_rendering(template: str = "chatml") -> Rendering:
    """A tokenizer of single bytes with a preset, or with a template's source."""
    if "{" in template:
        made = make_tokenizer("bytes", template, bos_token="<s>", eos_token="<|im_end|>")
        return as_saved(prepare_rendering(made, now=NOW))
    made = make_tokenizer("bytes", eos_token="<|endoftext|>")
    return as_saved(prepare_rendering(made, template=template, now=NOW))


def scripted_host(
    replies: Mapping[str, str], rendering: Rendering | None = None, delay: float = 0.0, **more: Any
) -> Host:
    """A host whose model answers what `replies` says: the first whose key the prompt's end holds, then stops."""
    rendering = rendering or byte_rendering()
    encoder, stop = rendering.encoder, rendering.stop_ids[0]

    def tokens(ids: list[int]) -> list[int]:
        said = encoder.decode(ids)
        for key, reply in replies.items():
            if said.endswith(key):
                return [*map(int, encoder.encode([reply])[0]), stop]
        return []

    engine = SlowEngine(
        scripted(tokens, encoder.num_tokens, stop), more.pop("context", 4096), delay=delay, **more
    )
    return Host(engine, (Hosted("scripted", rendering),))
