"""A reward file for OpenRLHF: `--reward.remote_url` takes the path of this file, as it stands.

Configured by environment variables (:class:`ebrm.integrations.environment.Environment`): `EBRM_MODEL`, or `EBRM_SERVER`
with `EBRM_TOKEN`; `EBRM_REWARD` names a reward design. OpenRLHF loads it in each of its rollout workers and calls
:func:`reward_func` with one text at a time, from several threads.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ebrm.integrations.environment import read_environment, shared_design, shared_scorer
from ebrm.integrations.rollouts import read_rendered

logger = logging.getLogger(__name__)


def reward_func(queries: Sequence[str], prompts: Sequence[str], labels: Sequence[Any]) -> dict[str, Any]:
    """Refined rewards of texts that a policy generated.

    Args:
        queries: prompt and response as one text each, decoded by the policy's tokenizer with its special tokens. They
            are read by the model's own text rule, so the policy has to use the reward model's chat template.
        prompts: the beginning of each query; for functions of a reward design.
        labels: the column `label` of a reward design.

    Returns:
        `rewards` [n] in the base RM's units, less `EBRM_PESSIMISM` standard deviations; `scores` [n] between 0 and 1
        by `EnergyRewardModel.to_score`, 0 where unusable; `extra_logs`: `base_reward`, `std` and `unusable` [n], which
        is 1 where `EBRM_UNUSABLE_REWARD` replaces the reward. Of a reward design: its rewards, which cut off at 0 and 1
        are the scores, and its parts.

    Raises:
        TextError: a text that cannot be scored, unless `EBRM_UNUSABLE_REWARD` is set. OpenRLHF logs errors of rewards
            at level INFO and goes on without a reward, so every error is logged here as an error.
        EBRMError: no model, server or reward design, or one that fails.
    """
    try:
        environment = read_environment()
        if environment.reward:
            found = shared_design(environment)(read_rendered(queries, prompts, {"label": list(labels)}))
            logs = environment.designed(found)
            return {"rewards": logs.pop("reward"), "scores": _unit(found.reward), "extra_logs": logs}
        scorer = shared_scorer(environment)
        refined = scorer.score_rendered(list(queries), on_error=environment.on_error)
        scores = scorer.to_score(refined.reward)
    except Exception as error:  # also what functions of a reward design raise
        logger.error("No reward: %s", error)
        raise
    logs = environment.rewards(refined)
    return {"rewards": logs.pop("reward"), "scores": scores.nan_to_num(0.0), "extra_logs": logs}


def _unit(reward: Tensor) -> Tensor:  # [n] -> [n]
    return reward.float().clamp(0, 1).nan_to_num(0.0)
