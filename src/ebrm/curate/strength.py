"""How strongly several models prefer the chosen side of each pair, and what to do with weak and strong pairs.

"Secrets of RLHF in Large Language Models Part II: Reward Modeling" (arXiv 2401.06080): models trained alike vote on the
pairs; a low mean difference marks pairs that are likely labeled wrongly. The models must not have been fitted to
the labels they vote on, or they repeat them: see `ebrm.curate.cross_fitting`. The formulas were taken from accounts of
the paper; its public code holds the plain loss only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ebrm.errors import ConfigError
from ebrm.pairs import CurationReport, PreferencePairs
from ebrm.utils.validation import check_finite


@dataclass(frozen=True, eq=False)
class Strength:
    """Preference strength of p pairs, in the rewards' unit.

    Attributes:
        mean: μ, the mean over the models of r(chosen) - r(rejected), float64 [p].
        std: their standard deviation with the divisor k (`ddof` 0); 0 for one model and for equal ones [p].
    """

    mean: Tensor
    std: Tensor


def preference_strength(difference: Tensor) -> Strength:  # [k, p] -> of [p]
    """The models' mean difference and their disagreement.

        μ_i = mean_m d_im,  s_i = sqrt(mean_m (d_im - μ_i)²),  d_im = r_m(chosen_i) - r_m(rejected_i)

    An offset of each model's rewards (of each prompt's, even) does not matter; a positive scale of all goes through; a
    scale of one model changes its say. Flipping a pair negates its μ. The paper votes with 10 models.

    Args:
        difference: of each model and pair [k, p]: `pairs.difference(reward)` with rewards [k, n], or from
            `cross_fitted_difference`.

    Raises:
        ConfigError: no model.
        DataError: a number that is not finite.
        ValueError: not [k, p].
    """
    known = check_finite(difference, "difference of rewards [k, p]", 2)
    if not len(known):
        raise ConfigError("Preference strength was asked of no models; expected at least 1.")
    mean = known.mean(0)
    same = (known == known[0]).all(0)
    mean = torch.where(same, known[0], mean)
    return Strength(mean, (known - mean).square().mean(0).sqrt())


def flip_weakest(
    pairs: PreferencePairs, strength: Strength, fraction: float = 0.2, below: float = math.inf
) -> tuple[PreferencePairs, CurationReport]:
    """Flip the pairs of the lowest strength: the paper's 20%, where it finds labels that are likely wrong.

    The lowest ⌊fraction · p⌋ by μ; pairs of equal μ are flipped together or, where not all of them fit, not at all,
    so that the order of pairs does not matter. The paper flips that fraction whatever the sign of μ, and so flips good
    pairs of clean data; `below` (not from the paper) is a bound on what may be flipped: 0 spares all pairs that the
    models agree with. A margin that an earlier step measured stays as it is: set margins after flipping.

    Args:
        pairs: p of them.
        strength: theirs.
        fraction: of the pairs, from 0 to 1.
        below: flip only where μ < below, in the rewards' unit.
    """
    _fraction(fraction, "The fraction of pairs to flip")
    mean = _mean(pairs, strength)
    flip = _lowest(mean, fraction) & (mean < below)
    return pairs.after("flip the weakest", flip=flip, numbers={"mean strength": _average(mean)})


def soften_labels(
    pairs: PreferencePairs, strength: Strength, smoothing: float, weak: float = 0.0, strongest: float = 0.1
) -> tuple[PreferencePairs, CurationReport]:
    """Smooth the labels of weak pairs, which may be wrong, and of the strongest, which are overfitted.

        label' = (1 - a) · label + a · (1 - label),  where μ < weak or among the ⌊strongest · p⌋ highest μ

    With it the loss of a pair labeled 1 is -(1 - a) log σ(d) - a log σ(-d), with its minimum at d = logit(1 - a).
    Pairs of equal μ that do not all fit among the strongest are left out of them.

    Args:
        pairs: p of them.
        strength: theirs.
        smoothing: a, from 0 to 0.5, where a label says nothing. No default: the paper's is not known to us.
        weak: the bound on μ of weak pairs, in the rewards' unit; the paper's 0.
        strongest: fraction of the pairs, from 0 to 1; the paper names the top 10% apart.
    """
    if not 0 <= smoothing <= 0.5:
        raise ConfigError(f"The label smoothing is {smoothing}; expected a number from 0 to 0.5.")
    _fraction(strongest, "The fraction of strongest pairs")
    mean = _mean(pairs, strength)
    soft = (mean < weak) | _lowest(-mean, strongest)
    smooth = (1 - smoothing) * pairs.label + smoothing * (1 - pairs.label)
    return pairs.after("soften labels", label=torch.where(soft, smooth, pairs.label))


def adaptive_margin(pairs: PreferencePairs, strength: Strength) -> tuple[PreferencePairs, CurationReport]:
    """Ask each pair for the difference that the models saw: margin = μ, so that its loss is -log σ(d - μ).

    Negative for pairs that the models contradict, which then count little. After `flip_weakest`, take the strength of
    the flipped pairs anew (`flipped.difference(reward)`): theirs has the other sign.
    """
    mean = _mean(pairs, strength)
    return pairs.after("adaptive margin", margin=mean, numbers={"mean margin": _average(mean)})


def _mean(pairs: PreferencePairs, strength: Strength) -> Tensor:
    mean = check_finite(strength.mean, "preference strength")
    if len(mean) != len(pairs):
        raise ValueError(f"{len(mean)} strengths were given for {len(pairs)} pairs")
    return mean


def _lowest(values: Tensor, fraction: float) -> Tensor:
    """Which are among the lowest ⌊fraction · p⌋, equal ones together or not at all, bool [p]."""
    count = math.floor(fraction * len(values) + 1e-9)  # 0.29 · 100 is 28.999999999999996
    if count >= len(values):
        return torch.ones_like(values, dtype=torch.bool)
    return values < values.sort().values[count]


def _average(values: Tensor) -> float:
    return float(values.mean()) if len(values) else 0.0


def _fraction(value: float, what: str) -> None:
    if not 0 <= value <= 1:
        raise ConfigError(f"{what} is {value}; expected a number from 0 to 1.")
