from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections import Counter
from pathlib import Path

import pytest
from benchmarks import soak
from benchmarks.load import Load, Text
from benchmarks.servers import Balancer, Listener
from benchmarks.soak import Replicas, ask, judge

TEXTS = [Text("a", "b", 1.0), Text("c", "d", 2.0), Text("e", "f", 3.0)]
ROW = dict.fromkeys(("base_reward", "std", "log_density", "delta"), 0.0) | {"interval": [0.0, 1.0]}


class Scores(Listener):
    """A server that scores the texts above, `off` too high, and hangs up at every `drops`th request."""

    def __init__(self, drops: int = 0, off: float = 0.0) -> None:
        super().__init__()
        self.drops, self.off, self.asked = drops, off, 0

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                self.asked += 1
                length = [line.split(b": ")[1] for line in head.lower().split(b"\r\n") if b"content-length" in line]
                sent = json.loads(await reader.readexactly(int(length[0])) if length else b"{}")
                if self.drops and self.asked % self.drops == 0:
                    break
                rewards = [{"a": 1.0, "c": 2.0, "e": 3.0}[prompt] + self.off for prompt in sent.get("prompts", ())]
                limits = {"max_texts": 8, "max_body": 2**20}
                answer = json.dumps({"limits": limits, "results": [ROW | {"reward": r} for r in rewards]}).encode()
                writer.write(b"HTTP/1.1 200 x\r\nContent-Length: %d\r\n\r\n" % len(answer) + answer)
        except asyncio.IncompleteReadError:
            pass
        finally:
            writer.close()


def asked(ports: list[int], calls: int = 12) -> Replicas:
    """What one client sees of the servers at these ports, behind the balancer, in so many calls."""
    found, over = Replicas(), threading.Event()
    over.is_set = lambda: found.right + found.wrong + len(found.failed) >= calls  # type: ignore[method-assign]
    with Balancer(ports) as balancer:
        ask(f"http://127.0.0.1:{balancer.port}", TEXTS, over, found, 0)
    return found


def test_a_client_behind_the_balancer_gets_right_answers_beside_a_server_that_is_gone() -> None:
    with socket.socket() as nobody, Scores() as server:
        nobody.bind(("127.0.0.1", 0))  # bound, and not listening
        found = asked([nobody.getsockname()[1], server.port])
    assert (found.right, found.wrong, found.failed) == (12, 0, []) and server.asked >= 12


def test_wrong_answers_of_a_replica_are_counted() -> None:
    with Scores(off=0.5) as server:
        found = asked([server.port], 3)
    assert (found.right, found.wrong) == (0, 3)


def test_a_connection_that_ends_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ebrm.client.backoff", lambda *_: 0.0)
    with Scores(drops=4) as server:
        found = asked([server.port])
    assert (found.right, found.failed) == (12, []) and server.asked > 13


def load(p99: float, statuses: dict[int, int] | None = None, **more: int) -> Load:
    return Load(1.0, [p99] * 100, statuses=Counter(statuses or {200: 100}), **more)


def test_every_bar_can_be_missed() -> None:
    killed = Replicas(right=5, kills=Counter(SIGKILL=1, SIGTERM=1))
    fine = judge(load(0.1), load(0.15, {200: 9, 503: 1}), {422: 3, 0: 2}, (100, 110), killed, 0)
    assert all(bar.met for bar in fine) and len({bar.bar for bar in fine}) == len(fine) == 10
    bad = Replicas(wrong=1, failed=["no answer"])
    missed = judge(load(0.1), load(0.2, {500: 1}, lost=1, wrong=1, mixed_up=1), {502: 1}, (100, 111), bad, 1)
    assert not any(bar.met for bar in missed)
    assert [bar.reached for bar in missed][:4] == [2, 1, 1, 2]


def test_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(soak, "prepare", lambda folder, count: (folder, TEXTS, 14.0))
    bar = {"bar": "answers wrong", "required": "0", "reached": 1, "met": False}
    monkeypatch.setattr(soak, "soak", lambda model, texts, seconds: {"phases": {"seconds": seconds}, "bars": [bar]})
    soak.main(["--minutes", "2", "--out", str(tmp_path / "soak.json")])
    written = json.loads((tmp_path / "soak.json").read_text())
    assert written["bars"] == [bar] and written["phases"] == {"seconds": 120.0}
    assert capsys.readouterr().out == "NO   answers wrong: 1 (0)\n"
