"""A reward file for OpenRLHF: `--reward.remote_url` takes the path of this file, as it stands.

It is told what to do by environment variables (:mod:`ebrm.integrations.environment`): `EBRM_MODEL`, or `EBRM_SERVER`
with
`EBRM_TOKEN`. OpenRLHF loads it in each of its rollout workers and calls :func:`reward_func` with one text at a time,
from several threads.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

import torch

from ebrm.client import Client
from ebrm.errors import EBRMError, TextError
from ebrm.integrations.environment import Environment, read_environment
from ebrm.integrations.scorer import open_scorer, score_rendered
from ebrm.model import EnergyRewardModel

logger = logging.getLogger(__name__)

_COLUMNS = ("reward", "score", "base_reward", "std", "unusable")
_opening = threading.Lock()


def reward_func(queries: Sequence[str], prompts: Sequence[str], labels: Sequence[Any]) -> dict[str, Any]:
    """Refined rewards of texts that a policy wrote.

    Args:
        queries: prompt and response as one text each, decoded by the policy's tokenizer with its special tokens. They
            are read by the model's own text rule, so the policy has to write the reward model's chat template.
        prompts, labels: not looked at; `queries` hold the prompts.

    Returns:
        `rewards` [n] in the base RM's units, less `EBRM_PESSIMISM` standard deviations; `scores` [n] between 0 and 1
        for OpenRLHF's dynamic filtering, the refined rewards by `Standardizer.to_score`; `extra_logs`: `base_reward`,
        `std` and `unusable` [n], which is 1 where `EBRM_UNUSABLE_REWARD` stands for the reward (the score is 0 there).

    Raises:
        TextError: a text that cannot be scored, unless `EBRM_UNUSABLE_REWARD` is set. OpenRLHF logs errors of rewards
            at level INFO and goes on without a reward, so what is raised is logged here as an error.
        EBRMError: no model or server, or one that fails.
    """
    try:
        return _answer(queries)
    except EBRMError as error:
        logger.error("No reward: %s", error)
        raise


def _answer(queries: Sequence[str]) -> dict[str, Any]:
    with _opening:  # or each of the first threads would load a model
        environment, ask = _open()
    answers = []
    for query in queries:
        try:
            answers.append({**ask(query), "unusable": 0.0})
        except TextError:
            if environment.unusable is None:
                raise
            reward = environment.unusable
            answers.append({"reward": reward, "score": 0.0, "base_reward": reward, "std": 0.0, "unusable": 1.0})
    columns = {name: torch.tensor([answer[name] for answer in answers]) for name in _COLUMNS}
    return {
        "rewards": columns["reward"] - environment.pessimism * columns["std"],
        "scores": columns["score"],
        "extra_logs": {name: columns[name] for name in ("base_reward", "std", "unusable")},
    }


@cache
def _open() -> tuple[Environment, Callable[[str], dict[str, float]]]:
    """What the environment says, and what asks its model or server about one text."""
    environment = read_environment()
    if environment.server:
        return environment, partial(_ask_server, Client(environment.server, token=environment.token))
    model = EnergyRewardModel.from_pretrained(environment.model, device=environment.device)
    open_scorer(model)
    return environment, partial(_ask_model, model)


def _ask_model(model: EnergyRewardModel, query: str) -> dict[str, float]:
    found = score_rendered(model, [query])
    if found.refused:
        raise TextError(found.refused[0])
    refined = found.refined
    score = model.to_score(refined.reward)
    return {
        "reward": float(refined.reward), "score": float(score), "base_reward": float(refined.base_reward),
        "std": float(refined.std),
    }  # fmt: skip


def _ask_server(client: Client, query: str) -> dict[str, float]:
    answer = client.get_reward([query])
    (reward,), (score,), logs = answer["rewards"], answer["scores"], answer["extra_logs"]
    return {"reward": reward, "score": score, "base_reward": logs["base_reward"][0], "std": logs["std"][0]}
