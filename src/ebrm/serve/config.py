"""What a user can choose about the server (no heavy imports)."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field

from ebrm.errors import ConfigError

#: Where the token is read from when it is not given.
TOKEN_VARIABLE = "EBRM_TOKEN"


@dataclass(frozen=True)
class ServeConfig:
    """Where the server listens, and what it takes.

    Raises:
        ConfigError: a value outside its range, or limits that contradict each other.
    """

    host: str = field(
        default="127.0.0.1",
        metadata={"help": "Address to listen on. Other than this machine's own (0.0.0.0 is all): set a token."},
    )
    port: int = field(default=8080, metadata={"help": "Port to listen on; 0 takes a free one and says which."})
    token: str | None = field(
        default=None,
        repr=False,  # printed settings must not give it away
        metadata={
            "help": "Bearer token that every request but GET /health and the page at / must carry. Better in the "
            f"environment variable {TOKEN_VARIABLE}: other users see command lines. Unset: none is asked for."
        },
    )
    max_wait: float = field(
        default=5.0, metadata={"help": "Longest a text waits for others to fill its batch, in milliseconds."}
    )
    queue: int = field(
        default=2048,
        metadata={"help": "Most texts accepted and not yet answered; what comes beyond is answered 503."},
    )
    deadline: float = field(
        default=60.0,
        metadata={"help": "Longest a request takes once its body has come, in seconds; then it is answered 503."},
    )
    max_body: int = field(default=8 * 2**20, metadata={"help": "Largest body of a request, in bytes; above: 413."})
    max_texts: int = field(default=512, metadata={"help": "Most texts in a request; above: 422."})
    body_seconds: float = field(
        default=30.0,
        metadata={"help": "Longest a client may take to send a request, in seconds; then its connection is closed."},
    )
    drain: float = field(
        default=30.0,
        metadata={"help": "Longest that accepted requests are finished after SIGTERM or Ctrl-C, in seconds."},
    )
    log_texts: bool = field(
        default=False, metadata={"help": "Log the texts with their rewards. They never are otherwise."}
    )

    def __post_init__(self) -> None:
        if self.token is None and TOKEN_VARIABLE in os.environ:
            object.__setattr__(self, "token", os.environ[TOKEN_VARIABLE])
        token = self.token
        if token is not None and not (token and token.isascii() and token.isprintable() and " " not in token):
            # Also when it is empty: a variable that was meant to hold a secret must not open the server.
            raise ConfigError(
                f"The token (--token, or {TOKEN_VARIABLE}) is empty or holds blanks or characters other than ASCII, so "
                f"no client could send it. Give one word, or remove {TOKEN_VARIABLE} to ask for none."
            )
        _require(0 <= self.port <= 65535, "port", self.port, "0 to 65535")
        for name in ("max_wait", "drain"):
            value = getattr(self, name)
            _require(math.isfinite(value) and value >= 0, name, value, "0 or more")
        for name in ("deadline", "body_seconds"):
            value = getattr(self, name)
            _require(math.isfinite(value) and value > 0, name, value, "above 0")
        for name in ("max_body", "max_texts", "queue"):
            _require(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")
        if self.queue < self.max_texts:
            raise ConfigError(
                f"queue is {self.queue} texts and max_texts is {self.max_texts}: a request of that many texts would "
                "never be accepted. Raise queue or lower max_texts."
            )

    def limits(self) -> dict[str, float]:
        """What clients must keep to, for `/info`."""
        names = ("max_texts", "max_body", "queue", "deadline", "body_seconds")
        return {name: getattr(self, name) for name in names}


def _require(condition: bool, name: str, value: object, expected: str) -> None:
    if not condition:
        raise ConfigError(f"The setting {name} is {value!r}; it must be {expected}.")
