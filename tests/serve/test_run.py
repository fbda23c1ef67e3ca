from __future__ import annotations

import asyncio
import json
import os
import queue
import signal
import socket
import struct
import subprocess
import sys
import threading
from dataclasses import dataclass

import httpx
import pytest
from tests.serve.live import serving
from tests.serve.routes import KINDS
from tests.terminal import child_environment

from ebrm.errors import BackboneError, ConfigError
from ebrm.model import EnergyRewardModel
from ebrm.serve import ServeConfig, run

BODY = {"prompts": ["a"], "responses": ["b"]}


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
    command = [sys.executable, "-m", "ebrm", "serve", str(model), "--port", "0", "--body-seconds", "2"]
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


def connection(server):
    host, port = server.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=60)


def test_the_process_scores_as_offline(server, energy):
    texts = [one for kind, one in KINDS.items() if kind != "over-long"]  # the process refuses those, as the model does
    expected = energy.score([prompt for prompt, _ in texts], [response for _, response in texts]).to_rows()
    body = json.dumps({"prompts": [prompt for prompt, _ in texts], "responses": [response for _, response in texts]})
    answer = httpx.post(f"{server.url}/v1/score", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 200, answer.text
    for row, offline in zip(answer.json()["results"], expected, strict=True):
        assert row["reward"] == pytest.approx(offline["reward"], abs=1e-5)
    assert httpx.get(f"{server.url}/info").json()["fingerprint"] == energy.fingerprint()


@pytest.mark.parametrize(
    "sent",
    [
        b"not http at all\r\n\r\n",
        b"POST /v1/score HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 5\r\n\r\n{nope",
        b"POST /v1/score HTTP/1.1\r\nHost: x\r\nContent-Length: 999999999999999999999999\r\n\r\n",
        b"POST /v1/score HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ],
    ids=["no http", "no json", "absurd length", "broken chunks"],
)
def test_what_is_malformed_is_answered_4xx_and_disturbs_nobody(server, sent):
    with connection(server) as raw:
        raw.sendall(sent)
        assert raw.recv(65536).startswith(b"HTTP/1.1 4")
    assert httpx.post(f"{server.url}/v1/score", json=BODY).status_code == 200


def test_clients_that_are_killed_or_stop_half_way_disturb_nobody(server):
    body = json.dumps(BODY)

    def request(length: int) -> bytes:
        head = f"POST /v1/score HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {length}"
        return f"{head}\r\n\r\n{body}".encode()

    stopped = [connection(server) for _ in range(8)]
    for raw in stopped[:4]:
        raw.sendall(request(1000))  # more is said to come
    stopped[4].sendall(b"POST /v1/sc")
    for _ in range(8):
        killed = connection(server)
        killed.sendall(request(len(body)))
        # What the system does to the connections of a killed process with unread data: a reset, without goodbye.
        killed.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        killed.close()
    assert httpx.post(f"{server.url}/v1/score", json=BODY).status_code == 200
    # The half requests are given up after --body-seconds, and so are connections on which nothing came.
    assert all(raw.recv(65536).startswith(b"HTTP/1.1 408") for raw in stopped[:4])
    assert all(raw.recv(65536) == b"" for raw in stopped[4:])
    for raw in stopped:
        raw.close()
    assert "ebrm_queue_texts 0.0" in httpx.get(f"{server.url}/metrics").text


def test_sigterm_under_load_loses_no_accepted_request(server, energy):  # the last: it ends the server
    texts = [(f"Question {i}", f"alpha {i % 7}") for i in range(160)]
    expected = energy.score([p for p, _ in texts], [r for _, r in texts]).reward.tolist()
    answered = asyncio.Event()

    async def main():
        async with httpx.AsyncClient(base_url=server.url, timeout=60, limits=httpx.Limits(max_connections=None)) as c:

            async def one(i):
                # Two requests each: some are sent before the signal and some after it.
                seen = []
                for _ in range(2):
                    body = {"prompts": [texts[i][0]], "responses": [texts[i][1]]}
                    try:
                        answer = await c.post("/v1/score", json=body)
                    except httpx.ConnectError:  # it has ended: refused, not lost
                        seen.append("ended")
                        continue
                    if answer.status_code == 200:
                        assert answer.json()["results"][0]["reward"] == pytest.approx(expected[i], abs=1e-5)
                        answered.set()
                    else:
                        assert (answer.status_code, answer.json()["error"]["kind"]) == (503, "draining")
                    seen.append(answer.status_code)
                return seen

            tasks = [asyncio.create_task(one(i)) for i in range(len(texts))]
            await answered.wait()
            os.kill(server.process.pid, signal.SIGTERM)
            return await asyncio.gather(*tasks)

    seen = asyncio.run(main())
    assert sum(one.count(200) for one in seen) > 0
    assert server.process.wait(timeout=60) == 0
    assert "Traceback" not in "".join(iter(lambda: server.said.get_nowait() if not server.said.empty() else "", ""))


def test_a_second_signal_ends_it_at_once(energy):
    with serving(energy) as live:
        assert httpx.get(f"{live.url}/ready").status_code == 200
        live.scoring.held += 1  # as if a text were never answered
        live.scoring._idle.clear()
        server = live.server
        server.handle_exit(signal.SIGTERM, None)
        server.handle_exit(signal.SIGTERM, None)


def test_drain_ends_when_its_time_is_up(energy, caplog):
    with serving(energy, drain=0.05) as live:
        live.scoring.held += 1
        live.scoring._idle.clear()
    assert "1 texts were not answered within" in caplog.text


def test_a_port_in_use_and_an_address_of_others_are_said():
    with run.bind("127.0.0.1", 0) as taken:
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"127.0.0.1 port {port}: Address already in use. Something listens"):
            run.bind("127.0.0.1", port)
    with pytest.raises(ConfigError, match="choose another --host"):
        run.bind("203.0.113.7", 0)
    with pytest.raises(ConfigError, match="no address that can be looked up"):
        run.bind("no such host", 0)


def test_urls():
    with run.bind("127.0.0.1", 0) as made:
        assert run.url_of(made) == f"http://127.0.0.1:{made.getsockname()[1]}" and run.is_loopback(made)
    with run.bind("0.0.0.0", 0) as made:
        assert not run.is_loopback(made)


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
    assert ("asks for no token" in caplog.text) is warned
