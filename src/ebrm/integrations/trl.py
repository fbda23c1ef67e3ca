"""Refined rewards as a reward function of TRL's trainers (GRPO, RLOO)."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ebrm.backbone import Prompt
from ebrm.client import Client
from ebrm.errors import ConfigError
from ebrm.integrations.scorer import ScoredRows, Scorer, open_scorer, score_rows
from ebrm.model import EnergyRewardModel, RefinedReward

logger = logging.getLogger(__name__)

Mode = Literal["mean", "mode", "pessimistic"]
Rewards = list[float | None]
RewardFunction = Callable[..., Rewards] | Callable[..., Awaitable[Rewards]]

_NAMES = {"mean": "ebrm", "mode": "ebrm_mode", "pessimistic": "ebrm_pessimistic"}


def reward_function(
    model: Scorer | str | Path,
    mode: Mode = "mean",
    k: float = 1.0,
    asynchronous: bool = False,
    name: str | None = None,
) -> RewardFunction:
    """A reward function for `reward_funcs` of TRL's `GRPOTrainer` and `RLOOTrainer`.

    Its rewards are those of `EnergyRewardModel.score`, in the base RM's units: each row is scored by itself, nothing is
    normalized over a call. A row that cannot be scored (too long, a completion that is not text or does not end with an
    assistant's turn) gets None, which TRL leaves out of that row's reward; the first is logged with the reason, and all
    are counted.

    Args:
        model: an `EnergyRewardModel`, a folder or Hub name of one, or an `ebrm.Client` of a running
            `ebrm serve`, for workers without a GPU.
        mode: what is read off the density of r given the response: its "mean", its "mode" (highest point), or
            "pessimistic", the mean less `k` standard deviations, which pays less where the density is unsure.
        k: how many standard deviations "pessimistic" takes off.
        asynchronous: give an `async def` function, which scores in a thread and leaves the trainer's event loop to
            other asynchronous rewards and tools.
        name: what the function is called in TRL's logs (`rewards/{name}/mean`); by default `ebrm`, `ebrm_mode` or
            `ebrm_pessimistic`.

    Returns:
        A function of `prompts`, `completions` and whatever else TRL passes, that returns a list of float or None. It
        logs the metrics `{name}/base_reward`, `{name}/std` (means), `{name}/beyond_std` (share of rows whose base
        reward is more than one standard deviation from the refined one) and `{name}/unusable` (share of rows with
        None), and the columns `{name}/base_reward` and `{name}/std` of the completions table.

    Raises:
        ConfigError: a mode that is not one of the three, a negative `k`, or a server whose rewards are another mode.
        ModelError, BackboneError: the model or its reward model cannot be loaded.
    """
    if mode not in _NAMES:
        raise ConfigError(f"mode is {mode!r}; it must be one of {', '.join(_NAMES)}.")
    if not k >= 0:
        raise ConfigError(f"k is {k}; it is a number of standard deviations, at least 0.")
    scorer = _set_estimate(open_scorer(model), "mode" if mode == "mode" else "mean")
    penalty = k if mode == "pessimistic" else 0.0
    called = name or _NAMES[mode]
    warned: list[str] = []

    def score(prompts: Sequence[Any], completions: Sequence[Any]) -> tuple[Rewards, ScoredRows]:
        found = _score(scorer, prompts, completions)
        if found.refused and not warned:
            row, why = min(found.refused.items())
            warned.append(why)
            logger.warning(
                "%s: row %d of this call has no reward (None): %s From here on such rows are only counted, in the "
                "metric %s/unusable.",
                called, row, why, called,
            )  # fmt: skip
        reward = found.refined.reward - penalty * found.refined.std
        return _spread(reward, found, len(prompts)), found

    def plain(prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> Rewards:
        rewards, found = score(prompts, completions)
        _log(called, found, len(prompts), **columns)
        return rewards

    async def threaded(prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> Rewards:
        rewards, found = await asyncio.to_thread(score, prompts, completions)
        _log(called, found, len(prompts), **columns)
        return rewards

    function: Any = threaded if asynchronous else plain
    function.__name__ = function.__qualname__ = called
    return function


def _set_estimate(scorer: Scorer, estimate: Literal["mean", "mode"]) -> Scorer:
    if isinstance(scorer, EnergyRewardModel):
        return scorer.with_inference(estimate=estimate)
    if isinstance(scorer, Client):
        served = scorer.info()["inference"]["estimate"]
        if served != estimate:
            raise ConfigError(
                f"The server gives the {served} of the density, and this function was asked for its {estimate}. Choose "
                f"another mode, or serve the model with the estimate {estimate!r}."
            )
    return scorer


def _score(scorer: Scorer, prompts: Sequence[Any], completions: Sequence[Any]) -> ScoredRows:
    """Score completions as TRL gives them: strings, or lists of messages."""
    texts: list[tuple[Prompt, str]] = []
    places, refused = [], {}
    for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        found = _split(prompt, completion)
        if isinstance(found, str):
            refused[row] = found
            continue
        places.append(row)
        texts.append(found)
    scored = score_rows(scorer, [prompt for prompt, _ in texts], [response for _, response in texts])
    refused |= {places[row]: why for row, why in scored.refused.items()}
    return ScoredRows(scored.refined, [places[row] for row in scored.rows], refused)


def _split(prompt: Any, completion: Any) -> tuple[Prompt, str] | str:
    """The conversation up to the last assistant's turn, and that turn; or why there is none."""
    if not isinstance(prompt, str | list):
        return f"The prompt is {prompt!r:.60}, neither a string nor a list of messages."
    if isinstance(completion, str):
        return prompt, completion
    if not isinstance(completion, list) or not completion:
        return f"The completion is {completion!r:.60}, neither a string nor a list of messages."
    *before, last = [_flat(message) for message in completion]
    if not isinstance(last, dict) or last.get("role") != "assistant" or not isinstance(last.get("content"), str):
        return f"The completion ends with {completion[-1]!r:.60}, not with an assistant's turn of text."
    turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
    return [_flat(message) for message in turns] + before, last["content"]


def _flat(message: Any) -> Any:
    """A message whose content is a list of text parts, as models with images have it, with one string instead."""
    parts = message.get("content") if isinstance(message, dict) else None
    if isinstance(parts, list) and all(isinstance(p, dict) and p.get("type") == "text" for p in parts):
        return {**message, "content": "".join(str(part["text"]) for part in parts)}
    return message


def _spread(values: Tensor, found: ScoredRows, n: int) -> Rewards:
    """`values` [m] at the places of their rows among n; None elsewhere."""
    spread: Rewards = [None] * n
    for row, value in zip(found.rows, values.tolist(), strict=True):
        spread[row] = value
    return spread


def _log(
    name: str,
    found: ScoredRows,
    n: int,
    log_metric: Callable[[str, float], None] | None = None,
    log_extra: Callable[[str, list[Any]], None] | None = None,
    **columns: Any,
) -> None:
    """Log what stands behind the rewards, with what TRL gives for it (older releases give neither)."""
    refined: RefinedReward = found.refined
    if log_metric is not None:
        log_metric(f"{name}/unusable", len(found.refused) / max(n, 1))
        if found.rows:
            beyond = refined.delta.abs() > refined.std
            for metric, values in (("base_reward", refined.base_reward), ("std", refined.std), ("beyond_std", beyond)):
                log_metric(f"{name}/{metric}", float(values.to(torch.float32).mean()))
    if log_extra is not None:
        log_extra(f"{name}/base_reward", _spread(refined.base_reward, found, n))
        log_extra(f"{name}/std", _spread(refined.std, found, n))
