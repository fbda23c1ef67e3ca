"""Two replicas of the server on a Ray cluster of this machine."""

from __future__ import annotations

import logging
import os
import socket
import sys

import httpx
import pytest
from tests.terminal import ROOT, child_environment

from ebrm.errors import ConfigError, ModelError
from ebrm.model import EnergyRewardModel

pytestmark = [
    # Ray's and its web server's own.
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.*"),
    pytest.mark.filterwarnings("ignore::FutureWarning:ray.*"),
]
TOKEN = "sesame"


@pytest.fixture(scope="module")
def url(model):
    """The address of two replicas; Ray and all its processes end with the module."""
    import ray
    from ray import serve

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{child_environment()['PYTHONPATH']}")
        patched.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patched.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "1")
        patched.setenv("EBRM_TOKEN", TOKEN)
        ray.init(
            address="local", num_cpus=2, num_gpus=0, object_store_memory=100_000_000, include_dashboard=False,
            log_to_driver=False, logging_level=logging.ERROR,
        )  # fmt: skip
        try:
            from ebrm.serve.ray import app

            serve.start(http_options={"host": "127.0.0.1", "port": port})
            serve.run(app({"model": str(model), "replicas": "2", "max_texts": "7"}), name="ebrm")
            yield f"http://127.0.0.1:{port}"
        finally:
            serve.shutdown()
            ray.shutdown()


@pytest.mark.slow
def test_both_replicas_answer_as_the_model_does_offline(url, model):
    from ray import serve

    (deployment,) = serve.status().applications["ebrm"].deployments.values()
    assert {str(state): count for state, count in deployment.replica_states.items()} == {"RUNNING": 2}
    prompts, responses = ["Question 1", "Why? 🙂", "", "é" * 500], ["alpha", "", "beta 2", "gamma"]
    offline = EnergyRewardModel.from_pretrained(model).score(prompts, responses, on_error="nan")
    with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {TOKEN}"}) as client:
        for row in list(range(4)) * 4:
            got = client.post("/v1/score", json={"prompts": [prompts[row]], "responses": [responses[row]]})
            if offline.errors[row] is not None:
                assert got.status_code == 422, got.text
                continue
            assert got.status_code == 200, got.text
            (result,) = got.json()["results"]
            for name in ("reward", "base_reward", "std"):
                assert result[name] == pytest.approx(float(getattr(offline, name)[row]), abs=1e-5)
        assert client.get("/ready").json() == {"status": "ready"}
        assert client.get("/info").json()["limits"]["max_texts"] == 7
        many = client.post("/v1/score", json={"prompts": ["a"] * 8, "responses": ["b"] * 8})
        assert (many.status_code, many.json()["error"]["kind"]) == (422, "too_many_texts")


@pytest.mark.slow
def test_the_token_is_asked_for(url):
    assert httpx.get(f"{url}/info").status_code == 401
    assert httpx.get(f"{url}/health").status_code == 200


def test_mistakes_are_said_before_a_replica_starts(model, tmp_path):
    from ebrm.serve.ray import app

    with pytest.raises(ConfigError, match="`replicas` is 0"):
        app({"model": str(model), "replicas": 0})
    with pytest.raises(ConfigError, match="deadline"):
        app({"model": str(model), "deadline": 0})
    with pytest.raises(ModelError):
        app({"model": str(tmp_path / "nothing")})
    with pytest.raises(ConfigError, match="replica: Extra inputs .* It takes model, replicas, gpus, max_wait"):
        app({"model": str(model), "replica": 2})
    with pytest.raises(ConfigError, match="model: Field required"):
        app({"token": "secret"})  # others would see it in the command line


def test_without_ray_one_sentence_says_how_to_install_it(monkeypatch):
    monkeypatch.delitem(sys.modules, "ebrm.serve.ray", raising=False)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"pip install '\.\[ray,serve\]'"):
        __import__("ebrm.serve.ray")
