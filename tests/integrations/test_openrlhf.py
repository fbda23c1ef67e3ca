"""OpenRLHF 0.11.2's own client where that package is installed, and a stand-in for it where it is not."""

from __future__ import annotations

import asyncio
import importlib.util
import logging
from itertools import cycle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import torch
from tests.integrations.policies import TEMPLATE
from tests.serve.live import serving
from tests.tiny import byte_tokenizer

from ebrm.errors import ConfigError, ServerError, TextError
from ebrm.integrations import openrlhf
from ebrm.model import EnergyRewardModel

FILE = openrlhf.__file__
POLICY = byte_tokenizer(template=TEMPLATE)
PROMPTS = ["Hello", "Was ist das? 🙂", "Say yes", "Go"]
RESPONSES = ["Yes", "", "ok ok ok", "nein"]
ENDS = ["<|end|>", "<|end|>\n", "</s>", ""]  # how a policy ends: its end of turn, or its limit


DESIGN = """
from ebrm.integrations import BaseAndBonus, PreferenceAsReward, RewardDesign

def correct(prompts, responses, label):
    return [float(one == known) for one, known in zip(responses, label)]

def design(model):
    shape = {"quality": lambda reward, rollouts: reward.sigmoid()}
    return RewardDesign({"correct": correct, "quality": model}, shape, BaseAndBonus("correct", "quality"))

def against_labels(model):
    return RewardDesign(model, PreferenceAsReward(), reference="label")
"""


class StandInExecutor:
    """OpenRLHF 0.11.2's `SingleTurnAgentExecutor`, as far as it is about rewards."""

    def __init__(self, endpoints: list[str]) -> None:
        self.endpoints, self.turn, self.reward_func = endpoints, cycle(endpoints), None
        if endpoints[0].endswith(".py"):
            spec = importlib.util.spec_from_file_location("reward_func", endpoints[0])
            assert spec is not None and spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            self.reward_func = module.reward_func

    async def execute(
        self, prompt: str, label: Any, sampling_params: Any, max_length: int, hf_tokenizer: Any, llm_engine: Any
    ) -> dict[str, Any]:
        asked = hf_tokenizer(text=prompt, add_special_tokens=False, return_tensors="pt")["input_ids"][0].tolist()
        written = (await llm_engine.generate(asked, sampling_params, multi_modal_data=None)).outputs[0].token_ids
        output: dict[str, Any] = {"reward": None, "scores": None, "extra_logs": {}}
        query = hf_tokenizer.decode(asked + written, skip_special_tokens=False)
        try:
            info = await self._fetch([query], [prompt], [label])
            output.update(reward=info["rewards"], scores=info["scores"], extra_logs=info["extra_logs"])
        except Exception:
            logging.getLogger("test").info("Failed to fetch reward from remote RM", exc_info=True)
        return output

    async def _fetch(self, queries: list[str], prompts: list[str], labels: list[Any]) -> Any:
        if self.reward_func is not None:
            return await asyncio.to_thread(self.reward_func, queries, prompts, labels)
        async with httpx.AsyncClient(timeout=180) as client:
            body = {"query": queries, "prompts": prompts, "labels": labels}
            return (await client.post(next(self.turn), json=body)).raise_for_status().json()


class Engine:
    """Stands for vLLM: the responses of `RESPONSES`, ended as in `ENDS`."""

    async def generate(self, ids: list[int], params: Any, multi_modal_data: Any) -> Any:
        text = POLICY.decode(ids)
        (row,) = [i for i, prompt in enumerate(PROMPTS) if f"user\n{prompt}<" in text]
        written = POLICY(RESPONSES[row] + ENDS[row], add_special_tokens=False)["input_ids"]
        return SimpleNamespace(outputs=[SimpleNamespace(token_ids=written, finish_reason="stop", logprobs=None)])


def run(kind: str, endpoints: list[str]) -> list[dict[str, Any]]:
    """Roll out all prompts at once, as OpenRLHF does."""
    made: Any = StandInExecutor
    if kind == "real":
        made = pytest.importorskip("openrlhf.utils.agent", reason="OpenRLHF is not installed").SingleTurnAgentExecutor
    executor = made(endpoints)
    params = SimpleNamespace(max_tokens=64, logprobs=None)

    async def one(prompt: str) -> dict[str, Any]:
        messages = [{"role": "user", "content": prompt}]
        text = POLICY.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return await executor.execute(text, "label", params, 4096, POLICY, Engine())

    async def together() -> list[dict[str, Any]]:
        return await asyncio.gather(*(one(prompt) for prompt in PROMPTS))

    return asyncio.run(together())


def check(found: list[dict[str, Any]], model: EnergyRewardModel) -> None:
    want = model.score(PROMPTS, RESPONSES)

    units = model.head.standardizer
    scores = torch.sigmoid((want.reward - float(units.reward_mean)) / float(units.reward_std))
    columns = {"reward": want.reward, "scores": scores, "base_reward": want.base_reward, "std": want.std}
    for name, expected in columns.items():
        values = [{**one, **one["extra_logs"]}[name] for one in found]
        got = torch.tensor([float(torch.as_tensor(value).reshape(())) for value in values])
        torch.testing.assert_close(got, expected, rtol=0.0, atol=1e-5, msg=name)


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch, no_shared_scorers: None) -> None:
    for name in ("MODEL", "SERVER", "TOKEN", "PESSIMISM", "UNUSABLE_REWARD", "REWARD"):
        monkeypatch.delenv(f"EBRM_{name}", raising=False)


@pytest.mark.parametrize("kind", ["stand-in", "real"])
class TestTheClient:
    def test_with_the_file_and_a_model(
        self, kind: str, refined: EnergyRewardModel, model: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("EBRM_MODEL", str(model))
        monkeypatch.setenv("EBRM_DEVICE", "cpu")
        check(run(kind, [FILE]), refined)

    def test_with_the_file_and_a_server(
        self, kind: str, refined: EnergyRewardModel, server: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("EBRM_SERVER", server)
        monkeypatch.setenv("EBRM_TOKEN", "secret")
        check(run(kind, [FILE]), refined)

    def test_with_addresses(self, kind: str, refined: EnergyRewardModel, model: Path) -> None:
        with serving(EnergyRewardModel.from_pretrained(model)) as live:  # OpenRLHF's client sends no token
            check(run(kind, [f"{live.url}/get_reward"] * 2), refined)

    def test_an_unusable_text(
        self, kind: str, model: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setenv("EBRM_MODEL", str(model))
        monkeypatch.setitem(globals(), "RESPONSES", ["no " * 200, *RESPONSES[1:]])
        with caplog.at_level(logging.ERROR):
            found = run(kind, [FILE])
        assert [one["reward"] is None for one in found] == [True, False, False, False]
        assert "No reward: Text 0: The text has" in caplog.text
        monkeypatch.setenv("EBRM_UNUSABLE_REWARD", "-9")
        (first, second, *_) = run(kind, [FILE])
        assert float(first["reward"]) == -9 and float(first["scores"]) == 0 and float(second["reward"]) != -9
        assert [float(one["extra_logs"]["unusable"]) for one in (first, second)] == [1, 0]


class TestTheFunction:
    QUERY = "<s><|start|>user\nHi<|end|>\n<|start|>assistant\nYes<|end|>\n"

    def test_pessimism_and_no_queries(
        self, refined: EnergyRewardModel, model: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("EBRM_MODEL", str(model))
        monkeypatch.setenv("EBRM_PESSIMISM", "2")
        found = openrlhf.reward_func([self.QUERY], ["Hi"], [None])
        want = refined.score(["Hi"], ["Yes"])
        torch.testing.assert_close(found["rewards"], want.reward - 2 * want.std, rtol=0.0, atol=1e-5)
        nothing = openrlhf.reward_func([], [], [])
        assert [len(nothing["rewards"]), len(nothing["scores"]), len(nothing["extra_logs"]["std"])] == [0, 0, 0]

    def test_several_queries_and_one_that_a_server_refuses(self, server: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("EBRM_SERVER", server)
        monkeypatch.setenv("EBRM_TOKEN", "secret")
        queries = [self.QUERY, self.QUERY + "x" * 200]
        with pytest.raises(TextError, match="the limit is 128"):
            openrlhf.reward_func(queries, ["Hi"] * 2, [None] * 2)
        monkeypatch.setenv("EBRM_UNUSABLE_REWARD", "-9")
        found = openrlhf.reward_func(queries, ["Hi"] * 2, [None] * 2)
        assert found["rewards"][1] == -9 and found["rewards"][0] != -9

    def test_a_reward_design_scores_texts_and_gives_functions_their_parts(
        self, refined: EnergyRewardModel, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "r.py").write_text(DESIGN)
        monkeypatch.setenv("EBRM_MODEL", str(model))
        monkeypatch.setenv("EBRM_REWARD", f"{tmp_path}/r.py:design")
        asked = "<s><|start|>user\nHi<|end|>\n<|start|>assistant\n"
        queries = [f"{asked}Yes<|end|>\n", f"{asked}No<|end|></s>", asked]
        found = openrlhf.reward_func(queries, [asked] * 3, ["Yes", "Yes", ""])
        yes, _, empty = refined.score("Hi", ["Yes", "No", ""]).reward.double().sigmoid().tolist()
        want = [0.5 + 0.5 * yes, 0.0, 0.5 + 0.5 * empty]  # wrong is 0, right is half, and up to the whole by quality
        assert found["rewards"].tolist() == pytest.approx(want, abs=1e-5)
        assert found["scores"].tolist() == found["rewards"].tolist()
        logs = found["extra_logs"]
        assert logs["correct/reward"].tolist() == [1, 0, 1] and logs["unusable"].tolist() == [0, 0, 0]
        assert {"quality/reward", "quality/unshaped", "quality/base_reward", "quality/std"} < logs.keys()

    def test_references_stand_after_the_same_prompt(
        self, refined: EnergyRewardModel, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "r.py").write_text(DESIGN)
        monkeypatch.setenv("EBRM_MODEL", str(model))
        monkeypatch.setenv("EBRM_REWARD", f"{tmp_path}/r.py:against_labels")
        asked = "<s><|start|>user\nHi<|end|>\n<|start|>assistant\n"
        found = openrlhf.reward_func([f"{asked}Yes<|end|>\n"], [asked], ["No"])
        yes, no = refined.score("Hi", ["Yes", "No"]).reward
        assert float(found["rewards"]) == pytest.approx(float((yes - no).sigmoid()), abs=1e-5)

    def test_a_row_without_a_reward_is_an_error_or_paid_what_is_set(
        self, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        (tmp_path / "r.py").write_text(DESIGN)
        monkeypatch.setenv("EBRM_MODEL", str(model))
        monkeypatch.setenv("EBRM_REWARD", f"{tmp_path}/r.py:design")
        given = [self.QUERY, "another text"], ["<s>", "Hi"], ["x", "x"]
        with (
            caplog.at_level(logging.INFO, "ebrm"),
            pytest.raises(TextError, match="Text 1 has no reward: correct: Its response is not known"),
        ):
            openrlhf.reward_func(*given)
        assert "No reward: Text 1" in caplog.text and "EBRM_UNUSABLE_REWARD" not in caplog.text
        monkeypatch.setenv("EBRM_UNUSABLE_REWARD", "-9")
        found = openrlhf.reward_func(*given)
        assert found["rewards"].tolist() == [0, -9] and found["extra_logs"]["unusable"].tolist() == [0, 1]

    def test_mistakes_are_logged_and_raised(
        self, server: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        with pytest.raises(ConfigError, match="EBRM_MODEL is '' and EBRM_SERVER is ''"):
            openrlhf.reward_func([self.QUERY], ["Hi"], [None])
        monkeypatch.setenv("EBRM_SERVER", server)
        monkeypatch.setenv("EBRM_TOKEN", "wrong")
        with pytest.raises(ServerError, match="401"):
            openrlhf.reward_func([self.QUERY], ["Hi"], [None])
        said = [record.getMessage()[:11] for record in caplog.records if record.name == openrlhf.__name__]
        assert said == ["No reward: "] * 2
