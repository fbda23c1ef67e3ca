from __future__ import annotations

import asyncio

import pytest
from tests.serve.routes import JSON, ask, client, run

from ebrm.serve import ServeConfig
from ebrm.serve.app import create_app

BODY = {"prompts": ["a"], "responses": ["b"]}
PATHS = [("GET", "/ready"), ("GET", "/info"), ("GET", "/metrics"), ("GET", "/docs"), ("GET", "/openapi.json"),
         ("GET", "/nothing"), ("POST", "/v1/score"), ("POST", "/v1/rank"), ("POST", "/classify"), ("POST", "/pooling"),
         ("POST", "/get_reward")]  # fmt: skip


@pytest.mark.parametrize(
    "header", [None, "Bearer wrong", "Bearer ", "Basic right", "right", "Bearer right2", "Bearer é"]
)
def test_without_the_token_nothing_but_health_and_the_page(energy, header):
    app = create_app(energy, ServeConfig(token="right"))
    headers = {} if header is None else {"authorization": header.encode()}
    for method, path in PATHS:
        answer = ask(app, method, path, headers=headers)
        assert answer.status_code == 401 and answer.json()["error"]["kind"] == "token", path
        assert answer.headers["www-authenticate"] == "Bearer"
    assert ask(app, "GET", "/health", headers=headers).status_code == 200
    assert ask(app, "GET", "/", headers=headers).status_code == 200


@pytest.mark.parametrize("header", ["Bearer right", "bearer right", "Bearer  right"])
def test_with_the_token_all_is_open(energy, header):
    app = create_app(energy, ServeConfig(token="right"))
    assert ask(app, "POST", "/v1/score", json=BODY, headers={"authorization": header}).status_code == 200


class Upload:
    """A body that comes in parts and counts how much of it was taken."""

    def __init__(self, parts: int, size: int) -> None:
        self.parts, self.size, self.taken = parts, size, 0

    async def __aiter__(self):
        for _ in range(self.parts):
            self.taken += self.size
            yield b" " * self.size


def test_a_body_that_says_it_is_too_large_is_not_read(energy):
    upload = Upload(100, 1000)
    app = create_app(energy, ServeConfig(max_body=5000))
    answer = ask(app, "POST", "/v1/score", content=upload, headers={**JSON, "content-length": "100000"})
    assert answer.status_code == 413 and answer.json()["error"]["kind"] == "too_large"
    assert upload.taken == 0 and answer.headers["connection"] == "close"


@pytest.mark.parametrize("length", [None, "1", "not a number", "-5"])
def test_a_body_that_turns_out_too_large_is_not_read_on(energy, length):
    upload = Upload(100, 1000)
    app = create_app(energy, ServeConfig(max_body=5000))
    headers = JSON if length is None else {**JSON, "content-length": length}
    answer = ask(app, "POST", "/v1/score", content=upload, headers=headers)
    assert answer.status_code == 413 and upload.taken == 6000
    # What was held of it is given back.
    assert ask(app, "POST", "/v1/score", json=BODY).status_code == 200


def test_a_body_of_just_the_limit_is_read(energy):
    content = b'{"prompts": [], "responses": []}'
    app = create_app(energy, ServeConfig(max_body=len(content)))
    assert ask(app, "POST", "/v1/score", content=content, headers=JSON).status_code == 200
    assert ask(app, "POST", "/v1/score", content=content + b" ", headers=JSON).status_code == 413


def test_a_body_that_stops_coming_is_given_up(energy):
    app = create_app(energy, ServeConfig(body_seconds=0.05))

    async def stuck():
        yield b"{"
        await asyncio.Event().wait()

    answer = ask(app, "POST", "/v1/score", content=stuck(), headers=JSON)
    assert answer.status_code == 408 and answer.json()["error"]["kind"] == "slow_body"


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


def test_paths_and_texts_are_not_in_the_logs(energy, caplog):
    caplog.set_level("DEBUG")
    app = create_app(energy)
    ask(app, "POST", "/v1/score?text=hidden", json={"prompts": ["hidden"], "responses": ["hidden"]})
    ask(app, "POST", "/v1/score", json={"prompts": ["hidden"], "responses": [3]})
    ask(app, "GET", "/hidden")
    assert "POST /v1/score 200" in caplog.text and "GET other 404" in caplog.text
    assert "hidden" not in "".join(record.getMessage() for record in caplog.records if record.name.startswith("ebrm"))
