from __future__ import annotations

import json
import random

import pytest
import torch
from tests.serve.routes import JSON, KINDS, ask, client, run, together

from ebrm.model import EnergyRewardModel
from ebrm.serve import ServeConfig
from ebrm.serve.app import create_app


@pytest.fixture(scope="module")
def app(energy):
    return create_app(energy, name="a model")


def rewards(answer):
    assert answer.status_code == 200, answer.text
    return [row["reward"] for row in answer.json()["results"]]


@pytest.mark.parametrize("kind", KINDS)
def test_the_server_gives_what_the_model_gives(app, energy, kind):
    prompt, response = KINDS[kind]
    offline = energy.score([prompt], [response])
    body = json.dumps({"prompts": [prompt], "responses": [response]})  # in ASCII: one kind has a lone surrogate
    (row,) = ask(app, "POST", "/v1/score", content=body, headers=JSON).json()["results"]
    (expected,) = offline.to_rows()
    expected["interval"] = [expected.pop("interval_low"), expected.pop("interval_high")]
    assert row.keys() == expected.keys()
    for name, value in expected.items():
        assert row[name] == pytest.approx(value, abs=1e-5), name
    turns = prompt if isinstance(prompt, list) else [{"role": "user", "content": prompt}]
    messages = json.dumps({"messages": [[*turns, {"role": "assistant", "content": response}]]})
    assert rewards(ask(app, "POST", "/v1/score", content=messages, headers=JSON)) == pytest.approx([row["reward"]])


def test_requests_at_the_same_time_are_not_mixed_up(app, energy):
    draw = random.Random(0)
    texts = [(f"Question {i}", " ".join(draw.choices(["alpha", "beta", "gamma"], k=draw.randint(0, 9)))) for i in range(80)]  # fmt: skip  # noqa: E501
    expected = energy.score([p for p, _ in texts], [r for _, r in texts]).reward
    bodies, places, start = [], [], 0
    while start < len(texts):
        part = texts[start : start + draw.randint(1, 4)]
        bodies.append({"prompts": [p for p, _ in part], "responses": [r for _, r in part]})
        places += [range(start, start + len(part))]
        start += len(part)
    for answer, place in zip(together(app, bodies), places, strict=True):
        assert rewards(answer) == pytest.approx(expected[place.start : place.stop].tolist(), abs=1e-5)


def test_curves_are_the_model_s(app, energy):
    answer = ask(app, "POST", "/v1/score", json={"prompts": ["a", "b"], "responses": ["x", "y"], "density": 9}).json()
    reading, _ = energy.backbone.read_texts(["a", "b"], ["x", "y"])
    at, p = energy.density(reading.embedding, reading.reward, 9)
    assert torch.allclose(torch.tensor(answer["density"]["rewards"]), at)
    assert torch.allclose(torch.tensor(answer["density"]["p"]), p, atol=1e-5)


def test_nothing_is_scored_as_nothing(app):
    empty = {"prompts": [], "responses": []}
    assert ask(app, "POST", "/v1/score", json=empty).json() == {"model": "a model", "results": [], "density": None}
    answer = ask(app, "POST", "/v1/score", json={**empty, "density": 5}).json()
    assert len(answer["density"]["rewards"]) == 5 and answer["density"]["p"] == []
    assert ask(app, "POST", "/v1/rank", json={"prompt": "a", "responses": []}).json()["results"] == []


def test_ranking_is_the_model_s(app, energy):
    responses = ["alpha", "beta gamma", "", "delta"]
    answer = ask(app, "POST", "/v1/rank", json={"prompt": "Question 1", "responses": responses, "density": 7}).json()
    expected = energy.rank("Question 1", responses)
    assert [row["index"] for row in answer["results"]] == [row.index for row in expected]
    assert [row["rank"] for row in answer["results"]] == [1, 2, 3, 4]
    for row, ranked in zip(answer["results"], expected, strict=True):
        for name in ("reward", "base_reward", "std", "p_best"):
            assert row[name] == pytest.approx(getattr(ranked, name), abs=1e-5)
    reading, _ = energy.backbone.read_texts("Question 1", responses)
    at, p = energy.density(reading.embedding, reading.reward, 7)
    assert torch.allclose(torch.tensor(answer["density"]["p"]), p, atol=1e-5)  # in the order given, not ranked


def test_ties_keep_the_order_given(app):
    answer = ask(app, "POST", "/v1/rank", json={"prompt": "a", "responses": ["x", "y", "x"]}).json()
    order = [row["index"] for row in answer["results"]]
    assert order.index(0) < order.index(2)


def test_info_says_what_is_served_and_no_secret(energy):
    app = create_app(energy, ServeConfig(token="secret-word", max_texts=7), name="a model")
    answer = ask(app, "GET", "/info", headers={"authorization": "Bearer secret-word"})
    said = answer.json()
    assert said["model"] == "a model" and said["fingerprint"] == energy.fingerprint()
    assert said["reward_model"] == json.loads(json.dumps(energy.record.backbone))
    assert said["template_sha256"] == energy.record.text_rule["template_sha256"] and said["dtype"] == "float32"
    assert said["units"]["mean"] == pytest.approx(float(energy.head.standardizer.reward_mean))
    assert said["units"]["range"][0] < said["units"]["mean"] < said["units"]["range"][1]
    assert said["inference"]["estimate"] == "mean" and said["limits"]["max_texts"] == 7
    assert "secret-word" not in answer.text


def test_ready_once_the_reward_model_is_loaded_and_not_while_ending(model):
    app = create_app(EnergyRewardModel.from_pretrained(model))

    async def main():
        async with client(app) as c:
            first = await c.get("/ready")
            assert first.status_code == 503 and first.json()["error"]["kind"] == "loading"
            assert "retry-after" in first.headers
            assert (await c.get("/health")).status_code == 200
            await app.state.scoring.loading
            assert (await c.get("/ready")).status_code == 200
            await app.state.scoring.drain()
            for answer in (
                await c.get("/ready"),
                await c.post("/v1/score", json={"prompts": ["a"], "responses": ["b"]}),
            ):
                assert answer.status_code == 503 and answer.json()["error"]["kind"] == "draining"
                assert answer.headers["connection"] == "close"
            assert (await c.get("/health")).status_code == 200

    run(main())


def test_a_reward_model_that_cannot_be_loaded_is_said(model, monkeypatch):
    from ebrm.errors import BackboneError

    def gone(self, changes):
        raise BackboneError("the folder is not there")

    monkeypatch.setattr(EnergyRewardModel, "_load_backbone", gone)
    app = create_app(EnergyRewardModel.from_pretrained(model))

    async def main():
        async with client(app) as c:
            answer = await c.post("/v1/score", json={"prompts": ["a"], "responses": ["b"]})
            for said in (answer, await c.get("/ready")):
                assert said.status_code == 503 and "the folder is not there" in said.json()["error"]["message"]

    run(main())


def test_the_application_loads_the_model_when_it_starts_and_takes_settings_for_it(model):
    app = create_app(EnergyRewardModel.from_pretrained(model), backbone={"token_budget": 77})

    async def main():
        async with app.router.lifespan_context(app):
            await app.state.scoring.loading
            assert app.state.scoring.ready and app.state.scoring.model.backbone.token_budget == 77

    run(main())


def test_metrics_count_what_happened(energy):
    app = create_app(energy)
    body = {"prompts": ["a", "eta theta " * 60], "responses": ["b", "c"]}
    assert len(rewards(ask(app, "POST", "/v1/score", json=body))) == 2
    ask(app, "POST", "/v1/score", json={"prompts": ["a"], "responses": ["eta theta " * 60]})  # too long by itself
    ask(app, "GET", "/somewhere/with/a/text")
    said = ask(app, "GET", "/metrics").text
    for line in (
        'ebrm_requests_total{code="200",route="/v1/score"} 1.0',
        'ebrm_requests_total{code="422",route="/v1/score"} 1.0',
        'ebrm_requests_total{code="404",route="other"} 1.0',
        "ebrm_texts_truncated_total 1.0",
        "ebrm_texts_refused_total 1.0",
        "ebrm_queue_texts 0.0",
        "ebrm_queue_seconds_count 2.0",
    ):
        assert line in said, line
    assert "with/a/text" not in said


def test_the_description_and_its_page(app):
    paths = ask(app, "GET", "/openapi.json").json()["paths"]
    assert {"/v1/score", "/v1/rank", "/classify", "/pooling", "/get_reward", "/health", "/ready", "/info",
            "/metrics"} == set(paths)  # fmt: skip
    page = ask(app, "GET", "/docs").text
    assert all(path in page for path in paths)
    assert "http://" not in page and "https://" not in page and "<script" not in page
