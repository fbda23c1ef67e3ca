"""Refined rewards in verl: a reward manager, registered as "ebrm", and a `compute_score` function.

verl's reward workers have no GPU, so both use a running `ebrm serve`, named by `EBRM_SERVER` and `EBRM_TOKEN`
(:class:`ebrm.integrations.scorer.Environment`). Imported by verl, in its workers:

    reward.reward_manager.source=importlib
    reward.reward_manager.module.path=pkg://ebrm.integrations.verl
    reward.reward_manager.name=EBRMRewardManager
"""

from __future__ import annotations

import asyncio
from typing import Any

from verl.experimental.reward_loop.reward_manager import register
from verl.experimental.reward_loop.reward_manager.base import RewardManagerBase
from verl.experimental.reward_loop.reward_manager.registry import REWARD_MANAGER

from ebrm.errors import ConfigError
from ebrm.integrations.scorer import read_environment, shared_scorer

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
        shared_scorer(read_environment(_CALLER))  # a missing address shows before the first rollout

    async def run_single(self, data: Any) -> dict[str, Any]:
        """`reward_score` of the last sequence of `data` (a `DataProto`), and its parts as `reward_extra_info`.

        The parts are `base_reward`, `std` and `unusable`: 1 where `EBRM_UNUSABLE_REWARD` replaces the reward.

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
        values = await asyncio.to_thread(_score, prompt, text)  # the client blocks
        return {"reward_score": values.pop("score"), "reward_extra_info": values}


# verl loads a file named by path anew; the class that was registered first stays.
if "ebrm" not in REWARD_MANAGER:
    register("ebrm")(EBRMRewardManager)


def compute_score(
    data_source: str, solution_str: str, ground_truth: Any, extra_info: dict[str, Any] | None = None, **more: Any
) -> dict[str, float]:
    """For `reward.custom_reward_function`, where a rule-based manager has to stay: the prompt is in `extra_info`.

    The response is `solution_str`; `prompt` is a string (one user turn) or a list of messages; the others are ignored.
    Gives `score`, and `base_reward`, `std` and `unusable` as `EBRMRewardManager` does.

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
    return _score(prompt, solution_str)


def _score(prompt: Any, response: str) -> dict[str, float]:
    prompt = prompt if isinstance(prompt, str) else [dict(message) for message in prompt]  # an array of messages
    environment = read_environment(_CALLER)
    refined = shared_scorer(environment).score([prompt], [response], on_error=environment.on_error)
    values = {name: float(column) for name, column in environment.rewards(refined).items()}
    return {"score": values.pop("reward"), **values}
