"""Request limits before the routes: token, size and time of bodies, slow-loris protection, request metrics."""

from __future__ import annotations

import asyncio
import hmac
import logging
from time import monotonic
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from ebrm.serve.config import host_name
from ebrm.serve.requests import Refused
from ebrm.serve.scoring import Scoring

logger = logging.getLogger(__name__)

_OPEN = ("/", "/health")  # need no token: liveness, and the page on which the token is typed
_BODIES = 16  # bytes of unfinished bodies held at a time, in units of `max_body`
#: Bytes that a body may have beside its content (chunk sizes, and what is read ahead): a chunk of a byte takes as long
#: to parse as one of a kilobyte.
_OVERHEAD = 2**17
_RECEIVED = "ebrm.received"  # where a connection counts the bytes of a request's body as they come
_READ = 2**13  # bytes read from a connection at a time, before others have their turn
_CLIENT_GONE = 499  # counted when the client went away before its answer


class RequestLimits:
    """ASGI middleware around all routes: a body is refused by its declared length, or once it is read too far."""

    def __init__(self, app: ASGIApp, scoring: Scoring) -> None:
        self.config = scoring.config
        self._app, self._scoring, self._metrics = app, scoring, scoring.metrics
        self._token = None if self.config.token is None else self.config.token.encode()
        hosts = frozenset(host_name(name) for name in self.config.allowed_hosts)
        self._hosts = frozenset() if "*" in hosts else hosts
        self._held = 0  # bytes of bodies of all requests under way

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass one request on, or answer it here."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, code, body = monotonic(), _CLIENT_GONE, _Body(self, scope, receive)
        task = asyncio.current_task()
        assert task is not None

        async def note(message: Message) -> None:
            nonlocal code
            if message["type"] == "http.response.start":
                code = message["status"]
                under_way.discard(task)
                if self._scoring.draining:
                    # Or the client sends its next request on a connection that is about to be closed.
                    MutableHeaders(scope=message)["connection"] = "close"
            await send(message)

        (under_way := self._scoring.under_way).add(task)
        try:
            self._check_head(scope)
            await self._app(scope, body.receive, note)
        except Refused as refused:
            await refused.response()(scope, receive, note)
        except asyncio.CancelledError:
            if not self._scoring.over or code != _CLIENT_GONE:
                raise
            task.uncancel()  # by `give_up`: the client is answered
            ending = Refused(503, "draining", "The server ended before it could answer. Use another one.", close=True)
            await ending.response()(scope, receive, note)
        except Exception:
            code = 503  # a defect, which is answered outside of this
            raise
        finally:
            under_way.discard(task)
            self._held -= body.bytes
            route = getattr(scope.get("route"), "path", "other")
            self._metrics.requests.labels(route, str(code)).inc()
            logger.debug("%s %s %d, %.1f ms", scope["method"], route, code, 1e3 * (monotonic() - started))

    def _check_head(self, scope: Scope) -> None:
        headers = Headers(scope=scope)
        host = headers.get("host")
        # Of browsers, which always send it: a page whose own name now leads to this machine (DNS rebinding) reads what
        # any other page must not. Others may leave it out.
        if self._hosts and host is not None and host_name(host) not in self._hosts:
            raise Refused(
                400, "host",
                "The Host header names another server. Ask by the address that this one shows, or have it started with "
                "that name (`allowed_hosts`).", close=True,
            )  # fmt: skip
        if self._token is not None and scope["path"] not in _OPEN:
            scheme, _, given = headers.get("authorization", "").partition(" ")
            right = hmac.compare_digest(given.strip().encode("utf-8", "surrogateescape"), self._token)
            if scheme.lower() != "bearer" or not right:
                seen = "a wrong token" if given else "no token"
                raise Refused(
                    401, "token", f"The request has {seen}. Send the header Authorization: Bearer TOKEN.", close=True
                )
        if "content-length" in headers and "transfer-encoding" in headers:
            # Request smuggling: a proxy may go by the one and this server by the other, and what the one takes for the
            # end of a body is then a request of its own for the other.
            raise Refused(
                400, "two_lengths", "The request declares both a length and chunks; send one of the two.", close=True
            )
        declared = headers.get("content-length", "")
        if declared.isdecimal() and int(declared[:20]) > self.config.max_body:
            raise self.too_large()

    def too_large(self) -> Refused:
        """The refusal of a body over the limit."""
        limit = self.config.max_body
        return Refused(413, "too_large", f"The body is larger than {limit:,} bytes. Send several requests.", close=True)

    def hold(self, more: int) -> None:
        """Count bytes of a body; Refused when those of all requests are over the memory meant for them."""
        self._held += more
        if self._held > _BODIES * self.config.max_body:
            raise Refused(503, "queue_full", "Too many large requests are being sent. Retry later.", close=True)


class _Body:
    def __init__(self, limits: RequestLimits, scope: Scope, receive: Receive) -> None:
        self._limits, self._scope, self._receive = limits, scope, receive
        self._until = asyncio.get_running_loop().time() + limits.config.body_seconds
        self._complete = False
        self.bytes = 0

    async def receive(self) -> Message:
        """The next part; after the last, the server's other messages (that the client has gone)."""
        if self._complete:
            return await self._receive()
        config = self._limits.config
        try:
            async with asyncio.timeout_at(self._until):
                message = await self._receive()
        except TimeoutError:
            raise Refused(
                408, "slow_body", f"The body did not come within {config.body_seconds:g} seconds.", close=True
            ) from None
        part = len(message.get("body", b""))
        self.bytes += part
        self._limits.hold(part)
        if self.bytes > config.max_body:
            raise self._limits.too_large()
        if self._scope.get(_RECEIVED, 0) - self.bytes > _OVERHEAD:
            raise Refused(
                400,
                "small_chunks",
                "The body comes in too many small chunks. Send larger ones, or its length.",
                close=True,
            )
        self._complete = not message.get("more_body", False)
        return message


class Connection(asyncio.BufferedProtocol, H11Protocol):  # type: ignore[misc]
    """uvicorn's connection, with limits of time: uvicorn itself waits for a head, and for a reader, without one.

    It is closed `seconds` into a request's head, and `seconds` after it was to send what its client does not read. A
    buffered protocol, since that decides how much is read, and so parsed, in a row: 8 KiB, not 256.
    """

    seconds = 30.0
    buffer = memoryview(bytearray(_READ))
    _timer: asyncio.TimerHandle | None = None
    _unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the timer of the first request."""
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=0)  # writing pauses as soon as anything is not taken at once
        self._watch()

    def get_buffer(self, sizehint: int) -> memoryview:
        """Where the next bytes go; all connections share it, as each takes its bytes out at once."""
        return self.buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Take the bytes that came."""
        self.data_received(bytes(self.buffer[:nbytes]))

    def data_received(self, data: bytes) -> None:
        """Read on; stop the timer once a request is under way."""
        if self.cycle is not None and self.cycle.more_body:
            scope: Any = self.cycle.scope
            scope[_RECEIVED] = scope.get(_RECEIVED, 0) + len(data)
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the timers."""
        super().connection_lost(exc)
        self._stop()
        self.resume_writing()

    def pause_writing(self) -> None:
        """Start the time in which the client must read."""
        super().pause_writing()
        self._unread = self.loop.call_later(self.seconds, self.transport.abort)

    def resume_writing(self) -> None:
        """Stop it: all was taken."""
        super().resume_writing()
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None

    @property
    def unread(self) -> bool:
        """Whether the client has yet to read what was sent."""
        return self._unread is not None

    def _watch(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop()
        elif self._timer is None:
            self._timer = self.loop.call_later(self.seconds, self._give_up)

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _give_up(self) -> None:
        self._timer = None
        if self.cycle is None or self.cycle.response_complete:
            self.transport.close()


def connection_class(seconds: float) -> type[Connection]:
    """The class of connections with this time limit and a buffer of its own, for `uvicorn.Config(http=…)`."""
    return type("Connection", (Connection,), {"seconds": seconds, "buffer": memoryview(bytearray(_READ))})
