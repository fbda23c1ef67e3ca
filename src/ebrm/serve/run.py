"""Run the server in this process until SIGTERM or SIGINT: `serve(model, config)`."""

from __future__ import annotations

import asyncio
import atexit
import errno
import gc
import ipaddress
import logging
import math
import os
import socket
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from time import monotonic
from types import FrameType
from typing import Any

import uvicorn

from ebrm.errors import ConfigError
from ebrm.model import EnergyRewardModel
from ebrm.serve.app import create_app
from ebrm.serve.config import ServeConfig, host_name
from ebrm.serve.middleware import Connection, connection_class
from ebrm.serve.scoring import Scoring
from ebrm.utils.memory import return_memory

logger = logging.getLogger(__name__)

_KEEP_ALIVE = 75  # seconds a connection may stay idle: longer than trainers take between their requests
#: Names of this machine for itself.
_LOCAL = ("localhost", "127.0.0.1", "::1")
_CLOSING = 0.5  # seconds in which the last answers are sent
_LINGER = 0.5  # seconds that requests already sent to a server that ends are still read in, to be refused with 503


def serve(
    model: EnergyRewardModel,
    config: ServeConfig,
    name: str = "ebrm",
    backbone: Mapping[str, Any] | None = None,
    listening: Callable[[str], None] = lambda url: None,
    ready: Callable[[], None] = lambda: None,
) -> None:
    """Listen, load the reward model, and answer until SIGTERM or SIGINT; then finish what was accepted.

    Args:
        model, config, name, backbone: see :func:`ebrm.serve.app.create_app`.
        listening: called with the URL once connections are taken.
        ready: called once texts are scored.

    Raises:
        ConfigError: the address cannot be listened on.
        ModelError, BackboneError: the reward model cannot be loaded.
    """
    return_memory()
    with bind(config.host, config.port) as listener:
        if config.token is None and not is_loopback(listener):
            logger.warning(
                "Anyone who can reach %s can use this server: it listens beyond this machine and requires no token. "
                "Set EBRM_TOKEN, or listen on 127.0.0.1.",
                url_of(listener),
            )
        if not config.allowed_hosts and is_loopback(listener):
            config = replace(config, allowed_hosts=(*_LOCAL, *_names(config.host, listener)))
        app = create_app(model, config, name, backbone)
        settings = uvicorn.Config(
            app,
            http=connection_class(config.body_seconds),
            ws="none",
            lifespan="on",
            access_log=False,
            log_config=None,
            log_level=logging.WARNING,
            server_header=False,
            proxy_headers=False,
            backlog=2048,
            timeout_keep_alive=_KEEP_ALIVE,
        )
        server = _Server(settings, app.state.scoring, ready)
        try:
            asyncio.run(server.run_on(listener, listening))
        finally:
            gc.unfreeze()
        if threading.current_thread() is threading.main_thread():
            atexit.register(_leave, app.state.scoring)


def _leave(scoring: Scoring) -> None:
    """End the process in time: without looking for garbage, and without a call that is still under way."""
    gc.freeze()  # taking apart what is loaded takes seconds otherwise
    if any(worker.busy for worker in scoring.workers):
        # Python would take its modules apart under a thread that is in the middle of a batch, which aborts.
        logging.shutdown()
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()
        os._exit(0)


class _Server(uvicorn.Server):
    """uvicorn's server with a graceful end: accepted requests are answered before connections are closed."""

    def __init__(self, config: uvicorn.Config, scoring: Scoring, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._scoring, self._ready = scoring, ready
        self._signals = 0
        self._drained: asyncio.Task[None] | None = None
        self._until = math.inf

    async def run_on(self, listener: socket.socket, listening: Callable[[str], None]) -> None:
        """Serve on a bound socket; raises the error of a reward model that could not be loaded."""
        self._listening = listening, url_of(listener)
        await self.serve(sockets=[listener])
        loading = self._scoring.loading
        if loading.done() and not loading.cancelled():
            loading.result()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        callback, url = self._listening
        callback(url)
        self._scoring.loading.add_done_callback(self._loaded)

    def _loaded(self, loading: asyncio.Task[None]) -> None:
        if loading.cancelled():
            return
        if loading.exception() is not None:
            self.should_exit = True
        else:
            # What is loaded stays: looking through all of it for garbage would hold every request for 0.3 seconds.
            gc.collect()
            gc.freeze()
            self._ready()

    async def on_tick(self, counter: int) -> bool:
        if self._signals and self._drained is None:
            seconds = self._scoring.config.drain
            self._until = monotonic() + seconds
            logger.info("ending: %d texts are still to be answered", self._scoring.held)
            self._drained = asyncio.get_running_loop().create_task(self._drain(seconds))
        drained = self._drained is not None and self._drained.done()
        return await super().on_tick(counter) or drained or self.force_exit

    async def _drain(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._scoring.drain()
        except TimeoutError:
            logger.warning("%d texts were not answered within the %g seconds of drain", self._scoring.held, seconds)
            self._scoring.give_up()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen no more, refuse what was sent meanwhile, then close connections when their answers are sent."""
        for server in self.servers:
            server.close()
        # A connection that is closed before its request is read is reset, and its client cannot tell whether the
        # request was answered.
        linger = monotonic() + _LINGER
        while self.server_state.connections and monotonic() < linger and not self.force_exit:
            await asyncio.sleep(0.02)
        while (self._scoring.under_way or self._sending()) and monotonic() < self._until and not self.force_exit:
            await asyncio.sleep(0.02)
        self._scoring.give_up()
        if self.server_state.tasks:
            await asyncio.wait(self.server_state.tasks, timeout=_CLOSING)
        for connection in self._sending():
            connection.transport.abort()
        self.config.timeout_graceful_shutdown = 1
        await super().shutdown(sockets)
        if self.force_exit:  # uvicorn leaves it out then, and a traceback of its cancellation is logged
            await self.lifespan.shutdown()

    def _sending(self) -> list[Connection]:
        """Connections whose clients have yet to read what was sent."""
        return [one for one in self.server_state.connections if isinstance(one, Connection) and one.unread]

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """First signal: drain. Second: end now."""
        self._signals += 1
        self.force_exit = self._signals > 1


def bind(host: str, port: int) -> socket.socket:
    """A socket bound to an address, not yet listening; ConfigError where it is not here, taken or forbidden."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (socket.gaierror, UnicodeError) as error:
        raise ConfigError(f"`host` is {host!r}, which is no address that can be looked up ({error}).") from None
    family, kind, protocol, _, address = found[0]
    made = socket.socket(family, kind, protocol)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(address)
    except OSError as error:
        made.close()
        advice = {
            errno.EADDRINUSE: "Something listens there already: end it, or choose another `port` (0 takes a free one).",
            errno.EACCES: "Ports below 1024 need rights that this user lacks: choose another `port`.",
            errno.EADDRNOTAVAIL: "This machine does not have that address: choose another `host`.",
        }.get(error.errno or 0, "Choose another `host` or `port`.")
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise ConfigError(f"The server cannot listen on {host} port {port}: {reason}. {advice}") from None
    return made


def _names(host: str, listener: socket.socket) -> tuple[str, ...]:
    """The host that was given, and the address that it stands for."""
    return tuple({host_name(host), str(listener.getsockname()[0])} - {""})


def url_of(listener: socket.socket) -> str:
    """`http://127.0.0.1:8080` of a bound socket."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def is_loopback(listener: socket.socket) -> bool:
    """Whether only this machine can connect."""
    return ipaddress.ip_address(listener.getsockname()[0]).is_loopback
