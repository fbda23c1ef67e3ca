"""A judge is asked once for equal questions, again where it may help, and what it does not answer is counted."""

from __future__ import annotations

import asyncio
import logging
import threading
from pathlib import Path
from typing import Any

import pytest
from tests.judges.fake import completion, serving

from ebrm.errors import ConfigError, ServerError
from ebrm.judges import JudgeRequest, OpenAIJudge

QUESTIONS = [JudgeRequest(f"question {number}", "be fair") for number in range(4)]


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ebrm.utils.backoff._FIRST", 0.0)
    monkeypatch.delenv("EBRM_JUDGE_TOKEN", raising=False)


def said(body: dict[str, Any]) -> str:
    return body["messages"][-1]["content"]


def test_answers_come_in_order_and_are_asked_for_as_the_api_wants() -> None:
    with serving(lambda body, before: (200, completion(said(body)[::-1]))) as fake:
        judge = OpenAIJudge(fake.url + "/", "a-model", concurrency=2, seed=3, price=(1.0, 10.0))
        answers = judge([*QUESTIONS, QUESTIONS[0]])
    assert [answer.text for answer in answers] == [q.prompt[::-1] for q in [*QUESTIONS, QUESTIONS[0]]]
    assert len(fake.bodies) == 4 and fake.most <= 2 and set(fake.paths) == {"/v1/chat/completions"}
    body = next(body for body in fake.bodies if said(body) == "question 0")
    assert body == {
        "model": "a-model", "temperature": 0.0, "max_tokens": 1024, "seed": 3,
        "messages": [{"role": "system", "content": "be fair"}, {"role": "user", "content": "question 0"}],
    }  # fmt: skip
    used = judge.usage
    assert (used.requests, used.cached, used.calls, used.failed) == (5, 1, 4, 0)
    assert (used.prompt_tokens, used.completion_tokens) == (40, 8)
    assert used.cost == pytest.approx((40 * 1 + 8 * 10) / 1e6)


def test_log_probabilities_of_the_first_token_are_returned_where_they_were_asked_for() -> None:
    with serving(lambda body, before: (200, completion("Yes", {"Yes": -0.1, "No": -3.0}))) as fake:
        (answer,) = OpenAIJudge(fake.url, "m")([JudgeRequest("?", top_logprobs=2, max_tokens=1)])
    assert answer.logprobs == {"Yes": -0.1, "No": -3.0}
    assert (fake.bodies[0]["logprobs"], fake.bodies[0]["top_logprobs"], fake.bodies[0]["max_tokens"]) == (True, 2, 1)
    bad = completion("Yes", {"Yes": float("nan")})
    with serving(lambda body, before: (200, bad)) as fake:
        assert OpenAIJudge(fake.url, "m")([JudgeRequest("?", top_logprobs=2)])[0].logprobs is None


@pytest.mark.parametrize("trouble", [429, 500, 503, 0, "garbage", "no text"])
def test_trouble_that_may_pass_is_tried_again(trouble: Any) -> None:
    sent = {"garbage": (200, b"<html>"), "no text": (200, completion(None))}.get(trouble, (trouble, {"error": "busy"}))
    with serving(lambda body, before: sent if before < 2 else (200, completion("good"))) as fake:
        judge = OpenAIJudge(fake.url, "m", tries=3)
        assert judge(QUESTIONS[:1])[0].text == "good"
    assert judge.usage.calls == 3 and judge.usage.failed == 0


def test_a_question_without_an_answer_is_counted_and_the_others_are_answered(caplog: pytest.LogCaptureFixture) -> None:
    def behavior(body: dict[str, Any], before: int) -> tuple[int, Any]:
        if said(body) == "question 1":
            return 400, {"error": {"message": "the context is too long"}}
        return 200, completion("good")

    with serving(behavior) as fake, caplog.at_level(logging.WARNING):
        judge = OpenAIJudge(fake.url, "m")
        answers = judge(QUESTIONS)
    assert [answer.text for answer in answers] == ["good", None, "good", "good"]
    assert answers[1].error == "400 the context is too long."
    assert judge.usage.failed == 1 and judge.usage.calls == 4  # a 400 is not tried again
    assert "no answer to 1 of 4 questions; their scores are NaN" in caplog.text


@pytest.mark.parametrize("status", [401, 404])
def test_a_judge_that_cannot_be_asked_stops_the_run(status: int) -> None:
    with (
        serving(lambda body, before: (status, {"error": {"message": "no such thing"}})) as fake,
        pytest.raises(ServerError, match=f"refuses: {status} no such thing. Check `url`, `model` and the key"),
    ):
        OpenAIJudge(fake.url, "m")(QUESTIONS)


def test_a_judge_that_answers_nothing_stops_the_run() -> None:
    with (
        serving(lambda body, before: (503, {"error": "down"})) as fake,
        pytest.raises(ServerError, match=r"answered none of 4 questions. The first: 503 down"),
    ):
        OpenAIJudge(fake.url, "m", tries=2)(QUESTIONS)
    with pytest.raises(ServerError, match="ConnectError"):
        OpenAIJudge("http://127.0.0.1:1/v1", "m", tries=1)(QUESTIONS[:1])


def test_one_try_has_a_time_limit_and_an_answer_a_size() -> None:
    held = threading.Event()

    def behavior(body: dict[str, Any], before: int) -> tuple[int, Any]:
        if said(body) == "question 0":
            held.wait(5)
        return 200, b" " * (5 * 2**20) if said(body) == "question 1" else completion("good")

    with serving(behavior) as fake:
        answers = OpenAIJudge(fake.url, "m", tries=1, timeout=0.5)(QUESTIONS[:3])
        held.set()
    assert "Timeout" in (answers[0].error or "") and "over 4194304 bytes" in (answers[1].error or "")
    assert answers[2].text == "good"


def test_answers_are_cached_by_content_and_the_key_is_nowhere(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    key = "sk-very-secret"
    with serving(lambda body, before: (200, completion(said(body), {"Yes": -1.0}))) as fake, caplog.at_level(0):
        asked = [*QUESTIONS, JudgeRequest("?", top_logprobs=3)]
        judge = OpenAIJudge(fake.url, "m", key, cache=tmp_path)
        first = judge(asked)
        again = OpenAIJudge(fake.url, "m", key, cache=tmp_path)
        assert again(asked) == first and len(fake.bodies) == 5 and again.usage.cached == 5
        OpenAIJudge(fake.url, "m", key, cache=tmp_path, temperature=1.0)(asked[:1])
        assert len(fake.bodies) == 6
        stored = sorted(path for path in tmp_path.rglob("*") if path.is_file())
        assert len(stored) == 6
        for path, spoilt in zip(stored, (b"", b"{", b"[1]", b'{"format": "x"}', b"\xff"), strict=False):
            path.write_bytes(spoilt)
        assert OpenAIJudge(fake.url, "m", key, cache=tmp_path)(asked) == first
        assert set(fake.keys) == {f"Bearer {key}"}
    for place in (repr(judge), caplog.text, *(path.read_bytes().decode() for path in tmp_path.rglob("*.json"))):
        assert key not in place
    assert "is not a cached answer of a judge" in caplog.text


def test_the_key_may_stand_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EBRM_JUDGE_TOKEN", "from-outside")
    with serving(lambda body, before: (200, completion("good"))) as fake:
        OpenAIJudge(fake.url, "m")(QUESTIONS[:1])
        OpenAIJudge(fake.url, "m", api_key="")(QUESTIONS[:1])
    assert fake.keys == ["Bearer from-outside", None]


def test_it_may_be_asked_where_an_event_loop_runs() -> None:
    with serving(lambda body, before: (200, completion("good"))) as fake:

        async def inside() -> str | None:
            return OpenAIJudge(fake.url, "m")(QUESTIONS[:1])[0].text

        assert asyncio.run(inside()) == "good"
        assert OpenAIJudge(fake.url, "m")([]) == []


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"url": "127.0.0.1:8000"}, "is like http://127.0.0.1:8000/v1"),
        ({"url": "http://me:secret@host/v1"}, "holds a password"),
        ({"model": ""}, "`model` is empty"),
        ({"concurrency": 0}, "`concurrency` is 0"),
        ({"tries": 0}, "`tries` is 0"),
        ({"timeout": 0}, "`timeout` is 0"),
        ({"price": (-1.0, 0.0)}, "`price` is -1"),
    ],
)
def test_settings_are_checked(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said) as told:
        OpenAIJudge(**({"url": "http://h/v1", "model": "m"} | settings))
    assert "secret" not in str(told.value)
