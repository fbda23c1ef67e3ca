"""verl 0.9.1's own registry, base class and batches where verl is installed, and stand-ins for them where not."""

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


class StandInBase:
    """verl 0.9.1's `RewardManagerBase`."""

    def __init__(self, config: Any, tokenizer: Any, compute_score: Any) -> None:
        self.config, self.tokenizer, self.compute_score = config, tokenizer, compute_score


class StandInBatch:
    """The part of verl's `DataProto` that a manager uses."""

    def __init__(self, tensors: dict[str, torch.Tensor], others: dict[str, np.ndarray]) -> None:
        self.tensors, self.others = tensors, others

    def __getitem__(self, at: int | slice) -> Any:
        tensors = {name: column[at] for name, column in self.tensors.items()}
        others = {name: column[at] for name, column in self.others.items()}
        if isinstance(at, slice):
            return StandInBatch(tensors, others)
        return SimpleNamespace(batch=tensors, non_tensor_batch=others)


def stand_in_verl(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
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
    contents[f"{path}.base"] = {"RewardManagerBase": StandInBase}
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


@pytest.fixture(params=["stand-in", "real"])
def verl(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Our module, imported anew, with `make` (a batch) and `registry` beside it."""
    if request.param == "real":
        pytest.importorskip("verl", reason="verl is not installed")
        manager = pytest.importorskip("verl.experimental.reward_loop.reward_manager")
        registry, make = manager.registry.REWARD_MANAGER, sys.modules["verl"].DataProto.from_dict
        registry.pop("ebrm", None)
    else:
        registry, make = stand_in_verl(monkeypatch), StandInBatch
    monkeypatch.delitem(sys.modules, "ebrm.integrations.verl", raising=False)
    module = importlib.import_module("ebrm.integrations.verl")
    yield SimpleNamespace(ours=module, registry=registry, make=make, kind=request.param)
    sys.modules.pop("ebrm.integrations.verl", None)


@pytest.fixture(autouse=True)
def environment(server: str, monkeypatch: pytest.MonkeyPatch, no_shared_scorers: None) -> None:
    for name in ("MODEL", "PESSIMISM", "UNUSABLE_REWARD", "REWARD"):
        monkeypatch.delenv(f"EBRM_{name}", raising=False)
    monkeypatch.setenv("EBRM_SERVER", server)
    monkeypatch.setenv("EBRM_TOKEN", "secret")


def batch(make: Any, talks: list[Any], responses: list[str], end: str = "<|end|></s>") -> Any:
    """A batch as verl's agent loop makes it: prompts padded on the left, responses on the right."""

    def ids(text: str) -> list[int]:
        return POLICY(text, add_special_tokens=False)["input_ids"]

    def padded(rows: list[list[int]], width: int, left: bool) -> torch.Tensor:
        pads = [[0] * (width - len(row)) for row in rows]
        return torch.tensor([pad + row if left else row + pad for pad, row in zip(pads, rows, strict=True)])

    asked = [ids(POLICY.apply_chat_template(talk, tokenize=False, add_generation_prompt=True)) for talk in talks]
    said = [ids(response + end) for response in responses]
    width, length = max(map(len, asked)), max(map(len, said)) + 2
    marks = [padded([[1] * len(row) for row in rows], size, left)
             for rows, size, left in ((asked, width, True), (said, length, False))]  # fmt: skip
    raw = np.empty(len(talks), dtype=object)
    raw[:] = talks
    tensors = {
        "prompts": padded(asked, width, True),
        "responses": padded(said, length, False),
        "attention_mask": torch.cat(marks, dim=1),
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


def test_a_text_that_cannot_be_scored_and_pessimism(
    verl: Any, refined: EnergyRewardModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = batch(verl.make, TALKS[:1], ["no " * 100])
    with pytest.raises(TextError, match="the limit is 128"):
        asyncio.run(manager(verl).run_single(data))
    monkeypatch.setenv("EBRM_UNUSABLE_REWARD", "-9")
    monkeypatch.setenv("EBRM_PESSIMISM", "2")
    found = asyncio.run(manager(verl).run_single(data))
    assert found["reward_score"] == -9 and found["reward_extra_info"]["unusable"] == 1
    found = asyncio.run(manager(verl).run_single(batch(verl.make, TALKS[:1], ["Yes"])))
    want = refined.score(TALKS[:1], ["Yes"])
    assert found["reward_score"] == pytest.approx(float(want.reward - 2 * want.std), abs=1e-5)


def test_mistakes(verl: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    data = verl.make({"responses": torch.ones(1, 2), "attention_mask": torch.ones(1, 4)}, {"uid": np.array(["a"])})
    with pytest.raises(ConfigError, match=r"no raw_prompt \(it has uid\)"):
        asyncio.run(manager(verl).run_single(data))
    monkeypatch.setenv("EBRM_TOKEN", "wrong")
    with pytest.raises(ServerError, match="401"):
        asyncio.run(manager(verl).run_single(batch(verl.make, TALKS[:1], ["Yes"])))
    monkeypatch.delenv("EBRM_SERVER")
    with pytest.raises(ConfigError, match="verl's reward manager needs a server"):
        manager(verl)


DESIGN = """
from ebrm.integrations import LengthPenalty, RewardDesign, WeightedSum

def correct(prompts, responses, answer, ground_truth, data_source):
    return [float(one == known == truth) for one, known, truth in zip(responses, answer, ground_truth)]

def design(model):
    shape = {"quality": LengthPenalty(free=2, rate=0.5)}
    return RewardDesign({"correct": correct, "quality": model}, shape, WeightedSum({"correct": 10.0, "quality": 1.0}))
"""


def test_a_reward_design_reads_the_columns_of_a_row_and_its_tokens(
    verl: Any, refined: EnergyRewardModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "r.py").write_text(DESIGN)
    monkeypatch.setenv("EBRM_REWARD", f"{tmp_path}/r.py:design")
    data = batch(verl.make, TALKS[:1], ["Yes"])
    others = data.others if verl.kind == "stand-in" else data.non_tensor_batch
    others |= {
        "data_source": np.array(["set"]),
        "reward_model": np.array([{"ground_truth": "Yes"}]),
        "extra_info": np.array([{"answer": "Yes"}]),
    }
    found = asyncio.run(manager(verl).run_single(data))
    tokens = len(POLICY("Yes<|end|></s>", add_special_tokens=False)["input_ids"])
    want = 10 + float(refined.score(TALKS[:1], ["Yes"]).reward) - 0.5 * (tokens - 2)
    assert found["reward_score"] == pytest.approx(want, abs=1e-5)
    assert list(found["reward_extra_info"]) == [
        "correct/reward", "quality/reward", "quality/unshaped", "quality/base_reward", "quality/std", "unusable",
    ]  # fmt: skip
    with pytest.raises(ConfigError, match="does not say how many tokens"):
        verl.ours.compute_score("set", "Yes", "Yes", {"prompt": "Hello", "answer": "Yes"})
    monkeypatch.setenv("EBRM_REWARD", f"{tmp_path}/r.py:none")
    with pytest.raises(ConfigError, match="has no function none"):
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


@pytest.mark.parametrize("way", ["manager", "compute_score", "classify"])
def test_verl_s_own_worker_scores_a_batch(
    verl: Any, way: str, rm: Path, model: Path, refined: EnergyRewardModel, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """The worker that verl runs in Ray, here in this process, configured as the guide says."""
    if verl.kind != "real":
        pytest.skip("this is about verl's own worker")
    from omegaconf import OmegaConf
    from verl.experimental.reward_loop.reward_loop import RewardLoopWorker

    ours = {"source": "importlib", "name": "EBRMRewardManager", "module": {"path": "pkg://ebrm.integrations.verl"}}
    naive = {"source": "register", "name": "naive", "module": {"path": None}}
    reward = {
        "reward_model": {"enable": False},
        "reward_manager": ours if way == "manager" else naive,
        "custom_reward_function": {
            "path": verl.ours.__file__ if way == "compute_score" else None,
            "name": "compute_score",
        },
    }
    if way == "classify":
        monkeypatch.delenv("EBRM_TOKEN")  # verl sends none on this route
        reward["reward_model"] = {"enable": True, "model_path": str(rm), "rollout": {"name": "vllm"}}
    policy = {"model": {"path": save_policy(tmp_path / "policy"), "tokenizer_path": None}}
    config = OmegaConf.create({"actor_rollout_ref": policy, "reward": reward})
    # On /classify verl leaves other special tokens in the response.
    data = batch(verl.make, TALKS, RESPONSES, end="</s>" if way == "classify" else "<|end|></s>")
    data.non_tensor_batch |= {
        "data_source": np.array(["set"] * 3),
        "reward_model": np.array([{"ground_truth": None}] * 3),
        "extra_info": np.array([{"prompt": talk} for talk in TALKS]),
    }

    with serving(EnergyRewardModel.from_pretrained(model)) as live:
        address = [f"127.0.0.1:{live.port}"] if way == "classify" else []

        async def work() -> Any:
            worker = RewardLoopWorker(config, *address)
            return await worker.compute_score_batch(data), worker.reward_manager

        found, used = asyncio.run(work())
    want = refined.score(TALKS, RESPONSES).reward.tolist()
    assert [one["reward_score"] for one in found] == pytest.approx(want, abs=1e-5)
    if way != "classify":
        assert type(used).__name__ == ("EBRMRewardManager" if way == "manager" else "NaiveRewardManager")
        summed = used.assemble_rm_scores(data, [one["reward_score"] for one in found]).sum(1)
        assert summed.tolist() == pytest.approx(want, abs=1e-5)
