"""Refined rewards, and rewards of any design, as a reward function of TRL's trainers (GRPO, RLOO)."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ebrm.errors import ConfigError
from ebrm.integrations.reference_rewards import ReferenceRewards
from ebrm.integrations.reward_design import DesignedRewards, Mode, OpenedDesign, RewardDesign
from ebrm.integrations.reward_shapes import Aggregate, Shape
from ebrm.integrations.reward_sources import RewardSource
from ebrm.integrations.rollouts import Rollouts, read_rollouts

logger = logging.getLogger(__name__)

Rewards = list[float | None]
RewardFunction = Callable[..., Rewards] | Callable[..., Awaitable[Rewards]]

_NAMES = {"mean": "ebrm", "mode": "ebrm_mode", "pessimistic": "ebrm_pessimistic"}
#: What TRL passes beside the columns of the data set.
_TRAINER = {"completion_ids", "trainer_state", "environments", "log_metric", "log_extra", "tools"}


def reward_function(
    source: RewardSource | Mapping[str, RewardSource] | RewardDesign,
    mode: Mode = "mean",
    k: float = 1.0,
    asynchronous: bool = False,
    name: str | None = None,
    tools: Sequence[Any] | None = None,
    backbone: str | Path | None = None,
    *,
    shape: Shape | Sequence[Shape] | Mapping[str, Shape | Sequence[Shape]] | None = None,
    aggregate: Aggregate | None = None,
    reference: str | ReferenceRewards | None = None,
) -> RewardFunction:
    """A reward function for `reward_funcs` of TRL's `GRPOTrainer` and `RLOOTrainer`.

    Of one model its rewards are those of `EnergyRewardModel.score`, in the base RM's units. A row that cannot be scored
    (too long, a completion that does not end with an assistant's turn of text) gets None, which TRL leaves out of that
    row's reward; so does one that a source, a shape or its references give no reward. The first is logged with the
    reason, and all are counted.

    Args:
        source: an `EnergyRewardModel`, a folder or Hub name of one, or an `ebrm.Client` of a running `ebrm serve`; or a
            function of prompts and responses that gives a number a response, None or NaN for none, and whose further
            parameters are named as columns; or several of these, by name. Or a whole `RewardDesign`.
        mode: of models, "mean" or "mode" of the density of r given the response, or "pessimistic", the mean less `k`
            standard deviations (a lower confidence bound).
        k: standard deviations that "pessimistic" subtracts.
        asynchronous: return an `async def` function, which scores in a thread and leaves the event loop to others.
        name: the function's name in TRL's logs; by default `ebrm`, `ebrm_mode` or `ebrm_pessimistic`.
        tools: those that the trainer has (`GRPOTrainer(tools=…)`), functions or descriptions: they go to the reward
            model's chat template, as its `tools`. By default the column `tools` of the data set, if it has one.
        backbone: where the model's RM is found now, a folder or Hub name, if it has moved since the fit.
        shape: what is done to the reward: `PreferenceAsReward`, `LogSigmoidCentered`, `LengthPenalty`, `ProcessReward`,
            a function, or several in their order; with several sources, by name.
        aggregate: how rewards of several sources become one: `WeightedSum`, `Gated`, `BaseAndBonus`,
            `VerifiableOrModel`, or a function. (TRL adds up its `reward_funcs`: a gate has to be one function.)
        reference: column with responses of the reference policy or their rewards, or `ReferenceRewards`, for shapes
            against references.

    Returns:
        A function of `prompts`, `completions` and TRL's other columns that returns a list of float or None. It logs the
        metrics `{name}/base_reward`, `{name}/std` (means), `{name}/beyond_std` (share of rows whose base reward is more
        than one standard deviation from the refined one) and `{name}/unusable` (share of rows with None), and the
        columns `{name}/base_reward` and `{name}/std` of the completions table; with shapes also `{name}/unshaped`, the
        reward before them; with several sources all of these of each, and what enters the aggregate, as
        `{name}/{source}/reward`.

    Raises:
        ConfigError: a mode that is not one of the three, a negative `k`, a server whose rewards are another mode, or
            sources, shapes, aggregate and reference that do not fit together.
        ModelError, BackboneError: the model or its reward model cannot be loaded.
    """
    if isinstance(source, RewardDesign):
        if (mode, k, backbone, shape, aggregate, reference) != ("mean", 1.0, None, None, None, None):
            raise ConfigError("`source` is a whole RewardDesign. Set its fields there, not here.")
        design = source
    else:
        design = RewardDesign(source, shape, aggregate, reference, mode, k, backbone)
    opened = OpenedDesign(design)
    called = name or _NAMES[design.mode]
    offered = None if tools is None else [_described(tool) for tool in tools]
    warned: list[str] = []

    def score(prompts: Sequence[Any], completions: Sequence[Any], columns: dict[str, Any]) -> DesignedRewards:
        found = opened(_read(prompts, completions, columns, offered))
        row, why = next(((row, why) for row, why in enumerate(found.errors) if why is not None), (0, None))
        if why is not None and not warned:
            warned.append(why)
            counted = f"From here on such rows are only counted, in the metric {called}/unusable."
            logger.warning("%s: row %d of this call has no reward (None): %s %s", called, row, why, counted)
        return found

    def finish(found: DesignedRewards, columns: dict[str, Any]) -> Rewards:
        _log(called, found, columns.get("log_metric"), columns.get("log_extra"))
        return _or_none(found.reward)

    def plain(prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> Rewards:
        return finish(score(prompts, completions, columns), columns)

    async def threaded(prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> Rewards:
        return finish(await asyncio.to_thread(score, prompts, completions, columns), columns)

    function: Any = threaded if asynchronous else plain
    function.__name__ = function.__qualname__ = called
    return function


def _read(
    prompts: Sequence[Any], completions: Sequence[Any], given: Mapping[str, Any], offered: list[Any] | None
) -> Rollouts:
    """TRL's arguments as rollouts."""
    tools = given.get("tools") if offered is None else [offered] * len(prompts)
    ids = given.get("completion_ids")
    tokens = None if ids is None else torch.tensor([len(row) for row in ids], dtype=torch.int64)
    columns = {name: column for name, column in given.items() if name not in _TRAINER}
    return read_rollouts(prompts, completions, columns, tools, tokens)


def _described(tool: Any) -> Any:
    """A function as the description that chat templates take, made by transformers; a description as it is."""
    if not callable(tool):
        return tool
    from transformers.utils.chat_template_utils import get_json_schema

    return get_json_schema(tool)


def _or_none(values: Tensor) -> Rewards:
    return [None if value != value else value for value in values.tolist()]


def _log(
    name: str,
    found: DesignedRewards,
    log_metric: Callable[[str, float], None] | None,
    log_extra: Callable[[str, list[Any]], None] | None,
) -> None:
    """Log the parts of the rewards by TRL's loggers (older releases pass neither)."""
    columns = found.columns()
    if log_metric is not None:
        for metric, share in found.unusable().items():
            log_metric(f"{name}/{metric}", share)
        for metric, values in (columns | found.beyond_std()).items():
            known = values[values.isfinite()]
            if len(known):
                log_metric(f"{name}/{metric}", float(known.mean()))
    if log_extra is not None:
        for column, values in columns.items():
            log_extra(f"{name}/{column}", _or_none(values))
