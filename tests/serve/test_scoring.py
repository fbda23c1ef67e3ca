"""Admission, deadlines and errors of the queue, on a real application."""

from __future__ import annotations

import asyncio
import logging
import threading
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from tests.serve.routes import client, run, together

from ebrm.errors import BackboneError
from ebrm.serve import ServeConfig
from ebrm.serve.app import create_app
from ebrm.serve.requests import Refused
from ebrm.serve.scoring import ScoreItem, Scoring


def body(*responses):
    return {"prompts": ["a"] * len(responses), "responses": list(responses)}


@pytest.fixture
def held(energy, monkeypatch):
    """A server whose model waits until it is let go: (make an application, go, entered)."""
    go, entered = threading.Event(), threading.Semaphore(0)

    def make(**config):
        app = create_app(energy, ServeConfig(max_wait=0.0, **config))
        scoring = app.state.scoring
        run(scoring._load())

        def waiting(ids):
            entered.release()
            assert go.wait(timeout=60)
            return Scoring._run(scoring, ids)

        monkeypatch.setattr(scoring._batcher, "_run", waiting)
        return app

    yield make, go, entered
    go.set()


async def model_is_busy(entered):
    assert await asyncio.get_running_loop().run_in_executor(None, lambda: entered.acquire(timeout=60))


async def texts_held(app, count):
    while app.state.scoring.held < count:
        await asyncio.sleep(0)


def test_beyond_the_queue_is_503_and_the_queue_frees_up(held):
    make, go, entered = held
    app = make(queue=3, max_texts=3)

    async def main():
        async with client(app) as c:
            first = asyncio.create_task(c.post("/v1/score", json=body("b", "c")))
            await model_is_busy(entered)
            refused = await c.post("/v1/score", json=body("d", "e"))
            assert refused.status_code == 503 and refused.json()["error"]["kind"] == "queue_full"
            assert refused.headers["retry-after"] == "1"
            second = asyncio.create_task(c.post("/v1/score", json=body("d")))
            await texts_held(app, 3)
            go.set()
            assert {(await first).status_code, (await second).status_code} == {200}
            assert app.state.scoring.held == 0
            assert (await c.post("/v1/score", json=body("d", "e"))).status_code == 200

    run(main())


def test_past_its_deadline_a_request_is_503_and_leaves_the_queue(held):
    make, go, entered = held
    app = make(deadline=0.05)

    async def main():
        async with client(app) as c:
            late = await asyncio.gather(*(c.post("/v1/score", json=body("b")) for _ in range(3)))
            assert {(answer.status_code, answer.json()["error"]["kind"]) for answer in late} == {(503, "deadline")}
            assert app.state.scoring.held == 0 and len(app.state.scoring._batcher) == 0

    run(main())


def test_ending_answers_accepted_requests(held):
    make, go, entered = held
    app = make()

    async def main():
        async with client(app) as c:
            accepted = [asyncio.create_task(c.post("/v1/score", json=body("b")))]
            await model_is_busy(entered)
            accepted += [asyncio.create_task(c.post("/v1/score", json=body(str(k)))) for k in range(5)]
            await texts_held(app, 6)
            drained = asyncio.create_task(app.state.scoring.drain())
            await asyncio.sleep(0)
            assert (await c.post("/v1/score", json=body("c"))).json()["error"]["kind"] == "draining"
            assert not drained.done()
            go.set()
            assert [answer.status_code for answer in await asyncio.gather(*accepted)] == [200] * 6
            await drained

    run(main())


@pytest.mark.parametrize(("leaves", "deadline", "kind"), [(True, 60.0, "gone"), (False, 0.01, "deadline")])
def test_work_is_cancelled_when_the_client_disconnects_or_at_the_deadline(leaves, deadline, kind):
    scoring = SimpleNamespace(config=ServeConfig(deadline=deadline))

    async def main():
        begun, cancelled, never = asyncio.Event(), asyncio.Event(), asyncio.Event()

        async def work():
            begun.set()
            try:
                await never.wait()
            except asyncio.CancelledError:
                cancelled.set()
                raise

        async def receive():
            await (begun if leaves else never).wait()
            return {"type": "http.disconnect"}

        with pytest.raises(Refused) as refused:
            await Scoring.answer(scoring, SimpleNamespace(receive=receive), work)
        assert refused.value.kind == kind and cancelled.is_set()

    run(main())


def test_one_bad_text_fails_only_its_own_request(energy, monkeypatch):
    """A text whose embedding overflows: found by the model only, in the middle of a batch of several requests."""
    app = create_app(energy, ServeConfig(max_wait=50.0))
    poison = energy.backbone.tokenize("a", "poison").ids
    read = type(energy.backbone).read

    def overflowing(self, ids):
        if any(list(text) == poison for text in ids):
            raise BackboneError("gives 1 of n texts an embedding that is not a finite number")
        return read(self, ids)

    monkeypatch.setattr(type(energy.backbone), "read", overflowing)
    answers = together(app, [body("b", "c"), body("d", "poison"), body("e")])
    assert [answer.status_code for answer in answers] == [200, 422, 200]
    assert answers[1].json()["error"]["row"] == 1 and "not a finite number" in answers[1].json()["error"]["message"]


def test_a_reward_that_is_not_finite_is_refused(energy, monkeypatch):
    refine = type(energy).refine
    monkeypatch.setattr(
        type(energy), "refine", lambda self, e, r: replace(refine(self, e, r), std=torch.full((len(r),), torch.nan))
    )
    app = create_app(energy)
    app.state.scoring._first_reading = lambda: None
    (answer,) = together(app, [body("b")])
    assert answer.status_code == 422 and "not a finite number" in answer.json()["error"]["message"]


def test_dropped_texts_are_named(energy, monkeypatch):
    monkeypatch.setattr(energy.backbone, "text_rule", replace(energy.backbone.text_rule, truncation="drop"))
    (answer,) = together(create_app(energy), [{"prompts": ["a", "eta theta " * 60], "responses": ["b", "c"]}])
    assert answer.status_code == 422 and answer.json()["error"]["row"] == 1
    assert "Text 1 is longer than the 128 tokens" in answer.json()["error"]["message"]


def test_texts_are_logged_on_request_only(energy, caplog):
    caplog.set_level(logging.INFO)
    for log in (False, True):
        together(create_app(energy, ServeConfig(log_texts=log)), [body("a certain answer")])
        assert ("a certain answer" in caplog.text) is log


def test_a_large_request_does_not_hold_up_tokenizing_of_a_small_one(energy, monkeypatch):
    order = []
    ids = Scoring._ids_of
    monkeypatch.setattr(Scoring, "_ids_of", lambda self, row, text: order.append(text.response) or ids(self, row, text))
    scoring = Scoring(energy, ServeConfig())

    async def main():
        await scoring._load()
        many = [ScoreItem("many", "a")] * 100
        await asyncio.gather(scoring.score(many), scoring.score([ScoreItem("one", "a")]))

    run(main())
    assert order.index("one") <= 16
