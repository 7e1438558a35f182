"""The server's life: a port, requests until a signal, then the end of those under way."""

from __future__ import annotations

import asyncio
import errno
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import uvicorn
from starlette.types import ASGIApp

from imprint.errors import RunError
from imprint.serve.hosted import Host

_CLOSING = 5  # seconds that cancelled requests have to say so
_ENDING = (signal.SIGINT, signal.SIGTERM)


def open_port(host: str, port: int) -> socket.socket:
    """A socket that is bound to the address; RunError where that cannot be. Port 0: a free one."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as error:
        raise RunError(
            "this address is none of this machine's", where=f"--host {host}", found=str(error)
        ) from error
    opened = socket.socket(family, kind, protocol)
    # a port whose last connections still close is free; one that somebody listens on is not
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        opened.bind(address)
        opened.listen(1024)  # at once: else another may bind the same
    except OSError as error:
        opened.close()
        taken = error.errno == errno.EADDRINUSE
        raise RunError(
            f"port {port} is taken" if taken else "this address cannot be used",
            where=f"{host}:{port}",
            found=error.strerror or str(error),
            fix="choose another: --port 0 takes a free one"
            if taken
            else "choose another --host or --port (those below 1024 need rights)",
        ) from error
    return opened


def url_of(opened: socket.socket) -> str:
    """Where a client on this machine finds it."""
    host, port = opened.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def run(
    app: ASGIApp,
    host: Host,
    opened: socket.socket,
    *,
    drain: float = 30.0,
    on_ready: Callable[[], None] = lambda: None,
    log_requests: bool = False,
) -> int:
    """Serve until SIGINT or SIGTERM, which is returned.

    Requests under way then have `drain` seconds; those that are left are told that the server stops.
    A second signal ends them at once. The engine is closed afterwards.
    """
    config = uvicorn.Config(
        app,
        access_log=log_requests,
        log_level="info" if log_requests else "warning",
        lifespan="off",
        ws="none",
        server_header=False,
        timeout_graceful_shutdown=int(drain) + _CLOSING,
    )
    server = _Server(config, host, drain, on_ready)
    try:
        asyncio.run(server.serve([opened]))
    finally:
        host.engine.close()
        opened.close()
    return server.signal


class _Server(uvicorn.Server):
    """uvicorn, with an end of ours: it would raise the signal once more, and drop who waits for a reply."""

    def __init__(self, config: uvicorn.Config, host: Host, drain: float, on_ready: Callable[[], None]):
        super().__init__(config)
        self.host, self.drain, self.on_ready = host, drain, on_ready
        self.signal = 0

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.loop = asyncio.get_running_loop()
        self.on_ready()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        before = {number: signal.signal(number, self._signalled) for number in _ENDING}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _signalled(self, number: int, _: FrameType | None) -> None:
        again, self.signal = bool(self.signal), self.signal or number
        self.host.stopping = self.should_exit = True
        # from the loop: a handler may interrupt it anywhere
        self.loop.call_soon_threadsafe(self.host.cancel_all if again else self._drain)

    def _drain(self) -> None:
        self.loop.call_later(self.drain, self.host.cancel_all)
