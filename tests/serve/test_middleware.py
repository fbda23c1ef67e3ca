"""Limits on request bodies, in this process; tests/serve/test_security.py has them over sockets."""

from __future__ import annotations

import asyncio

import pytest
from tests.serve.routes import JSON, ask, client, run

from ebrm.serve import ServeConfig
from ebrm.serve.app import create_app

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
