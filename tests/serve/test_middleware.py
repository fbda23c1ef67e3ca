"""Limits on request bodies, in this process; tests/serve/test_security.py has them over sockets."""

from __future__ import annotations

import asyncio
import threading

import pytest
import uvicorn
from tests.serve.routes import JSON, ask, client, run

from ebrm.serve import ServeConfig
from ebrm.serve.app import create_app
from ebrm.serve.middleware import connection_class

BODY = {"prompts": ["a"], "responses": ["b"]}


class Upload:
    """A body of a hundred parts that counts how much of it was taken."""

    def __init__(self) -> None:
        self.taken = 0

    async def __aiter__(self):
        for _ in range(100):
            self.taken += 1000
            yield b" " * 1000


@pytest.mark.parametrize(
    ("length", "taken"), [("100000", 0), (None, 6000), ("1", 6000), ("not a number", 6000), ("-5", 6000)]
)
def test_a_body_over_the_limit_is_not_read_on(energy, length, taken):
    upload, app = Upload(), create_app(energy, ServeConfig(max_body=5000))
    headers = JSON if length is None else {**JSON, "content-length": length}
    answer = ask(app, "POST", "/v1/score", content=upload, headers=headers)
    assert (answer.status_code, answer.json()["error"]["kind"]) == (413, "too_large") and upload.taken == taken
    assert answer.headers["connection"] == "close"
    assert ask(app, "POST", "/v1/score", json=BODY).status_code == 200  # its memory is free again


def test_a_body_of_just_the_limit_is_read(energy):
    content = b'{"prompts": [], "responses": []}'
    app = create_app(energy, ServeConfig(max_body=len(content)))
    assert ask(app, "POST", "/v1/score", content=content, headers=JSON).status_code == 200
    assert ask(app, "POST", "/v1/score", content=content + b" ", headers=JSON).status_code == 413


def test_a_body_that_stops_coming_is_given_up(energy):
    async def stuck():
        yield b"{"
        await asyncio.Event().wait()

    app = create_app(energy, ServeConfig(body_seconds=0.05))
    answer = ask(app, "POST", "/v1/score", content=stuck(), headers=JSON)
    assert (answer.status_code, answer.json()["error"]["kind"]) == (408, "slow_body")


def test_many_half_sent_bodies_do_not_fill_the_memory(energy):
    app = create_app(energy, ServeConfig(max_body=1000))
    sent, go_on = asyncio.Semaphore(0), asyncio.Event()

    async def half():
        yield b" " * 900
        sent.release()
        await go_on.wait()
        yield b" " * 200

    async def main():
        async with client(app) as c:
            uploads = []
            for _ in range(17):  # 17 · 900 bytes, and 16 · 1,000 may be held
                uploads.append(asyncio.create_task(c.post("/v1/score", content=half(), headers=JSON)))
                await sent.acquire()
            refused = await c.post("/v1/score", content=b" " * 800, headers=JSON)
            assert refused.status_code == 503 and refused.json()["error"]["kind"] == "queue_full"
            go_on.set()
            assert {answer.status_code for answer in await asyncio.gather(*uploads)} <= {413, 503}
            assert (await c.post("/v1/score", json=BODY)).status_code == 200

    run(main())


@pytest.mark.parametrize(
    ("header", "status"),
    [
        ("Bearer secret-word", 200), ("bearer secret-word", 200), ("Bearer secret", 401), ("Bearer secret-word2", 401),
        ("Bearer s\u00e9cret", 401), ("Basic secret-word", 401), ("secret-word", 401), ("Bearer", 401), (None, 401),
    ],
)  # fmt: skip
def test_only_the_token_opens_the_server(energy, header, status):
    app = create_app(energy, ServeConfig(token="secret-word"))
    headers = {} if header is None else {"authorization": header.encode("utf-8")}
    answer = ask(app, "POST", "/v1/score", json=BODY, headers=headers)
    assert answer.status_code == status
    if status == 401:
        assert answer.json()["error"]["kind"] == "token" and answer.headers["connection"] == "close"


@pytest.fixture(scope="module")
def several(energy):
    """Servers with names of their own, with none, and for any."""
    names = ("localhost", "127.0.0.1", "::1", "RM.example")
    return [create_app(energy, ServeConfig(allowed_hosts=allowed)) for allowed in (names, (), ("*",))]


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200), ("LOCALHOST:8080", 200), ("localhost.", 200), ("127.0.0.1:1", 200), ("[::1]:8080", 200),
        ("::1", 200), ("rm.example", 200), ("evil.example", 400), ("evil.example:8080", 400),
        ("localhost.evil.example", 400),
        ("127.0.0.1.evil.example", 400), ("127.0.0.2", 400), ("evil.example@localhost", 400), ("", 400),
    ],
)  # fmt: skip
def test_only_its_own_names_open_the_server(several, host, status):
    """Or a page whose name leads to this machine (DNS rebinding) could read from it."""
    app, *others = several
    for method, path in (("GET", "/health"), ("GET", "/"), ("POST", "/v1/score")):
        body = {"json": BODY} if method == "POST" else {}
        answer = ask(app, method, path, headers={"host": host}, **body)
        assert answer.status_code == status, path
        if status == 400:
            assert answer.json()["error"]["kind"] == "host" and "evil" not in answer.text
    for one in others:
        assert ask(one, "GET", "/health", headers={"host": host}).is_success


def test_many_tiny_chunks_are_refused(energy):
    """Counted by the connection: see `Connection.data_received`."""
    app = create_app(energy)

    async def main(extra):
        sent, parts = [], [b'{"prompts": ', b'[], "responses": []}']
        scope = {
            "type": "http", "method": "POST", "path": "/v1/score", "raw_path": b"/v1/score", "query_string": b"",
            "headers": [(b"content-type", b"application/json")], "http_version": "1.1", "scheme": "http",
            "root_path": "", "server": ("127.0.0.1", 1), "client": ("127.0.0.1", 2),
        }  # fmt: skip

        async def receive():
            if not parts:
                await asyncio.Event().wait()
            scope["ebrm.received"] = extra
            return {"type": "http.request", "body": parts.pop(0), "more_body": bool(parts)}

        async def send(message):
            sent.append(message)

        await app(scope, receive, send)
        return sent[0]["status"]

    assert run(main(2**17)) == 200 and run(main(2**17 + 100)) == 400


class Transport(asyncio.Transport):
    """A client that reads nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.aborted = asyncio.Event()
        self.high = None

    def set_write_buffer_limits(self, high=None, low=None):
        self.high = high

    def abort(self):
        self.aborted.set()

    def close(self):
        pass

    def is_closing(self):
        return False


def connected(app, seconds):
    config = uvicorn.Config(app, http="h11", lifespan="off", log_config=None)
    config.load()
    connection = connection_class(seconds)(config, uvicorn.server.ServerState(), {})
    connection.connection_made(transport := Transport())
    return connection, transport


def test_who_does_not_read_an_answer_is_cut_off(energy):
    async def main():
        connection, transport = connected(create_app(energy), 0.02)
        assert transport.high == 0  # writing pauses with the first byte that is not taken
        connection.pause_writing()
        assert connection.unread
        await asyncio.wait_for(transport.aborted.wait(), 60)
        connection, transport = connected(create_app(energy), 0.02)
        connection.pause_writing()
        connection.resume_writing()
        assert not connection.unread
        await asyncio.sleep(0.1)
        assert not transport.aborted.is_set()
        connection.pause_writing()
        connection.connection_lost(None)
        assert not connection.unread

    run(main())


def test_a_connection_reads_and_parses_little_in_a_row_and_counts_what_it_reads(energy):
    async def main():
        connection, _ = connected(create_app(energy), 60.0)
        taken = connection.get_buffer(-1)
        assert len(taken) == 2**13 and connection.get_buffer(2**20) is taken
        head = b"POST /v1/score HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
        taken[: len(head)] = head
        connection.buffer_updated(len(head))
        assert "ebrm.received" not in connection.scope
        taken[:600] = b"1\r\n \r\n" * 100
        connection.buffer_updated(600)
        assert connection.scope["ebrm.received"] == 600 and len(connection.cycle.body) == 100
        taken[:5] = b"0\r\n\r\n"
        connection.buffer_updated(5)
        assert connection.scope["ebrm.received"] == 605
        other, _ = connected(create_app(energy), 60.0)
        assert other.get_buffer(-1) is not taken  # of another server, perhaps in another thread
        for task in connection.tasks:
            task.cancel()

    run(main())


@pytest.mark.parametrize("where", ["a body that comes", "the model", "an answer that is written"])
def test_giving_up_refuses_what_is_under_way_with_503(energy, monkeypatch, caplog, where):
    app, begun, go = create_app(energy), asyncio.Event(), threading.Event()
    scoring = app.state.scoring

    async def stuck():
        begun.set()
        yield b"{"
        await asyncio.Event().wait()

    async def main():
        await scoring._load()
        loop = asyncio.get_running_loop()
        wait = lambda *_: loop.call_soon_threadsafe(begun.set) and go.wait(60)  # noqa: E731
        if where != "a body that comes":
            monkeypatch.setattr(scoring._batcher, "_run", wait)
        if where == "an answer that is written":
            monkeypatch.setattr(scoring, "score", lambda texts: asyncio.sleep(0, []))
            monkeypatch.setattr(type(energy), "density", wait)
        more = {"content": stuck()} if where == "a body that comes" else {"json": BODY | {"density": 5}}
        async with client(app) as c:
            asked = asyncio.create_task(c.post("/v1/score", headers=JSON, **more))
            await asyncio.wait_for(begun.wait(), 60)
            scoring.give_up()
            answer = await asked
        go.set()
        assert (answer.status_code, answer.json()["error"]["kind"]) == (503, "draining")
        assert answer.headers["retry-after"] == "1" and answer.headers["connection"] == "close"

    run(main())
    assert not scoring.under_way and scoring.held == 0 and "Traceback" not in caplog.text
