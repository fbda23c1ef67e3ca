"""Refined rewards in verl: a reward manager, registered as "ebrm", and a `compute_score` function.

verl's reward workers have no GPU, so both use a running `ebrm serve`, named by `EBRM_SERVER` and `EBRM_TOKEN`
(:class:`ebrm.integrations.environment.Environment`); `EBRM_REWARD` names a reward design. Imported by verl, in its
workers:

    reward.reward_manager.source=importlib
    reward.reward_manager.module.path=pkg://ebrm.integrations.verl
    reward.reward_manager.name=EBRMRewardManager
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import torch
from verl.experimental.reward_loop.reward_manager import register
from verl.experimental.reward_loop.reward_manager.base import RewardManagerBase
from verl.experimental.reward_loop.reward_manager.registry import REWARD_MANAGER

from ebrm.errors import ConfigError
from ebrm.integrations.environment import read_environment, shared_design, shared_scorer
from ebrm.integrations.rollouts import read_rollouts

_CALLER = "verl's reward manager"


class EBRMRewardManager(RewardManagerBase):
    """Scores each rollout by its `raw_prompt` (messages) and its decoded response, without special tokens.

    Both are rendered by the reward model's own template. Of several sequences the last one counts, as in verl's own
    managers. verl passes the arguments; those after `tokenizer` are ignored.
    """

    def __init__(
        self, config: Any, tokenizer: Any, compute_score: Any = None, reward_router_address: Any = None,
        reward_model_tokenizer: Any = None,
    ) -> None:  # fmt: skip
        super().__init__(config, tokenizer, compute_score)
        environment = read_environment(_CALLER)  # a missing address shows before the first rollout
        _ = shared_design(environment) if environment.reward else shared_scorer(environment)

    async def run_single(self, data: Any) -> dict[str, Any]:
        """`reward_score` of the last sequence of `data` (a `DataProto`), and its parts as `reward_extra_info`.

        The parts are `base_reward`, `std` and `unusable`: 1 where `EBRM_UNUSABLE_REWARD` replaces the reward; of a
        reward design those of its sources, and `unusable`.

        Raises:
            ConfigError: the batch has no `raw_prompt`.
            TextError: a text that cannot be scored, unless `EBRM_UNUSABLE_REWARD` is set.
            EBRMError: the server cannot be reached, or refuses.
        """
        item = data[-1:][0]
        if "raw_prompt" not in item.non_tensor_batch:
            raise ConfigError(
                f"The batch has no raw_prompt (it has {', '.join(sorted(item.non_tensor_batch))}), so the prompt is "
                "not known. Use verl's RLHFDataset, or one that gives raw_prompt: a list of messages."
            )
        prompt = item.non_tensor_batch["raw_prompt"]
        responses = item.batch["responses"]  # [L], padded on the right
        length = int(item.batch["attention_mask"][-len(responses) :].sum())
        text = self.tokenizer.decode(responses[:length], skip_special_tokens=True)
        columns = _columns(item.non_tensor_batch)
        values = await asyncio.to_thread(_score, prompt, text, columns, length)  # the client blocks
        return {"reward_score": values.pop("score"), "reward_extra_info": values}


# verl loads a file named by path anew; the class that was registered first stays.
if "ebrm" not in REWARD_MANAGER:
    register("ebrm")(EBRMRewardManager)


def compute_score(
    data_source: str, solution_str: str, ground_truth: Any, extra_info: dict[str, Any] | None = None, **more: Any
) -> dict[str, float]:
    """For `reward.custom_reward_function`, where a rule-based manager has to stay: the prompt is in `extra_info`.

    The response is `solution_str`; `prompt` is a string (one user turn) or a list of messages.
    Gives `score`, and `base_reward`, `std` and `unusable` as `EBRMRewardManager` does. A reward design has the columns
    `data_source`, `ground_truth` and those of `extra_info`.

    Raises:
        ConfigError: `extra_info` has no `prompt`. TextError, EBRMError: as `EBRMRewardManager.run_single`.
    """
    prompt = (extra_info or {}).get("prompt")
    if prompt is None:
        raise ConfigError(
            f"extra_info has no prompt (it has {', '.join(sorted(extra_info or {})) or 'nothing'}); verl gives "
            "compute_score no other. Put the prompt into the data's extra_info, or use EBRMRewardManager, which finds "
            "it."
        )
    known = {"data_source": data_source, "ground_truth": ground_truth, "extra_info": extra_info}
    return _score(prompt, solution_str, _columns(known), None)


def _score(prompt: Any, response: str, columns: dict[str, Any], tokens: int | None) -> dict[str, float]:
    prompt = prompt if isinstance(prompt, str) else [dict(message) for message in prompt]  # an array of messages
    environment = read_environment(_CALLER)
    if environment.reward:
        lengths = None if tokens is None else torch.tensor([tokens])
        row = {name: [value] for name, value in columns.items()}
        found = shared_design(environment)(read_rollouts([prompt], [response], row, tokens=lengths))
        parts = environment.designed(found)
    else:
        refined = shared_scorer(environment).score([prompt], [response], on_error=environment.on_error)
        parts = environment.rewards(refined)
    values = {name: float(column) for name, column in parts.items()}
    return {"score": values.pop("reward"), **values}


def _columns(known: Mapping[str, Any]) -> dict[str, Any]:
    """What a reward design reads of a row: its columns, those of `extra_info`, and `ground_truth`."""
    rule = known.get("reward_model")
    truth = {"ground_truth": rule["ground_truth"]} if isinstance(rule, Mapping) and "ground_truth" in rule else {}
    inner = known.get("extra_info")
    return {**(inner if isinstance(inner, Mapping) else {}), **truth, **known}
