"""The server among people who err or mean harm: tokens, sizes, broken connections, and what the log holds."""

from __future__ import annotations

import json
import logging
import re
import socket
import struct
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.serve.live import Live, serving

from ebrm.model import EnergyRewardModel

TOKEN = "a-token-of-its-own"
SECRET = "xylophone-7f3a"  # in texts; nothing but an answer may hold it
MEGABYTE = 2**20
PATHS = ["/", "/health", "/ready", "/info", "/metrics", "/docs", "/openapi.json", "/v1/score", "/v1/rank"]
PATHS += ["/classify", "/pooling", "/get_reward", "/nothing", "/health/", "/%2e/info"]
ASKED = {"prompts": ["Say it"] * 2, "responses": ["yes", "no"]}


@pytest.fixture(scope="module")
def loaded(model: Path) -> EnergyRewardModel:
    return EnergyRewardModel.from_pretrained(model)


@pytest.fixture(scope="module")
def live(loaded: EnergyRewardModel) -> Iterator[Live]:
    """Asks for a token, and waits two seconds for what a client sends."""
    with serving(loaded, token=TOKEN, body_seconds=2.0) as server:
        yield server


@pytest.fixture(scope="module")
def client(live: Live) -> Iterator[httpx.Client]:
    headers = {"Authorization": f"Bearer {TOKEN}"}
    with httpx.Client(base_url=live.url, headers=headers, trust_env=False, timeout=60) as opened:
        yield opened


@contextmanager
def connection(live: Live) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", live.port), timeout=20) as opened:
        yield opened


def head(*more: str, line: str = "POST /v1/score HTTP/1.1", token: str = TOKEN) -> bytes:
    lines = [line, "Host: localhost", f"Authorization: Bearer {token}", "Content-Type: application/json", *more]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def said(opened: socket.socket) -> bytes:
    """All that comes until the server ends the connection."""
    parts = []
    while True:
        try:
            part = opened.recv(65536)
        except ConnectionResetError:
            part = b""
        if not part:
            return b"".join(parts)
        parts.append(part)


def statuses(answered: bytes) -> list[int]:
    """Of the answers on a connection, in order."""
    return [int(part[:3]) for part in answered.split(b"HTTP/1.1 ")[1:]]


def rewards(client: httpx.Client) -> list[float]:
    """What the server says to someone else; the last digit differs with what is read in the same batch."""
    results = client.post("/v1/score", json=ASKED).raise_for_status().json()["results"]
    return [row["reward"] for row in results]


@pytest.mark.parametrize(
    "given",
    [
        None, "", "Bearer", "Bearer wrong", f"Basic {TOKEN}", TOKEN, f"Bearer {TOKEN}x",
        f"Bearer {TOKEN[:-1]}", f"Bearer {TOKEN.upper()}", f"Bearer {TOKEN} {TOKEN}", f"Bearer,{TOKEN}",
        "Bearer \xff\xfe", "Bearer " + "x" * 10_000,
    ],
)  # fmt: skip
def test_without_the_token_nothing_is_answered_but_health_and_the_page(live: Live, given: str | None) -> None:
    headers = {} if given is None else {b"Authorization": given.encode("latin-1")}
    with httpx.Client(base_url=live.url, headers=headers, trust_env=False) as stranger:
        for path in PATHS:
            for method in ("GET", "POST", "OPTIONS"):
                answer = stranger.request(method, path)
                if path in ("/", "/health"):
                    assert answer.status_code in (200, 405)
                else:
                    assert answer.status_code == 401, (method, path)
                    assert answer.headers["www-authenticate"] == "Bearer"
                    assert TOKEN not in answer.text


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
def test_the_token_opens(live: Live, scheme: str) -> None:
    answer = httpx.get(f"{live.url}/info", headers={"Authorization": f"{scheme} {TOKEN}"}, trust_env=False)
    assert answer.status_code == 200 and TOKEN not in answer.text


def test_100_megabytes_that_are_declared_are_refused_before_they_are_sent(live: Live) -> None:
    with connection(live) as opened:
        opened.sendall(head(f"Content-Length: {100 * MEGABYTE}"))
        answered = said(opened)
    assert statuses(answered) == [413] and b'"kind":"too_large"' in answered
    with connection(live) as opened:
        opened.sendall(head(f"Content-Length: {MEGABYTE}", token="wrong"))
        assert statuses(said(opened)) == [401]  # and the connection has ended, without a byte of the body


def test_100_megabytes_in_chunks_are_refused_on_the_way(live: Live) -> None:
    piece = b"100000\r\n" + b" " * MEGABYTE + b"\r\n"
    with connection(live) as opened:
        opened.sendall(head("Transfer-Encoding: chunked"))
        answered: list[bytes] = []
        reader = threading.Thread(target=lambda: answered.append(said(opened)))
        reader.start()
        sent = 0
        with suppress(BrokenPipeError, ConnectionResetError):
            while sent < 100:
                opened.sendall(piece)
                sent += 1
        reader.join(60)
    assert sent < 50  # the limit is 8; some more fit into the buffers between
    assert statuses(answered[0]) in ([413], [])  # a client that goes on sending may lose the answer to a reset
    with connection(live) as opened:  # one that sends nine megabytes and listens gets it
        opened.sendall(head("Transfer-Encoding: chunked") + piece * 9)
        assert statuses(said(opened)) == [413]
    assert live.scoring.held == 0


BODY = json.dumps(ASKED).encode()
TROUBLE = {
    "nothing": b"",
    "half a head": b"POST /v1/score HTTP/1.1\r\nHost: localhost\r\nConte",
    "half a body": head(f"Content-Length: {len(BODY)}") + BODY[: len(BODY) // 2],
    "half a chunk": head("Transfer-Encoding: chunked") + b"40\r\n" + BODY[:10],
    "no body": head(f"Content-Length: {len(BODY)}"),
    "no HTTP": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 200,
    "a NUL in the head": head("X: a\0b", "Content-Length: 0"),
    "a head without end": b"GET /health HTTP/1.1\r\nX: " + b"a" * 300_000,
    "a thousand headers": head("Connection: close", *[f"X-{i}: {'a' * 100}" for i in range(1000)]),
    "a length that is no number": head("Content-Length: 0x10") + BODY,
    "a negative length": head("Content-Length: -1") + BODY,
    "two lengths": head("Content-Length: 5", f"Content-Length: {len(BODY)}") + BODY,
    "an unknown encoding": head("Transfer-Encoding: gzip, chunked") + BODY,
    "a chunk that is no number": head("Transfer-Encoding: chunked") + b"zz\r\n" + BODY,
    "a length of thirty digits": head(f"Content-Length: {10**30}") + BODY,
    "another version": head("Connection: close", line="POST /v1/score HTTP/9.9"),
    "an upgrade": head("Connection: Upgrade, close", "Upgrade: websocket", "Content-Length: 0"),
    "a proxy's request": head("Connection: close", line="CONNECT example.org:443 HTTP/1.1"),
}


@pytest.mark.parametrize("trouble", TROUBLE.values(), ids=TROUBLE)
def test_trouble_on_one_connection_is_answered_4xx_or_not_at_all(
    live: Live, client: httpx.Client, trouble: bytes
) -> None:
    expected = pytest.approx(rewards(client), abs=1e-5)
    with connection(live) as gone:  # sends it and is killed: the system resets its connections
        gone.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        gone.sendall(trouble)
    with connection(live) as waiting:  # sends it and waits; the server ends the connection by itself
        with suppress(BrokenPipeError, ConnectionResetError):
            waiting.sendall(trouble)
        assert rewards(client) == expected
        answered = said(waiting)
    assert len(statuses(answered)) <= 1
    assert all(400 <= status < 500 for status in statuses(answered))
    assert rewards(client) == expected and live.scoring.held == 0


def test_the_second_request_of_a_connection_has_its_time_limit_too(live: Live) -> None:
    with connection(live) as opened:
        opened.sendall(head(f"Content-Length: {len(BODY)}") + BODY)
        first = opened.recv(65536)
        opened.sendall(b"GET / HTTP/1.1\r\n")
        assert statuses(first + said(opened)) == [200]


def test_who_reads_nothing_is_cut_off(live: Live, client: httpx.Client) -> None:
    asked = 1000  # some 30 megabytes of answers, more than the system takes for a client
    request = head("Content-Length: 0", line="GET /openapi.json HTTP/1.1")
    with connection(live) as opened:
        once = len(client.get("/openapi.json").content)
        opened.sendall(request * asked)
        for waiting in (True, False):
            while bool(live.server._sending()) is not waiting:
                rewards(client)  # others are answered meanwhile
        assert len(said(opened)) < asked * once / 2


def test_one_request_does_not_hide_another(live: Live) -> None:
    """Where length and chunks contradict each other, a proxy may see one request and the server two."""
    hidden = b"GET /info HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer " + TOKEN.encode() + b"\r\n\r\n"
    for first in (b"0\r\n\r\n", b"2\r\n{}\r\n0\r\n\r\n"):
        both = first + hidden
        with connection(live) as opened:
            opened.sendall(head(f"Content-Length: {len(both)}", "Transfer-Encoding: chunked") + both)
            answered = said(opened)
        assert len(statuses(answered)) == 1 and 400 <= statuses(answered)[0] < 500, answered


def test_many_at_once_do_not_disturb_each_other(live: Live, client: httpx.Client) -> None:
    texts = [f"yes {i}" for i in range(12)]
    right = client.post("/v1/score", json={"prompts": ["Say it"] * 12, "responses": texts}).json()["results"]

    def one(i: int) -> None:
        kind = list(TROUBLE.values())[i % len(TROUBLE)]
        with connection(live) as gone:
            gone.sendall(kind[: 1 + (997 * i) % max(len(kind), 1)])
            answer = client.post("/v1/score", json={"prompts": ["Say it"], "responses": [texts[i % 12]]})
        assert answer.json()["results"][0]["reward"] == pytest.approx(right[i % 12]["reward"], abs=1e-5)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(one, range(68)))
    assert live.scoring.held == 0


def test_texts_and_tokens_are_never_in_the_log(
    live: Live, client: httpx.Client, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    text, turns = f"{SECRET} \ud800", [{"role": SECRET, "content": SECRET}, {"role": "assistant", "content": SECRET}]
    bodies: list[tuple[str, Any]] = [
        ("/v1/score", {"prompts": [SECRET], "responses": [SECRET]}),
        ("/v1/score", {"prompts": [text], "responses": [text]}),
        ("/v1/score", {"prompts": [SECRET], "responses": [f"{SECRET} " * 500]}),
        ("/v1/score", {"messages": [turns]}),
        ("/v1/rank", {"prompt": SECRET, "responses": [SECRET, 3, {SECRET: SECRET}]}),
        ("/classify", {"input": SECRET, "use_activation": SECRET}),
        ("/classify", {"input": SECRET, "use_activation": False}),
        ("/get_reward", {"query": [SECRET], "prompts": [SECRET], "labels": [SECRET]}),
    ]
    kind = {"Content-Type": "application/json"}
    codes = {client.post(path, content=json.dumps(body).encode(), headers=kind).status_code for path, body in bodies}
    codes |= {client.post(f"/{SECRET}?q={SECRET}", content=f'{{"{SECRET}'.encode()).status_code}
    codes |= {client.post("/v1/score", content=f'{{"{SECRET}'.encode(), headers=kind).status_code}
    with connection(live) as gone:
        gone.sendall(head("Content-Length: 500") + SECRET.encode())
    assert codes == {200, 400, 404, 422}
    rewards(client)
    logged = of_the_server(caplog) + "".join(capfd.readouterr())
    assert SECRET not in logged and TOKEN not in logged
    assert "POST /v1/score 200" in logged


def of_the_server(caplog: pytest.LogCaptureFixture) -> str:
    """What was logged, but for what the test's own client logs of its URLs."""
    records = [record for record in caplog.records if not record.name.startswith("http")]
    return "\n".join(map(caplog.handler.format, records))


def test_a_defect_answers_503_and_logs_no_text(
    live: Live, client: httpx.Client, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.DEBUG)

    def broken(*_: Any) -> None:
        raise ZeroDivisionError("a defect")

    with monkeypatch.context() as patched:
        patched.setattr(live.scoring.model.head, "p_best", broken)
        answer = client.post("/v1/rank", json={"prompt": SECRET, "responses": [SECRET]})
    assert answer.status_code == 503 and answer.json()["error"]["kind"] == "defect" and "retry-after" in answer.headers
    assert SECRET not in answer.text and "ZeroDivision" not in answer.text
    assert answer.headers["connection"] == "close"
    rewards(client)  # by its answer the traceback is logged and the defect counted, which come after the first answer
    assert "a defect" in caplog.text and SECRET not in of_the_server(caplog)
    assert re.search(
        r"\{[^}]*/v1/rank[^}]*503[^}]*\} 1\.0|\{[^}]*503[^}]*/v1/rank[^}]*\} 1\.0", client.get("/metrics").text
    )


def test_each_promise_has_its_test() -> None:
    root = Path(__file__).resolve().parents[2]
    rows = [
        line for line in (root / "SECURITY.md").read_text().splitlines() if line.startswith("| ") and ".py`" in line
    ]
    assert len(rows) > 10
    for row in rows:
        for file, names in re.findall(r"`(test_\w+\.py)`: ((?:`test_\w+`(?:, )?)+|all)", row):
            source = (root / "tests" / "serve" / file).read_text()
            for name in re.findall(r"`(\w+)`", names):
                assert f"def {name}(" in source, f"{file} has no {name}"
        assert re.search(r"`test_\w+\.py`: (`test_\w+`|all)", row), row
