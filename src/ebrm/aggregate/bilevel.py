"""Weights of auxiliary rewards, learned so that following them serves a reward that is trusted."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

from ebrm.errors import ConfigError, DataError
from ebrm.groups import Groups
from ebrm.utils.validation import check_finite


@dataclass(frozen=True, eq=False)
class BilevelWeights:
    """What `bilevel_weights` found.

    Attributes:
        weight: of each auxiliary reward, to be added to the trusted one [a], float64.
        before: expected trusted reward of the policy that follows the trusted reward alone, on these rows.
        after: that of the policy that follows the sum; never below `before`, on these rows.
    """

    weight: Tensor
    before: float
    after: float


def expected_trusted(
    trusted: Tensor,  # [n]
    auxiliary: Tensor,  # [n, a]
    groups: Groups,  # of n rows
    weight: Tensor,  # [a]
    beta: float = 1.0,
) -> tuple[float, Tensor]:  # -> value, [a]
    """What following a sum of rewards is worth in terms of one of them, and its gradient in the weights.

        π_w(i | x) ∝ exp( (r_i + Σ_a w_a aux_ia) / β ),  over the responses i to prompt x
        J(w) = mean_x E_πw[r],  dJ/dw_a = mean_x Cov_πw(r, aux_a) / β

    π_w is the policy that maximizes the sum under a KL penalty β, from a uniform choice among the responses at hand.
    Adding a number to the rewards of a prompt leaves π_w; a constant auxiliary reward has gradient 0. β to infinity
    is the uniform choice, with gradient 0.

    Args:
        trusted: r, rewards that are to be served, such as those of people or of a check [n].
        auxiliary: a rewards that may help [n, a].
        groups: the prompt of each row.
        weight: w, of any sign [a].
        beta: β, above 0, in the unit of `trusted`.

    Returns:
        (J, dJ/dw [a] float64).

    Raises:
        ConfigError: a β that is not above 0 and finite.
        DataError: a number that is not finite, or a prompt without rows, or none at all.
        ValueError: shapes other than said.
    """
    rewards, others = _checked(trusted, auxiliary, groups, beta)
    weights = check_finite(weight, "weight")
    if weights.shape != others.shape[1:]:
        raise ValueError(f"{others.shape[1]} auxiliary rewards, and {tuple(weight.shape)} weights")
    return _value(rewards, others, groups, weights, beta)


def bilevel_weights(
    trusted: Tensor,  # [n]
    auxiliary: Tensor,  # [n, a]
    groups: Groups,  # of n rows
    beta: float = 1.0,
    decay: float = 1e-3,
    steps: int = 200,
) -> BilevelWeights:
    """Choose the weights of auxiliary rewards by what they do to the trusted reward: maximize J(w) - decay/2 ‖w‖².

    The idea is that of "Behavior Alignment via Reward Function Optimization" (BARFI, arXiv 2310.19007): an inner
    problem (the policy that a mixed reward leads to) inside an outer one (what it earns of the primary reward). BARFI
    runs reinforcement learning inside and differentiates through it implicitly. For responses at hand and a KL penalty
    the inner problem has a closed form (see `expected_trusted`), and so the gradient is exact; that form, the decay and
    the absence of BARFI's learned discount are ours, not from the paper. Auxiliary rewards that mislead get weights
    that switch them off, or turn them round.

    J is not concave: from w = 0 (the trusted reward alone) L-BFGS climbs to a point that need not be the best. The
    result is never worse than w = 0 on these rows; on others it can be: check with `expected_trusted` on prompts
    that were left out. An auxiliary reward that sorts as the trusted one gains by ever larger weights, which only the
    decay bounds. Auxiliary rewards should be of like scales, as the decay takes all weights alike.

    Args:
        trusted, auxiliary, groups, beta: as in `expected_trusted`. A β that is small beside the rewards' spread within
            prompts leaves nothing to gain: the policy then takes the highest trusted reward already.
        decay: what a weight costs, 0 or more.
        steps: at most so many of L-BFGS, 1 or more.

    Raises:
        ConfigError: a β, decay or number of steps outside its range.
        DataError: a number that is not finite, or a prompt without rows, or none at all.
        ValueError: shapes other than said.
    """
    if not (math.isfinite(decay) and decay >= 0) or steps < 1:
        raise ConfigError(f"decay {decay} and {steps} steps: expected a finite number of at least 0, and 1 or more.")
    rewards, others = _checked(trusted, auxiliary, groups, beta)

    def loss(weight: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = _value(rewards, others, groups, torch.from_numpy(weight).to(rewards.device), beta)
        return decay / 2 * float(weight @ weight) - value, decay * weight - gradient.cpu().numpy()

    start = np.zeros(others.shape[1])
    before = -loss(start)[0]
    if not len(start):
        return BilevelWeights(rewards.new_zeros(0), before, before)
    found = minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": steps, "gtol": 1e-9, "ftol": 1e-13})
    weight = torch.from_numpy(found.x).to(rewards.device)
    after = _value(rewards, others, groups, weight, beta)[0]
    if not after >= before:
        return BilevelWeights(torch.zeros_like(weight), before, before)
    return BilevelWeights(weight, before, after)


def _value(rewards: Tensor, others: Tensor, groups: Groups, weight: Tensor, beta: float) -> tuple[float, Tensor]:
    policy = groups.softmax((rewards + others @ weight) / beta)
    expected = groups.sum(policy * rewards)
    # Cov(r, aux) = E[(r - E r) aux]
    off = policy * (rewards - groups.spread(expected))
    return float(expected.mean()), off @ others / (beta * groups.count)


def _checked(trusted: Tensor, auxiliary: Tensor, groups: Groups, beta: float) -> tuple[Tensor, Tensor]:
    if not (math.isfinite(beta) and beta > 0):
        raise ConfigError(f"β is {beta}; expected a finite number above 0.")
    rewards, others = check_finite(trusted, "trusted reward"), check_finite(auxiliary, "auxiliary rewards [n, a]", 2)
    if not len(rewards) == len(others) == len(groups):
        raise ValueError(
            f"expected trusted [n], auxiliary [n, a] and groups of n rows, got {tuple(trusted.shape)}, "
            f"{tuple(auxiliary.shape)} and {len(groups)} rows"
        )
    empty = groups.sizes == 0
    if not groups.count or bool(empty.any()):
        where = f", the first at index {int(empty.nonzero()[0, 0])}" if groups.count else ""
        raise DataError(
            f"{int(empty.sum())} of {groups.count} prompts have no responses{where}. Expected at least one prompt, and "
            "a response to each: leave the others out."
        )
    return rewards, others
