"""Losses of rewards: Bradley-Terry's with all that is added to it, agreement of several, differences on new data."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from ebrm.errors import ConfigError, DataError
from ebrm.groups import Groups
from ebrm.heads.data import HeadData
from ebrm.utils.validation import (
    ArrayLike,
    as_tensor,
    check_finite,
    check_same_shape,
    check_setting,
    match_dtype,
)


def pair_loss(
    chosen: ArrayLike,  # [p]
    rejected: ArrayLike,  # [p]
    *,
    margin: ArrayLike | float = 0.0,  # [p] or one number
    scale: ArrayLike | float = 1.0,  # [p] or one number
    label: ArrayLike | float = 1.0,  # [p] or one number
    label_smoothing: float = 0.0,
    weight: ArrayLike | float = 1.0,  # [p] or one number
    ties: float | None = None,
    tied: Tensor | None = None,  # [p]
    tie_square: float | None = None,
    centering: float = 0.0,
) -> Tensor:  # [p]
    """Loss of each pair [p]: w · [-μ log σ(s d - m) - (1 - μ) log σ(-s d - m)] + c (r_c + r_r)², d = r_c - r_r.

    With nothing but the rewards it is Bradley and Terry's -log σ(d). What else the field uses are cases of it:

    ============================================= ========================================================
    adaptive or constant margin                   `margin`; arXiv 2401.06080, 2410.01257
    scaled Bradley-Terry                          `weight` = strength of the preference; arXiv 2410.01257
    label smoothing, soft labels                  `label_smoothing`, `label`; arXiv 2401.06080
    win-tie                                       `label` = 0.5 where both passed; arXiv 2512.22170
    rank consistency as a soft label              `label` = consistency, `scale` = beta; arXiv 2410.12735
    margin-scaled beta                            `scale` = `ebrm.optimize.margin_scaled_beta`; arXiv 2502.10391
    ties after Rao and Kupper                     `ties`, `tied`; VideoReward, arXiv 2501.13918
    squared difference of ties                    `tie_square`, `tied`; arXiv 2502.10391
    zero-mean penalty                             `centering`; arXiv 2502.10391 (arXiv 2509.16127 found that it hurts)
    ============================================= ========================================================

    Ties after Rao and Kupper (1967), θ = `ties`, t = log θ, z = s d: P(c above r) = σ(z - t), P(r above c) = σ(-z - t),
    P(tie) = (θ² - 1) σ(z - t) σ(-z - t). A margin adds to t; `label` has no say in pairs that are tied. It is a proper
    likelihood of soft labels only for m = 0. Smoothing mixes logarithms of probabilities, the energy's label noise the
    probabilities themselves. MM-RLHF's loss of a tied pair is `tie_square` · d² instead, without margin and scale; it
    averages tied and other pairs apart.

    Args:
        chosen, rejected: rewards [p] (tensors, arrays or lists, as the columns below); gradients go through both.
        margin: m, any sign.
        scale: s, 0 or more.
        label: μ = P(the chosen is better), 0 to 1; 0 is the other response's win.
        label_smoothing: a in μ' = (1 - a) μ + a (1 - μ), 0 to 0.5.
        weight: w, 0 or more; losses are not divided by it.
        ties: θ, above 1 (the paper: 5); None knows no ties.
        tied: bool [p], which pairs are ties; needs `ties` or `tie_square`.
        tie_square: weight of the squared difference of a tied pair, 0 or more; not together with `ties`.
        centering: c, 0 or more; the penalty has no weight.

    Returns:
        losses in the floating type of `chosen` (float64 for integers), computed in float64.

    Raises:
        ConfigError: label_smoothing, ties, tie_square or centering outside their range; tied pairs without a loss.
        DataError: a reward, margin, scale, label or weight that is not finite or out of its range.
        ValueError: shapes that differ.
    """
    if not 0.0 <= label_smoothing <= 0.5:
        raise ConfigError(f"The label smoothing is {label_smoothing}; it must be between 0 and 0.5.")
    if ties is not None and not (math.isfinite(ties) and ties >= 1):
        raise ConfigError(f"The tie parameter theta is {ties}; it must be a number of at least 1.")
    if tie_square is not None:
        check_setting("tie_square", tie_square, at_least=0)
        if ties is not None:
            raise ConfigError("Tied pairs have one loss: give `ties` or `tie_square`, not both.")
    if not (math.isfinite(centering) and centering >= 0):
        raise ConfigError(f"The weight of the centering penalty is {centering}; it must be 0 or more.")
    chosen = as_tensor(chosen, "chosen")
    rejected = as_tensor(rejected, "rejected", chosen.device)
    check_same_shape(chosen=chosen, rejected=rejected)
    first, second = check_finite(chosen, "reward of the chosen"), check_finite(rejected, "reward of the rejected")
    m = _column(margin, first, "margin", -math.inf, math.inf)
    s = _column(scale, first, "scale", 0.0, math.inf)
    mu = _column(label, first, "label", 0.0, 1.0)
    w = _column(weight, first, "weight", 0.0, math.inf)
    mu = (1 - label_smoothing) * mu + label_smoothing * (1 - mu)
    z = s * (first - second)
    threshold = m if ties is None else m + math.log(ties)
    win, loss = -logsigmoid(z - threshold), -logsigmoid(-z - threshold)
    value = torch.where(mu == 1, win, torch.where(mu == 0, loss, mu * win + (1 - mu) * loss))
    if tied is not None:
        check_same_shape(chosen=chosen, tied=tied)
        if bool(tied.any()):
            if tie_square is not None:
                of_ties = tie_square * (first - second).square()
            elif ties is not None and ties > 1:
                of_ties = win + loss - math.log(ties**2 - 1)
            else:
                raise ConfigError(
                    f"{int(tied.sum())} pairs are ties, which have probability 0 without a tie parameter above 1. Give "
                    "`ties` (the paper: 5) or `tie_square`, or leave ties out, or give them the label 0.5."
                )
            value = torch.where(tied, of_ties, value)
    value = w * value
    if centering:
        value = value + centering * (first + second).square()
    return value.to(chosen.dtype) if chosen.is_floating_point() else value


def tie_probabilities(difference: Tensor, ties: float = 5.0) -> tuple[Tensor, Tensor, Tensor]:  # [n] -> [n] each
    """P(first above second), P(second above first), P(tie) after Rao and Kupper, for differences of reward [n].

    σ(d - log θ), σ(-d - log θ) and (θ² - 1) times their product; they add up to one (VideoReward, arXiv 2501.13918: θ =
    5).

    Raises:
        ConfigError: θ below 1. DataError: a difference that is not finite.
    """
    if not (math.isfinite(ties) and ties >= 1):
        raise ConfigError(f"The tie parameter theta is {ties}; it must be a number of at least 1.")
    d = check_finite(difference, "difference of reward")
    first, second = torch.sigmoid(d - math.log(ties)), torch.sigmoid(-d - math.log(ties))
    kind = difference.dtype if difference.is_floating_point() else torch.float64
    return tuple(p.to(kind) for p in (first, second, (ties**2 - 1) * first * second))  # type: ignore[return-value]


def inconsistency_penalty(difference: ArrayLike, entropy: float = 0.0) -> Tensor:  # [k, p] -> [p]
    """Disagreement of k rewards on a pair: mean_k KL(p_k ‖ p̄) + entropy · H(p̄), p_k = σ(d_k), p̄ = mean_k p_k.

    For internal rewards that are to agree (SCIR, arXiv 2502.08922): of an ensemble's members, or of a base and a
    refined reward, on pairs without labels. The divergence is ours. The KL
    pulls each reward to the mean, through which no gradient goes; the entropy pulls the mean away from 1/2. 0 for
    rewards that agree, between 0 and log k; turning all pairs round changes nothing.

    Args:
        difference: d, each reward's r(first) - r(second), in log odds; k of at least 1.
        entropy: weight of the entropy, 0 or more.
    """
    check_setting("entropy", entropy, at_least=0)
    d = check_finite(difference, "difference of rewards [k, p]")
    if not len(d):
        raise DataError("Disagreement of no rewards; expected the differences of at least 1.")
    sides = [(logsigmoid(z), torch.logsumexp(logsigmoid(z), 0) - math.log(len(z))) for z in (d, -d)]
    alike = (d == d[0]).all(0)
    apart = sum((log_p.exp() * (log_p - mean.detach()) for log_p, mean in sides), start=torch.zeros_like(d))
    unsure = sum((-mean.exp() * mean for _, mean in sides), start=torch.zeros_like(d[0]))
    return match_dtype(torch.where(alike, 0.0, apart.mean(0)) + entropy * unsure, difference)


def difference_objective(reward: ArrayLike, groups: Groups) -> Tensor:  # [n] -> [count]
    """Difference objective of each prompt: the mean over pairs of its responses of σ(|r_i - r_j|).

    What MetaRM (Secrets of RLHF II, arXiv 2401.06080) raises on responses of the shifted policy, so that the reward
    still tells them apart: θ' = θ + η ∇J(θ), then a step of θ along the pair loss's gradient at θ'. The form of J is
    ours. From 1/2 (all rewards equal) to below 1; offsets of a prompt's rewards change nothing.

    Args:
        reward: rewards, with gradient.
        groups: the prompt of each row; s responses take s² / 2 differences.

    Returns:
        J of each prompt; 0, without gradient, for fewer than two responses.
    """
    values = check_finite(reward, "rewards [n]", n=len(groups))
    total = values.new_zeros(groups.count)
    for which, rows in groups.to(values.device).by_size():
        size = rows.shape[1]
        if size > 1:
            some = values[rows]
            sums = (torch.sigmoid((some[:, apart:] - some[:, :-apart]).abs()).sum(1) for apart in range(1, size))
            total = total.index_copy(0, which, sum(sums, start=values.new_zeros(len(rows))) / (size * (size - 1) / 2))
    return match_dtype(total, reward)


def weighted_mean(values: Tensor, weight: Tensor) -> float:  # [..., p], [p] ->
    """Σ w v / Σ w over the last dimension, averaged over the others; float64."""
    total = (values.double() * weight).sum(-1) / weight.sum()
    return float(total.mean())


def pairs_loss(
    data: HeadData, scores: Callable[[Tensor], Tensor], label_smoothing: float = 0.0, centering: float = 0.0
) -> Callable[[Tensor], Tensor]:
    """Mean loss of the training pairs as a function of a linear head's weights; `scores`: weights to rewards [n]."""
    pairs = data.train

    def loss(weights: Tensor) -> Tensor:
        u = scores(weights)
        return pair_loss(
            u[pairs.chosen], u[pairs.rejected], label=pairs.label, weight=pairs.weight, margin=pairs.margin,
            label_smoothing=label_smoothing, centering=centering,
        ).mean()  # fmt: skip

    return loss


def held_out_loss(data: HeadData, scores: Callable[[Tensor], Tensor]) -> Callable[[Tensor], float] | None:
    """Weighted mean Bradley-Terry loss of the held-out pairs, with their labels and no margin; None where none are."""
    pairs = data.validation

    def loss(weights: Tensor) -> float:
        u = scores(weights)
        return weighted_mean(pair_loss(u[pairs.chosen], u[pairs.rejected], label=pairs.label), pairs.weight)

    return loss if len(pairs) else None


def _column(value: ArrayLike | float, like: Tensor, what: str, low: float, high: float) -> Tensor:
    """One number a pair, float64, within its range."""
    known = torch.tensor(float(value), dtype=torch.float64) if isinstance(value, int | float) else value
    column = as_tensor(known, what)
    if column.dim() == 0:
        column = column.to(like).expand_as(like)
    if column.shape != like.shape:
        raise ValueError(f"expected one {what} for each of {len(like)} pairs, got {tuple(column.shape)}")
    column = check_finite(column, what).to(like.device)
    bad = (column < low) | (column > high)
    if bool(bad.any()):
        place = int(bad.nonzero()[0, 0])
        limits = f"between {low:g} and {high:g}" if math.isfinite(high) else f"{low:g} or more"
        raise DataError(f"The {what} of pair {place} is {float(column[place])}; it must be {limits}.")
    return column
