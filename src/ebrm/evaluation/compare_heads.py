"""Rewards from a frozen reward model's features, by every method that needs no more: heads, ensembles, shapings.

A method is fitted on pairs (:class:`Problem`) and then gives rewards for any rows (:class:`Rows`). `METHODS` has them
by name; to add one, write it there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial

import torch
from torch import Tensor

from ebrm.aggregate import (
    centered,
    ensemble_mean,
    ensemble_median,
    log_sigmoid_sum,
    mean_minus_std,
    neighbor_fusion,
    nominal_worst_case,
    uncertainty_weighted,
    worst_case,
)
from ebrm.errors import DataError
from ebrm.groups import Groups
from ebrm.heads import (
    HEADS,
    ClosedFormHead,
    EmbeddingSource,
    FitConfig,
    GaussianHead,
    HeadConfig,
    RewardHead,
    fit_head,
)
from ebrm.pairs import PreferencePairs
from ebrm.shape import (
    RunningStatistics,
    length_penalty,
    log_sigmoid_centered,
    preference_as_reward,
    relative_length_penalty,
    running_clipped,
    running_min_max,
    running_standardized,
)

#: Parts of a head's state that are no parameters of its reward.
_UNITS = ("standardizer.", "support", "trusted", "offset", "gain", "groups", "residual", "share", "names")
#: From this share of the training responses' rewards on, a response counts as good.
_GOOD = 0.85


@dataclass(frozen=True, eq=False)
class Rows:
    """Responses that are to be scored.

    Attributes:
        embedding: [n, d].
        base: base rewards [n].
        groups: the prompt of each.
        length: tokens of prompt and response together [n]; None where they are not known.
    """

    embedding: Tensor
    base: Tensor
    groups: Groups
    length: Tensor | None = None


@dataclass(frozen=True)
class Fitted:
    """A method that has been fitted.

    Attributes:
        reward: from n rows to their rewards [n].
        parameters: numbers it learned.
        posterior: what says P(a above b) of two rows; None where the method says rewards alone.
    """

    reward: Callable[[Rows], Tensor]
    parameters: int = 0
    posterior: RewardHead | None = None


@dataclass(frozen=True, eq=False)
class Problem:
    """What methods are fitted on: base rewards, embeddings and pairs.

    Attributes:
        embeddings: of all rows [n, d].
        reward: base rewards [n].
        train, validation: pairs of rows, prompt-disjoint; their sources are the users of the head prototypes and the
            objectives of min_norm.
        members: how many two-layer heads ensembles have, with the seeds from `config.seed` on.
        heads: configs of heads by kind, in place of the defaults.
        config: seed, and how the pairs' strength enters.
    """

    embeddings: EmbeddingSource
    reward: Tensor
    train: PreferencePairs
    validation: PreferencePairs
    members: int = 5
    heads: Mapping[str, HeadConfig] = field(default_factory=dict)
    config: FitConfig = FitConfig()

    @cached_property
    def rows(self) -> Tensor:
        """The responses of the training pairs, each once [m]."""
        return torch.unique(torch.cat([self.train.chosen, self.train.rejected]))

    @cached_property
    def statistics(self) -> RunningStatistics:
        """Of the training responses' base rewards."""
        return RunningStatistics().updated(self.reward[self.rows])

    @cached_property
    def good(self) -> Tensor:
        """The base reward from which on a response counts as good []."""
        return torch.quantile(self.reward[self.rows].double(), _GOOD)

    @cached_property
    def ensemble(self) -> tuple[ClosedFormHead, ...]:
        """Two-layer heads that differ in their seed."""
        return tuple(self.fit("silu", member) for member in range(self.members))  # type: ignore[misc]

    @cached_property
    def gaussian(self) -> RewardHead:
        """Gaussian heads."""
        return self.fit("gaussian")

    def fit(self, kind: str, member: int = 0) -> RewardHead:
        """Fit the head of a kind; `member` is added to the seed."""
        return fit_head(
            self.heads.get(kind, HEADS[kind]()), self.embeddings, self.reward, self.train, self.validation,
            strength=self.config.strength, seed=self.config.seed + member,
        ).head  # fmt: skip


Method = Callable[[Problem], Fitted]


def base(problem: Problem) -> Fitted:
    """The frozen reward model's own reward."""
    return Fitted(lambda rows: rows.base)


def head(problem: Problem, kind: str) -> Fitted:
    """A head; the energy among them."""
    return _posterior(problem.gaussian if kind == "gaussian" else problem.fit(kind))


def ensemble(problem: Problem, combine: Callable[[Tensor, Rows], Tensor]) -> Fitted:
    """Two-layer heads with different seeds, combined in units of their deviation on the training responses."""
    heads = problem.ensemble

    def reward(rows: Rows) -> Tensor:
        return combine(torch.stack([member.location_scale(rows.embedding)[0] for member in heads]), rows)

    return Fitted(reward, sum(map(_parameters, heads)))


def gaussian_worst_case(problem: Problem) -> Fitted:
    """Gaussian heads: half the surest one's reward, half the lowest one's (BRME)."""
    heads = problem.gaussian
    assert isinstance(heads, GaussianHead)

    def reward(rows: Rows) -> Tensor:
        return nominal_worst_case(*heads.all_heads(heads.standardizer.embed(rows.embedding)))

    return Fitted(reward, _parameters(heads))


def base_and_silu(problem: Problem) -> Fitted:
    """Good by the base reward and by the two-layer heads' mean: the sum of their log-sigmoids."""
    heads, good, unit = problem.ensemble, problem.good, problem.statistics.std()

    def learned(embedding: Tensor) -> Tensor:
        return ensemble_mean(torch.stack([member.location_scale(embedding)[0] for member in heads]))

    level = torch.quantile(learned(problem.embeddings[problem.rows]), _GOOD)

    def reward(rows: Rows) -> Tensor:
        both = torch.stack([rows.base.double() / unit, learned(rows.embedding).double()], 1)
        return log_sigmoid_sum(both, torch.stack([good / unit, level.double()]).expand_as(both))

    return Fitted(reward, sum(map(_parameters, heads)))


def neighbors(problem: Problem) -> Fitted:
    """The base reward, averaged with those of the nearest training responses (RewardFusion)."""
    bank, rewards = problem.embeddings[problem.rows], problem.reward[problem.rows]
    return Fitted(lambda rows: neighbor_fusion(rows.embedding, rows.base, bank, rewards))


def shaped(problem: Problem, shape: Callable[[Problem, Rows], Tensor]) -> Fitted:
    """The base reward, shaped."""
    return Fitted(lambda rows: shape(problem, rows))


def _par(problem: Problem, rows: Rows) -> Tensor:
    reference = torch.full((len(rows.base), 1), problem.statistics.mean, dtype=torch.float64)
    return preference_as_reward(rows.base.double(), reference)


def _shorter(problem: Problem, rows: Rows) -> Tensor:
    return rows.base.double() + problem.statistics.std() * relative_length_penalty(_length(rows), rows.groups)


#: Name to method, in the order of the table.
METHODS: dict[str, Method] = {
    "base": base,
    **{kind: partial(head, kind=kind) for kind in HEADS if kind != "attributes"},
    "silu-mean": partial(ensemble, combine=lambda members, rows: ensemble_mean(members)),
    "silu-median": partial(ensemble, combine=lambda members, rows: ensemble_median(members)),
    "silu-worst-case": partial(ensemble, combine=lambda members, rows: worst_case(members)),
    "silu-uwo": partial(ensemble, combine=lambda members, rows: uncertainty_weighted(members)),
    "silu-mean-std": partial(ensemble, combine=lambda members, rows: mean_minus_std(centered(members, rows.groups))),
    "gaussian-worst-case": gaussian_worst_case,
    "base-and-silu": base_and_silu,
    "base-neighbors": neighbors,
    "base-par": partial(shaped, shape=_par),
    "base-log-sigmoid": partial(shaped, shape=lambda p, rows: log_sigmoid_centered(rows.base.double(), p.good)),
    "base-standardized": partial(shaped, shape=lambda p, rows: running_standardized(rows.base.double(), p.statistics)),
    "base-clipped": partial(shaped, shape=lambda p, rows: running_clipped(rows.base.double(), p.statistics)),
    "base-min-max": partial(shaped, shape=lambda p, rows: running_min_max(rows.base.double(), p.statistics)),
    "base-length": partial(shaped, shape=lambda p, rows: rows.base.double() + length_penalty(_length(rows))),
    "base-shorter": partial(shaped, shape=_shorter),
}


def _posterior(head: RewardHead) -> Fitted:
    return Fitted(lambda rows: head.refine(rows.embedding, rows.base).reward, _parameters(head), head)


def _parameters(head: RewardHead) -> int:
    """Numbers that were learned, those that only bring embeddings and rewards to common units aside."""
    return sum(tensor.numel() for name, tensor in head.state_dict().items() if not name.startswith(_UNITS))


def _length(rows: Rows) -> Tensor:
    if rows.length is None:
        raise DataError(
            "These features do not say how long their texts are (they were made elsewhere), and a length penalty needs "
            "it. Leave out base-length and base-shorter, or make the features with `ebrm features`."
        )
    return rows.length
