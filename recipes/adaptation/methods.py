"""Every method of the study: from a base reward model and the user's pairs to new rewards of all responses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from ridge import Fit, Floats, anchored, cross_validated, newton, reduced, sigmoid
from study import Base, Case, Rows, Study

from ebrm.aggregate import ensemble_mean, member_units, standardized, uncertainty_weighted, worst_case
from ebrm.calibration import PreferenceCalibration
from ebrm.heads import (
    Anchors,
    EnergyConfig,
    HeadConfig,
    InferenceConfig,
    NCEConfig,
    NetworkConfig,
    ResidualConfig,
    SiLUConfig,
    TrainingConfig,
    fit_head,
)
from ebrm.pairs import PreferencePairs

PairsSeen = Literal["no", "unknown", "yes"]
#: Weights of the anchors' penalty for the anchored linear heads; the first is the one that counts, chosen beforehand.
RHOS = (30.0, 300.0)
HEADS, BOOTSTRAPS = 5, 5
#: In [F, dr]: the base reward's column is this many times as long, so its coefficient is hardly penalized.
_FREE = 10.0


@dataclass(frozen=True, eq=False)
class Problem:
    """A base and the user's pairs, labels as the user has them.

    Attributes:
        embedding: of all responses [rows, d], float32.
        base: rewards and their slope.
        chosen, rejected: rows of the user's pairs [p].
        prompt: of the user's pairs [p], and of every row.
        asked: rows (chosen [t], rejected [t]) of the pairs whose probabilities are wanted.
        anchors: rows of texts that should not move, or None.
        seed: of everything random.
    """

    embedding: Floats
    base: Base
    chosen: Rows
    rejected: Rows
    prompt: Rows
    row_prompt: Rows
    asked: tuple[Rows, Rows]
    anchors: Rows | None
    seed: int

    @cached_property
    def rows(self) -> Rows:
        """The responses of the user's pairs."""
        return np.unique(np.r_[self.chosen, self.rejected])

    @cached_property
    def units(self) -> tuple[Floats, Floats]:
        """Mean and (deviation · √d) of the embedding over the user's responses [d]: differences are about 1 long."""
        own = self.embedding[self.rows].astype(np.float64)
        return own.mean(0), (own.std(0) + 1e-9) * np.sqrt(own.shape[1])

    def standardized(self, rows: Rows) -> Floats:
        """Embeddings of some rows, standardized."""
        center, scale = self.units
        return (self.embedding[rows] - center) / scale

    @cached_property
    def difference(self) -> Floats:
        """D [p, d]."""
        return self.standardized(self.chosen) - self.standardized(self.rejected)

    @cached_property
    def base_difference(self) -> Floats:
        """Differences of the base rewards [p]."""
        return self.base.reward[self.chosen] - self.base.reward[self.rejected]

    def linear(self, weights: Floats) -> Floats:
        """Rewards of all rows [rows] by weights [d] on standardized embeddings."""
        center, scale = self.units
        w = weights / scale
        return (self.embedding @ w.astype(np.float32)).astype(np.float64) - center @ w

    @cached_property
    def tensors(self) -> tuple[torch.Tensor, torch.Tensor]:
        """(embedding, base reward), float32."""
        return torch.from_numpy(self.embedding), torch.from_numpy(self.base.reward).float()

    def pairs(self, which: slice | Rows = slice(None)) -> PreferencePairs:
        """The user's pairs, or some of them, for the library."""
        prompts = [str(one) for one in self.prompt[which]]
        return PreferencePairs.of(self.chosen[which], self.rejected[which], prompt_id=prompts)

    @cached_property
    def plain(self) -> tuple[Floats, Floats, Fit]:
        """(F, V, the linear head)."""
        features, back = reduced(self.difference)
        return features, back, cross_validated(features, np.zeros(len(features)), self.prompt)


@dataclass(frozen=True, eq=False)
class Refined:
    """Rewards of all rows, and P(chosen) of the asked pairs; None: σ of the difference."""

    reward: Floats
    probability: Floats | None = None

    def probabilities(self, asked: tuple[Rows, Rows]) -> Floats:
        """P(chosen) [t]."""
        if self.probability is not None:
            return self.probability
        return sigmoid(self.reward[asked[0]] - self.reward[asked[1]])


Method = Callable[[Problem], Refined]


def base(problem: Problem) -> Refined:
    """The base reward model; its probabilities get a temperature from the user's pairs, as any user could."""
    logits = problem.base.slope * problem.base_difference
    calibration = PreferenceCalibration.fit(sigmoid(logits))
    raw = Refined(problem.base.slope * problem.base.reward).probabilities(problem.asked)
    return Refined(problem.base.reward, calibration(raw).double().numpy())


def base_raw(problem: Problem) -> Refined:
    """The base reward model with its own probabilities."""
    return Refined(problem.base.slope * problem.base.reward)


def linear(problem: Problem) -> Refined:
    """Ridge Bradley-Terry on the embeddings, the penalty by left-out prompts."""
    _, back, fit = problem.plain
    return Refined(problem.linear(back @ fit.coefficients))


def base_and_linear(problem: Problem, space: tuple[Floats, Floats] | None = None) -> Refined:
    """a·r0 + ridge, both by left-out prompts."""
    features, back = space or problem.plain[:2]
    both = np.c_[features, _FREE * problem.base_difference]
    c = cross_validated(both, np.zeros(len(both)), problem.prompt).coefficients
    return Refined(_FREE * c[-1] * problem.base.reward + problem.linear(back @ c[:-1]))


def averaged_weights(problem: Problem) -> Refined:
    """The mean in weights of linear heads on bootstrap samples of the prompts (after WARM, arXiv 2401.12187)."""
    features, back, fit = problem.plain
    if not np.isfinite(fit.penalty):
        return Refined(np.zeros(len(problem.base.reward)))
    rng, names = np.random.default_rng(problem.seed), np.unique(problem.prompt)
    total = np.zeros(features.shape[1])
    for _ in range(BOOTSTRAPS):
        drawn = np.concatenate([np.flatnonzero(problem.prompt == one) for one in rng.choice(names, len(names))])
        some = features[drawn]
        total += newton(some, np.zeros(len(some)), fit.penalty * len(some), fit.coefficients)
    return Refined(problem.linear(back @ total / BOOTSTRAPS))


def anchored_space(problem: Problem, rho: float) -> tuple[Floats, Floats]:
    """Differences under the norm that holds the correction still on the anchors."""
    assert problem.anchors is not None
    texts = problem.standardized(problem.anchors)
    return anchored(problem.difference, texts - texts.mean(0), rho)


def anchored_linear(problem: Problem, rho: float) -> Refined:
    """The linear head under the anchors' penalty."""
    features, back = anchored_space(problem, rho)
    fit = cross_validated(features, np.zeros(len(features)), problem.prompt)
    return Refined(problem.linear(back @ fit.coefficients))


def held_out(problem: Problem) -> tuple[PreferencePairs, PreferencePairs]:
    """(training, validation) pairs: a fifth of the prompts decide when heads stop."""
    names = np.random.default_rng((problem.seed, 5)).permutation(np.unique(problem.prompt))
    out = np.isin(problem.prompt, names[: len(names) // 5])
    return problem.pairs(np.flatnonzero(~out)), problem.pairs(np.flatnonzero(out))


def silu_rewards(problem: Problem, members: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(rewards [k, rows], P(chosen) of the asked pairs [k, t]) by two-layer SiLU heads of different seeds."""
    embedding, reward = problem.tensors
    train, validation = held_out(problem)
    rewards, probabilities = [], []
    for member in range(members):
        head = fit_head(SiLUConfig(), embedding, reward, train, validation, seed=100 * problem.seed + member).head
        rewards.append(head.refine(embedding, reward).mean)
        probabilities.append(prefer(problem, head))
    return torch.stack(rewards), torch.stack(probabilities)


def prefer(problem: Problem, head) -> torch.Tensor:  # noqa: ANN001 - any RewardHead
    """P(chosen) of the asked pairs [t] by the head."""
    embedding, reward = problem.tensors
    sides = [torch.from_numpy(side) for side in problem.asked]
    return head.prefer(tuple(embedding[side] for side in sides), tuple(reward[side] for side in sides)).double()


def silu_heads(problem: Problem) -> dict[str, Refined]:
    """One SiLU head, and five of them by their mean, the worst case (WCO) and mean - variance / 2 (UWO)."""
    rewards, probability = silu_rewards(problem, HEADS)
    rows = torch.from_numpy(problem.rows)
    units = standardized(rewards, *member_units(rewards[:, rows]))
    mean = probability.mean(0).numpy()
    made = {"SiLU head": Refined(rewards[0].double().numpy(), probability[0].numpy())}
    for name, combine in (
        ("5 SiLU heads, mean", ensemble_mean),
        ("5 SiLU heads, WCO", worst_case),
        ("5 SiLU heads, UWO", uncertainty_weighted),
    ):
        made[name] = Refined(combine(units).double().numpy(), mean if "mean" in name else None)
    return made


def fitted(
    problem: Problem,
    config: HeadConfig,
    pairs_seen: PairsSeen = "unknown",
    use_anchors: bool = False,
    with_validation: bool = False,
    agreeing: bool = False,
) -> Refined:
    """A head of the library. `agreeing`: only on pairs that the base reward agrees with (the paper's filter)."""
    embedding, reward = problem.tensors
    train, validation = held_out(problem) if with_validation else (problem.pairs(), PreferencePairs.of([], []))
    if agreeing:
        train = train.select(reward[train.chosen] > reward[train.rejected])
    anchors = None
    if use_anchors:
        assert problem.anchors is not None
        rows = torch.from_numpy(problem.anchors)
        anchors = Anchors(embedding[rows], reward[rows], [str(one) for one in problem.row_prompt[problem.anchors]])
    head = fit_head(
        config, embedding, reward, train, validation, pairs_seen=pairs_seen, anchors=anchors, seed=problem.seed
    ).head
    return Refined(head.refine(embedding, reward).reward.double().numpy(), prefer(problem, head).numpy())


#: The paper's objective and inference on a network a quarter as wide, with an eighth of its noise samples, for time.
PAPER = EnergyConfig(
    network=NetworkConfig(size="small", joint_widths=(256, 128), standardize_embedding=False),
    objective=NCEConfig(negatives=96),
    training=TrainingConfig(regularization=0.05, epochs=5, patience=0, batch_rows=64),
    inference=InferenceConfig(estimate="ascent", start="paper", nodes=33),
)

RIVALS: dict[str, Method] = {
    "base": base,
    "base, its own probabilities": base_raw,
    "linear": linear,
    "a r0 + ridge": base_and_linear,
    "linear, averaged weights": averaged_weights,
}
#: The product's head by what is said of the pairs.
OURS: dict[PairsSeen, str] = {"unknown": "EBRM", "no": "EBRM, unseen", "yes": "EBRM, seen"}
ANCHORED = " + anchors"
#: From this many pairs on, only the published weight of the anchors.
MANY = 1000


def every(problem: Problem, said: tuple[PairsSeen, ...]) -> dict[str, Refined]:
    """All methods that take little time, EBRM under each thing `said` of the pairs."""
    made = {name: method(problem) for name, method in RIVALS.items()}
    made |= silu_heads(problem)
    if problem.anchors is not None:
        for rho in RHOS if len(problem.chosen) < MANY else RHOS[:1]:
            suffix = ANCHORED if rho == RHOS[0] else f"{ANCHORED}, rho = {rho:g}"
            made[f"linear{suffix}"] = anchored_linear(problem, rho)
            made[f"a r0 + ridge{suffix}"] = base_and_linear(problem, anchored_space(problem, rho))
    return made | ours(problem, said)


def ours(problem: Problem, said: tuple[PairsSeen, ...]) -> dict[str, Refined]:
    """EBRM under each thing `said` of the pairs, without and with anchors."""
    made = {OURS[seen]: fitted(problem, ResidualConfig(), seen) for seen in said}
    if problem.anchors is not None:
        made |= {OURS[s] + ANCHORED: fitted(problem, ResidualConfig(), s, use_anchors=True) for s in said}
    return made


def energies(problem: Problem) -> dict[str, Refined]:
    """The density of an energy-based model: the library's, and the paper's with its parts."""
    made = {
        "energy": fitted(problem, EnergyConfig(), with_validation=True),
        "paper": fitted(problem, PAPER, agreeing=True),
        "paper, no filter": fitted(problem, PAPER),
    }
    for name, config in {
        "no noisy positive": replace(PAPER, objective=replace(PAPER.objective, beta=0.0)),
        "mean": replace(PAPER, inference=replace(PAPER.inference, estimate="mean")),
        "start base": replace(PAPER, inference=replace(PAPER.inference, start="base")),
    }.items():
        made[f"paper, {name}"] = fitted(problem, config, agreeing=True)
    return made


def other_embeddings(problem: Problem, said: PairsSeen, embeddings: dict[str, Floats]) -> dict[str, Refined]:
    """EBRM on other embeddings."""
    return {
        f"EBRM on {name}": fitted(replace(problem, embedding=embedding), ResidualConfig(), said)
        for name, embedding in embeddings.items()
    }


def problem_of(study: Study, case: Case, base: Base, embedding: Floats, seed: int) -> Problem:
    """The user's side of a case."""
    sides = study.chosen[case.user], study.rejected[case.user]
    chosen, rejected = (np.where(case.user_turned, sides[1 - k], sides[k]) for k in (0, 1))
    asked = study.chosen[case.test], study.rejected[case.test]
    return Problem(
        embedding, base, chosen, rejected, study.prompt[case.user], study.row_prompt, asked, case.anchors, seed
    )  # fmt: skip
