from __future__ import annotations

import inspect
import json
import math

import httpx
import pytest
import torch

from ebrm import client as clients
from ebrm.client import AsyncClient, Client, RefusedText, Requests, Send
from ebrm.errors import ConfigError, ServerError, TextError

ROW = {"reward": 1.5, "base_reward": 1.0, "std": 0.5, "interval": [0.0, 2.0], "log_density": -1.0, "delta": 0.5}


class Servers(httpx.BaseTransport):
    """Answers as told, one after another, and keeps what was asked: (host, path, body)."""

    def __init__(self, *answers) -> None:
        self.answers, self.asked = list(answers), []

    def handle_request(self, request):
        body = json.loads(request.read() or b"null")
        self.asked.append((request.url.host, request.url.path, body))
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        answer = answer(body) if callable(answer) else answer
        if isinstance(answer, Exception):
            raise answer
        body = {"content": answer[1]} if isinstance(answer[1], bytes) else {"json": answer[1]}
        return httpx.Response(answer[0], headers=answer[2] if len(answer) > 2 else {}, **body)


def scored(body):
    return 200, {"results": [{**ROW, "reward": float(len(text))} for text in body["responses"]]}


def error(code, message="said", row=None, **headers):
    return code, {"error": {"kind": "k", "message": message, "row": row}}, headers


@pytest.fixture
def slept(monkeypatch):
    """Seconds that were waited; none are."""
    waited = []
    monkeypatch.setattr(clients.time, "sleep", waited.append)
    return waited


def one(*answers, url="http://a", **more):
    servers = Servers(*answers)
    return Client(url, transport=servers, **more), servers


def test_numbers_are_put_together():
    client, servers = one(scored)
    refined = client.score(["a"], ["four"])
    assert refined.reward.tolist() == [4.0] and refined.interval.tolist() == [[0.0, 2.0]]
    assert refined.reward.dtype == torch.float32 and refined.log_density.tolist() == [-1.0]
    assert servers.asked == [("a", "/v1/score", {"prompts": ["a"], "responses": ["four"]})]
    assert len(client.score([], [])) == 0 and len(servers.asked) == 1


def test_a_busy_server_is_asked_again_after_longer_and_longer_pauses(slept):
    client, servers = one(error(503), httpx.ConnectError("refused"), httpx.ReadTimeout("late"), error(502), scored)
    assert client.score(["a"], ["b"]).reward.tolist() == [1.0]
    assert len(servers.asked) == 5 and len(slept) == 4
    assert all(0.8 * 0.5 * 2**k <= pause <= 0.5 * 2**k for k, pause in enumerate(slept))


CUT = (200, b'{"model": "m", "results": [{"rew')  # a server that was killed, behind a balancer that hides it


@pytest.mark.parametrize(
    "failure",
    [
        httpx.ConnectError("Connection refused"), httpx.ConnectTimeout(""), httpx.ReadTimeout(""),
        httpx.WriteTimeout(""), httpx.PoolTimeout(""), httpx.ReadError("reset"), httpx.WriteError("Broken pipe"),
        httpx.CloseError(""), httpx.RemoteProtocolError("Server disconnected"),
        error(429), error(502), error(503), error(504), CUT, (200, b""), (200, b"<html>"),
    ],
    ids=str,
)  # fmt: skip
def test_what_a_restart_does_to_a_request_is_retried(failure, slept):
    client, servers = one(failure, failure, scored)
    assert client.score(["a"], ["four"]).reward.tolist() == [4.0]
    assert len(servers.asked) == 3 and len(slept) == 2
    client, servers = one(failure, scored, url=["http://a", "http://b"])
    slept.clear()
    assert client.score(["a"], ["four"]).reward.tolist() == [4.0]
    assert [host for host, _, _ in servers.asked] == ["a", "b"] and not slept
    client, servers = one(failure, tries=2)
    with pytest.raises(ServerError, match="after 2 tries"):
        client.score(["a"], ["b"])


def test_retry_after_is_obeyed_up_to_a_limit(slept):
    again = [error(503, **{"Retry-After": seconds}) for seconds in ("7", "99999", "Fri, 31 Dec 1999 23:59:59 GMT")]
    client, _ = one(*again, scored)
    client.score(["a"], ["b"])
    assert slept[:2] == [7.0, 120.0] and slept[2] <= 2.0


def test_after_all_tries_it_raises_and_says_what_was_tried(slept):
    client, servers = one(error(503, "the queue is full"), tries=3)
    with pytest.raises(ServerError, match=r"3 tries in \d+ seconds.*http://a: 503 the queue is full.*tries=") as said:
        client.score(["a"], ["b"])
    assert len(servers.asked) == 3 and len(slept) == 2
    assert "POST /v1/score" in str(said.value)
    client, _ = one(httpx.ConnectError("Connection refused"), tries=1)
    with pytest.raises(ServerError, match=r"1 try .*ConnectError \(Connection refused\)"):
        client.info()


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (error(401), "token=…"),
        (error(404), "Is it `ebrm serve`"),
        (error(413, "too large"), "413 too large"),
        (error(422, "another shape"), "422 another shape"),
        ((200, {"results": []}), "0 results for 1 texts"),
        ((200, {"something": 1}), "no results for 1 texts"),
        ((200, {"results": [{"reward": 1}]}), "holds no rewards"),
        ((200, {"results": [{**ROW, "reward": None}]}), "holds no rewards"),
        ((200, []), "refuses"),
        ((301, {}), "301 Moved Permanently"),
    ],
)
def test_what_will_not_get_better_is_raised_at_once(answer, said, slept):
    client, servers = one(answer)
    with pytest.raises(ServerError, match=said):
        client.score(["a"], ["b"])
    assert len(servers.asked) == 1 and not slept


def test_large_lists_go_in_requests_that_the_server_takes(slept):
    info = (200, {"limits": {"max_texts": 3, "max_body": 10_000}})
    client, servers = one(info, scored)
    responses = ["x" * k for k in range(8)]
    assert client.score(["p"] * 8, responses).reward.tolist() == list(range(8))
    assert [len(body["responses"]) for _, path, body in servers.asked if path == "/v1/score"] == [3, 3, 2]
    client.score(["p"] * 2, ["a", "b"])
    assert [path for _, path, _ in servers.asked].count("/info") == 1
    # By bytes, of which 100 are kept for the rest of the body; one that is too large goes alone, to be refused there.
    for length, parts in ((292, [1, 1, 1]), (291, [2, 1]), (900, [1, 1, 1])):
        client, servers = one((200, {"limits": {"max_texts": 100, "max_body": 700}}), scored)
        client.score(["p"] * 3, ["y" * length] * 3)
        assert [len(body["responses"]) for _, path, body in servers.asked if path == "/v1/score"] == parts


def test_long_conversations_go_in_requests_of_few_enough_values():
    info = (200, {"limits": {"max_texts": 100, "max_body": 100_000, "max_values": 60}})
    client, servers = one(info, scored)
    turns = [{"role": "user", "content": "a"}] * 7  # 22 values with their list, and one for the response
    client.score([turns] * 5, ["r"] * 5)
    assert [len(body["responses"]) for _, path, body in servers.asked if path == "/v1/score"] == [2, 2, 1]


def test_a_text_that_cannot_be_read_is_named_in_the_whole_list():
    info = (200, {"limits": {"max_texts": 2, "max_body": 10_000}})
    client, _ = one(info, scored, error(422, "Text 1: too long", row=1))
    with pytest.raises(RefusedText, match=r"Text 1: too long \(row 3 of all\)") as refused:
        client.score(["p"] * 4, ["a", "b", "c", "d"])
    assert refused.value.row == 3 and isinstance(refused.value, TextError)
    with pytest.raises(TextError, match="2 prompts but 1 responses"):
        client.score(["a", "b"], ["c"])


def test_servers_take_turns_and_one_that_is_away_is_passed_over(slept):
    client, servers = one(scored, url=["http://a/", "http://b"])
    for _ in range(4):
        client.score(["p"], ["r"])
    assert [host for host, _, _ in servers.asked] == ["a", "b", "a", "b"]
    client, servers = one(httpx.ConnectError("away"), scored, url=["http://a", "http://b"])
    assert len(client.score(["p"], ["r"])) == 1
    assert [host for host, _, _ in servers.asked] == ["a", "b"] and not slept


def test_waiting_until_all_are_ready(slept):
    info = (200, {"fingerprint": "f"})
    client, servers = one(httpx.ConnectError("away"), error(503, "loading"), (200, {}), info)
    client.wait_until_ready()
    assert slept == [1.0, 1.0] and [path for _, path, _ in servers.asked] == ["/ready"] * 3 + ["/info"]
    again = [(200, {}), httpx.ReadError("reset"), (200, {}), error(503), (200, {}), info]  # ends between the two
    client, servers = one(*again)
    client.wait_until_ready()
    assert [path for _, path, _ in servers.asked] == ["/ready", "/info"] * 3
    client, _ = one(error(503, "loading"))
    with pytest.raises(ServerError, match="http://a is not ready after 0 seconds: 503 loading"):
        client.wait_until_ready(0)
    client, _ = one(error(401, "no token"))
    with pytest.raises(ServerError, match="refuses: 401 no token"):
        client.wait_until_ready()
    answers = [(200, {}), info, (200, {}), (200, {"fingerprint": "g"})]
    client, _ = one(*answers, url=["http://a", "http://b"])
    with pytest.raises(ServerError, match="do not serve the same model"):
        client.wait_until_ready()


def test_addresses_and_tries_are_checked():
    for url in ("127.0.0.1:8080", [], ["http://a", "b"]):
        with pytest.raises(ConfigError, match="address of a server"):
            Client(url)
    with pytest.raises(ConfigError, match="tries"):
        Client("http://a", tries=0)


def test_steps_do_nothing_themselves():
    steps = Requests(["http://a", "http://b"], tries=3).info()
    assert next(steps) == Send("GET", "http://a/info")
    assert steps.send(None) == Send("GET", "http://b/info")  # the other one, at once
    assert isinstance(steps.send(None), float)  # both are away: a pause
    assert steps.send(None) == Send("GET", "http://a/info")
    with pytest.raises(ServerError, match="3 tries"):
        steps.send(None)


@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_every_call_shows_its_arguments_and_its_documentation(kind):
    for name in ("score", "score_rendered", "to_score", "rank", "info", "wait_until_ready"):
        call, steps = getattr(kind, name), getattr(Requests, name)
        assert inspect.signature(call).parameters == inspect.signature(steps).parameters
        assert call.__doc__ == steps.__doc__ and call.__name__ == name
    assert inspect.signature(kind.score).return_annotation == "RefinedReward"


def test_the_plain_client_ranks_and_closes():
    rows = [{**ROW, "index": 1, "rank": 1, "p_best": 0.7}, {**ROW, "index": 0, "rank": 2, "p_best": 0.3}]
    servers = Servers((200, {"results": rows}))
    with Client("http://a", token="word", transport=servers) as client:
        first, _ = client.rank([{"role": "user", "content": "a", "name": "x"}], ["b", "c"])
    assert (first.index, first.response, first.p_best) == (1, "c", 0.7)
    assert servers.asked[0][2]["prompt"] == [{"role": "user", "content": "a", "name": "x"}]
    client, _ = one((200, {"results": [{"index": 9}]}))
    with pytest.raises(ServerError, match="no ranking"):
        client.rank("a", ["b"])


def test_rendered_texts_and_scores_between_0_and_1():
    info = (200, {"limits": {"max_texts": 9, "max_body": 10_000}, "units": {"mean": 1.0, "std": 2.0}})
    client, servers = one(lambda body: (200, {"results": [ROW] * len(body["rendered"])}) if body else info)
    assert client.score_rendered("x").reward.tolist() == [1.5] and servers.asked[0][2] == {"rendered": ["x"]}
    assert client.score_rendered(["x", "y"]).reward.tolist() == [1.5, 1.5]
    assert client.to_score(torch.tensor([1.0, 5.0])).tolist() == pytest.approx([0.5, 1 / (1 + math.exp(-2))])
    assert [path for _, path, _ in servers.asked] == ["/v1/score", "/info", "/v1/score"]  # info is requested once


def test_rows_that_a_server_refuses_are_nan_and_the_others_are_sent_again(slept):
    def refusing(body):
        bad = next((row for row, text in enumerate(body["responses"]) if "bad" in text), None)
        return scored(body) if bad is None else error(422, f"Text {bad}: too long", row=bad)

    info = (200, {"limits": {"max_texts": 3, "max_body": 10_000}})
    client, servers = one(lambda body: refusing(body) if body else info)
    found = client.score("p", ["a", "bad", "abc", "bad", "bad"], on_error="nan")
    assert [error is None for error in found.errors] == [True, False, True, False, False]
    assert found.reward.isnan().tolist() == found.interval[:, 1].isnan().tolist() == [False, True, False, True, True]
    assert found.reward[0] == 1 and found.reward[2] == 3 and "row 4 of all" in found.errors[4]
    assert [path for _, path, _ in servers.asked].count("/v1/score") == 4
    with pytest.raises(ConfigError, match="on_error"):
        client.score(["p"], ["r"], on_error="skip")
