from __future__ import annotations

import asyncio
import gc
import json
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import httpx
import pytest
from tests.serve.live import serving
from tests.serve.routes import KINDS
from tests.terminal import child_environment

from ebrm.client import Client
from ebrm.errors import BackboneError, ConfigError
from ebrm.model import EnergyRewardModel
from ebrm.serve import ServeConfig, run
from ebrm.serve.scoring import Scoring


@dataclass
class Server:
    """A process of `ebrm serve`."""

    process: subprocess.Popen[str]
    url: str
    said: queue.Queue[str]

    def wait_for(self, words: str) -> str:
        while True:
            line = self.said.get(timeout=120)
            if words in line:
                return line


@pytest.fixture(scope="module")
def server(model):
    command = [sys.executable, "-m", "ebrm", "serve", str(model), "--port", "0"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=child_environment()
    )
    said: queue.Queue[str] = queue.Queue()
    threading.Thread(target=lambda: [said.put(line) for line in process.stdout], daemon=True).start()
    made = Server(process, "", said)
    made.url = made.wait_for("listening on ").split()[-1]
    made.wait_for("ready: ")
    yield made
    process.kill()
    process.wait()
    process.stdout.close()


def test_the_process_scores_as_offline(server, energy):
    texts = [one for kind, one in KINDS.items() if kind != "over-long"]  # the process refuses those, as the model does
    expected = energy.score([prompt for prompt, _ in texts], [response for _, response in texts]).to_rows()
    body = json.dumps({"prompts": [prompt for prompt, _ in texts], "responses": [response for _, response in texts]})
    answer = httpx.post(f"{server.url}/v1/score", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 200, answer.text
    for row, offline in zip(answer.json()["results"], expected, strict=True):
        assert row["reward"] == pytest.approx(offline["reward"], abs=1e-5)
    assert httpx.get(f"{server.url}/info").json()["fingerprint"] == energy.fingerprint()


def test_sigterm_under_load_loses_no_accepted_request(server, energy):  # the last: it ends the server
    texts = [(f"Question {i}", f"alpha {i % 7}") for i in range(160)]
    expected = energy.score([p for p, _ in texts], [r for _, r in texts]).reward.tolist()

    async def main():
        answered, ending = asyncio.Event(), asyncio.Event()

        async def one(client, i):
            # Two requests each: some are sent before the signal and some after it.
            seen = []
            for _ in range(2):
                sent_before = False

                async def trace(event, _):
                    nonlocal sent_before
                    if event == "http11.send_request_body.complete":
                        sent_before = not ending.is_set()

                body = {"prompts": [texts[i][0]], "responses": [texts[i][1]]}
                try:
                    answer = await client.post("/v1/score", json=body, extensions={"trace": trace})
                except httpx.TransportError:
                    assert not sent_before, "sent before the signal, and lost"
                    seen.append("ended")
                    continue
                if answer.status_code == 200:
                    assert answer.json()["results"][0]["reward"] == pytest.approx(expected[i], abs=1e-5)
                    answered.set()
                else:
                    assert (answer.status_code, answer.json()["error"]["kind"]) == (503, "draining")
                if ending.is_set() and answer.status_code == 503:
                    assert answer.headers["connection"] == "close"
                seen.append(answer.status_code)
            return seen

        limits = httpx.Limits(max_connections=None)
        async with (
            httpx.AsyncClient(base_url=server.url, timeout=60, limits=limits) as client,
            asyncio.TaskGroup() as group,  # cancels and awaits all, or a failure leaves sockets to other tests
        ):
            tasks = [group.create_task(one(client, i)) for i in range(len(texts))]
            await answered.wait()
            ending.set()
            os.kill(server.process.pid, signal.SIGTERM)
        return [task.result() for task in tasks]

    seen = asyncio.run(main())
    assert sum(one.count(200) for one in seen) > 0
    assert server.process.wait(timeout=60) == 0
    assert "Traceback" not in "".join(iter(lambda: server.said.get_nowait() if not server.said.empty() else "", ""))


def test_a_request_that_reaches_a_server_as_it_ends_is_refused_not_reset(energy):
    with serving(energy) as live, httpx.Client(base_url=live.url) as client:
        assert client.get("/ready").status_code == 200
        live.server.handle_exit(signal.SIGTERM, None)
        while any(listening.is_serving() for listening in live.server.servers):
            pass
        answer = client.post("/v1/score", json={"prompts": ["a"], "responses": ["b"]})  # on the connection still open
        assert (answer.status_code, answer.headers["connection"]) == (503, "close")


def test_a_second_signal_or_the_end_of_drain_ends_it(energy, caplog):
    for signals, drain in ((2, 30.0), (0, 0.05)):
        with serving(energy, drain=drain) as live:
            assert httpx.get(f"{live.url}/ready").status_code == 200
            live.scoring.held += 1  # as if a text were never answered
            live.scoring._idle.clear()
            for _ in range(signals):
                live.server.handle_exit(signal.SIGTERM, None)
    assert "1 texts were not answered within" in caplog.text


@pytest.mark.parametrize("signals", [1, 2])
def test_what_is_not_answered_in_time_is_refused_with_503(energy, caplog, signals):
    go, begun = threading.Event(), threading.Event()

    def waiting(ids):
        begun.set()
        assert go.wait(60)
        return []

    half = (
        b"POST /v1/score HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 50\r\n\r\n{"
    )
    with serving(energy, drain=0.1 if signals == 1 else 60.0) as live, ThreadPoolExecutor(2) as pool:
        live.scoring._batcher._run = waiting
        body = {"prompts": ["a"], "responses": ["b"]}
        asked = [pool.submit(httpx.post, f"{live.url}/v1/score", json=body, timeout=60) for _ in range(2)]
        with socket.create_connection(("127.0.0.1", live.port), timeout=60) as opened:
            opened.sendall(half)
            assert begun.wait(60)
            wait_until(lambda: len(live.scoring.under_way) == 3)
            for _ in range(signals):
                live.server.handle_exit(signal.SIGTERM, None)
            said = b"".join(iter(lambda: opened.recv(65536), b""))
        answers = [one.result() for one in asked]
    go.set()
    assert [answer.status_code for answer in answers] == [503, 503] and said.startswith(b"HTTP/1.1 503 ")
    assert b"retry-after: 1\r\n" in said and b'"kind":"draining"' in said
    for answer in answers:
        assert answer.json()["error"]["kind"] == "draining"
        assert (answer.headers["retry-after"], answer.headers["connection"]) == ("1", "close")
    assert "Traceback" not in caplog.text and "Exception" not in caplog.text


def test_the_process_does_not_wait_for_a_batch_that_goes_on(energy, monkeypatch):
    scoring, go, left = Scoring(energy, ServeConfig()), threading.Event(), []
    monkeypatch.setattr(run.os, "_exit", left.append)
    monkeypatch.setattr(run.logging, "shutdown", lambda: left.append("flushed"))
    try:
        run._leave(scoring)
        assert not left  # nothing is under way: Python ends as it does
        busy = scoring.workers[2].submit(go.wait, 60)
        wait_until(lambda: scoring.workers[2].busy)
        run._leave(scoring)
        assert left == ["flushed", 0]
        go.set()
        assert busy.result(60)
    finally:
        gc.unfreeze()
        scoring.close()


def wait_until(reached):
    while not reached():
        time.sleep(0.01)


def test_who_does_not_read_does_not_hold_the_end(energy, caplog):
    with (
        serving(energy, drain=0.3, body_seconds=60.0) as live,
        socket.create_connection(("127.0.0.1", live.port), timeout=60) as opened,
    ):
        opened.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n" * 500)
        wait_until(live.server._sending)
        live.server.handle_exit(signal.SIGTERM, None)
        wait_until(lambda: not live.server.server_state.connections)
    assert "Traceback" not in caplog.text


def test_a_client_goes_on_while_servers_are_restarted(energy):
    texts = [(f"Question {i}", f"alpha {i % 7}") for i in range(40)]
    expected = energy.score([p for p, _ in texts], [r for _, r in texts]).reward.tolist()
    with serving(energy) as second, serving(energy, drain=0.05) as first, Client([first.url, second.url]) as client:
        seen, ending = threading.Semaphore(0), threading.Event()

        def ask(part):
            found = []
            while not ending.is_set() or not found:
                found = [client.score(*texts[i]).reward.item() for i in part]
                seen.release()
            return found

        with ThreadPoolExecutor(4) as pool:
            asked = [pool.submit(ask, range(k, 40, 4)) for k in range(4)]
            assert seen.acquire(timeout=60)
            first.server.handle_exit(signal.SIGTERM, None)
            wait_until(lambda: not first.server.server_state.connections)
            ending.set()
            found = [one.result() for one in asked]
    assert [found[i % 4][i // 4] for i in range(40)] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(("allowed", "names"), [((), ["localhost", "127.0.0.1"]), (("rm.example",), ["rm.example"])])
def test_on_this_machine_alone_only_its_names_are_answered(energy, allowed, names):
    with serving(energy, allowed_hosts=allowed) as live:
        for host in ("localhost", "127.0.0.1", "rm.example", "evil.example"):
            answer = httpx.get(f"{live.url}/info", headers={"host": f"{host}:{live.port}"})
            assert answer.status_code == (200 if host in names else 400), host


def test_a_port_in_use_and_an_address_of_others_are_said():
    with run.bind("127.0.0.1", 0) as taken:
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"127.0.0.1 port {port}: Address already in use. Something listens"):
            run.bind("127.0.0.1", port)
    with pytest.raises(ConfigError, match="choose another `host`"):
        run.bind("203.0.113.7", 0)
    with pytest.raises(ConfigError, match="no address that can be looked up"):
        run.bind("no such host", 0)
    with run.bind("127.0.0.1", 0) as here, run.bind("0.0.0.0", 0) as everywhere:
        assert run.url_of(here) == f"http://127.0.0.1:{here.getsockname()[1]}"
        assert run.is_loopback(here) and not run.is_loopback(everywhere)


@pytest.mark.parametrize(("host", "token", "warned"), [("0.0.0.0", None, True), ("0.0.0.0", "a", False),
                                                       ("127.0.0.1", None, False)])  # fmt: skip
def test_an_open_server_is_warned_of(model, monkeypatch, caplog, host, token, warned):
    def gone(self, changes):
        raise BackboneError("the folder is not there")

    monkeypatch.setattr(EnergyRewardModel, "_load_backbone", gone)
    said = []
    with pytest.raises(BackboneError, match="not there"):  # ends by itself when there is nothing to serve
        run.serve(
            EnergyRewardModel.from_pretrained(model), ServeConfig(host=host, port=0, token=token),
            listening=said.append, ready=lambda: said.append("ready"),
        )  # fmt: skip
    assert len(said) == 1 and said[0].startswith("http://")
    assert ("requires no token" in caplog.text) is warned
