from __future__ import annotations

import asyncio
import json
import os
import queue
import signal
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
