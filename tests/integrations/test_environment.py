"""Scorers by argument and by environment variables."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from ebrm.client import Client
from ebrm.errors import ConfigError
from ebrm.integrations.environment import Environment, read_environment, shared_design, shared_scorer
from ebrm.integrations.rollouts import read_rollouts
from ebrm.integrations.scorer import open_scorer
from ebrm.model import EnergyRewardModel

NAMES = ("MODEL", "DEVICE", "SERVER", "TOKEN", "PESSIMISM", "UNUSABLE_REWARD", "REWARD")


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
        (
            {"REWARD": "a.py:b", "PESSIMISM": "1"},
            "",
            "EBRM_PESSIMISM is 1 and EBRM_REWARD is .*Leave EBRM_PESSIMISM unset",
        ),
        ({"REWARD": "a.py:b", "MODEL": "m"}, "verl", "verl needs a server"),
        ({"REWARD": "a.py:b", "MODEL": "m", "SERVER": "s"}, "", "Set one of the two"),
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


DESIGNS = """
from dataclasses import dataclass
from ebrm.integrations import LengthPenalty, RewardDesign

@dataclass
class Kept:  # looks its module up
    x: "int" = 1

def alone():
    return RewardDesign(lambda prompts, responses: [float(len(one)) for one in responses])

def of(model):
    return RewardDesign(model, shape=LengthPenalty(free=0, rate=1.0, unit="characters"))

def nothing():
    return 5

def broken():
    return RewardDesign(lambda prompts: prompts)
"""


class TestDesigns:
    def test_a_file_and_a_module_with_a_function_that_returns_one(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "some_rewards.py").write_text(DESIGNS)
        monkeypatch.syspath_prepend(tmp_path)
        for place in (f"{tmp_path}/some_rewards.py", "some_rewards"):
            set_all(monkeypatch, REWARD=f"{place}:alone")
            opened = shared_design(read_environment("verl"))
            assert opened is shared_design(read_environment())
            found = opened(read_rollouts(["Hi", "Hi"], ["abc", "d"]))
            assert found.reward.tolist() == [3.0, 1.0]

    def test_the_function_gets_the_model_that_the_variables_name(
        self, refined: EnergyRewardModel, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "r.py").write_text(DESIGNS)
        set_all(monkeypatch, REWARD=f"{tmp_path}/r.py:of", MODEL=str(model), DEVICE="cpu")
        found = shared_design(read_environment())(read_rollouts(["Hi"], ["Yes"]))
        assert float(found.reward) == pytest.approx(float(refined.score("Hi", "Yes").reward) - 3, abs=1e-5)

    @pytest.mark.parametrize(
        ("reward", "said"),
        [
            ("{}/r.py", "expected FILE.py:FUNCTION or MODULE:FUNCTION, such as"),
            ("{}/r.py:", "expected FILE.py:FUNCTION"),
            ("{}/none.py:alone", "there is no file .*none.py. Every worker needs it"),
            ("no_such_module:alone", "no_such_module cannot be imported: ModuleNotFoundError: No module named"),
            ("{}/wrong.py:alone", "wrong.py cannot be imported: ZeroDivisionError"),
            ("{}/r.py:alon", "has no function alon; it has alone, of, nothing, broken"),
            ("{}/r.py:of", "a function of model, and neither EBRM_MODEL nor EBRM_SERVER is set"),
            ("{}/r.py:nothing", "which gave 5; a RewardDesign of ebrm.integrations was expected"),
            ("{}/r.py:broken", "The source takes prompts. A function of prompts and responses"),
        ],
    )
    def test_mistakes(self, reward: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "r.py").write_text(DESIGNS)
        (tmp_path / "wrong.py").write_text("1 / 0")
        set_all(monkeypatch, REWARD=reward.format(tmp_path))
        with pytest.raises(ConfigError, match=said):
            shared_design(read_environment())

    def test_a_design_without_the_model_that_is_set(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "r.py").write_text(DESIGNS)
        set_all(monkeypatch, REWARD=f"{tmp_path}/r.py:alone", SERVER="http://127.0.0.1:1")
        with pytest.raises(ConfigError, match="a function of no parameter, and EBRM_MODEL or EBRM_SERVER is set"):
            shared_design(read_environment())
