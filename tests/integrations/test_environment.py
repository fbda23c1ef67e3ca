from __future__ import annotations

import pytest

from ebrm.errors import ConfigError
from ebrm.integrations.environment import Environment, read_environment

NAMES = ("MODEL", "DEVICE", "SERVER", "TOKEN", "PESSIMISM", "UNUSABLE_REWARD")


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        monkeypatch.delenv(f"EBRM_{name}", raising=False)


def set_all(monkeypatch: pytest.MonkeyPatch, **given: str) -> None:
    for name, value in given.items():
        monkeypatch.setenv(f"EBRM_{name}", value)


def test_a_model(monkeypatch: pytest.MonkeyPatch) -> None:
    set_all(monkeypatch, MODEL="m")
    assert read_environment() == Environment("m", "auto", "", None, 0.0, None)
    set_all(monkeypatch, DEVICE="cpu", PESSIMISM="0.5", UNUSABLE_REWARD="-7", TOKEN="")
    assert read_environment() == Environment("m", "cpu", "", None, 0.5, -7.0)


def test_a_server(monkeypatch: pytest.MonkeyPatch) -> None:
    set_all(monkeypatch, SERVER="http://a:1", TOKEN="t")
    assert read_environment() == read_environment("verl") == Environment("", "auto", "http://a:1", "t", 0.0, None)


@pytest.mark.parametrize(
    ("given", "server_only", "said"),
    [
        ({}, "", "EBRM_MODEL is '' and EBRM_SERVER is ''. Set one of the two"),
        ({"MODEL": "m", "SERVER": "s"}, "", "EBRM_MODEL is 'm' and EBRM_SERVER is 's'"),
        ({"MODEL": "m"}, "verl", "verl asks a server.*EBRM_MODEL is 'm'.*leave EBRM_MODEL unset"),
        ({}, "verl", "verl asks a server"),
        ({"MODEL": "m", "PESSIMISM": "much"}, "", "EBRM_PESSIMISM is 'much'; it must be a finite number"),
        ({"MODEL": "m", "PESSIMISM": "-1"}, "", "EBRM_PESSIMISM is -1; .* at least 0"),
        ({"MODEL": "m", "UNUSABLE_REWARD": "nan"}, "", "EBRM_UNUSABLE_REWARD is 'nan'"),
    ],
)
def test_mistakes(monkeypatch: pytest.MonkeyPatch, given: dict[str, str], server_only: str, said: str) -> None:
    set_all(monkeypatch, **given)
    with pytest.raises(ConfigError, match=said):
        read_environment(server_only)
