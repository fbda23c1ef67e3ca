"""Scorers by argument and by environment variables."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from ebrm.client import Client
from ebrm.errors import ConfigError
from ebrm.integrations.scorer import Environment, open_scorer, read_environment, shared_scorer
from ebrm.model import EnergyRewardModel

NAMES = ("MODEL", "DEVICE", "SERVER", "TOKEN", "PESSIMISM", "UNUSABLE_REWARD")


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch, no_shared_scorers: None) -> Iterator[None]:
    for name in NAMES:
        monkeypatch.delenv(f"EBRM_{name}", raising=False)
    yield


def set_all(monkeypatch: pytest.MonkeyPatch, **given: str) -> None:
    for name, value in given.items():
        monkeypatch.setenv(f"EBRM_{name}", value)


def test_a_model_or_a_server(monkeypatch: pytest.MonkeyPatch) -> None:
    set_all(monkeypatch, MODEL="m")
    assert read_environment() == Environment("m", "auto", "", None, 0.0, None)
    set_all(monkeypatch, DEVICE="cpu", PESSIMISM="0.5", UNUSABLE_REWARD="-7", TOKEN="")
    assert read_environment() == Environment("m", "cpu", "", None, 0.5, -7.0)
    monkeypatch.delenv("EBRM_MODEL")
    set_all(monkeypatch, SERVER="http://a:1", TOKEN="t", DEVICE="", PESSIMISM="", UNUSABLE_REWARD="")
    assert read_environment() == read_environment("verl") == Environment("", "auto", "http://a:1", "t", 0.0, None)


@pytest.mark.parametrize(
    ("given", "server_only", "said"),
    [
        ({}, "", "EBRM_MODEL is '' and EBRM_SERVER is ''. Set one of the two"),
        ({"MODEL": "m", "SERVER": "s"}, "", "EBRM_MODEL is 'm' and EBRM_SERVER is 's'"),
        ({"MODEL": "m"}, "verl", "verl needs a server.*EBRM_MODEL is 'm'.*leave EBRM_MODEL unset"),
        ({}, "verl", "verl needs a server"),
        ({"MODEL": "m", "PESSIMISM": "much"}, "", "EBRM_PESSIMISM is 'much'; it must be a finite number"),
        ({"MODEL": "m", "PESSIMISM": "-1"}, "", "EBRM_PESSIMISM is -1; .* at least 0"),
        ({"MODEL": "m", "UNUSABLE_REWARD": "nan"}, "", "EBRM_UNUSABLE_REWARD is 'nan'"),
    ],
)
def test_mistakes(monkeypatch: pytest.MonkeyPatch, given: dict[str, str], server_only: str, said: str) -> None:
    set_all(monkeypatch, **given)
    with pytest.raises(ConfigError, match=said):
        read_environment(server_only)


def test_opening(refined: EnergyRewardModel, model: Path) -> None:
    assert open_scorer(refined) is refined
    assert isinstance(open_scorer(str(model)), EnergyRewardModel)


def test_one_scorer_is_shared_by_all_threads(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    environment, found = Environment(str(model), "cpu", "", None, 0.0, None), []
    threads = [threading.Thread(target=lambda: found.append(shared_scorer(environment))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4 and len(set(map(id, found))) == 1
    client = shared_scorer(Environment("", "auto", "http://a", "t", 0.0, None))
    assert isinstance(client, Client) and client is shared_scorer(Environment("", "auto", "http://a", "t", 2.0, -1.0))
