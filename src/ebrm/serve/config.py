"""Address, token and limits of the server (no heavy imports)."""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass, field

from ebrm.errors import ConfigError

#: Environment variable that the token is read from when it is not given.
TOKEN_VARIABLE = "EBRM_TOKEN"
#: JSON values that a body may hold for each text of the largest request (some 40 turns of role and content), and in all
#: however few texts that is.
_VALUES_A_TEXT, _VALUES = 128, 4096


def host_name(host: str) -> str:
    """The name or address in a Host header, without port, brackets and case; "" where there is none."""
    name = host.strip().lower()
    if name.startswith("["):
        return name[1:].partition("]")[0]
    return (name if name.count(":") > 1 else name.partition(":")[0]).removesuffix(".")


@dataclass(frozen=True)
class ServeConfig:
    """Address and limits of the server.

    Attributes:
        host: Address to listen on; loopback unless changed. With any other (0.0.0.0 is all), set a token.
        port: Port to listen on; 0 takes a free one, which is printed.
        token: Bearer token required on every request but GET /health and the page at /. Better in the environment
            variable EBRM_TOKEN, since other users see command lines. Unset: no token is required.
        max_wait: Longest a text waits for others to fill its batch, in milliseconds.
        queue: Most texts accepted and not yet answered; beyond it, requests get status 503.
        deadline: Longest a request takes once its body is complete, in seconds; then it gets status 503.
        max_body: Largest request body, in bytes; above it, status 413.
        max_texts: Most texts in a request; above it, status 422.
        body_seconds: Longest a client may take to send a request, and to read its answer, in seconds; then its
            connection is closed.
        drain: Longest that accepted requests are finished after SIGTERM or Ctrl-C, in seconds; then they get 503.
        allowed_hosts: Names by which clients may reach the server (the Host header, without its port); `*` is any.
            Unset: localhost and `host` while the server listens on this machine alone, any name beyond it.
        log_texts: Log texts with their rewards. Off by default: texts are never in the log.

    Raises:
        ConfigError: a value outside its range, or limits that contradict each other.
    """

    host: str = "127.0.0.1"
    port: int = 8080
    token: str | None = field(default=None, repr=False)  # kept out of printed configs
    max_wait: float = 5.0
    queue: int = 2048
    deadline: float = 60.0
    max_body: int = 8 * 2**20
    max_texts: int = 512
    body_seconds: float = 30.0
    drain: float = 30.0
    log_texts: bool = False
    allowed_hosts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.token is None and TOKEN_VARIABLE in os.environ:
            object.__setattr__(self, "token", os.environ[TOKEN_VARIABLE])
        token = self.token
        if token is not None and not (token and token.isascii() and token.isprintable() and " " not in token):
            # Also when it is empty: a variable that was meant to hold a secret must not open the server.
            raise ConfigError(
                f"`token` (or {TOKEN_VARIABLE}) is empty or holds blanks or characters other than ASCII, so no client "
                f"could send it. Give one word, or remove {TOKEN_VARIABLE} to require none."
            )
        for names, fits, expected in (
            (("port",), lambda value: 0 <= value <= 65535, "0 to 65535"),
            (("max_wait", "drain"), lambda value: 0 <= value < math.inf, "0 or more"),
            (("deadline", "body_seconds"), lambda value: 0 < value < math.inf, "above 0"),
            (("max_body", "max_texts", "queue"), lambda value: value >= 1, "1 or more"),
        ):
            for name in names:
                if not fits(value := getattr(self, name)):
                    raise ConfigError(f"`{name}` is {value!r}; it must be {expected}.")
        for name in self.allowed_hosts:
            if name != "*" and (not re.fullmatch(r"[\w.:%-]+", name) or host_name(name) != name.lower()):
                raise ConfigError(
                    f"`allowed_hosts` has {name!r}, which is no name or address of a host without its port. Give names "
                    "like rm.example.org, each in full; `*` alone allows any."
                )
        if self.queue < self.max_texts:
            raise ConfigError(
                f"`queue` is {self.queue} texts and `max_texts` is {self.max_texts}: a request of that many texts "
                "would never be accepted. Raise `queue` or lower `max_texts`."
            )

    @property
    def max_values(self) -> int:
        """Most JSON values in a body: turns, strings and numbers of as many texts as a request may have."""
        return max(_VALUES, _VALUES_A_TEXT * self.max_texts)

    def limits(self) -> dict[str, float]:
        """The limits that clients must keep to, for `/info`."""
        names = ("max_texts", "max_body", "queue", "deadline", "body_seconds")
        return {name: getattr(self, name) for name in names}
