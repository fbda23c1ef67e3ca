"""A reward file for OpenRLHF: `--reward.remote_url` takes the path of this file, as it stands.

Configured by environment variables (:class:`ebrm.integrations.scorer.Environment`): `EBRM_MODEL`, or `EBRM_SERVER` with
`EBRM_TOKEN`. OpenRLHF loads it in each of its rollout workers and calls :func:`reward_func` with one text at a time,
from several threads.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from ebrm.errors import EBRMError
from ebrm.integrations.scorer import read_environment, shared_scorer

logger = logging.getLogger(__name__)


def reward_func(queries: Sequence[str], prompts: Sequence[str], labels: Sequence[Any]) -> dict[str, Any]:
    """Refined rewards of texts that a policy generated.

    Args:
        queries: prompt and response as one text each, decoded by the policy's tokenizer with its special tokens. They
            are read by the model's own text rule, so the policy has to use the reward model's chat template.
        prompts, labels: ignored; `queries` hold the prompts.

    Returns:
        `rewards` [n] in the base RM's units, less `EBRM_PESSIMISM` standard deviations; `scores` [n] between 0 and 1
        by `EnergyRewardModel.to_score`, 0 where unusable; `extra_logs`: `base_reward`, `std` and `unusable` [n], which
        is 1 where `EBRM_UNUSABLE_REWARD` replaces the reward.

    Raises:
        TextError: a text that cannot be scored, unless `EBRM_UNUSABLE_REWARD` is set. OpenRLHF logs errors of rewards
            at level INFO and goes on without a reward, so every error is logged here as an error.
        EBRMError: no model or server, or one that fails.
    """
    try:
        environment = read_environment()
        scorer = shared_scorer(environment)
        refined = scorer.score_rendered(list(queries), on_error=environment.on_error)
        scores = scorer.to_score(refined.reward)
    except EBRMError as error:
        logger.error("No reward: %s", error)
        raise
    logs = environment.rewards(refined)
    return {"rewards": logs.pop("reward"), "scores": scores.nan_to_num(0.0), "extra_logs": logs}
