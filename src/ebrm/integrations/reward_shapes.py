"""Shapes of rewards and aggregates of several, as settings of a reward design.

Formulas are those of `ebrm.shape` and `ebrm.aggregate`. A shape is any function of a reward [n] and its
:class:`Rollouts` that gives a reward [n]; an aggregate is any function of rewards by name and their `Rollouts`. Both
see only rows that have a reward; NaN in what they give is a row without.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from ebrm.aggregate import Gate, attribute_sum, base_and_bonus, gated, verifiable_or_model
from ebrm.errors import ConfigError
from ebrm.integrations.rollouts import LengthUnit, Rollouts, StepScores
from ebrm.shape import (
    Squash,
    length_penalty,
    log_sigmoid_centered,
    preference_as_reward,
    process_clip,
    process_delta,
    process_return,
    reference_level,
)
from ebrm.utils.validation import check_choice, check_setting

#: From a reward [n] (or the scores of steps) and its rollouts to a reward [n].
Shape = Callable[[Any, Rollouts], Tensor]
#: From rewards by name, each [n], and their rollouts to one reward [n].
Aggregate = Callable[[Mapping[str, Tensor], Rollouts], Tensor]


@dataclass(frozen=True)
class PreferenceAsReward:
    """Preference as reward against the reference policy's responses (`ebrm.shape.preference_as_reward`, PAR).

    Attributes:
        slope: s of σ(s (r - r_ref)), above 0; 1 takes rewards as log odds.
        squash: "sigmoid", or one of the baselines of PAR's code.
    """

    slope: float = 1.0
    squash: Squash = "sigmoid"
    needs_references: ClassVar[bool] = True

    def __post_init__(self) -> None:
        preference_as_reward([0.0], [[0.0]], self.slope, self.squash)  # which checks them

    def __call__(self, reward: Tensor, rollouts: Rollouts) -> Tensor:
        """Mean probability of being preferred to a reference [n]."""
        table = _references(rollouts)
        return preference_as_reward(reward, table, self.slope, self.squash, present=table.isfinite())


@dataclass(frozen=True)
class LogSigmoidCentered:
    """Log probability that a response is good (`ebrm.shape.log_sigmoid_centered`).

    Attributes:
        level: the reward from which on a response is good; None: a quantile of the references' rewards.
        quantile: which, above 0 and below 1.
        how: "empirical", or "normal" for that of a normal distribution fitted to them.
    """

    level: float | None = None
    quantile: float = 0.85
    how: Literal["empirical", "normal"] = "empirical"

    def __post_init__(self) -> None:
        if self.level is not None:
            check_setting("level", self.level)
        reference_level([[0.0]], self.quantile, self.how)

    @property
    def needs_references(self) -> bool:
        """Whether the level is one of references."""
        return self.level is None

    def __call__(self, reward: Tensor, rollouts: Rollouts) -> Tensor:
        """Log σ of the reward beyond the level [n]."""
        if self.level is not None:
            return log_sigmoid_centered(reward, self.level)
        table = _references(rollouts)
        return log_sigmoid_centered(reward, reference_level(table, self.quantile, self.how, present=table.isfinite()))


@dataclass(frozen=True)
class LengthPenalty:
    """Price of length beyond a limit, added to the reward (`ebrm.shape.length_penalty`).

    Attributes:
        free: length that costs nothing.
        rate: price of every unit beyond it, in the reward's unit.
        unit: "tokens" of the policy, which verl's `compute_score` and OpenRLHF do not tell; "words" or "characters".
    """

    free: float = 300.0
    rate: float = 0.01
    unit: LengthUnit = "tokens"

    def __post_init__(self) -> None:
        length_penalty([0.0], self.free, self.rate)
        check_choice("unit", self.unit, ("tokens", "words", "characters"))

    def __call__(self, reward: Tensor, rollouts: Rollouts) -> Tensor:
        """The reward less the price [n]."""
        return reward + length_penalty(rollouts.lengths(self.unit), self.free, self.rate)


@dataclass(frozen=True)
class ProcessReward:
    """Sum of a response's step rewards, clipped and by differences (`ebrm.shape.process_clip`, `process_delta`).

    For a source that gives a list of scores a response, one a step. Add it to a reward for success with `WeightedSum`,
    whose weight is then α of `ebrm.shape.process_return`.

    Attributes:
        threshold: η of the clip, in the score's unit; None: no clip.
        delta: whether a step gets its score less that of the next.
    """

    threshold: float | None = None
    delta: bool = True
    takes_steps: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.threshold is not None:
            process_clip([0.0], self.threshold)

    def __call__(self, reward: StepScores, rollouts: Rollouts) -> Tensor:
        """Return of each response without success [n]; 0 for one without steps."""
        score = reward.score if self.threshold is None else process_clip(reward.score, self.threshold)
        score = process_delta(score, reward.groups) if self.delta else score
        return process_return(score, reward.groups, torch.zeros(len(rollouts), dtype=torch.float64))


@dataclass(frozen=True)
class WeightedSum:
    """Weighted sum of rewards (`ebrm.aggregate.attribute_sum`): a high one makes up for a low one.

    Attributes:
        weights: weight of each reward, of any sign; 0 only logs it.
    """

    weights: Mapping[str, float]

    def __post_init__(self) -> None:
        attribute_sum({name: [0.0] for name in self.weights}, self.weights)

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the rewards it takes."""
        return tuple(self.weights)

    def __call__(self, rewards: Mapping[str, Tensor], rollouts: Rollouts) -> Tensor:
        """Σ_a w_a r_a [n]."""
        return attribute_sum(rewards, self.weights)


@dataclass(frozen=True)
class Gated:
    """Weighted mean of objectives times the gate of requirements (`ebrm.aggregate.gated`), all from 0 to 1.

    Attributes:
        requirements: rewards that say how far each requirement is met.
        objectives: rewards that count where all are met.
        weights: weight of each objective; None: equal ones.
        how: "smooth" (SearchLLM), which is no veto, or "min" or "product", which are.
        smoothing: δ of "smooth", above 0.
    """

    requirements: tuple[str, ...]
    objectives: tuple[str, ...]
    weights: tuple[float, ...] | None = None
    how: Gate = "smooth"
    smoothing: float = 0.1

    def __post_init__(self) -> None:
        for name in ("requirements", "objectives"):
            given = getattr(self, name)
            if isinstance(given, str) or not given:
                raise ConfigError(f"`{name}` is {given!r}; a tuple of names of rewards was expected, at least one.")
        if self.weights is not None and len(self.weights) != len(self.objectives):
            raise ConfigError(f"`weights` has {len(self.weights)} numbers for {len(self.objectives)} `objectives`.")
        gated([[1.0]], [[1.0] * len(self.objectives)], self.weights, self.how, self.smoothing)

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the rewards it takes."""
        return (*self.requirements, *self.objectives)

    def __call__(self, rewards: Mapping[str, Tensor], rollouts: Rollouts) -> Tensor:
        """Gate times mean [n]."""
        needed, wanted = (
            torch.stack([rewards[name] for name in names], 1) for names in (self.requirements, self.objectives)
        )
        return gated(needed, wanted, self.weights, self.how, self.smoothing)


@dataclass(frozen=True)
class BaseAndBonus:
    """Base reward that a bonus raises to its full worth (`ebrm.aggregate.base_and_bonus`, FIRM), both from 0 to 1.

    Attributes:
        base: the reward that is a must; where it is 0 the bonus gains nothing.
        bonus: the reward that comes on top.
        weights: of base and bonus: with (1, 1) a base without its bonus is worth half.
        has_bonus: column of true and false, whether a row has a bonus: where not, the base is paid in full and the
            bonus is not looked at. None: every row has one.
    """

    base: str
    bonus: str
    weights: tuple[float, float] = (1.0, 1.0)
    has_bonus: str | None = None

    def __post_init__(self) -> None:
        base_and_bonus([0.0], [0.0], self.weights)

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the rewards it takes."""
        return (self.base, self.bonus)

    def usable(self, rewards: Mapping[str, Tensor], rollouts: Rollouts) -> Tensor:
        """Rows whose base, and bonus if they have one, is there, bool [n]."""
        there = rewards[self.bonus].isfinite()
        if self.has_bonus is not None:
            there = there | ~_flags(rollouts, self.has_bonus, "`has_bonus`")
        return rewards[self.base].isfinite() & there

    def __call__(self, rewards: Mapping[str, Tensor], rollouts: Rollouts) -> Tensor:
        """Base · (w_1 + w_2 · bonus) / (w_1 + w_2) [n]."""
        has_bonus = None if self.has_bonus is None else _flags(rollouts, self.has_bonus, "`has_bonus`")
        return base_and_bonus(rewards[self.base], rewards[self.bonus], self.weights, has_bonus)


@dataclass(frozen=True)
class VerifiableOrModel:
    """Reward of a check where a row can be verified, and a model's elsewhere (`ebrm.aggregate.verifiable_or_model`).

    Bring both to one scale first, such as by `PreferenceAsReward`. Only the reward that counts has to be there.

    Attributes:
        check: the check's reward.
        model: the model's.
        verifiable: column of true and false, whether a row can be verified; None: where the check gives a reward.
    """

    check: str
    model: str
    verifiable: str | None = None

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the rewards it takes."""
        return (self.check, self.model)

    def usable(self, rewards: Mapping[str, Tensor], rollouts: Rollouts) -> Tensor:
        """Rows whose reward that counts is there, bool [n]."""
        which = self._verifiable(rewards, rollouts)
        return torch.where(which, rewards[self.check].isfinite(), rewards[self.model].isfinite())

    def __call__(self, rewards: Mapping[str, Tensor], rollouts: Rollouts) -> Tensor:
        """The reward that counts [n]."""
        which = self._verifiable(rewards, rollouts)
        return verifiable_or_model(rewards[self.check], rewards[self.model], which)

    def _verifiable(self, rewards: Mapping[str, Tensor], rollouts: Rollouts) -> Tensor:
        if self.verifiable is None:
            return rewards[self.check].isfinite()
        return _flags(rollouts, self.verifiable, "`verifiable`")


def _flags(rollouts: Rollouts, name: str, what: str) -> Tensor:  # bool [n]
    """A column of true and false."""
    cells = rollouts.column(name, what)
    wrong = [cell for cell in cells if not isinstance(cell, bool)]
    if wrong:
        raise ConfigError(f"The column {name!r} holds {wrong[0]!r:.40}; true or false was expected in every row.")
    return torch.tensor(list(cells), dtype=torch.bool)


def _references(rollouts: Rollouts) -> Tensor:
    assert rollouts.references is not None  # the design gives them to shapes that need them
    return rollouts.references
