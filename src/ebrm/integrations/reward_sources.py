"""Sources of rewards: energy reward models, servers of them, and functions of prompts and responses."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol, cast

import numpy as np
import torch
from torch import Tensor

from ebrm.client import Client
from ebrm.errors import ConfigError, DataError, ModelError, TextError
from ebrm.groups import Groups
from ebrm.integrations.rollouts import Rollouts, StepScores, as_turns
from ebrm.integrations.scorer import Scorer, open_scorer
from ebrm.model import EnergyRewardModel

#: What rewards come from: a model, its folder or Hub name, a client, or a function `(prompts, responses) -> rewards`.
RewardSource = Scorer | str | Path | Callable[..., Any]


@dataclass(frozen=True, eq=False)
class Part:
    """What a source gave to n rollouts.

    Attributes:
        reward: rewards [n], float64, NaN where there is none; or scores of steps.
        errors: why a row has no reward [n], None where it has one.
        base_reward, std: of a model, [n], NaN where there is none; None of a function.
        beyond_std: whether the mean or mode is more than one std from the base reward: 0, 1 or NaN [n]; as those.
    """

    reward: Tensor | StepScores
    errors: list[str | None]
    base_reward: Tensor | None = None
    std: Tensor | None = None
    beyond_std: Tensor | None = None


class Source(Protocol):
    """An opened source."""

    @property
    def reads_columns(self) -> bool:
        """Whether rewards depend on more than prompt and response."""
        ...

    def __call__(self, rollouts: Rollouts) -> Part:
        """The rewards of rollouts."""
        ...


@dataclass(frozen=True, eq=False)
class ModelSource:
    """Refined rewards of a model or client, less `penalty` standard deviations."""

    scorer: Scorer
    penalty: float
    reads_columns: bool = False

    def __call__(self, rollouts: Rollouts) -> Part:
        """Rewards of the rows that can be read and scored."""
        rows, errors = rollouts.readable, list(rollouts.errors)
        columns = torch.full((3, len(rollouts)), torch.nan, dtype=torch.float64)
        if rows:
            taken = rollouts.take(rows)
            if taken.rendered is not None:
                refined = _rendered_scorer(self.scorer).score_rendered(list(taken.rendered), on_error="nan")
            else:
                contexts = [as_turns(context) for context in taken.contexts if context is not None]
                responses = [response for response in taken.responses if response is not None]
                refined = self.scorer.score(contexts, responses, on_error="nan")
            for row, error in zip(rows, refined.errors, strict=True):
                errors[row] = error
            columns[:, rows] = torch.stack([refined.reward, refined.base_reward, refined.std]).double()
            columns[:, [row for row in rows if errors[row] is not None]] = torch.nan
        reward, base_reward, std = columns
        beyond = ((reward - base_reward).abs() > std).double().masked_fill(std.isnan(), torch.nan)
        return Part(reward - self.penalty * std, errors, base_reward, std, beyond)


@dataclass(frozen=True, eq=False)
class FunctionSource:
    """Rewards of a function of prompts and responses, and of columns that its further parameters name.

    Where it raises a `TextError` or `DataError` (a text that it cannot read, an empty response), each row is tried
    alone to find those without a reward.

    Attributes:
        function: called with two lists, and a list a column; gives one entry a row: a number, None or NaN where there
            is no reward, or a list of numbers, the scores of the response's steps.
        name: what it is called in messages.
        required, optional: columns that it has to have, and that it takes where they are there.
        everything: whether it takes all columns (`**columns`).
    """

    function: Callable[..., Any]
    name: str
    required: tuple[str, ...]
    optional: tuple[str, ...]
    everything: bool

    @property
    def reads_columns(self) -> bool:
        """Whether it takes any column."""
        return bool(self.required or self.optional or self.everything)

    def __call__(self, rollouts: Rollouts) -> Part:
        """Rewards of the rows that can be read."""
        errors = list(rollouts.errors)
        for row in rollouts.readable:
            if rollouts.responses[row] is None:
                errors[row] = "Its response is not known: the text does not begin with its prompt."
        rows = [row for row, error in enumerate(errors) if error is None]
        columns = {name: rollouts.column(name, self.name) for name in self.required}
        columns |= {name: rollouts.columns[name] for name in self.optional if name in rollouts.columns}
        if self.everything:
            columns = {**rollouts.columns, **columns}
        taken = replace(rollouts, columns=columns)
        try:
            values = self._call(taken, rows)
        except (TextError, DataError):  # one text that cannot be read, or is empty, would stop all
            for row in rows:
                try:
                    self._call(taken, [row])
                except (TextError, DataError) as error:
                    errors[row] = str(error)
            rows = [row for row in rows if errors[row] is None]
            values = self._call(taken, rows)
        return self._read(values, rows, errors)

    def _call(self, rollouts: Rollouts, rows: list[int]) -> Any:
        if not rows:
            return []
        taken = rollouts.take(rows)
        return self.function(list(taken.contexts), list(taken.responses), **taken.columns)

    def _read(self, values: Any, rows: list[int], errors: list[str | None]) -> Part:
        entries = self._entries(values, len(rows))
        steps: list[tuple[int, list[float]]] = []
        reward = torch.full((len(errors),), torch.nan, dtype=torch.float64)
        for row, entry in zip(rows, entries, strict=True):
            several = isinstance(entry, list)
            numbers = [_number(one) for one in (entry if several else [entry])]
            if any(number is None or math.isinf(number) for number in numbers):
                raise DataError(
                    f"{self.name} gave row {row} the reward {entry!r:.60}; expected a finite number, a list of them "
                    "(of steps), or None where there is no reward."
                )
            known = [number for number in numbers if number is not None]
            if any(map(math.isnan, known)):
                errors[row] = f"{self.name} gave no reward."
            elif several:
                steps.append((row, known))
            else:
                reward[row] = known[0]
        if not any(isinstance(entry, list) for entry in entries):
            return Part(reward, errors)
        if bool(reward.isfinite().any()):
            raise DataError(
                f"{self.name} gave lists of steps to some rows and numbers to others; give all rows one kind."
            )
        index = torch.tensor([row for row, scores in steps for _ in scores], dtype=torch.int64)
        score = torch.tensor([score for _, scores in steps for score in scores], dtype=torch.float64)
        return Part(StepScores(score, Groups(index, len(errors))), errors)

    def _entries(self, values: Any, count: int) -> list[Any]:
        """One entry a row: a number, None, or a list."""
        if isinstance(values, Tensor | np.ndarray):
            values = values.tolist()
        if isinstance(values, str | bytes | dict) or not isinstance(values, Sequence):
            raise DataError(
                f"{self.name} gave {type(values).__name__}; a list, array or tensor of rewards was expected, one a row."
            )
        if len(values) != count:
            raise DataError(f"{self.name} gave {len(values)} rewards to {count} responses; give one each.")
        return [
            one.tolist() if isinstance(one, Tensor | np.ndarray) else list(one) if isinstance(one, tuple) else one
            for one in values
        ]


def open_source(
    source: RewardSource, name: str, mode: Literal["mean", "mode", "pessimistic"], k: float, backbone: str | Path | None
) -> Source:
    """A source ready to be used; models and their RMs are loaded now, so that errors show early.

    Args:
        source: a model, its folder or Hub name, a client, or a function.
        name: what it is called in messages.
        mode: which number of a model's density is the reward.
        k: standard deviations that "pessimistic" subtracts.
        backbone: where a model's RM is found now.

    Raises:
        ConfigError: a function without two arguments, or an asynchronous one; a server of another estimate.
        ModelError, BackboneError: the model or its reward model cannot be loaded, or nothing of these was given.
    """
    if is_function(source):
        return _open_function(source, name)
    scorer = open_scorer(cast("Scorer | str | Path", source), backbone)
    return ModelSource(_set_estimate(scorer, "mode" if mode == "mode" else "mean"), k if mode == "pessimistic" else 0.0)


def is_function(source: Any) -> bool:
    """Whether a source is a function of prompts and responses, and no model."""
    return callable(source) and not isinstance(source, type) and not callable(getattr(source, "score", None))


def _open_function(function: Any, name: str) -> FunctionSource:
    if inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(getattr(function, "__call__", None)):  # noqa: B004
        raise ConfigError(
            f"{name} is an async function. Give a plain one; with `asynchronous=True` it runs in a thread."
        )
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except ValueError:  # of C code, which says nothing
        return FunctionSource(function, name, (), (), False)
    kinds = inspect.Parameter
    places = [one for one in parameters if one.kind in (kinds.POSITIONAL_ONLY, kinds.POSITIONAL_OR_KEYWORD)]
    if len(places) < 2 and not any(one.kind == kinds.VAR_POSITIONAL for one in parameters):
        raise ConfigError(
            f"{name} takes {', '.join(one.name for one in parameters) or 'no arguments'}. A function of prompts and "
            "responses was expected, in this order; further parameters are named as columns of the data set."
        )
    others = [one for one in parameters if one.kind == kinds.KEYWORD_ONLY] + places[2:]
    return FunctionSource(
        function,
        name,
        tuple(one.name for one in others if one.default is kinds.empty),
        tuple(one.name for one in others if one.default is not kinds.empty),
        any(one.kind == kinds.VAR_KEYWORD for one in parameters),
    )


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


def _rendered_scorer(scorer: Scorer) -> EnergyRewardModel | Client:
    if not isinstance(scorer, EnergyRewardModel | Client):
        raise ModelError(
            f"This trainer gives texts that went through a chat template, and {scorer!r:.60} cannot score those. Give "
            "a model or a client."
        )
    return scorer


def _number(value: Any) -> float | None:
    """A number, NaN for None; None for anything else."""
    if value is None:
        return math.nan
    if isinstance(value, np.generic):
        value = value.item()
    return float(value) if isinstance(value, int | float) else None
