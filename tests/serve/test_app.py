from __future__ import annotations

import json
import random
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
import torch
from tests.serve.routes import JSON, KINDS, ask, client, features, rendered, run, together

import ebrm
from ebrm.errors import BackboneError
from ebrm.model import EnergyRewardModel
from ebrm.serve import ServeConfig
from ebrm.serve.app import create_app
from ebrm.serve.metrics import Metrics
from ebrm.serve.requests import without_folders
from ebrm.serve.scoring import Batcher


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
    text = rendered(energy, kind)
    if "\ud800" not in text:
        answer = ask(app, "POST", "/v1/score", json={"rendered": [text, text]})
        assert rewards(answer) == pytest.approx([row["reward"]] * 2, abs=1e-5)


def test_requests_at_the_same_time_are_not_mixed_up(app, energy):
    draw = random.Random(0)
    words = ["alpha", "beta", "gamma"]
    texts = [(f"Question {i}", " ".join(draw.choices(words, k=draw.randint(0, 9)))) for i in range(80)]
    expected = energy.score(*zip(*texts, strict=True)).reward.tolist()
    bodies = []
    while texts:
        part, texts = texts[: (size := draw.randint(1, 4))], texts[size:]
        bodies.append({"prompts": [p for p, _ in part], "responses": [r for _, r in part]})
    assert sum(map(rewards, together(app, bodies)), []) == pytest.approx(expected, abs=1e-5)


def test_curves_are_the_model_s(app, energy):
    answer = ask(app, "POST", "/v1/score", json={"prompts": ["a", "b"], "responses": ["x", "y"], "density": 9}).json()
    at, p = energy.density(*features(energy, ["a", "b"], ["x", "y"]), 9)
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
    at, p = energy.density(*features(energy, ["Question 1"] * 4, responses), 7)
    assert torch.allclose(torch.tensor(answer["density"]["p"]), p, atol=1e-5)  # in the order given, not ranked
    tied = ask(app, "POST", "/v1/rank", json={"prompt": "a", "responses": ["x", "y", "x"]}).json()["results"]
    assert [row["index"] for row in tied if row["index"] != 1] == [0, 2]  # ties keep the order given


def test_a_ranking_says_how_sure_it_is_of_its_first(energy):
    sure = ebrm.PreferenceCalibration(temperature=5.0, pairs=30)
    body = {"prompt": "Question 1", "responses": ["alpha", "beta gamma", "delta"]}
    answers = {}
    for name, model in (("raw", energy), ("calibrated", energy.with_calibration(sure))):
        app = create_app(model)
        answers[name] = ask(app, "POST", "/v1/rank", json=body).json()
        first, second = (body["responses"][row["index"]] for row in answers[name]["results"][:2])
        p = model.prefer("Question 1", first, second)
        assert answers[name]["confidence"] == pytest.approx(max(p, 1 - p), abs=1e-5)
        assert sum(row["p_best"] for row in answers[name]["results"]) == pytest.approx(1, abs=1e-5)
        assert ask(app, "POST", "/v1/rank", json=body | {"responses": ["alpha"]}).json()["confidence"] is None
        known = ask(app, "GET", "/info").json()["calibration"]
        assert known == (None if name == "raw" else sure.to_dict())
    assert 0.5 <= answers["calibrated"]["confidence"] < answers["raw"]["confidence"]


def test_info_says_what_is_served_and_no_secret(energy):
    app = create_app(energy, ServeConfig(token="secret-word", max_texts=7), name="a model")
    answer = ask(app, "GET", "/info", headers={"authorization": "Bearer secret-word"})
    said = answer.json()
    assert said["model"] == "a model" and said["fingerprint"] == energy.fingerprint()
    expected = json.loads(json.dumps(energy.record.backbone))
    assert said["reward_model"] == expected | {"name": expected["name"].rpartition("/")[2]}
    assert said["template_sha256"] == energy.record.text_rule["template_sha256"] and said["dtype"] == "float32"
    assert said["units"]["mean"] == pytest.approx(float(energy.head.standardizer.reward_mean))
    assert said["units"]["range"][0] < said["units"]["mean"] < said["units"]["range"][1]
    assert said["inference"]["estimate"] == "mean" and said["limits"]["max_texts"] == 7
    assert "secret-word" not in answer.text


def test_where_files_lie_is_not_said(energy, model, monkeypatch):
    record = energy.record
    fields = {"name": "/srv/rms/tiny", "revision": "~/rms/v1", "architecture": "adapter of /a b/c on (/opt/e/base)"}
    monkeypatch.setattr(
        energy, "record", replace(record, backbone=record.backbone | fields, text_rule=record.text_rule)
    )
    app = create_app(energy, name=str(model))
    said = ask(app, "GET", "/info")
    assert "/srv" not in said.text and str(model.parent) not in said.text and "/opt" not in said.text
    assert said.json()["reward_model"]["name"] == "tiny" and said.json()["model"] == model.name
    for path, last in (
        ("/srv/rms/tiny", "tiny"),
        ("C:\\rms\\tiny", "tiny"),
        ("file:///srv/rms/tiny", "tiny"),
        ("org/rm", "org/rm"),
    ):
        assert without_folders({"a": [path]}) == {"a": [last]}
    assert without_folders("cannot read '/srv/rms/tiny/config.json' (1/2, a/b, https://x.org/a/b)") == (
        "cannot read 'config.json' (1/2, a/b, https://x.org/a/b)"
    )

    def gone(self, changes):
        raise BackboneError("the folder /srv/rms/tiny is not there")

    monkeypatch.setattr(EnergyRewardModel, "_load_backbone", gone)
    app = create_app(EnergyRewardModel.from_pretrained(model), name="m")
    for path, body in (("/v1/score", {"prompts": ["a"], "responses": ["b"]}), ("/ready", None)):
        answer = ask(app, "POST" if body else "GET", path, json=body)
        assert answer.status_code == 503 and "/srv" not in answer.text


def test_the_limits_are_said(energy):
    app = create_app(energy, ServeConfig(max_texts=100))
    limits = ask(app, "GET", "/info").json()["limits"]
    assert (limits["max_texts"], limits["max_values"], limits["max_chars"]) == (
        100,
        12_800,
        app.state.scoring.max_chars,
    )


def examples(schema, schemas):
    """Examples of a body, and of what is in it: (path to it, example)."""
    if "$ref" in schema:
        schema = schemas[schema["$ref"].rpartition("/")[2]]
    yield from (
        ((), example)
        for example in [*schema.get("examples", []), *([schema["example"]] if "example" in schema else [])]
    )
    for kind in ("anyOf", "oneOf", "allOf"):
        for option in schema.get(kind, []):
            yield from examples(option, schemas)
    for name, inside in schema.get("properties", {}).items():
        yield from (((name, *path), example) for path, example in examples(inside, schemas))
    if "items" in schema:
        yield from (((0, *path), example) for path, example in examples(schema["items"], schemas))


def with_example(value, path, example):
    """A body with an example put where it belongs; the lists and objects on the way to it are made."""
    if not path:
        return example
    if path[0] == 0:
        return [with_example(value[0] if isinstance(value, list) and value else None, path[1:], example)]
    own = value if isinstance(value, dict) else {}
    return own | {path[0]: with_example(own.get(path[0]), path[1:], example)}


def test_every_example_is_accepted_by_its_route(app):
    description = ask(app, "GET", "/openapi.json").json()
    schemas, tried = description["components"]["schemas"], 0
    for path, methods in description["paths"].items():
        for method, route in methods.items():
            content = route.get("requestBody", {}).get("content", {}).get("application/json")
            if content is None:
                continue
            found = list(examples(content["schema"], schemas))
            found += [((), one["value"]) for one in content.get("examples", {}).values()]
            whole = [example for place, example in found if not place]
            assert whole, f"{path} has no example"
            for example in whole:
                answer = ask(app, method.upper(), path, json=example)
                assert answer.status_code == 200, (path, example, answer.text)
                tried += 1
            for place, example in found:  # in the place of what the whole example has there
                if place and place[0] in whole[0]:
                    answer = ask(app, method.upper(), path, json=with_example(whole[0], place, example))
                    assert answer.status_code == 200 or "role" in place or "content" in place, (
                        path,
                        place,
                        answer.text,
                    )
    assert tried >= 5


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


def test_a_reward_model_that_cannot_be_loaded_is_reported(model, monkeypatch):
    def gone(self, changes):
        raise BackboneError("the folder is not there")

    monkeypatch.setattr(EnergyRewardModel, "_load_backbone", gone)
    body = {"prompts": ["a"], "responses": ["b"]}
    app = create_app(EnergyRewardModel.from_pretrained(model))

    async def main():
        async with client(app) as c:
            for answer in (await c.post("/v1/score", json=body), await c.get("/ready")):
                assert answer.status_code == 503 and "the folder is not there" in answer.json()["error"]["message"]

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


def test_batches_are_counted_by_each_server_apart():
    metrics, other = Metrics(lambda: 7), Metrics(lambda: 0)
    batcher = Batcher(lambda ids: ids, ThreadPoolExecutor(1), tokens=40, max_wait=0.0, measured=metrics.batch)
    for texts in ([[1] * 20, [2] * 10, [3] * 10], [[4] * 5]):
        run(batcher.score(texts))
    said = metrics.text().decode()
    for line in ("ebrm_texts_total 4.0", "ebrm_batch_texts_count 2.0", "ebrm_batch_texts_sum 4.0",
                 "ebrm_batch_tokens_sum 45.0", "ebrm_queue_seconds_count 4.0", "ebrm_model_seconds_count 2.0",
                 'ebrm_batch_texts_bucket{le="2.0"} 1.0', "ebrm_queue_texts 7.0"):  # fmt: skip
        assert line in said, line
    assert "ebrm_texts_total 0.0" in other.text().decode()


class TestMoreThanText:
    WHOLE = (
        "{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}<|start|>{{ m.role }}\n{{ m.content }}"
        "{{ m.tool_calls | tojson if m.tool_calls else '' }}<|end|>\n{% endfor %}"
    )
    TOOLS = [{"type": "function", "function": {"name": "get_weather"}}]
    ASK = {"role": "user", "content": [{"type": "text", "text": "Weather "}, {"type": "text", "text": "in Oslo?"}]}

    @staticmethod
    def call(name: str) -> dict[str, Any]:
        return {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": name, "arguments": {}}}]}

    @pytest.fixture
    def tooled(self, energy, monkeypatch):
        monkeypatch.setattr(energy.backbone, "text_rule", replace(energy.backbone.text_rule, template=self.WHOLE))
        return energy

    def test_calls_tools_and_parts_are_read_as_offline(self, tooled):
        app = create_app(tooled)
        prompt = {"messages": [self.ASK], "tools": self.TOOLS}
        flat = {"messages": [{"role": "user", "content": "Weather in Oslo?"}], "tools": self.TOOLS}
        for name in ("get_weather", "delete_files"):
            expected = tooled.score([flat], [self.call(name)]).reward.tolist()
            whole = {"messages": [self.ASK, self.call(name)], "tools": self.TOOLS}
            for body in ({"prompts": [prompt], "responses": [self.call(name)]}, {"messages": [whole]}):
                assert rewards(ask(app, "POST", "/v1/score", json=body)) == pytest.approx(expected, abs=1e-5)
            answer = ask(app, "POST", "/classify", json={**whole, "use_activation": False}).json()
            assert answer["data"][0]["probs"] == pytest.approx(expected, abs=1e-5)
        (best, _) = ask(
            app, "POST", "/v1/rank", json={"prompt": prompt, "responses": [self.call("f"), "It is 22 degrees."]}
        ).json()["results"]  # fmt: skip
        assert best["index"] in (0, 1)

    @pytest.mark.parametrize(
        ("prompt", "response", "said"),
        [
            ([{"role": "user", "content": "Hi"}], "call", "leaves out the tool call f of the reply"),
            (
                {"messages": [{"role": "user", "content": "Hi"}], "tools": TOOLS},
                "22",
                "leaves out the tool get_weather",
            ),
            ([{"role": "user", "content": [{"type": "image_url"}]}], "22", "image_url: this reward model reads text"),
            ([{"role": "system", "content": "Hi"}], "22", "no user turn"),
            ("", "22", "The prompt is empty"),
        ],
    )
    def test_what_the_reward_model_would_not_see_is_422(self, app, prompt, response, said):
        body = {"prompts": [prompt], "responses": [self.call("f") if response == "call" else response]}
        answer = ask(app, "POST", "/v1/score", json=body)
        assert answer.status_code == 422 and answer.json()["error"]["row"] == 0
        assert said in answer.json()["error"]["message"]


def test_truncation_that_is_asked_for_is_in_info(energy):
    app = create_app(energy, backbone={"truncation": "prompt_left_or_drop"})
    assert ask(app, "GET", "/info").json()["text_rule"]["truncation"] == "prompt_left_or_drop"
