"""Admission, deadlines and errors of the queue, on a real application."""

from __future__ import annotations

import asyncio
import logging
import threading
import weakref
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from tests.serve.routes import client, run, together

from ebrm.errors import BackboneError
from ebrm.serve import ServeConfig
from ebrm.serve.app import create_app
from ebrm.serve.requests import Refused
from ebrm.serve.scoring import ScoreItem, Scoring, _slices
from ebrm.serve.threads import Worker


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
            await Scoring.answer(scoring, SimpleNamespace(receive=receive, scope={}), work)
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


def characters(app, *sizes):
    return {"prompts": ["p" * 10] * len(sizes), "responses": ["r" * (size - 10) for size in sizes]}


def test_texts_are_tokenized_in_slices():
    slices = lambda sizes: [list(rows) for rows in _slices(sizes)]  # noqa: E731
    assert slices([]) == [] and slices([1] * 17) == [list(range(8)), list(range(8, 16)), [16]]
    assert slices([2**20, 1, 2**15, 1]) == [[0], [1], [2], [3]] and slices([2**14, 2**14, 1]) == [[0, 1], [2]]


def test_a_text_with_too_many_characters_is_refused_before_it_is_tokenized(energy, monkeypatch):
    tokenized = []
    ids = Scoring._ids_of
    monkeypatch.setattr(Scoring, "_ids_of", lambda self, row, text: tokenized.append(row) or ids(self, row, text))
    app = create_app(energy)
    most = app.state.scoring.max_chars
    assert most == 2**14 and Scoring(model_of(energy, 10_000), ServeConfig()).max_chars == 320_000
    (fits, long) = together(app, [characters(app, most), characters(app, 20, most + 1)])
    assert fits.json()["error"]["message"].startswith("Text 0: The response alone has") and tokenized == [0]
    assert (long.status_code, long.json()["error"]["kind"], long.json()["error"]["row"]) == (422, "text", 1)
    for route, one in (
        ("/v1/rank", {"prompt": "p" * most, "responses": ["", "r"]}),
        ("/v1/rank", {"prompt": [{"role": "user", "content": ""}] * (most // 16), "responses": ["", "r"]}),
        ("/v1/score", {"messages": [[{"role": "user", "content": "p" * most}, {"role": "assistant", "content": "r"}]]}),
        ("/v1/score", {"rendered": ["p" * (most + 1)]}),
        ("/classify", {"input": ["p" * (most + 1)], "use_activation": False}),
        ("/get_reward", {"query": ["p" * (most + 1)]}),
    ):
        (answer,) = together(app, [one], route)
        assert (answer.status_code, answer.json()["error"]["kind"]) == (422, "text"), route
        assert answer.json()["error"]["row"] in (0, 1)
    assert tokenized == [0] and app.state.scoring.held == 0


def model_of(energy, max_length):
    return SimpleNamespace(record=SimpleNamespace(text_rule={"max_length": max_length}))


def test_a_prompt_counts_for_each_of_its_responses(energy, monkeypatch):
    monkeypatch.setattr(Scoring, "_ids_of", None)
    app = create_app(energy, ServeConfig(max_body=20_000, max_texts=50))  # 51,200 characters: 50 texts of 128 tokens
    (answer,) = together(app, [{"prompt": "p" * 10_000, "responses": ["r"] * 6}], "/v1/rank")
    assert (answer.status_code, answer.json()["error"]["kind"]) == (422, "too_many_characters")
    assert "60,006 characters" in answer.json()["error"]["message"] and "51,200" in answer.json()["error"]["message"]


@pytest.mark.parametrize("why", ["leaves", "deadline", "gives up"])
def test_texts_of_a_cancelled_request_are_not_tokenized(energy, monkeypatch, why):
    begun, go, tokenized = threading.Event(), threading.Event(), []
    ids = Scoring._ids_of

    def waiting(self, row, text):
        tokenized.append(row)
        begun.set()
        assert go.wait(60)
        return ids(self, row, text)

    scoring = Scoring(energy, ServeConfig(deadline=0.2 if why == "deadline" else 60.0))
    gone = asyncio.Event()

    async def receive():
        await gone.wait()
        return {"type": "http.disconnect"}

    async def main():
        await scoring._load()
        monkeypatch.setattr(Scoring, "_ids_of", waiting)
        texts = [ScoreItem("many", "a")] * 100
        request = SimpleNamespace(receive=receive, scope={})
        asked = asyncio.create_task(scoring.answer(request, lambda: scoring.score(texts)))
        scoring.under_way.add(asked)
        assert await asyncio.to_thread(begun.wait, 60)
        if why == "leaves":
            gone.set()
        elif why == "gives up":
            scoring.give_up()
        with pytest.raises((Refused, asyncio.CancelledError)):
            await asked
        go.set()
        await asyncio.get_running_loop().run_in_executor(scoring._texts, str)

    run(main())
    assert len(tokenized) == 8 and scoring.held == 0


TEMPLATES = {
    "adds text and a number": "{{ messages[0].content + 1 }}",
    "divides by nothing": "{{ 1 // (messages | length - 2) }}",
    "has no such field": "{{ messages[0].content.nothing.more }}",
    "calls itself": "{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}",
    "refuses": "{{ raise_exception('not this') }}",
    "asks for more than there is": "{{ messages[7].content.upper() }}",
    "leaves the sandbox": "{{ messages.__class__.__mro__[1].__subclasses__() }}",
}


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
def test_a_template_that_fails_on_a_text_is_422_with_its_row(energy, monkeypatch, caplog, template):
    app = create_app(energy)
    run(app.state.scoring._load())
    monkeypatch.setattr(energy.backbone, "text_rule", replace(energy.backbone.text_rule, template=template))
    answer = together(app, [body("xylophone", "c")])[0]
    assert (answer.status_code, answer.json()["error"]["kind"], answer.json()["error"]["row"]) == (422, "text", 0)
    assert "retry-after" not in answer.headers and "xylophone" not in answer.text + caplog.text


@pytest.mark.parametrize(
    "error", [TypeError("of xylophone"), KeyError("xylophone"), RecursionError(), UnicodeError("x")]
)
def test_a_tokenizer_that_fails_on_a_text_is_422_with_its_row(energy, monkeypatch, caplog, error):
    def failing(self, prompt, response, where=""):
        if response == "xylophone":
            raise error
        return tokenize(self, prompt, response, where)

    app = create_app(energy)
    run(app.state.scoring._load())
    tokenize = type(energy.backbone).tokenize
    monkeypatch.setattr(type(energy.backbone), "tokenize", failing)
    bad, good = together(app, [body("b", "xylophone"), body("b")])
    assert (bad.status_code, bad.json()["error"]["row"], good.status_code) == (422, 1, 200)
    assert "xylophone" not in bad.text + caplog.text and type(error).__name__ in bad.text


def test_workers_end_with_the_process_and_leave_out_what_was_cancelled():
    worker, go, ran = Worker("ebrm-test"), threading.Event(), []
    first = worker.submit(go.wait, 60)
    second, third = worker.submit(ran.append, 2), worker.submit(ran.append, 3)
    assert second.cancel()
    go.set()
    assert first.result(60) and third.result(60) is None and ran == [3]
    with pytest.raises(ZeroDivisionError):
        worker.submit(divmod, 1, 0).result(60)
    (thread,) = [one for one in threading.enumerate() if one.name == "ebrm-test"]
    assert thread.daemon
    kept = threading.local()
    seen = weakref.ref(kept)
    worker.submit(id, kept).result(60)
    worker.submit(str).result(60)
    del kept
    assert seen() is None  # nothing of a call is held
    go.clear()
    begun = threading.Event()
    busy, waiting = worker.submit(lambda: begun.set() or go.wait(60)), worker.submit(ran.append, 4)
    assert begun.wait(60)
    worker.shutdown(wait=False, cancel_futures=True)
    assert waiting.cancelled()
    go.set()
    assert busy.result(60)
    thread.join(60)
    assert not thread.is_alive() and ran == [3]
