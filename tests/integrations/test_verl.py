"""verl 0.9.1's own registry, base class and batches where verl is installed, and ones written from them where not."""

from __future__ import annotations

import asyncio
import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tests.integrations.policies import TEMPLATE, save_policy
from tests.serve.live import serving
from tests.tiny import byte_tokenizer

from ebrm.errors import ConfigError, ServerError, TextError
from ebrm.model import EnergyRewardModel

POLICY = byte_tokenizer(template=TEMPLATE)
TALKS = [
    [{"role": "user", "content": "Hello"}],
    [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Was? 🙂"},
        {"role": "assistant", "content": "Ja?"},
        {"role": "user", "content": "Go"},
    ],
    [{"role": "user", "content": "Say yes"}],
]
RESPONSES = ["Yes", "ok ok", ""]


class WrittenBase:
    """What verl 0.9.1's `RewardManagerBase` does when it is made."""

    def __init__(self, config: Any, tokenizer: Any, compute_score: Any) -> None:
        self.config, self.tokenizer, self.compute_score = config, tokenizer, compute_score


class WrittenBatch:
    """What a manager uses of verl's `DataProto`."""

    def __init__(self, tensors: dict[str, torch.Tensor], others: dict[str, np.ndarray]) -> None:
        self.tensors, self.others = tensors, others

    def __getitem__(self, at: int | slice) -> Any:
        tensors = {name: column[at] for name, column in self.tensors.items()}
        others = {name: column[at] for name, column in self.others.items()}
        if isinstance(at, slice):
            return WrittenBatch(tensors, others)
        return SimpleNamespace(batch=tensors, non_tensor_batch=others)


def written_verl(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Put modules named as verl's in their place; gives the registry."""
    registry: dict[str, Any] = {}

    def register(name: str) -> Callable[[Any], Any]:
        def decorate(cls: Any) -> Any:
            if name in registry and registry[name] != cls:
                raise ValueError(f"reward manager {name} has already been registered")
            return registry.setdefault(name, cls)

        return decorate

    path = "verl.experimental.reward_loop.reward_manager"
    parts = path.split(".")
    contents: dict[str, dict[str, Any]] = {".".join(parts[:i]): {} for i in range(1, len(parts))}
    contents[path] = {"register": register}
    contents[f"{path}.base"] = {"RewardManagerBase": WrittenBase}
    contents[f"{path}.registry"] = {"REWARD_MANAGER": registry}
    for name, values in contents.items():
        module = ModuleType(name)
        vars(module).update(values)
        monkeypatch.setitem(sys.modules, name, module)
    return registry


# What verl 0.9.1 and its requirements do when they are imported.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]


@pytest.fixture(params=["written", "real"])
def verl(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Our module, imported anew, with `make` (a batch) and `registry` beside it."""
    if request.param == "real":
        pytest.importorskip("verl", reason="verl is not installed")
        manager = pytest.importorskip("verl.experimental.reward_loop.reward_manager")
        registry, make = manager.registry.REWARD_MANAGER, sys.modules["verl"].DataProto.from_dict
        registry.pop("ebrm", None)
    else:
        registry, make = written_verl(monkeypatch), WrittenBatch
    monkeypatch.delitem(sys.modules, "ebrm.integrations.verl", raising=False)
    module = importlib.import_module("ebrm.integrations.verl")
    yield SimpleNamespace(ours=module, registry=registry, make=make, kind=request.param)
    if module._open.cache_info().currsize:
        module._open()[1].close()
    sys.modules.pop("ebrm.integrations.verl", None)


@pytest.fixture(autouse=True)
def environment(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MODEL", "PESSIMISM", "UNUSABLE_REWARD"):
        monkeypatch.delenv(f"EBRM_{name}", raising=False)
    monkeypatch.setenv("EBRM_SERVER", server)
    monkeypatch.setenv("EBRM_TOKEN", "secret")


def batch(make: Any, talks: list[Any], responses: list[str], end: str = "<|end|></s>") -> Any:
    """A batch as verl's agent loop makes it: prompts padded on the left, responses on the right."""
    asked = [
        POLICY(POLICY.apply_chat_template(talk, tokenize=False, add_generation_prompt=True), add_special_tokens=False)[
            "input_ids"
        ]
        for talk in talks
    ]
    said = [POLICY(response + end, add_special_tokens=False)["input_ids"] for response in responses]
    width, length = max(map(len, asked)), max(map(len, said)) + 2
    left = [[0] * (width - len(ids)) for ids in asked]
    right = [[0] * (length - len(ids)) for ids in said]
    raw = np.empty(len(talks), dtype=object)
    raw[:] = talks
    tensors = {
        "prompts": torch.tensor([pad + ids for pad, ids in zip(left, asked, strict=True)]),
        "responses": torch.tensor([ids + pad for pad, ids in zip(right, said, strict=True)]),
        "attention_mask": torch.tensor(
            [
                [0] * len(before) + [1] * (len(prompt) + len(answer)) + [0] * len(after)
                for before, prompt, answer, after in zip(left, asked, said, right, strict=True)
            ]
        ),
    }
    return make(tensors, {"raw_prompt": raw})


def manager(verl: Any) -> Any:
    return verl.registry["ebrm"](
        config=None, tokenizer=POLICY, compute_score=None, reward_router_address=None, reward_model_tokenizer=None
    )


def test_it_is_registered_and_scores_as_offline(verl: Any, refined: EnergyRewardModel) -> None:
    assert verl.registry["ebrm"] is verl.ours.EBRMRewardManager
    data = batch(verl.make, TALKS, RESPONSES)

    async def all_at_once() -> list[Any]:
        ours = manager(verl)
        return await asyncio.gather(*(ours.run_single(data[i : i + 1]) for i in range(len(TALKS))))

    found = asyncio.run(all_at_once())
    want = refined.score(TALKS, RESPONSES)
    assert [one["reward_score"] for one in found] == pytest.approx(want.reward.tolist(), abs=1e-5)
    for name in ("base_reward", "std"):
        logged = [one["reward_extra_info"][name] for one in found]
        assert logged == pytest.approx(getattr(want, name).tolist(), abs=1e-5)
    assert {tuple(one["reward_extra_info"]) for one in found} == {("base_reward", "std", "unusable")}


def test_the_last_of_several_sequences_counts(verl: Any, refined: EnergyRewardModel) -> None:
    data = batch(verl.make, TALKS, RESPONSES)
    found = asyncio.run(manager(verl).run_single(data))
    assert found["reward_score"] == pytest.approx(float(refined.score(TALKS[-1:], RESPONSES[-1:]).reward), abs=1e-5)


def test_pessimism(verl: Any, refined: EnergyRewardModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EBRM_PESSIMISM", "2")
    found = asyncio.run(manager(verl).run_single(batch(verl.make, TALKS[:1], ["Yes"])))
    want = refined.score(TALKS[:1], ["Yes"])
    assert found["reward_score"] == pytest.approx(float(want.reward - 2 * want.std), abs=1e-5)


def test_a_text_that_cannot_be_scored(verl: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    data = batch(verl.make, TALKS[:1], ["no " * 100])
    with pytest.raises(TextError, match="the limit is 128"):
        asyncio.run(manager(verl).run_single(data))
    verl.ours._open()[1].close()
    verl.ours._open.cache_clear()
    monkeypatch.setenv("EBRM_UNUSABLE_REWARD", "-9")
    found = asyncio.run(manager(verl).run_single(data))
    assert found["reward_score"] == -9 and found["reward_extra_info"]["unusable"] == 1


def test_mistakes(verl: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    data = verl.make({"responses": torch.ones(1, 2), "attention_mask": torch.ones(1, 4)}, {"uid": np.array(["a"])})
    with pytest.raises(ConfigError, match=r"no raw_prompt \(it has uid\)"):
        asyncio.run(manager(verl).run_single(data))
    verl.ours._open()[1].close()
    verl.ours._open.cache_clear()
    monkeypatch.setenv("EBRM_TOKEN", "wrong")
    with pytest.raises(ServerError, match="401"):
        asyncio.run(manager(verl).run_single(batch(verl.make, TALKS[:1], ["Yes"])))
    verl.ours._open()[1].close()
    verl.ours._open.cache_clear()
    monkeypatch.delenv("EBRM_SERVER")
    with pytest.raises(ConfigError, match="verl's reward manager asks a server"):
        manager(verl)


class TestComputeScore:
    def test_takes_the_prompt_from_extra_info(self, verl: Any, refined: EnergyRewardModel) -> None:
        found = [
            verl.ours.compute_score("set", "Yes", "truth", {"prompt": prompt}, reward_router_address="x")
            for prompt in ("Hello", TALKS[1], np.array(TALKS[1]))
        ]
        want = refined.score(["Hello", TALKS[1], TALKS[1]], ["Yes"] * 3)
        assert [one["score"] for one in found] == pytest.approx(want.reward.tolist(), abs=1e-5)
        assert list(found[0]) == ["score", "base_reward", "std", "unusable"]

    @pytest.mark.parametrize("extra_info", [None, {}, {"index": 1}])
    def test_without_a_prompt(self, verl: Any, extra_info: Any) -> None:
        with pytest.raises(ConfigError, match="extra_info has no prompt"):
            verl.ours.compute_score("set", "Yes", None, extra_info)


class TestVerlsOwnWorker:
    """The worker that verl runs in Ray, here in this process, configured as the guide says."""

    @pytest.mark.parametrize("way", ["manager", "compute_score"])
    def test_it_scores_a_batch(self, verl: Any, way: str, refined: EnergyRewardModel, tmp_path: Path) -> None:
        if verl.kind != "real":
            pytest.skip("this is about verl's own worker")
        from omegaconf import OmegaConf
        from verl.experimental.reward_loop.reward_loop import RewardLoopWorker

        named = {"source": "importlib", "name": "EBRMRewardManager", "module": {"path": "pkg://ebrm.integrations.verl"}}
        if way == "compute_score":
            named = {"source": "register", "name": "naive", "module": {"path": None}}
        path = verl.ours.__file__ if way == "compute_score" else None
        config = OmegaConf.create(
            {
                "actor_rollout_ref": {"model": {"path": save_policy(tmp_path / "policy"), "tokenizer_path": None}},
                "reward": {
                    "reward_model": {"enable": False},
                    "reward_manager": named,
                    "custom_reward_function": {"path": path, "name": "compute_score"},
                },
            }
        )
        data = batch(verl.make, TALKS, RESPONSES)
        data.non_tensor_batch |= {
            "data_source": np.array(["set"] * 3),
            "reward_model": np.array([{"ground_truth": None}] * 3),
            "extra_info": np.array([{"prompt": talk} for talk in TALKS]),
        }

        async def work() -> Any:
            worker = RewardLoopWorker(config)
            found = await worker.compute_score_batch(data)
            return found, worker.reward_manager

        found, used = asyncio.run(work())
        want = refined.score(TALKS, RESPONSES).reward.tolist()
        assert [one["reward_score"] for one in found] == pytest.approx(want, abs=1e-5)
        assert type(used).__name__ == ("EBRMRewardManager" if way == "manager" else "NaiveRewardManager")
        summed = used.assemble_rm_scores(data, [one["reward_score"] for one in found]).sum(1)
        assert summed.tolist() == pytest.approx(want, abs=1e-5)
        if way == "compute_score":
            used.compute_score.args[0].__globals__["_open"]()[1].close()

    def test_its_own_reward_model_code_reads_our_classify(
        self,
        verl: Any,
        rm: Path,
        model: Path,
        refined: EnergyRewardModel,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        if verl.kind != "real":
            pytest.skip("this is about verl's own worker")
        monkeypatch.delenv("EBRM_TOKEN")  # verl sends none on this route
        from omegaconf import OmegaConf
        from verl.experimental.reward_loop.reward_loop import RewardLoopWorker

        reward = {
            "reward_model": {"enable": True, "model_path": str(rm), "rollout": {"name": "vllm"}},
            "reward_manager": {"source": "register", "name": "naive", "module": {"path": None}},
            "custom_reward_function": {"path": None},
        }
        policy = {"model": {"path": save_policy(tmp_path / "policy"), "tokenizer_path": None}}
        config = OmegaConf.create({"actor_rollout_ref": policy, "reward": reward})
        data = batch(verl.make, TALKS, RESPONSES, end="</s>")  # verl leaves other special tokens in the response

        with serving(EnergyRewardModel.from_pretrained(model)) as live:

            async def work() -> Any:
                return await RewardLoopWorker(config, f"127.0.0.1:{live.port}").compute_score_batch(data)

            found = asyncio.run(work())
        want = refined.score(TALKS, RESPONSES).reward.tolist()
        assert [one["reward_score"] for one in found] == pytest.approx(want, abs=1e-5)
