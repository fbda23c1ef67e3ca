"""Every method of the study: from a base reward model and pairs to new rewards for all texts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
from heads import bradley_terry_head, silu_head, standardized
from study import POOLED
from torch import Tensor

from ebrm.aggregate import ensemble_mean, member_units, uncertainty_weighted, worst_case
from ebrm.aggregate import standardized as in_units
from ebrm.heads import (
    EnergyConfig,
    EnergyHead,
    Fusion,
    InferenceConfig,
    JointConfig,
    LikelihoodConfig,
    NCEConfig,
    NetworkConfig,
    TrainingConfig,
    fit_head,
)
from ebrm.pairs import PreferencePairs


@dataclass(frozen=True, eq=False)
class Problem:
    """A base reward model and the pairs to refine it with.

    Attributes:
        embedding: of all texts [n, d], the pooled position's numbers first.
        reward: base rewards [n].
        train, held_out: pairs with the labels as given (some wrong).
        prompt: of the training pairs [p].
        seed: of everything random.
        few: the texts that slow methods are asked about, as rows; unset: all.
    """

    embedding: Tensor
    reward: Tensor
    train: PreferencePairs
    held_out: PreferencePairs
    prompt: np.ndarray
    seed: int
    few: Tensor | None = None

    @lru_cache(maxsize=2)  # noqa: B019 - a few problems a run, one after the other
    def inputs(self, pooled: bool) -> Tensor:
        """Standardized embeddings [n, d], or of the pooled position alone."""
        rows = torch.unique(torch.cat([self.train.chosen, self.train.rejected]))
        return standardized(self.embedding[:, :POOLED] if pooled else self.embedding, rows)

    def agreeing(self) -> PreferencePairs:
        """The training pairs whose label the base reward agrees with."""
        keep = self.reward[self.train.chosen] > self.reward[self.train.rejected]
        return self.train.select(keep)

    @lru_cache(maxsize=1)  # noqa: B019
    def cross_fitted(self, folds: int = 5, ridge: float = 0.1) -> PreferencePairs:
        """The training pairs whose label a head agrees with that was fitted without their prompt."""
        names = np.unique(self.prompt)
        fold_of = dict(zip(names, np.random.default_rng((self.seed, 3)).integers(0, folds, len(names)), strict=True))
        fold = np.array([fold_of[name] for name in self.prompt])
        keep, inputs = torch.zeros(len(self.train), dtype=torch.bool), self.inputs(pooled=False)
        for number in range(folds):
            inside = torch.from_numpy(fold == number)
            head = bradley_terry_head(inputs, self.train.select(~inside), ridge)
            keep |= inside & ((inputs[self.train.chosen] - inputs[self.train.rejected]) @ head > 0)
        return self.train.select(keep)


@dataclass(frozen=True)
class Refined:
    """New rewards [n] of all texts; where the method has them, their standard deviations [n] and the density."""

    reward: Tensor
    std: Tensor | None = None
    density: EnergyHead | None = None


Method = Callable[[Problem], Refined]


def linear(problem: Problem, pairs: PreferencePairs, ridge: float, pooled: bool = False) -> Refined:
    """A linear Bradley-Terry head refitted on the frozen embeddings."""
    inputs = problem.inputs(pooled)
    return Refined(inputs @ bradley_terry_head(inputs, pairs, ridge))


@lru_cache(maxsize=1)
def head_rewards(problem: Problem, members: int, pooled: bool) -> Tensor:  # [k, n]
    """Rewards by two-layer SiLU heads, each brought to mean 0 and standard deviation 1 on the training texts."""
    inputs = problem.inputs(pooled)
    rows = torch.unique(torch.cat([problem.train.chosen, problem.train.rejected]))
    rewards = torch.stack([silu_head(inputs, problem.train, 100 * problem.seed + m) for m in range(members)])
    return in_units(rewards, *member_units(rewards[:, rows]))


def heads(problem: Problem, combine: Callable[[Tensor], Tensor], members: int, pooled: bool = False) -> Refined:
    """Several two-layer SiLU heads, combined."""
    rewards = head_rewards(problem, members, pooled)
    return Refined(combine(rewards), rewards.std(0) if members > 1 else None)


def beside_base(problem: Problem, refined: Refined) -> Refined:
    """The plain way to keep the base reward's say: the mean of both, in units of the training texts."""
    rows = torch.unique(torch.cat([problem.train.chosen, problem.train.rejected]))
    both = torch.stack([refined.reward, problem.reward])
    return Refined(in_units(both, *member_units(both[:, rows])).mean(0))


def ebrm(
    problem: Problem,
    pairs: PreferencePairs | None = None,
    *,
    config: EnergyConfig = EnergyConfig(),  # noqa: B008 - frozen
    pooled: bool = False,
    fusion: Fusion | None = None,
) -> Refined:
    """The energy-based refinement, by the library; its settings as given, its defaults where not."""
    embedding = problem.embedding[:, :POOLED] if pooled else problem.embedding
    kept = problem.train if pairs is None else pairs
    density = fit_head(config, embedding, problem.reward, kept, problem.held_out, seed=problem.seed).head
    assert isinstance(density, EnergyHead)
    if fusion is not None:
        density.fusion = fusion
    parts = [density.refine(e, r) for e, r in zip(embedding.split(8192), problem.reward.split(8192), strict=True)]
    return Refined(torch.cat([part.reward for part in parts]), torch.cat([part.std for part in parts]), density)


#: The paper's objective and steps on a network a quarter as wide, with an eighth of its noise samples, for time.
NARROW = NetworkConfig(size="small", joint_widths=(256, 128))
ASCENT = InferenceConfig(estimate="ascent", start="paper", nodes=33)
PAPER = EnergyConfig(
    network=NARROW,
    objective=NCEConfig(negatives=96),
    training=TrainingConfig(regularization=0.05, epochs=5, patience=0, batch_rows=64),
    inference=ASCENT,
)


def paper_fit(problem: Problem, config: EnergyConfig = PAPER, filtered: bool = True) -> EnergyHead:
    """The paper's density on the pooled embedding; the last epoch is kept, as there."""
    pairs, none = problem.agreeing() if filtered else problem.train, PreferencePairs.of([], [])
    embedding = problem.embedding[:, :POOLED]
    head = fit_head(config, embedding, problem.reward, pairs, none, seed=problem.seed).head
    assert isinstance(head, EnergyHead)
    return head


def paper_refine(problem: Problem, density: EnergyHead) -> Refined:
    """Refined rewards of the few texts, NaN for the others."""
    rows = torch.arange(len(problem.reward)) if problem.few is None else problem.few
    reward = torch.full((len(problem.reward),), torch.nan)
    reward[rows] = density.refine(problem.embedding[rows, :POOLED], problem.reward[rows]).reward
    return Refined(reward)


def paper_variants(problem: Problem) -> dict[str, Refined]:
    """The paper's refinement, and with one thing changed at a time."""
    density = paper_fit(problem)
    found = {"paper": paper_refine(problem, density)}
    for name, change in {
        "start base": {"start": "base"},
        "start zero": {"start": "zero"},
        "start random": {"start": "random"},
        "mode": {"estimate": "mode"},
        "mean": {"estimate": "mean"},
    }.items():
        found[f"paper, {name}"] = paper_refine(problem, density.with_inference(**change))
    found["paper, no filter"] = paper_refine(problem, paper_fit(problem, filtered=False))
    for name, config in {
        "no noisy positive": replace(PAPER, objective=replace(PAPER.objective, beta=0.0)),
        "sigma / 4": replace(PAPER, objective=replace(PAPER.objective, noise_scales=(0.22,))),
        "16 negatives": replace(PAPER, objective=NCEConfig(negatives=16)),
        "reward scale 4": replace(PAPER, training=replace(PAPER.training, reward_scale=4.0)),
    }.items():
        found[f"paper, {name}"] = paper_refine(problem, paper_fit(problem, config))
    return found


BASELINES: dict[str, Method] = {
    "base": lambda p: Refined(p.reward),
    "linear refit, pooled": lambda p: linear(p, p.train, 1e-2, pooled=True),
    "linear refit, pooled, filtered": lambda p: linear(p, p.agreeing(), 1e-2, pooled=True),
    "linear refit": lambda p: linear(p, p.train, 0.3),
    "linear refit, cross-fitted filter": lambda p: linear(p, p.cross_fitted(), 0.3),
    "SiLU head, pooled": lambda p: heads(p, ensemble_mean, 1, pooled=True),
    "SiLU head": lambda p: heads(p, ensemble_mean, 1),
    "SiLU head + base": lambda p: beside_base(p, heads(p, ensemble_mean, 1)),
    "5 SiLU heads, mean": lambda p: heads(p, ensemble_mean, 5),
    "5 SiLU heads, WCO": lambda p: heads(p, worst_case, 5),
    "5 SiLU heads, UWO": lambda p: heads(p, uncertainty_weighted, 5),
}
OURS: dict[str, Method] = {
    "EBRM": ebrm,
    "EBRM, pooled only": lambda p: ebrm(p, pooled=True),
    "EBRM, density alone": lambda p: ebrm(p, fusion=Fusion()),
    "EBRM, mode": lambda p: ebrm(p, config=EnergyConfig(inference=InferenceConfig(estimate="mode"))),
    "EBRM, no base reward": lambda p: ebrm(p, config=EnergyConfig(objective=JointConfig(reward_weight=0.0))),
    "EBRM, no label flips": lambda p: ebrm(p, config=EnergyConfig(objective=JointConfig(label_noise=0.0))),
    "EBRM, conflict filter": lambda p: ebrm(p, p.agreeing()),
    "EBRM, cross-fitted filter": lambda p: ebrm(p, p.cross_fitted()),
    "EBRM, reward only": lambda p: ebrm(
        p,
        p.agreeing(),
        config=EnergyConfig(objective=LikelihoodConfig(), training=TrainingConfig(patience=0, epochs=5)),
    ),
}
METHODS: dict[str, Method] = {**BASELINES, **OURS}
