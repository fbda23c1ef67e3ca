"""Requests to a pooling server: order, division, tries, and errors in whichever shape they come."""

from __future__ import annotations

import json
import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
import torch
from tests.backbone.pooling_server import FakeServer, serving
from tests.tiny import byte_tokenizer, save_rm, word_tokenizer

from ebrm.backbone import float32_head
from ebrm.backbone.model_server import TOKEN
from ebrm.backbone.pooling import PoolingServer, embeddings, probe, probe_texts
from ebrm.errors import ServerError

IDS = [[5, 6, 7], [8], [9] * 6, [10, 11], [12, 13, 14, 15], [16]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_rm(tmp_path_factory.mktemp("pooling") / "tiny", "llama")


@pytest.fixture(params=["vllm", "sglang"])
def fake(request, folder):
    with serving(FakeServer(folder, request.param)) as server:
        yield server


@pytest.fixture
def vllm(folder):
    with serving(FakeServer(folder)) as server:
        yield server


def connect(fake: FakeServer) -> tuple[PoolingServer, list[float]]:
    """The client, and the pauses it makes instead of waiting."""
    pauses: list[float] = []
    return PoolingServer(fake.url, pause=pauses.append), pauses


def test_what_is_served(fake, folder):
    for url in (fake.url, fake.url + "/", fake.url + "/v1", fake.url + "/v1/"):
        server = PoolingServer(url)
        assert (server.url, server.kind, server.model, server.root) == (fake.url, fake.kind, str(folder), str(folder))
        assert server.limit == 128
    assert {"vllm": "vLLM", "sglang": "SGLang"}[fake.kind] in server.name
    del fake.card["root"], fake.card["max_model_len"]
    server = PoolingServer(fake.url)
    assert (server.root, server.limit) == (server.model, None)


@pytest.mark.parametrize("budget", [1, 4, 7, 1000])
def test_order_is_kept_however_it_is_divided(fake, budget):
    server, _ = connect(fake)
    answer = server.read(IDS, budget)
    for ids, vector in zip(IDS, answer.vectors, strict=True):
        assert torch.equal(torch.from_numpy(vector), fake.states(ids)[-1])  # all 32 bits of each float
    bodies = [body for path, body in fake.requests if path != "/v1/models"]
    sent = sorted(tuple(ids) for body in bodies for ids in body.get("input") or body["items"])
    assert sent == sorted(map(tuple, IDS))
    assert len(bodies) == {1: 6, 4: 5, 7: 3, 1000: 1}[budget]
    assert all(
        sum(map(len, group)) <= budget or len(group) == 1 for b in bodies for group in [b.get("input") or b["items"]]
    )
    assert answer.tokens == (17 if fake.kind == "vllm" else None)
    assert (answer.scores is None) == (fake.kind == "vllm")
    if answer.scores is not None:
        assert answer.scores == [fake.score(ids) for ids in IDS]


def test_a_request_has_a_bounded_number_of_texts(vllm):
    server, _ = connect(vllm)
    assert len(server.read([[5]] * 300, 1000).vectors) == 300
    assert sorted(len(body["input"]) for path, body in vllm.requests if path != "/v1/models") == [44, 256]


def test_several_requests_are_under_way_but_no_more_than_eight(vllm, monkeypatch):
    server, _ = connect(vllm)
    vllm.meet = threading.Barrier(8)
    workers: list[int] = []
    start = ThreadPoolExecutor.__init__
    monkeypatch.setattr(ThreadPoolExecutor, "__init__", lambda self, n: workers.append(n) or start(self, n))
    server.read([[5]] * 24, 1)
    assert vllm.most_under_way == 8
    vllm.meet = None
    server.read([[5]] * 2, 1)
    assert workers == [8, 2]


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_a_busy_server_is_asked_again_after_longer_pauses(vllm, status):
    server, pauses = connect(vllm)
    vllm.first = [(status, {}, "busy")] * 3 + [(503, {"Retry-After": "7"}, ""), (503, {"Retry-After": "1e9"}, "")]
    assert len(server.read([[5, 6]], 10).vectors) == 1
    assert pauses == [0.5, 1.0, 2.0, 7.0, 30.0]


def test_a_server_that_stays_busy_is_an_error_that_says_what_was_tried(vllm):
    server, pauses = connect(vllm)
    vllm.first = [(503, {"Retry-After": "soon"}, '{"error": {"message": "queue is full"}}')] * 6
    with pytest.raises(ServerError, match=r"POST /v1/embeddings was tried 6 times .* HTTP 503: queue is full\. Check"):
        server.read([[5, 6]], 10)
    assert pauses == [0.5, 1.0, 2.0, 4.0, 8.0]


def test_no_server_is_an_error_that_says_where_it_was_looked_for(vllm):
    server, _ = connect(vllm)
    with serving(FakeServer.__new__(FakeServer)) as gone:
        pass
    pauses: list[float] = []
    with pytest.raises(
        ServerError, match=f"{gone.url} does not answer: GET /v1/models was tried 6 times .* ConnectError"
    ):
        PoolingServer(gone.url, pause=pauses.append)
    assert len(pauses) == 5
    server.url = gone.url  # it was there before
    with pytest.raises(ServerError, match="POST /v1/embeddings was tried 6 times"):
        server.read([[5]], 10)


def test_a_server_that_takes_too_long_is_an_error(vllm, monkeypatch):
    server, pauses = connect(vllm)

    def slow(*_: Any, **__: Any) -> Any:
        raise httpx.ReadTimeout("timed out")

    monkeypatch.setattr(httpx.Client, "request", slow)
    with pytest.raises(ServerError, match="ended with ReadTimeout: timed out"):
        server.read([[5]], 10)
    assert len(pauses) == 5


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ('{"error": {"message": "too long for me.", "type": "BadRequestError", "code": 400}}', "too long for me."),
        ('{"object": "error", "message": "too long for me", "code": 400}', "too long for me."),
        ('{"detail": [{"loc": ["body", "input"], "msg": "wrong"}]}', "'msg': 'wrong'"),
        ('{"error": "out of order"}', "out of order."),
        ("<html>Bad Request</html>", "<html>Bad Request</html>."),
        ("", "nothing said."),
        ("x" * 1000, "x" * 200),
    ],
)
def test_a_refusal_is_passed_on_and_not_tried_again(vllm, body, said):
    server, pauses = connect(vllm)
    for status in (400, 422, 500):
        vllm.first = [(status, {}, body)]
        with pytest.raises(ServerError) as error:
            server.read([[5]], 10)
        assert f"refuses /v1/embeddings (HTTP {status}): " in str(error.value)
        assert said in str(error.value)
        assert "--convert embed" in str(error.value)
        assert len(str(error.value)) < 700
    assert not pauses


def test_another_kind_of_server_is_told_from_the_answers(vllm):
    server, _ = connect(vllm)
    others = ('{"data": []}', '{"data": [{"index": 1, "embedding": []}]}', '{"data": [3]}', '{"data": [{}]}')
    for made in ("[]", "{}", *others):
        vllm.first = [(200, {}, made)]
        with pytest.raises(ServerError, match="for 1 texts; one each, numbered from 0"):
            server.read([[5]], 10)
    vllm.first = [(200, {"Content-Type": "text/html"}, "<html>hello</html>")]
    with pytest.raises(ServerError, match="with text/html, not JSON: '<html>hello"):
        server.read([[5]], 10)
    for made in ("[]", "{}", '{"data": []}', '{"data": [{"id": 5}]}', '{"data": "no"}'):
        vllm.first = [(200, {}, made)]
        with pytest.raises(ServerError, match="lists no model. Expected a running vLLM or SGLang server"):
            PoolingServer(vllm.url)
    vllm.first = [(404, {}, "")]
    with pytest.raises(ServerError, match=r"refuses /v1/models \(HTTP 404\): nothing said.$"):
        PoolingServer(vllm.url)


def test_what_is_not_a_vector_has_no_numbers(vllm):
    server, _ = connect(vllm)
    for value in ("AAA", "no base64!", None, {"a": 1}, [[1.0], [1.0, 2.0]], ["x"]):
        vllm.first = [(200, {}, json.dumps({"data": [{"index": 0, "embedding": value}]}))]
        assert server.read([[5]], 10).vectors[0].size == 0


def test_a_server_started_to_generate_is_told_how_to_start_it(fake):
    server, _ = connect(fake)
    fake.first = [(404, {}, '{"detail": "Not Found"}')]
    with pytest.raises(
        ServerError, match="started to generate or to classify. Start it as: .*(--convert embed|--is-emb)"
    ):
        server.read([[5]], 10)


def test_an_old_sglang_gives_no_hidden_states(folder):
    with serving(FakeServer(folder, "sglang", "old")) as fake:
        server, _ = connect(fake)
        with pytest.raises(ServerError, match="without pooled_hidden_states.* use a newer SGLang"):
            server.read([[5]], 10)
        fake.first = [(200, {}, '{"scores": [[1.0]], "pooled_hidden_states": [[1.0], [2.0]]}')]
        with pytest.raises(ServerError, match="2 embeddings and 1 scores for 1 texts. .*multi-item"):
            server.read([[5]], 10)


def test_own_scores(folder):
    with serving(FakeServer(folder, classifies=True)) as fake:
        server, _ = connect(fake)
        assert server.own_scores(IDS) == [fake.score(ids) for ids in IDS]
        for status in (400, 404, 405, 422, 501):
            fake.first = [(status, {}, "{}")]
            assert server.own_scores(IDS) is None
        fake.first = [(500, {}, "{}")]
        with pytest.raises(ServerError, match="HTTP 500"):
            server.own_scores(IDS)
        fake.first = [(200, {}, '{"data": [{"index": 0, "probs": "no"}]}')]
        [[score]] = server.own_scores([[5]]) or [[0.0]]
        assert score != score  # NaN


def test_the_api_key_comes_from_the_environment(vllm, monkeypatch):
    server, _ = connect(vllm)
    assert "Authorization" not in vllm.headers
    monkeypatch.setenv(TOKEN, "hush")
    server.read([[5]], 10)
    assert vllm.headers["Authorization"] == "Bearer hush"
    vllm.first = [(401, {}, '{"error": "Unauthorized"}')]
    with pytest.raises(ServerError, match="wants an API key.* EBRM_SERVER_TOKEN") as error:
        server.read([[5]], 10)
    assert "hush" not in str(error.value)


def test_texts_are_not_logged(vllm, caplog):
    server, _ = connect(vllm)
    vllm.first = [(503, {}, "busy")]
    with caplog.at_level(logging.INFO, logger="ebrm"):
        server.read([[5, 250, 251]], 10)
    assert [record.message for record in caplog.records if record.name.startswith("ebrm")] == [
        f"{vllm.url}/v1/embeddings: HTTP 503: busy; trying again in 0.5 s"
    ]


TEXTS = probe_texts(byte_tokenizer(), 128)


def run(fake: FakeServer, texts: list[list[int]] = TEXTS) -> bool:
    with serving(fake):
        server = PoolingServer(fake.url)
        head = float32_head(fake.model.score)
        return probe(server, head, head.weight, texts, server.read(texts, 1024))


def test_texts_are_one_text_cut_at_its_end_and_at_its_beginning():
    whole = TEXTS[0]
    assert len(whole) == 128
    assert len(TEXTS) == 6
    assert [text == whole[: 128 - cut] for cut, text in enumerate(TEXTS[1:5], 1)] == [True] * 4
    assert TEXTS[5] == whole[1:]
    assert probe_texts(byte_tokenizer(), 3) == [whole[:3], whole[:2], whole[:1], whole[1:3]]
    assert len(probe_texts(word_tokenizer(), None)[0]) == 128


@pytest.mark.parametrize(
    ("kind", "classifies", "compared"), [("vllm", False, False), ("vllm", True, True), ("sglang", False, True)]
)
def test_what_is_right_passes(folder, kind, classifies, compared):
    assert run(FakeServer(folder, kind, classifies=classifies)) is compared
    assert run(FakeServer(folder, kind, classifies=classifies), [TEXTS[0][:1]]) is compared  # nothing to cut


EITHER = [
    ("softmax", ["been through a softmax", "hidden state itself was expected"]),
    ("sigmoid", ["been through a sigmoid", "hidden state itself was expected"]),
    ("normalized", ["L2-normalized", "all 1.0000", "hidden state as it is was expected"]),
    ("short", ["31 numbers a text", "head of the checkpoint takes 32", "Give the checkpoint it serves"]),
    ("nested", ["128 vectors for one text of 128 tokens", "one vector of 32"]),
    ("first", ["only with its beginning: the first token's; the last token's was expected"]),
    ("mean", ["hardly change when the last token is taken off", "like a mean over all tokens"]),
    ("constant", ["the same embedding for different texts"]),
    ("nan", ["not finite", "--dtype bfloat16"]),
    ("infinite", ["not finite", "--dtype bfloat16"]),
    ("score", ["scores of a classifier instead of embeddings: 1 number a text", "a softmax or a sigmoid", "the 32"]),
]  # fmt: skip
SCORES = [
    ("softmaxed score", ["scores a text 1, where", "softmax over one label, which is always 1"]),
    ("sigmoid score", ["where the checkpoint's head on its embedding gives", "been through a sigmoid"]),
    ("other head", ["Its head or its weights are not the checkpoint's"]),
    ("shifted score", ["logit_mean"]),
    ("nan score", ["scores a text nan, where", "Its head or its weights"]),
    ("two labels", ["a head with 2 labels, and the checkpoint's has one"]),
]
VLLM_ONLY = [
    ("tokens", ["128 vectors for one text of 128 tokens, one a token"]),
    ("special tokens", ["says it read 763 tokens, and 757 were sent (6 texts)", "--max-model-len"]),
    ("normalized", ["--override-pooler-config"]),  # old names of a flag
]


@pytest.mark.parametrize("kind", ["vllm", "sglang"])
@pytest.mark.parametrize(
    ("wrong", "said"), [*EITHER, *SCORES], ids=lambda value: value if isinstance(value, str) else ""
)
def test_what_is_wrong_is_said_with_the_flag_that_mends_it(folder, kind, wrong, said):
    with pytest.raises(ServerError) as error:
        run(FakeServer(folder, kind, wrong, classifies=True))
    for words in [*said, "server http://127.0.0.1:", str(folder)]:
        assert words in str(error.value)
    flag = {"vllm": "--runner pooling --convert embed --pooler-config", "sglang": "--is-embedding"}[kind]
    mended_otherwise = ("short", "nan", "infinite", "other head", "shifted score", "nan score", "two labels")
    assert (flag in str(error.value)) == (wrong not in mended_otherwise)


@pytest.mark.parametrize(("wrong", "said"), VLLM_ONLY)
def test_what_only_vllm_can_do_wrong(folder, wrong, said):
    with pytest.raises(ServerError) as error:
        run(FakeServer(folder, "vllm", wrong))
    for words in said:
        assert words in str(error.value)


def test_rounding_to_half_precision_passes(folder):
    fake = FakeServer(folder, "sglang")
    exact = fake.pooled
    fake.pooled = lambda ids, activation: torch.tensor(exact(ids, activation)).bfloat16().float().tolist()  # type: ignore[method-assign]
    assert run(fake)


def test_each_answer_is_checked_for_its_shape(folder):
    fake = FakeServer(folder)
    with serving(fake):
        server = PoolingServer(fake.url)
        assert embeddings(server, server.read([[5, 6], [7]], 64), [[5, 6], [7]], 32).shape == (2, 32)
        with pytest.raises(ServerError, match="32 numbers a text, and the reward head of the checkpoint takes 16"):
            embeddings(server, server.read([[5]], 64), [[5]], 16)
