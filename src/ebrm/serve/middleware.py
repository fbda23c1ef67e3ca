"""What every request passes before the routes: counting, the token, and limits on size and time of its body."""

from __future__ import annotations

import asyncio
import hmac
import logging
from time import monotonic

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ebrm.serve.config import ServeConfig
from ebrm.serve.errors import Refused, response
from ebrm.serve.metrics import Metrics

logger = logging.getLogger(__name__)

#: What anybody may ask: whether the process lives, and the page that asks for the token.
_OPEN = ("/", "/health")
#: Bytes of unfinished bodies that are held at a time, in largest bodies.
_BODIES = 16
#: The status that is counted when the client went away before its answer.
_CLIENT_GONE = 499


class RequestLimits:
    """ASGI middleware around all routes.

    A body is refused by its declared length before it is read, and by its counted length as soon as that is too large.
    """

    def __init__(self, app: ASGIApp, settings: ServeConfig, meters: Metrics) -> None:
        self._app, self._settings, self._meters = app, settings, meters
        self._expected = None if settings.token is None else settings.token.encode()
        self._held = 0  # bytes of bodies of all requests under way

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass one request on, or answer it here."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, code, body = monotonic(), _CLIENT_GONE, _Body(self, receive)

        async def note(message: Message) -> None:
            nonlocal code
            if message["type"] == "http.response.start":
                code = message["status"]
            await send(message)

        try:
            self._refuse(scope)
            await self._app(scope, body.receive, note)
        except Refused as refused:
            await response(refused)(scope, receive, note)
        except Exception:
            code = 503  # a defect, which is answered outside of this
            raise
        finally:
            self._held -= body.bytes
            route = getattr(scope.get("route"), "path", "other")
            self._meters.requests.labels(route, str(code)).inc()
            logger.debug("%s %s %d, %.1f ms", scope["method"], route, code, 1e3 * (monotonic() - started))

    def _refuse(self, scope: Scope) -> None:
        headers = Headers(scope=scope)
        if self._expected is not None and scope["path"] not in _OPEN:
            scheme, _, given = headers.get("authorization", "").partition(" ")
            right = hmac.compare_digest(given.strip().encode("utf-8", "surrogateescape"), self._expected)
            if scheme.lower() != "bearer" or not right:
                said = "another token" if given else "no token"
                raise Refused(
                    401, "token", f"The request has {said}. Send the header Authorization: Bearer TOKEN.", close=True
                )
        if "content-length" in headers and "transfer-encoding" in headers:
            # A proxy may go by the one and this server by the other: what the one takes for the end of a body is then
            # a request of its own for the other.
            raise Refused(
                400, "two_lengths", "The request declares both a length and chunks; send one of the two.", close=True
            )
        declared = headers.get("content-length", "")
        if declared.isdecimal() and int(declared[:20]) > self._settings.max_body:
            raise self.too_large()

    def too_large(self) -> Refused:
        """The refusal of a body over the limit."""
        limit = self._settings.max_body
        return Refused(413, "too_large", f"The body is larger than {limit:,} bytes. Send several requests.", close=True)

    def took(self, more: int) -> None:
        """Count bytes of a body that came; Refused when bodies of all requests fill the memory meant for them."""
        self._held += more
        if self._held > _BODIES * self._settings.max_body:
            raise Refused(503, "queue_full", "Too many large requests are being sent. Come again.", close=True)

    @property
    def body_seconds(self) -> float:
        """Longest a body may take."""
        return self._settings.body_seconds

    @property
    def max_body(self) -> int:
        """Largest body."""
        return self._settings.max_body


class _Body:
    """The body of one request as it comes in."""

    def __init__(self, gate: RequestLimits, receive: Receive) -> None:
        self._gate, self._receive = gate, receive
        self._until = asyncio.get_running_loop().time() + gate.body_seconds
        self._whole = False
        self.bytes = 0

    async def receive(self) -> Message:
        """The next part; after the last, whatever the server says (that the client has gone)."""
        if self._whole:
            return await self._receive()
        try:
            async with asyncio.timeout_at(self._until):
                message = await self._receive()
        except TimeoutError:
            raise Refused(
                408, "slow_body", f"The body did not come within {self._gate.body_seconds:g} seconds.", close=True
            ) from None
        part = len(message.get("body", b""))
        self.bytes += part
        if self.bytes > self._gate.max_body:
            self._gate.took(part)
            raise self._gate.too_large()
        self._gate.took(part)
        self._whole = not message.get("more_body", False)
        return message
