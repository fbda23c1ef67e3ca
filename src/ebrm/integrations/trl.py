"""Refined rewards as a reward function of TRL's trainers (GRPO, RLOO)."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ebrm.backbone import as_list
from ebrm.client import Client
from ebrm.data import Prompt, Reply, RowProblem, as_reply, check_messages, check_tools
from ebrm.errors import ConfigError, TextError
from ebrm.integrations.scorer import Scorer, open_scorer
from ebrm.model import EnergyRewardModel

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
    tools: Sequence[Any] | None = None,
    backbone: str | Path | None = None,
) -> RewardFunction:
    """A reward function for `reward_funcs` of TRL's `GRPOTrainer` and `RLOOTrainer`.

    Its rewards are those of `EnergyRewardModel.score`, in the base RM's units. A row that cannot be scored (too long, a
    completion that does not end with an assistant's turn of text) gets None, which TRL leaves out of that row's reward;
    the first is logged with the reason, and all are counted.

    Args:
        model: an `EnergyRewardModel`, a folder or Hub name of one, or an `ebrm.Client` of a running `ebrm serve`.
        mode: "mean" or "mode" of the density of r given the response, or "pessimistic", the mean less `k` standard
            deviations (a lower confidence bound).
        k: standard deviations that "pessimistic" subtracts.
        asynchronous: return an `async def` function, which scores in a thread and leaves the event loop to others.
        name: the function's name in TRL's logs; by default `ebrm`, `ebrm_mode` or `ebrm_pessimistic`.
        tools: those that the trainer has (`GRPOTrainer(tools=…)`), functions or descriptions: they go to the reward
            model's chat template, as its `tools`. By default the column `tools` of the data set, if it has one.
        backbone: where the model's RM is found now, a folder or Hub name, if it has moved since the fit.

    Returns:
        A function of `prompts`, `completions` and TRL's other columns that returns a list of float or None. It logs the
        metrics `{name}/base_reward`, `{name}/std` (means), `{name}/beyond_std` (share of rows whose base reward is more
        than one standard deviation from the refined one) and `{name}/unusable` (share of rows with None), and the
        columns `{name}/base_reward` and `{name}/std` of the completions table.

    Raises:
        ConfigError: a mode that is not one of the three, a negative `k`, or a server whose rewards are another mode.
        ModelError, BackboneError: the model or its reward model cannot be loaded.
    """
    if mode not in _NAMES:
        raise ConfigError(f"mode is {mode!r}; it must be one of {', '.join(_NAMES)}.")
    if not isinstance(k, int | float) or not 0 <= k < math.inf:
        raise ConfigError(f"k is {k!r}; it is a number of standard deviations, at least 0.")
    scorer = _set_estimate(open_scorer(model, backbone), "mode" if mode == "mode" else "mean")
    penalty = k if mode == "pessimistic" else 0.0
    called = name or _NAMES[mode]
    warned: list[str] = []

    offered = None if tools is None else [_described(tool) for tool in tools]

    def score(prompts: Sequence[Any], completions: Sequence[Any], given: Sequence[Any] | None) -> _Rows:
        rows = _score(scorer, prompts, completions, given if offered is None else [offered] * len(prompts))
        row, why = next(((row, why) for row, why in enumerate(rows.errors) if why is not None), (0, None))
        if why is not None and not warned:
            warned.append(why)
            counted = f"From here on such rows are only counted, in the metric {called}/unusable."
            logger.warning("%s: row %d of this call has no reward (None): %s %s", called, row, why, counted)
        return rows

    def finish(rows: _Rows, columns: dict[str, Any]) -> Rewards:
        _log(called, rows, **columns)
        return rows.usable(rows.reward - penalty * rows.std)

    def plain(prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> Rewards:
        return finish(score(prompts, completions, columns.pop("tools", None)), columns)

    async def threaded(prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> Rewards:
        return finish(await asyncio.to_thread(score, prompts, completions, columns.pop("tools", None)), columns)

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
                f"The server gives the {served} of the density, and `mode` needs its {estimate}. Choose another "
                f"`mode`, or serve the model with the estimate {estimate!r}."
            )
    return scorer


@dataclass(frozen=True)
class _Rows:
    """Columns [n]: NaN, with a reason in `errors`, where a row has no reward."""

    reward: Tensor
    base_reward: Tensor
    std: Tensor
    errors: list[str | None]

    def usable(self, values: Tensor) -> Rewards:
        return [value if error is None else None for value, error in zip(values.tolist(), self.errors, strict=True)]


def _score(scorer: Scorer, prompts: Sequence[Any], completions: Sequence[Any], tools: Sequence[Any] | None) -> _Rows:
    """Score completions in TRL's two forms: strings, or lists of messages; `tools` are one entry a row, or None."""
    rows = as_list("prompts", prompts), as_list("completions", completions)
    if len(rows[0]) != len(rows[1]):
        raise TextError(f"There are {len(rows[0])} prompts but {len(rows[1])} completions; give one each.")
    offered = [None] * len(rows[0]) if tools is None else as_list("tools", tools)
    texts = [_split(*row) for row in zip(*rows, offered, strict=True)]
    errors = [text if isinstance(text, str) else None for text in texts]
    good = [row for row, error in enumerate(errors) if error is None]
    pairs = [text for text in texts if not isinstance(text, str)]
    refined = scorer.score([prompt for prompt, _ in pairs], [response for _, response in pairs], on_error="nan")
    for row, error in zip(good, refined.errors, strict=True):
        errors[row] = error
    columns = torch.full((3, len(texts)), torch.nan)
    columns[:, good] = torch.stack([refined.reward, refined.base_reward, refined.std])
    return _Rows(columns[0], columns[1], columns[2], errors)


def _split(prompt: Any, completion: Any, tools: Any) -> tuple[Prompt, Reply] | str:
    """The conversation up to the last assistant's turn, and that turn; or why there is none."""
    try:
        if isinstance(prompt, str):
            turns = [{"role": "user", "content": prompt}]
        else:
            turns = check_messages(prompt, "prompt", strict=False)
        offered = check_tools(tools, "tools")
        reply: Reply = completion
        if not isinstance(completion, str):
            *before, last = check_messages(completion, "completion", strict=False)
            if last["role"] != "assistant":
                return f"The completion ends with a turn of the {last['role']}, not with the assistant's."
            turns, reply = turns + before, as_reply(last)
    except RowProblem as problem:
        return f"The row cannot be read: {problem.field}: {problem.kind}."
    return ({"messages": turns, "tools": offered} if offered else turns), reply


def _described(tool: Any) -> Any:
    """A function as the description that chat templates take, made by transformers; a description as it is."""
    if not callable(tool):
        return tool
    from transformers.utils.chat_template_utils import get_json_schema

    return get_json_schema(tool)


def _log(
    name: str,
    rows: _Rows,
    log_metric: Callable[[str, float], None] | None = None,
    log_extra: Callable[[str, list[Any]], None] | None = None,
    **columns: Any,
) -> None:
    """Log the parts of the rewards by TRL's loggers (older releases pass neither)."""
    good = torch.tensor([error is None for error in rows.errors], dtype=torch.bool)
    if log_metric is not None:
        log_metric(f"{name}/unusable", float((~good).sum()) / max(len(good), 1))
        if bool(good.any()):
            beyond = ((rows.reward - rows.base_reward).abs() > rows.std).float()
            for metric, values in (("base_reward", rows.base_reward), ("std", rows.std), ("beyond_std", beyond)):
                log_metric(f"{name}/{metric}", float(values[good].mean()))
    if log_extra is not None:
        log_extra(f"{name}/base_reward", rows.usable(rows.base_reward))
        log_extra(f"{name}/std", rows.usable(rows.std))
