"""A reward design: sources of rewards, the shape of each, and how they become one reward, for any trainer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from ebrm.errors import ConfigError, DataError
from ebrm.integrations.reference_rewards import ReferenceRewards, score_references
from ebrm.integrations.reward_shapes import Aggregate, Shape
from ebrm.integrations.reward_sources import Part, RewardSource, Source, is_function, open_source
from ebrm.integrations.rollouts import Rollouts, StepScores
from ebrm.model import EnergyRewardModel
from ebrm.utils.validation import as_tensor, check_setting

Mode = Literal["mean", "mode", "pessimistic"]


@dataclass(frozen=True, eq=False)
class RewardDesign:
    """What a policy is rewarded for: sources, the shape of each reward, and how several become one.

    A row is one response. It has no reward where a source or shape gives none that the aggregate needs.

    Attributes:
        source: an `EnergyRewardModel`, a folder or Hub name of one, an `ebrm.Client`; or a function of prompts and
            responses that gives a number a response, None or NaN for none (a judge, a check); its further parameters
            are named as columns of the data set, which it gets. Or several, by name.
        shape: what is done to the reward before it is given: `PreferenceAsReward` and the like, or a function of a
            reward [n] and :class:`Rollouts`; several are applied in their order. With several sources, by name.
        aggregate: how several rewards become one: `BaseAndBonus` and the like, or a function of rewards by name and
            `Rollouts`.
        reference: for shapes against references: the column with responses of the reference policy (one a row, or a
            list), or with their rewards; or `ReferenceRewards` read from a file.
        mode: of models: "mean" or "mode" of the density of r given the response, or "pessimistic", the mean less `k`
            standard deviations (a lower confidence bound).
        k: standard deviations that "pessimistic" subtracts.
        backbone: where a model's RM is found now, a folder or Hub name, if it has moved since the fit.
    """

    source: RewardSource | Mapping[str, RewardSource]
    shape: Shape | Sequence[Shape] | Mapping[str, Shape | Sequence[Shape]] | None = None
    aggregate: Aggregate | None = None
    reference: str | ReferenceRewards | None = None
    mode: Mode = "mean"
    k: float = 1.0
    backbone: str | Path | None = None

    def __post_init__(self) -> None:
        if self.mode not in get_args(Mode):
            raise ConfigError(f"`mode` is {self.mode!r}; it must be one of {', '.join(get_args(Mode))}.")
        if not isinstance(self.k, int | float):
            raise ConfigError(f"`k` is {self.k!r}; it is a number of standard deviations, at least 0.")
        check_setting("k", self.k, at_least=0)
        self._check_sources()
        shapes = [shape for some in self.shapes().values() for shape in some]
        wrong = next((shape for shape in shapes if not callable(shape) or isinstance(shape, type)), None)
        if wrong is not None:
            raise ConfigError(f"`shape` has {wrong!r:.60}; expected a shape, or a function of a reward and rollouts.")
        needing = [shape for shape in shapes if getattr(shape, "needs_references", False)]
        if needing and self.reference is None:
            raise ConfigError(
                f"{needing[0]} is against references, and `reference` names none. Name the column with responses of "
                "the reference policy, or give `ReferenceRewards.read(…)` of a file of their rewards."
            )
        if self.reference is not None and not needing:
            raise ConfigError("`reference` is given, and no shape is against references. Add one, or leave it out.")
        if not isinstance(self.reference, str | ReferenceRewards | None):
            raise ConfigError(f"`reference` is {self.reference!r:.60}; expected a column's name, or ReferenceRewards.")
        if sum(map(_needs_references, self.shapes().values())) > 1 and isinstance(self.reference, ReferenceRewards):
            raise ConfigError(
                "`reference` holds rewards of one source, and several are shaped against references. Name a column of "
                "texts, which every source scores."
            )
        self._check_aggregate()

    def sources(self) -> dict[str, RewardSource]:
        """The sources by name; a single one has the name "reward"."""
        return dict(self.source) if isinstance(self.source, Mapping) else {"reward": self.source}

    def shapes(self) -> dict[str, tuple[Shape, ...]]:
        """The shapes of each source, in their order."""
        given = self.shape if isinstance(self.shape, Mapping) else {name: self.shape for name in self.sources()}
        return {name: _several(given.get(name)) for name in self.sources()}

    def _check_sources(self) -> None:
        sources = self.sources()
        wrong = next((name for name in sources if not isinstance(name, str) or not name), None)
        if not sources or wrong is not None:
            raise ConfigError(f"`source` has the names {list(sources)}; at least one was expected, each a word.")
        models = [name for name, source in sources.items() if not is_function(source)]
        for field, left in (("mode", self.mode == "mean"), ("backbone", self.backbone is None)):
            if not left and not models:
                given = str(getattr(self, field))
                raise ConfigError(f"`{field}` is {given!r}, and no source is a model. Leave it out.")
        if self.shape is None or not isinstance(self.source, Mapping) and not isinstance(self.shape, Mapping):
            return
        if not isinstance(self.source, Mapping):
            raise ConfigError("`shape` has names, and `source` is a single one. Give its shape, or several in order.")
        if not isinstance(self.shape, Mapping):
            raise ConfigError(
                f"`shape` is one for several sources. Give shapes by name, of {', '.join(map(repr, sources))}; names "
                "without a shape stay as they are."
            )
        unknown = [name for name in self.shape if name not in sources]
        if unknown:
            raise ConfigError(f"`shape` has {unknown[0]!r}; the sources are {', '.join(map(repr, sources))}.")

    def _check_aggregate(self) -> None:
        sources = self.sources()
        if self.aggregate is None:
            if len(sources) > 1:
                raise ConfigError(
                    f"There are {len(sources)} sources and no `aggregate`. Say how {', '.join(map(repr, sources))} "
                    "become one reward: WeightedSum, Gated, BaseAndBonus, VerifiableOrModel, or a function."
                )
            return
        if not callable(self.aggregate) or isinstance(self.aggregate, type):
            raise ConfigError(f"`aggregate` is {self.aggregate!r:.60}; an aggregate or a function was expected.")
        parts = getattr(self.aggregate, "parts", None)
        if parts is not None and set(parts) != set(sources):
            odd = [name for name in parts if name not in sources] or [name for name in sources if name not in parts]
            raise ConfigError(
                f"`aggregate` takes {', '.join(map(repr, parts))}, and the sources are "
                f"{', '.join(map(repr, sources))}: {odd[0]!r} is in only one of them. Use the same names."
            )


@dataclass(frozen=True, eq=False)
class ShapedPart:
    """A source's part of a reward.

    Attributes:
        part: what the source gave.
        shaped: after its shapes [n], float64, NaN where there is none.
        errors: why a row has none [n].
        changed: whether it has shapes.
    """

    part: Part
    shaped: Tensor
    errors: list[str | None]
    changed: bool


@dataclass(frozen=True, eq=False)
class DesignedRewards:
    """Rewards of n rollouts under a design.

    Attributes:
        reward: [n], float64, NaN where there is none.
        errors: why a row has no reward [n], None where it has one.
        parts: the parts it was made of, by name.
    """

    reward: Tensor
    errors: list[str | None]
    parts: Mapping[str, ShapedPart]

    def columns(self) -> dict[str, Tensor]:
        """What is logged of each row, each [n], NaN where there is nothing, always under the same names.

        `unshaped` is before the shapes, where there are any, `base_reward` and `std` are a model's. With several
        sources each stands after the source's name, with `reward`, what enters the aggregate: `judge/reward`.
        """
        found = {}
        for prefix, one in self._named():
            if prefix:
                found[f"{prefix}reward"] = one.shaped
            if one.changed and isinstance(one.part.reward, Tensor):
                found[f"{prefix}unshaped"] = one.part.reward
            for name in ("base_reward", "std"):
                if (column := getattr(one.part, name)) is not None:
                    found[f"{prefix}{name}"] = column
        return found

    def beyond_std(self) -> dict[str, Tensor]:
        """Whether a model's reward is more than one standard deviation from its base reward: 0, 1 or NaN [n]."""
        found = ((f"{prefix}beyond_std", one.part.beyond_std) for prefix, one in self._named())
        return {name: column for name, column in found if column is not None}

    def unusable(self) -> dict[str, float]:
        """Share of rows without a reward, and of each part where there are several; 0 of no rows."""
        shares = {"unusable": self.errors}
        if len(self.parts) > 1:
            shares |= {f"{name}/unusable": one.errors for name, one in self.parts.items()}
        return {
            name: sum(error is not None for error in errors) / max(len(errors), 1) for name, errors in shares.items()
        }

    def _named(self) -> Iterator[tuple[str, ShapedPart]]:
        for name, one in self.parts.items():
            yield (f"{name}/" if len(self.parts) > 1 else "", one)


class OpenedDesign:
    """A design whose models are loaded: a function of rollouts, which several threads may call."""

    def __init__(self, design: RewardDesign) -> None:
        self.design = design
        self._sources: dict[str, Source] = {}
        for name, source in design.sources().items():
            here = None if is_function(source) or _is_remote(source, design) else design.backbone
            called = f"The source {name!r}" if isinstance(design.source, Mapping) else "The source"
            self._sources[name] = open_source(source, called, design.mode, design.k, here)

    def __call__(self, rollouts: Rollouts) -> DesignedRewards:
        """Rewards of rollouts, those without one with the reason.

        Raises:
            ConfigError: a column that is not there. DataError: rewards that the shape or aggregate does not take.
            EBRMError: what a source raises.
        """
        shapes = self.design.shapes()
        sharing = sum(map(_needs_references, shapes.values())) > 1
        parts = {
            name: self._shaped(name, source, shapes[name], rollouts, sharing) for name, source in self._sources.items()
        }
        aggregate = self.design.aggregate
        if aggregate is None:
            (only,) = parts.values()
            return DesignedRewards(only.shaped, only.errors, parts)
        shaped = {name: part.shaped for name, part in parts.items()}
        usable = getattr(aggregate, "usable", None)
        there = torch.stack([column.isfinite() for column in shaped.values()]).all(0)
        if usable is not None and len(rollouts):
            there = usable(shaped, rollouts)
        there = there & torch.tensor([error is None for error in rollouts.errors], dtype=torch.bool)
        rows = there.nonzero()[:, 0]
        reward = torch.full((len(rollouts),), torch.nan, dtype=torch.float64)
        if len(rows):
            taken = {name: column[rows] for name, column in shaped.items()}
            reward[rows] = _applied("The aggregate", aggregate, taken, rollouts.take(rows.tolist()))
        return DesignedRewards(reward, _reasons(reward, rollouts, parts), parts)

    def _shaped(
        self, name: str, source: Source, shapes: Sequence[Shape], rollouts: Rollouts, sharing: bool
    ) -> ShapedPart:
        part = source(rollouts)
        errors = list(part.errors)
        references = None
        if _needs_references(shapes) and len(rollouts):
            assert self.design.reference is not None
            references, missing = score_references(source, rollouts, self.design.reference, sharing)
            errors = [error or why for error, why in zip(errors, missing, strict=True)]
        rows = torch.tensor([row for row, error in enumerate(errors) if error is None], dtype=torch.int64)
        shaped = torch.full((len(rollouts),), torch.nan, dtype=torch.float64)
        if isinstance(part.reward, StepScores) and not (shapes and getattr(shapes[0], "takes_steps", False)):
            raise ConfigError(
                f"The source {name!r} gives scores of steps. Give it a shape that makes them one reward first: "
                "ProcessReward."
            )
        if len(rows):
            value: Any = part.reward.take(rows) if isinstance(part.reward, StepScores) else part.reward[rows]
            taken = rollouts.take(rows.tolist())
            if references is not None:
                taken = replace(taken, references=references[rows])
            for shape in shapes:
                if getattr(shape, "takes_steps", False) and not isinstance(value, StepScores):
                    raise ConfigError(f"{shape} takes scores of steps, and {name!r} gives one reward a response.")
                value = _applied(f"The shape of {name!r}", shape, value, taken)
            shaped[rows] = value
        for row in rows.tolist():
            if bool(shaped[row].isnan()):
                errors[row] = "Its shape gave no reward."
        return ShapedPart(part, shaped, errors, bool(shapes))


def _applied(what: str, function: Any, value: Any, rollouts: Rollouts) -> Tensor:  # [n]
    """A shape's or aggregate's rewards, checked."""
    try:
        found = as_tensor(function(value, rollouts), "rewards").double().cpu()
    except DataError as error:
        raise DataError(f"{what}, {_called(function)}: {error}") from error
    if found.shape != (len(rollouts),) or bool(found.isinf().any()):
        raise DataError(
            f"{what}, {_called(function)}, gave {tuple(found.shape)} rewards to {len(rollouts)} responses, "
            f"{int(found.isinf().sum())} of them infinite; one finite number each was expected, or NaN for none."
        )
    return found


def _reasons(reward: Tensor, rollouts: Rollouts, parts: Mapping[str, ShapedPart]) -> list[str | None]:
    reasons: list[str | None] = []
    for row, missing in enumerate(reward.isnan().tolist()):
        if not missing or rollouts.errors[row] is not None:
            reasons.append(rollouts.errors[row])
            continue
        said = [f"{name}: {one.errors[row]}" for name, one in parts.items() if one.errors[row] is not None]
        reasons.append(" ".join(said) or "The aggregate gave no reward.")
    return reasons


def _needs_references(shapes: Sequence[Shape]) -> bool:
    return any(getattr(shape, "needs_references", False) for shape in shapes)


def _several(shape: Any) -> tuple[Shape, ...]:
    return () if shape is None else tuple(shape) if isinstance(shape, Sequence) else (shape,)


def _is_remote(source: Any, design: RewardDesign) -> bool:
    """Whether one of several sources is no model of this process, to which `backbone` does not apply."""
    return isinstance(design.source, Mapping) and not isinstance(source, str | Path | EnergyRewardModel)


def _called(function: Any) -> str:
    return getattr(function, "__name__", None) or type(function).__name__
