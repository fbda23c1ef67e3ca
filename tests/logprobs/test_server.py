from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tests.backbone.pooling_server import serving
from tests.logprobs.logprob_server import FakeLogprobServer
from tests.tiny import byte_tokenizer, save_rm

from ebrm.errors import BackboneError, ConfigError, ServerError
from ebrm.logprobs import CausalLogprobs, ServerLogprobs, log_density_ratio, self_aligned

PROMPTS, RESPONSES = ["Name a fruit.", "Hi", "?"], ["the apple", "Grüße 🙂!", ""]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_rm(tmp_path_factory.mktemp("served") / "tiny-lm", "llama", "causal", seed=3)


@pytest.fixture(scope="module", params=["vllm", "sglang"])
def serving_one(request: pytest.FixtureRequest, folder: Path) -> Iterator[FakeLogprobServer]:
    with serving(FakeLogprobServer(folder, request.param)) as server:
        yield server  # type: ignore[misc]


@pytest.fixture
def fake(serving_one: FakeLogprobServer) -> Iterator[FakeLogprobServer]:
    yield serving_one
    serving_one.wrong, serving_one.first, serving_one.requests = "", [], []


def connect(fake: FakeLogprobServer, folder: Path, **settings: object) -> tuple[ServerLogprobs, list[float]]:
    pauses: list[float] = []
    return ServerLogprobs(fake.url, str(folder), pause=pauses.append, **settings), pauses  # type: ignore[arg-type]


def test_a_server_gives_what_the_model_gives_here(
    fake: FakeLogprobServer, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EBRM_SERVER_TOKEN", "secret")
    there, here = connect(fake, folder, token_budget=60)[0], CausalLogprobs(str(folder))
    for options in ({}, {"unconditional": True}):
        expected, found = here(PROMPTS, RESPONSES, **options), there(PROMPTS, RESPONSES, **options)  # type: ignore[arg-type]
        torch.testing.assert_close(found.logp, expected.logp, atol=2e-5, rtol=0)
        assert torch.equal(found.mask, expected.mask) and found.log_z is None
    assert fake.headers["Authorization"] == "Bearer secret"
    assert len([path for path, _ in fake.requests if path != "/v1/models"]) > 2  # several requests
    followed = there.followup(PROMPTS, RESPONSES, "thanks")
    torch.testing.assert_close(followed.logp, here.followup(PROMPTS, RESPONSES, "thanks").logp, atol=2e-5, rtol=0)
    assert self_aligned(there("Hi", "yes"), there("Hi", "yes", unconditional=True)).shape == (1,)
    ratio = log_density_ratio(there(PROMPTS, RESPONSES), here(PROMPTS, RESPONSES), reduction="sum")
    assert ratio.abs().max() < 1e-3
    assert there([], []).sum().shape == (0,)


def test_a_server_that_is_late_is_asked_again(fake: FakeLogprobServer, folder: Path) -> None:
    there, pauses = connect(fake, folder)
    fake.first = [(503, {}, "loading"), (429, {"Retry-After": "3"}, "")]
    assert there("Hi", "yes").lengths.tolist() == [5]
    assert pauses == [0.5, 3.0]
    fake.first = [(503, {}, "loading")] * 6
    with pytest.raises(ServerError, match="does not answer: POST .* was tried 6 times .* HTTP 503: loading"):
        there("Hi", "yes")


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("old", "without (prompt_logprobs|input_token_logprobs)"),
        ("one less", "with [01] results"),
        (
            "other tokens",
            "gives the log-probability of the token .* was sent .place 1 of text 0.*another text",
        ),
        ("special tokens", "log-probabilities for a text of .* tokens: it adds special tokens, or cuts"),
        ("nan", "gives token .* of text 0 no finite log-probability.*float16"),
        ("minus infinity", "gives token .* of text 0 no finite log-probability"),
    ],
)
def test_a_bad_answer_is_refused_with_what_it_was(fake: FakeLogprobServer, folder: Path, wrong: str, said: str) -> None:
    there, _ = connect(fake, folder)
    fake.wrong = wrong
    with pytest.raises(ServerError, match=said):
        there(PROMPTS[:1], RESPONSES[:1])


def test_answers_that_are_no_answers_are_refused(fake: FakeLogprobServer, folder: Path) -> None:
    there, _ = connect(fake, folder)
    for answer, said in (
        ((200, {"Content-Type": "text/html"}, "<html>"), "not JSON"),
        ((200, {}, "{}"), "results|without input_token_logprobs"),
        ((401, {}, "{}"), "EBRM_SERVER_TOKEN"),
        ((404, {}, "{}"), "does not offer .*it was started to embed or to classify.*Start it as: "),
        ((400, {}, '{"error": {"message": "too long"}}'), "HTTP 400.: too long"),
    ):
        fake.first = [answer]
        with pytest.raises(ServerError, match=said):
            there("Hi", "yes")


def test_more_than_was_asked_for_is_no_harm(fake: FakeLogprobServer, folder: Path) -> None:
    there, _ = connect(fake, folder)
    expected = there("Hi", "yes")
    fake.wrong = "more"
    assert torch.equal(there("Hi", "yes").logp, expected.logp)


def test_what_takes_all_logits_is_refused_by_name(fake: FakeLogprobServer, folder: Path) -> None:
    there, _ = connect(fake, folder)
    for options, said in (
        ({"log_z": True}, "`log_z` is True, which takes"),
        ({"temperature": 0.5}, "`temperature` is"),
    ):
        with pytest.raises(ConfigError, match=f"{said}.*CausalLogprobs"):
            there("Hi", "yes", **options)  # type: ignore[arg-type]
    assert not hasattr(there, "answer_logits")


def test_another_model_than_the_served_one_is_refused(fake: FakeLogprobServer, folder: Path, tmp_path: Path) -> None:
    byte_tokenizer().save_pretrained(tmp_path / "other")
    with pytest.raises(ServerError, match="serves .*tiny-lm.*the language model asked for is .*other"):
        ServerLogprobs(fake.url, str(tmp_path / "other"))
    with pytest.raises(BackboneError, match="There is no language model"):
        ServerLogprobs(fake.url, "no such folder")
    assert ServerLogprobs(fake.url, byte_tokenizer()).limit == 127
