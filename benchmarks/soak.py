"""Endurance of the server, on loopback with the demonstration RM: honest and hostile clients, kills and restarts.

    python -m benchmarks.soak [--minutes 10] [--out FILE]

First honest clients alone. Then the same clients beside hostile ones: the bodies of `benchmarks.hostile`, connections
that send a byte a second, requests that are dropped before their answer, and answers that nobody reads. Then two
replicas behind a balancer, of which one is killed every 30 seconds, by SIGKILL and SIGTERM in turns, and started anew,
under `ebrm.Client`. Every answer is compared with the score that the model gives offline. Writes into
`benchmarks/soak.json` each bar with what is required, what was reached, and whether it is met.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import signal
import socket
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.hostile import bodies, limits_of, post
from benchmarks.load import TOLERANCE, Load, Text, prepare, put_load
from benchmarks.servers import Balancer, Server, resident_bytes
from ebrm.client import Client
from ebrm.errors import EBRMError
from ebrm.utils.files import write_json

RESULTS = Path(__file__).with_name("soak.json")
HONEST = 8
#: Clients of the replicas, and seconds from one kill to the next.
CLIENTS = 4
EVERY = 30.0
#: Shares of the time: alone, beside hostile clients, replicas that are killed.
SHARES = (0.15, 0.45, 0.4)
#: Seconds of rest before memory is measured.
_REST = 5.0


@dataclass(frozen=True)
class Bar:
    """A bar: what is required, what was reached, and whether that is enough."""

    bar: str
    required: str
    reached: float
    met: bool


@dataclass
class Replicas:
    """What clients of replicas saw that are killed: calls answered rightly, wrongly, not at all; kills by signal."""

    right: int = 0
    wrong: int = 0
    failed: list[str] = field(default_factory=list)
    kills: Counter[str] = field(default_factory=Counter)


# -- hostile clients -------------------------------------------------------------------------------------------------


@contextmanager
def hostile(url: str, seed: int = 0) -> Iterator[Counter[int]]:
    """Hostile clients until the block ends; yields how many of their requests had which status (0: none)."""
    host, port = url.removeprefix("http://").rsplit(":", 1)
    limits, statuses, over = limits_of(url), Counter[int](), threading.Event()
    sent = list(bodies(limits["max_texts"], limits["max_body"], limits["max_chars"]))

    def large(draw: random.Random) -> None:
        _, route, body = draw.choice(sent)
        statuses[post(url, route, body)] += 1

    def dropped(draw: random.Random) -> None:
        _, route, body = draw.choice(sent)
        with socket.create_connection((host, int(port)), timeout=5) as connection:
            connection.sendall(_head(route, len(body)) + body[: draw.choice((0, 100, len(body) // 2, len(body)))])
            over.wait(draw.uniform(0, 0.3))

    def slow(draw: random.Random) -> None:
        with socket.create_connection((host, int(port)), timeout=5) as connection:
            for place in _head("/v1/score", 1000) + b"{" * 20:
                connection.sendall(bytes((place,)))
                if over.wait(1.0):
                    return

    def unread(draw: random.Random) -> None:
        _, route, body = sent[1]
        with socket.create_connection((host, int(port)), timeout=5) as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.sendall(_head(route, len(body)) + body)
            over.wait(10.0)

    def again(kind: Any, seed: int) -> None:
        draw = random.Random(seed)
        while not over.is_set():
            with suppress(OSError):
                kind(draw)

    kinds = (large, large, dropped, dropped, slow, unread)
    threads = [threading.Thread(target=again, args=(kind, seed + i)) for i, kind in enumerate(kinds)]
    for thread in threads:
        thread.start()
    try:
        yield statuses
    finally:
        over.set()
        for thread in threads:
            thread.join()


def _head(route: str, length: int) -> bytes:
    lines = (f"POST {route} HTTP/1.1", "Host: localhost", "Content-Type: application/json", f"Content-Length: {length}")
    return "".join(f"{line}\r\n" for line in lines).encode() + b"\r\n"


# -- replicas that are killed ----------------------------------------------------------------------------------------


def replicas(model: Path, texts: Sequence[Text], seconds: float, every: float = EVERY) -> Replicas:
    """Clients of two servers behind a balancer, of which one is killed every `every` seconds and started anew."""
    servers, found, over = [Server(model, "--drain", "5") for _ in range(2)], Replicas(), threading.Event()
    try:
        for server in servers:
            server.start()
        with Balancer([server.port for server in servers]) as balancer:
            url = f"http://127.0.0.1:{balancer.port}"
            asking = [threading.Thread(target=ask, args=(url, texts, over, found, seed)) for seed in range(CLIENTS)]
            for thread in asking:
                thread.start()
            until, turn = time.monotonic() + seconds, 0
            while time.monotonic() < until:
                over.wait(min(every, max(0.0, until - time.monotonic())))
                server, how = servers[turn % 2], (signal.SIGKILL, signal.SIGTERM)[turn // 2 % 2]
                server.end(how)
                found.kills[how.name] += 1
                server.start()
                turn += 1
            over.set()
            for thread in asking:
                thread.join()
    finally:
        over.set()
        for server in servers:
            server.kill()
    return found


def ask(url: str, texts: Sequence[Text], over: threading.Event, found: Replicas, seed: int) -> None:
    """One client, a few texts at a time, until it is over; every answer is checked."""
    draw = random.Random(seed)
    with Client(url, tries=12) as client:
        while not over.is_set():
            some = draw.sample(list(texts), 3)
            try:
                scored = client.score([text.prompt for text in some], [text.response for text in some]).reward.tolist()
            except EBRMError as error:
                found.failed.append(str(error)[:300])
                continue
            exact = all(abs(reward - text.reward) <= TOLERANCE for reward, text in zip(scored, some, strict=True))
            found.right, found.wrong = found.right + exact, found.wrong + (not exact)


# -- all of it -------------------------------------------------------------------------------------------------------


def soak(model: Path, texts: Sequence[Text], seconds: float) -> dict[str, Any]:
    """All phases: what was seen in each, and the bars."""
    alone_for, mixed_for, killed_for = (share * seconds for share in SHARES)
    server = Server(model, "--deadline", "10")
    try:
        server.start()
        limits = limits_of(server.url)
        post(server.url, *next(bodies(limits["max_texts"], limits["max_body"], limits["max_chars"]))[1:])
        asyncio.run(put_load(server.url, texts, HONEST, min(3.0, alone_for)))  # what is allocated once
        first = resident_bytes(server.pid)
        alone = asyncio.run(put_load(server.url, texts, HONEST, alone_for, server.pid))
        with hostile(server.url) as statuses:
            mixed = asyncio.run(put_load(server.url, texts, HONEST, mixed_for, server.pid, pause=0.05))
        time.sleep(_REST)
        last = resident_bytes(server.pid)
        code = server.end()
    finally:
        server.kill()
    killed = replicas(model, texts, killed_for, min(EVERY, killed_for / 3))
    phases = {
        "alone": alone.summary(), "beside hostile clients": mixed.summary(),
        "hostile": {str(status): count for status, count in sorted(statuses.items())},
        "replicas": vars(killed) | {"failed": killed.failed[:5], "kills": dict(killed.kills)},
    }  # fmt: skip
    for name, phase in phases.items():
        print(f"{name}: {phase}", flush=True)
    return {
        "phases": phases,
        "bars": [asdict(bar) for bar in judge(alone, mixed, statuses, (first, last), killed, code)],
    }


def judge(
    alone: Load, mixed: Load, statuses: Mapping[int, int], memory: tuple[int, int], killed: Replicas, code: int
) -> list[Bar]:
    """The bars; `memory` is what the server held first and last, `code` its exit code."""
    before, beside = (load.summary().get("p99_ms", float("inf")) for load in (alone, mixed))
    faults = sum(count for status, count in (Counter(statuses) + alone.statuses + mixed.statuses).items()
                 if status >= 500 and status != 503)  # fmt: skip
    grown = memory[1] / memory[0]
    return [
        none("answers wrong", alone.wrong + mixed.wrong + killed.wrong),
        none("answers of another text", alone.mixed_up + mixed.mixed_up),
        none("requests of honest clients without an answer", alone.lost + mixed.lost),
        none("statuses of 500 and more but 503", faults),
        Bar("p99 of honest requests beside hostile ones, times that alone", "under 2", round(beside / before, 2),
            beside < 2 * before),
        Bar("resident memory at the end, times that at the start", "at most 1.1", round(grown, 3), grown <= 1.1),
        none("exit code of the server after all that", code),
        Bar("replicas killed", "at least 2", sum(killed.kills.values()), sum(killed.kills.values()) >= 2),
        none("calls of ebrm.Client that failed while replicas were killed", len(killed.failed)),
        Bar("calls that were answered meanwhile", "at least 1", killed.right, killed.right >= 1),
    ]  # fmt: skip


def none(bar: str, count: int) -> Bar:
    """A bar that nothing may be seen of."""
    return Bar(bar, "0", count, count == 0)


def main(arguments: list[str] | None = None) -> None:
    """Measure, print and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0, help="of all phases together")
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="ebrm-soak-") as scratch:
        model, texts, _ = prepare(Path(scratch), 500)
        found = soak(model, texts, 60 * given.minutes)
    write_json(given.out, {"minutes": given.minutes, "processors": os.cpu_count(), **found})
    for bar in found["bars"]:
        print(f"{'yes' if bar['met'] else 'NO '}  {bar['bar']}: {bar['reached']} ({bar['required']})")


if __name__ == "__main__":
    main()
