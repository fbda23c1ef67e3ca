"""The server as `ebrm serve` runs it, in a thread, on a free port of this machine: for sockets and browsers."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from ebrm.cli.main import main
from ebrm.model import EnergyRewardModel
from ebrm.serve import ServeConfig, run
from ebrm.serve.scoring import Scoring


@dataclass(frozen=True)
class Live:
    """A running server: the scoring behind its routes, its port, and uvicorn's side of it."""

    scoring: Scoring
    port: int
    server: run._Server

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}"


@contextmanager
def serving(model: EnergyRewardModel, name: str = "a model", **config: Any) -> Iterator[Live]:
    """Serve a model with these limits; at the end of the block, end as by SIGTERM."""
    with _running(lambda ready: run.serve(model, ServeConfig(port=0, **config), name, ready=ready)) as live:
        yield live


@contextmanager
def command_serving(words: Sequence[str]) -> Iterator[Live]:
    """Run `ebrm serve …` in a thread of this process until the end of the block."""
    serve = run.serve

    def command(ready: Callable[[], None]) -> None:
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr("ebrm.serve.serve", lambda *given: serve(*given[:5], ready))
            assert main(list(words)) == 0

    with _running(command) as live:
        yield live


@contextmanager
def _running(command: Callable[[Callable[[], None]], None]) -> Iterator[Live]:
    """Run a server by `command(ready)` in a thread."""
    made: list[run._Server] = []
    ready, failed = threading.Event(), []

    class Server(run._Server):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            made.append(self)

    def work() -> None:
        try:
            command(ready.set)
        except BaseException as error:
            failed.append(error)
        finally:
            ready.set()

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(run, "_Server", Server)
        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        assert ready.wait(60), "the server is not ready"
        assert not failed, failed
    server = made[0]
    try:
        yield Live(server.config.app.state.scoring, server.servers[0].sockets[0].getsockname()[1], server)
    finally:
        server.handle_exit(signal.SIGTERM, None)
        thread.join(60)
        assert not thread.is_alive(), "the server did not end"
