from __future__ import annotations

import pytest
from tests.serve.routes import KINDS, ask, rendered

from ebrm.serve.app import create_app


@pytest.fixture(scope="module")
def app(energy):
    return create_app(energy, name="a model")


@pytest.mark.parametrize("kind", KINDS)
def test_rendered_texts_score_as_offline(app, energy, kind):
    expected = pytest.approx(energy.score(*([one] for one in KINDS[kind])).reward.tolist(), abs=1e-5)
    text = rendered(energy, kind)
    classified = ask(app, "POST", "/classify", json={"model": "any", "input": text, "use_activation": False}).json()
    assert classified["data"][-1]["probs"] == expected  # as verl reads it
    pooled = ask(app, "POST", "/pooling", json={"input": [text], "task": "classify", "use_activation": False}).json()
    assert pooled["data"][0]["data"] == expected
    rewarded = ask(app, "POST", "/get_reward", json={"query": [text], "prompts": ["p"], "labels": [None]}).json()
    assert rewarded["rewards"] == expected


def test_vllm_s_shape(app, energy):
    texts = [rendered(energy, "plain"), rendered(energy, "multi-turn")]
    body = {"input": texts, "use_activation": False, "add_special_tokens": False, "truncate_prompt_tokens": None}
    answer = ask(app, "POST", "/classify", json=body).json()
    tokens = sum(len(energy.backbone.tokenize(*KINDS[kind]).ids) for kind in ("plain", "multi-turn"))
    assert answer["object"] == "list" and answer["model"] == "a model" and answer["id"] and answer["created"] > 0
    assert answer["usage"] == {"prompt_tokens": tokens, "total_tokens": tokens, "completion_tokens": 0}
    shape = [(row["index"], row["label"], row["num_classes"]) for row in answer["data"]]
    assert shape == [(0, "reward", 1), (1, "reward", 1)]
    messages = [*KINDS["multi-turn"][0], {"role": "assistant", "content": KINDS["multi-turn"][1]}]
    alone = ask(app, "POST", "/classify", json={"messages": messages, "use_activation": False}).json()
    assert alone["data"][0]["probs"] == pytest.approx(answer["data"][1]["probs"], abs=1e-5)
    assert ask(app, "POST", "/classify", json={"input": [], "use_activation": False}).json()["data"] == []


@pytest.mark.parametrize(
    ("path", "body", "said"),
    [
        ("/classify", {"input": "a"}, "use_activation must be false"),
        ("/classify", {"input": "a", "use_activation": True}, "use_activation must be false"),
        ("/classify", {"input": "a", "use_activation": 0}, "use_activation must be false"),
        ("/classify", {"use_activation": False}, "Give input or messages"),
        ("/classify", {"input": "a", "messages": [], "use_activation": False}, "Give input or messages"),
        ("/classify", {"messages": [{"role": "user", "content": "a"}], "use_activation": False}, "assistant message"),
        ("/pooling", {"input": "a", "use_activation": False, "task": "embed"}, "task: Input should be 'classify'"),
        ("/get_reward", {"query": "a"}, "query: Input should be a valid list"),
        ("/get_reward", {}, "query: Field required"),
    ],
)
def test_what_cannot_be_meant_is_refused(app, path, body, said):
    answer = ask(app, "POST", path, json=body)
    assert answer.status_code == 422 and said in answer.json()["error"]["message"]


def test_openrlhf_s_shape(app, energy):
    queries = [rendered(energy, kind) for kind in ("plain", "empty")]
    answer = ask(app, "POST", "/get_reward", json={"query": queries, "prompts": ["", ""], "labels": ["", ""]}).json()
    offline = energy.score(*zip(KINDS["plain"], KINDS["empty"], strict=True))
    assert answer["extra_logs"]["base_reward"] == pytest.approx(offline.base_reward.tolist(), abs=1e-5)
    assert answer["extra_logs"]["std"] == pytest.approx(offline.std.tolist(), abs=1e-5)
    assert answer["scores"] == pytest.approx(energy.to_score(offline.reward).tolist(), abs=1e-5)
    nothing = ask(app, "POST", "/get_reward", json={"query": [], "prompts": [], "labels": []}).json()
    assert nothing == {"rewards": [], "scores": [], "extra_logs": {"base_reward": [], "std": []}}
