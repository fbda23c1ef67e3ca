from __future__ import annotations

import asyncio
import inspect
import logging
import math
import re
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.integrations.policies import LONG, prompts, save_policy
from tests.serve.live import serving
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

from ebrm.client import Client
from ebrm.errors import ConfigError, EBRMError, ModelError, TextError
from ebrm.integrations import reward_function
from ebrm.integrations.trl import _described
from ebrm.model import EnergyRewardModel, RefinedReward

CLOSE = {"rtol": 0.0, "atol": 1e-5}
TRAINERS = {"grpo": (GRPOTrainer, GRPOConfig), "rloo": (RLOOTrainer, RLOOConfig)}


class Logged:
    """What a trainer gives to be logged with."""

    def __init__(self) -> None:
        self.metrics: dict[str, float] = {}
        self.columns: dict[str, list[Any]] = {}

    def given(self) -> dict[str, Any]:
        return {"log_metric": self.metrics.__setitem__, "log_extra": self.columns.__setitem__, "trainer_state": None}


def call(function: Any, prompts: Sequence[Any], completions: Sequence[Any], **given: Any) -> list[Any]:
    result = function(prompts=prompts, completions=completions, completion_ids=[[1]] * len(prompts), **given)
    return asyncio.run(result) if inspect.isawaitable(result) else result


def expected(
    model: EnergyRewardModel, prompts: Sequence[Any], responses: Sequence[str], mode: str = "mean", k: float = 1.0
) -> torch.Tensor:
    found = model.with_inference(estimate="mode" if mode == "mode" else "mean").score(prompts, responses)
    return found.reward - (k * found.std if mode == "pessimistic" else 0)


# transformers 5.23 says that its own arguments, which TRL 1.16 sets, will have other names.
@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*deprecated:FutureWarning")
@pytest.mark.parametrize(
    ("trainer", "kind", "mode", "asynchronous"),
    [
        ("grpo", "plain", "mean", False),
        ("grpo", "conversational", "pessimistic", True),
        ("rloo", "plain", "mode", True),
        ("rloo", "conversational", "mean", False),
    ],
)
def test_trainers_train_on_the_offline_scores(
    refined: EnergyRewardModel, trainer: str, kind: str, mode: Any, asynchronous: bool, tmp_path: Path
) -> None:
    made, config = TRAINERS[trainer]
    function = reward_function(refined, mode, k=2.0, asynchronous=asynchronous, name="refined")
    arguments = config(
        output_dir=str(tmp_path), max_steps=2, per_device_train_batch_size=8, num_generations=2, seed=1,
        max_completion_length=6, logging_steps=1, use_cpu=True, report_to="none", save_strategy="no", bf16=False,
        disable_tqdm=True, dataloader_pin_memory=False,
    )  # fmt: skip
    policy = save_policy(tmp_path / "policy")
    run = made(model=policy, reward_funcs=function, args=arguments, train_dataset=prompts(kind))
    run.train()
    asked = list(run._logs["prompt"])
    rewards, usable = list(run._logs["rewards"]["refined"]), [LONG not in str(prompt) for prompt in asked]
    assert [math.isnan(reward) for reward in rewards] == [not use for use in usable] and usable.count(True) == 6
    said = [answer if kind == "plain" else answer[0]["content"] for answer in run._logs["completion"]]
    rows = [row for row, use in enumerate(usable) if use]
    kept, answers = [asked[row] for row in rows], [said[row] for row in rows]
    want = expected(refined, kept, answers, mode, 2.0)
    torch.testing.assert_close(torch.tensor(rewards)[rows], want, **CLOSE)
    found = refined.score(kept, answers)
    log = run.state.log_history[-2]  # the last entry is that of the whole run
    assert log["step"] == 2 and log["refined/unusable"] == 0.25
    assert log["refined/base_reward"] == pytest.approx(float(found.base_reward.mean()), abs=1e-5)
    assert log["refined/std"] == pytest.approx(float(found.std.mean()), abs=1e-5)
    assert log["refined/beyond_std"] == pytest.approx(float((found.delta.abs() > found.std).float().mean()))
    assert log["rewards/refined/mean"] == pytest.approx(float(want.mean()), abs=1e-4)
    column = list(run._logs["extra"]["refined/base_reward"])
    assert [value is None for value in column] == [not use for use in usable]
    torch.testing.assert_close(torch.tensor([column[row] for row in rows]), found.base_reward, **CLOSE)


class TestRows:
    def test_conversations_are_scored_up_to_the_last_turn(self, refined: EnergyRewardModel) -> None:
        talk = [{"role": "user", "content": "Hi", "tool_calls": None}]
        turns = [
            {"role": "assistant", "content": "Wait."},
            {"role": "user", "content": "Well?"},
            {"role": "assistant", "content": "Yes.", "name": None, "tool_calls": []},
        ]
        parts = [{"role": "assistant", "content": [{"type": "text", "text": "Y"}, {"type": "text", "text": "es."}]}]
        typed = [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}]
        got = call(reward_function(refined), [talk, typed, "Hi"], [turns, parts, turns[-1:]])
        want = expected(refined, [talk + turns[:2], talk, "Hi"], ["Yes."] * 3)
        torch.testing.assert_close(torch.tensor(got), want, **CLOSE)

    @pytest.mark.parametrize(
        ("prompt", "completion", "why"),
        [
            (LONG, "Yes", r"has \d+ tokens, and the limit is 128"),
            ("Hi", None, "completion: missing"),
            ("Hi", [], "completion: empty"),
            ("Hi", [{"role": "tool", "content": "4"}], "ends with a turn of the tool, not with the assistant's"),
            ("Hi", [{"role": "assistant", "content": None}], "content: missing"),
            (
                "Hi",
                [{"role": "assistant", "content": [{"type": "image"}]}],
                "content\\[0\\]: image: this reward model reads text",
            ),
            ([{"role": "user", "content": None}], "Yes", r"prompt\[0\]\.content: missing"),
            (None, "Yes", "prompt: missing"),
        ],
    )
    def test_unusable_ones_are_none_and_counted_and_said_once(
        self, refined: EnergyRewardModel, prompt: Any, completion: Any, why: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        function, logged = reward_function(refined, name="r"), Logged()
        with caplog.at_level(logging.WARNING):
            for _ in range(2):
                got = call(
                    function, ["Hi", prompt, "Hi", prompt], ["Yes", completion, "No", completion], **logged.given()
                )
        want = expected(refined, ["Hi", "Hi"], ["Yes", "No"]).tolist()
        assert [got[0], got[2]] == pytest.approx(want, abs=1e-5) and got[1] is got[3] is None
        assert logged.metrics["r/unusable"] == 0.5 and logged.columns["r/std"][1] is None
        (said,) = [record.getMessage() for record in caplog.records]
        assert said.startswith("r: row 1 of this call has no reward (None): ")
        assert re.search(why, said)

    @staticmethod
    def rollout(name: str, **content: Any) -> list[dict[str, Any]]:
        call = {"type": "function", "function": {"name": name, "arguments": {"city": "Oslo"}}}
        return [
            {**content, "role": "assistant", "tool_calls": [call]},
            {"role": "tool", "name": name, "content": "22"},
            {"role": "assistant", "content": "22 degrees"},
        ]

    def test_tool_calls_and_tools_are_read_or_make_no_reward(
        self, refined: EnergyRewardModel, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked = [{"role": "user", "content": "Weather in Oslo?"}]
        kinds = [self.rollout("get_weather", content=""), self.rollout("get_weather", content=None)]
        kinds += [self.rollout("get_weather"), self.rollout("delete_files", content="")]
        assert call(reward_function(refined), [asked] * 4, kinds) == [None] * 4  # the template leaves them out
        rule = refined.backbone.text_rule
        writes = rule.template.replace("<|end|>", "{{ m.tool_calls | tojson if m.tool_calls else '' }}<|end|>")
        writes = "{% if tools %}{{ tools | tojson }}{% endif %}" + writes
        monkeypatch.setattr(refined.backbone, "text_rule", replace(rule, template=writes, max_length=10**6))
        monkeypatch.setattr(refined.backbone, "limit", None)

        def get_weather(city: str) -> str:
            """Tells the weather.

            Args:
                city: the city.
            """
            return city

        got = call(reward_function(refined), [asked] * 4, kinds)
        assert got[0] == got[1] == got[2] != got[3] and None not in got
        listed = [[{"type": "function", "function": {"name": "f"}}], None, None, None]
        assert call(reward_function(refined), [asked] * 4, kinds, tools=listed)[0] != got[0]
        offered = call(reward_function(refined, tools=[get_weather]), [asked], kinds[:1])
        from_prompt = refined.score(
            [{"messages": asked + kinds[0][:2], "tools": [_described(get_weather)]}], ["22 degrees"]
        )
        assert offered == pytest.approx(from_prompt.reward.tolist(), abs=1e-5)

    def test_only_unusable_rows_or_none(self, refined: EnergyRewardModel) -> None:
        logged = Logged()
        assert call(reward_function(refined), [LONG], ["Yes"], **logged.given()) == [None]
        assert logged.metrics == {"ebrm/unusable": 1.0} and logged.columns["ebrm/base_reward"] == [None]
        assert call(reward_function(refined), [], [], **logged.given()) == [] and logged.metrics["ebrm/unusable"] == 0

    @pytest.mark.parametrize(
        ("prompts", "completions", "said"),
        [
            ("Hi", ["Yes"], "`prompts` is one string; give a list, one prompt a row"),
            (["Hi"], "Y", "`completions` is one string"),
            (["a", "b"], ["c"], "2 prompts"),
        ],
    )
    def test_strings_are_not_split_and_columns_match(
        self, refined: EnergyRewardModel, prompts: Any, completions: Any, said: str
    ) -> None:
        with pytest.raises(TextError, match=said):
            reward_function(refined)(prompts=prompts, completions=completions)


class TestMaking:
    def test_kinds_of_function_and_names(self, refined: EnergyRewardModel) -> None:
        plain, threaded = reward_function(refined), reward_function(refined, "mode", asynchronous=True)
        assert inspect.isfunction(plain) and not inspect.iscoroutinefunction(plain)
        assert inspect.isfunction(threaded) and inspect.iscoroutinefunction(threaded)
        others = [reward_function(refined, "pessimistic", name=name) for name in ("safe", None)]
        names = [function.__name__ for function in (plain, threaded, *others)]
        assert names == ["ebrm", "ebrm_mode", "safe", "ebrm_pessimistic"]

    def test_the_asynchronous_one_leaves_the_loop_free(self, refined: EnergyRewardModel) -> None:
        entered, passed = threading.Event(), threading.Event()

        class Slow:
            def score(self, *texts: Any, on_error: Any = "raise") -> RefinedReward:
                entered.set()
                assert passed.wait(20), "the loop did not run while the model did"
                return refined.score(*texts, on_error=on_error)

        async def other() -> None:
            await asyncio.to_thread(entered.wait, 20)
            passed.set()

        async def both() -> Any:
            function = reward_function(Slow(), asynchronous=True)
            return (await asyncio.gather(function(prompts=["Hi"], completions=["Yes"]), other()))[0]

        assert asyncio.run(both()) == pytest.approx(expected(refined, ["Hi"], ["Yes"]).tolist(), abs=1e-5)

    def test_one_model_may_be_used_by_several_functions_at_once(self, refined: EnergyRewardModel) -> None:
        functions = [reward_function(refined, mode, asynchronous=True) for mode in ("mean", "mode", "pessimistic")] * 3
        answers = ["Yes", "No " * 9, "ok"]

        async def together() -> list[Any]:
            return await asyncio.gather(*(f(prompts=["Hi"] * 3, completions=answers) for f in functions))

        got = asyncio.run(together())
        for mode, rewards in zip(("mean", "mode", "pessimistic"), got[:3], strict=True):
            assert rewards == pytest.approx(expected(refined, ["Hi"] * 3, answers, mode).tolist(), abs=1e-5)
        assert got[:3] == got[3:6] == got[6:]

    def test_from_a_folder_and_through_a_server(self, refined: EnergyRewardModel, model: Path) -> None:
        got = call(reward_function(str(model)), ["Hi"], ["Yes"])
        assert got == pytest.approx(expected(refined, ["Hi"], ["Yes"]).tolist(), abs=1e-5)
        with serving(EnergyRewardModel.from_pretrained(model)) as live, Client(live.url) as client:
            for asynchronous in (False, True):
                function = reward_function(client, "pessimistic", k=2.0, asynchronous=asynchronous)
                got = call(function, ["Hi", LONG, "Ho"], ["Yes", "a", "No"])
                want = expected(refined, ["Hi", "Ho"], ["Yes", "No"], "pessimistic", 2.0).tolist()
                assert [got[0], got[2]] == pytest.approx(want, abs=1e-5) and got[1] is None
            with pytest.raises(ConfigError, match="The server gives the mean of the density, .* needs its mode"):
                reward_function(client, "mode")

    def test_a_failure_that_is_no_rows_fault_is_raised(self) -> None:
        class Down:
            def score(self, *texts: Any, on_error: str = "raise") -> RefinedReward:
                raise EBRMError("nobody answers")

        with pytest.raises(EBRMError, match="nobody answers"):
            call(reward_function(Down()), ["Hi"], ["Yes"])

    @pytest.mark.parametrize(
        ("given", "kind", "said"),
        [
            ({"mode": "best"}, ConfigError, "`mode` is 'best'; it must be one of mean, mode, pessimistic"),
            ({"k": -1.0}, ConfigError, "`k` is -1.0"),
            ({"k": math.nan}, ConfigError, "`k` is nan"),
            ({"source": "http://127.0.0.1:1"}, ModelError, r"is an address.*Client\('http://127.0.0.1:1'\)"),
            ({"source": "/no/such/folder"}, ModelError, "/no/such/folder"),
            *(({"k": k}, ConfigError, f"`k` is {k!r}") for k in (math.inf, "2", None)),
            *(({"source": m}, ModelError, "`source` is .*was expected") for m in (None, 5, EnergyRewardModel)),
        ],
    )
    def test_mistakes(self, refined: EnergyRewardModel, given: dict[str, Any], kind: type, said: str) -> None:
        with pytest.raises(kind, match=said):
            reward_function(**{"source": refined, **given})
