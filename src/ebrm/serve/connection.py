"""One HTTP connection, which a client cannot hold open by sending nothing or sending for ever."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol


class Connection(H11Protocol):
    """uvicorn's connection, closed when the head of a request has not come whole after `patience` seconds.

    uvicorn waits for ever for a first request, and for the rest of a head; each such connection holds a file.
    """

    #: Seconds; set by :func:`with_patience`.
    patience = 30.0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._impatience: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start to wait for the first request."""
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        """Read on; wait no longer once a request is under way."""
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        super().connection_lost(exc)
        self._stop()

    def _watch(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop()
        elif self._impatience is None:
            self._impatience = self.loop.call_later(self.patience, self._give_up)

    def _stop(self) -> None:
        if self._impatience is not None:
            self._impatience.cancel()
            self._impatience = None

    def _give_up(self) -> None:
        self._impatience = None
        if self.cycle is None or self.cycle.response_complete:
            self.transport.close()


def with_patience(seconds: float) -> type[Connection]:
    """The class of connections that wait so long for a request."""
    return type("Connection", (Connection,), {"patience": seconds})
