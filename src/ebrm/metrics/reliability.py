"""Calibration of P(chosen > rejected), in folded form.

A pair's probability p always comes with the same outcome, "chosen was chosen": as they stand, such data cannot be
calibrated. So a pair counts by its *confidence* max(p, 1 - p), in [0.5, 1], and by whether the side with the larger
probability is the chosen one (p = 0.5: half). This equals counting each pair twice, as (p, 1) and as (1 - p, 0).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from ebrm.errors import ConfigError, DataError
from ebrm.metrics.bootstrap import (
    Bootstrap,
    Estimate,
    Floats,
    Integers,
    cluster_labels,
    cluster_sums,
    clustered_mean,
    finite_array,
    resample_sums,
)

# A sum of float32 probabilities may miss one by this much.
_ROUNDING = 1e-5


@dataclass(frozen=True)
class ReliabilityBin:
    """Pairs of about the same confidence: their mean confidence, share whose more probable side is chosen, number."""

    confidence: float
    accuracy: Estimate
    pairs: int


@dataclass(frozen=True)
class Calibration:
    """Calibration of pair probabilities, intervals over prompts.

    Attributes:
        bins: the reliability curve, bins of about equal numbers of pairs, by rising confidence.
        ece: expected calibration error, the mean over pairs of |accuracy - confidence| of their bin (0 is best). Its
            interval is for the mean of this number over samples of this size, what chance adds included: it says
            whether the error is more than `ece_if_calibrated`, not that it is more than 0.
        ece_if_calibrated: about what `ece` would be by chance if every probability were exactly right: never 0 with
            finite data, and larger where the pairs of a prompt are right or wrong together.
        brier: mean of (1 - p)^2 (0 is best, 0.25 for always saying one half).
        log_loss: mean of -log p, in nats (0 is best, 0.693 for always saying one half).
        pairs: number of pairs.
    """

    bins: tuple[ReliabilityBin, ...]
    ece: Estimate
    ece_if_calibrated: float
    brier: Estimate
    log_loss: Estimate
    pairs: int


@dataclass(frozen=True)
class BinnedCalibration:
    """Calibration errors over bins of equal width.

    Attributes:
        ece: expected calibration error, mean over pairs of |accuracy - probability| of their bin.
        ace: average calibration error, the same as a mean over bins, empty ones left out.
        mce: maximum calibration error, that of the worst bin.
        bins: bins that are not empty.
    """

    ece: float
    ace: float
    mce: float
    bins: int


def binned_calibration(probability: ArrayLike, label: ArrayLike | None = None, bins: int = 10) -> BinnedCalibration:
    """ECE, ACE and MCE over bins of equal width, each pair in both orders (MORE, arXiv 2312.07401).

    With P in one of `bins` (the paper: 5, 10, 20) equal parts of [0, 1], over the 2p pairs in both orders: ECE =
    Σ_b |Σ P - Σ y| / 2p, ACE the mean and MCE the highest |mean P - mean y| of the bins. To compare with numbers of
    other papers; `calibration` has bins of equal mass and says what chance does. A bin has its lower edge.

    Args:
        probability: P(first > second) [p].
        label: y, whether the first is better (1; 0; or between, of soft labels) [p]; None: it is, throughout.
        bins: 1 or more.

    Raises:
        DataError: no pairs, or a probability or label that is not from 0 to 1.
    """
    if bins < 1:
        raise ConfigError(f"bins is {bins}, expected 1 or more")
    p = finite_array(probability, "P(first > second)")
    y = np.ones(len(p)) if label is None else finite_array(label, "the label", len(p))
    for value, name in ((p, "probability"), (y, "label")):
        bad = np.flatnonzero((value < -_ROUNDING) | (value > 1 + _ROUNDING))
        if len(bad):
            raise DataError(f"The {name} in row {bad[0]} is {value[bad[0]]:g}; expected 0 to 1.")
    p, y = np.concatenate([p, 1 - p]).clip(0, 1), np.concatenate([y, 1 - y]).clip(0, 1)
    # 0.7 · 10 is 7, and so is (1 - 0.3) · 10, which rounding would put a bin lower.
    place = np.floor(np.round(p * bins, 9)).astype(np.int64).clip(0, bins - 1)
    gap, count = np.bincount(place, p - y, minlength=bins), np.bincount(place, minlength=bins)
    gap, count = np.abs(gap[count > 0]), count[count > 0]
    return BinnedCalibration(
        float(gap.sum() / len(p)), float((gap / count).mean()), float((gap / count).max()), len(count)
    )  # fmt: skip


def equal_mass_bins(value: ArrayLike, bins: int) -> Integers:
    """Bin of each value [n], 0 .. at most bins - 1 without gaps, of about equal counts; equal values share a bin."""
    value = finite_array(value, "what is put into bins")
    edges = np.quantile(value, np.linspace(0, 1, bins + 1))
    _, index = np.unique(np.searchsorted(edges[1:-1], value), return_inverse=True)
    return index.astype(np.int64)


def confidence_and_correct(probability: ArrayLike) -> tuple[Floats, Floats]:
    """Fold P(chosen > rejected) [p] into max(p, 1 - p), and 1 where p > 0.5, 0.5 where p = 0.5, 0 where p < 0.5.

    DataError: a probability outside [0, 1] by more than float32 rounding.
    """
    probability = finite_array(probability, "P(chosen > rejected)")
    outside = np.flatnonzero((probability < -_ROUNDING) | (probability > 1 + _ROUNDING))
    if len(outside):
        raise DataError(
            f"P(chosen > rejected) must lie in [0, 1], but {len(outside)} of {len(probability)} values do not, the "
            f"first ({probability[outside[0]]}) in row {outside[0]}. Rewards or margins are not probabilities."
        )
    probability = probability.clip(0, 1)
    correct = np.where(probability > 0.5, 1.0, np.where(probability == 0.5, 0.5, 0.0))
    return np.maximum(probability, 1 - probability), correct


def calibration(
    probability: ArrayLike, cluster: ArrayLike | None = None, bins: int = 10, *, bootstrap: Bootstrap = Bootstrap(1000)
) -> Calibration:
    """Expected calibration error, Brier score and log loss of P(chosen > rejected) [p], folded by confidence.

    `bins` of equal mass (Nguyen and O'Connor, 2015); fewer where confidences repeat.
    """
    confidence, correct = confidence_and_correct(probability)
    prompts = np.unique(cluster_labels(cluster, len(confidence)), return_inverse=True)[1]
    index = equal_mass_bins(confidence, bins)
    curve, gaps = [], []
    for number in range(index.max() + 1):
        rows = index == number
        accuracy = clustered_mean(correct[rows], prompts[rows], bootstrap=bootstrap)
        curve.append(ReliabilityBin(float(confidence[rows].mean()), accuracy, int(rows.sum())))
        gaps.append(np.where(rows, correct - confidence, 0.0))
    p = finite_array(probability, "P(chosen > rejected)").clip(0, 1)
    losses = (1 - p) ** 2, -np.log(p.clip(np.finfo(np.float64).eps))  # "impossible" must cost much, but not all
    sums = cluster_sums([np.ones(len(p)), *losses, *gaps], prompts)
    draws = resample_sums(sums, bootstrap=bootstrap)
    mean, drawn = (totals[..., 1:] / totals[..., :1] for totals in (sums.sum(axis=0), draws))
    return Calibration(
        bins=tuple(curve),
        ece=_ece_estimate(mean[2:], drawn[:, 2:], bootstrap),
        ece_if_calibrated=_ece_by_chance(confidence, index, np.sum(gaps, axis=0), prompts),
        brier=bootstrap.estimate(mean[0], drawn[:, 0]),
        log_loss=bootstrap.estimate(mean[1], drawn[:, 1]),
        pairs=len(confidence),
    )


def _ece_estimate(gap: Floats, drawn: Floats, bootstrap: Bootstrap) -> Estimate:
    """Σ |gap| over bins [m] with the interval of its sampling distribution, from resampled gaps [B, m].

    Resampled gaps are noisy twice, so their ECE is too large and too spread. So the observed gaps are shrunk by the
    factor at which resampling noise around them gives the observed ECE on average: near 0 for a calibrated reward.
    """
    ece, noise = float(np.abs(gap).sum()), drawn - gap
    smallest, largest = 0.0, 1.0
    for _ in range(30):
        middle = (smallest + largest) / 2
        if np.abs(middle * gap + noise).sum(axis=1).mean() < ece:
            smallest = middle
        else:
            largest = middle
    draws = np.abs(smallest * gap + noise).sum(axis=1)
    return bootstrap.estimate(ece, (draws - draws.mean() + ece).clip(0))


def _ece_by_chance(confidence: Floats, index: Integers, gap: Floats, prompt: Integers) -> float:
    """Mean ECE of calibrated rewards, from each bin's tosses of coins that know their bias."""
    variance = np.bincount(index, confidence * (1 - confidence))
    # Kish's design effect: how much more the sums of a prompt's gaps vary than if its pairs were independent.
    rest = gap - (np.bincount(index, gap) / np.bincount(index))[index]
    _, both = np.unique(index * np.int64(len(confidence)) + prompt, return_inverse=True)
    apart, together = (rest**2).sum(), (np.bincount(both, rest) ** 2).sum()
    effect = together / apart if apart > _ROUNDING**2 * len(gap) else 1.0
    # |sum of n centered coin tosses| is about half-normal: its mean is sqrt(2 / pi) standard deviations.
    return float(np.sqrt(2 / np.pi * effect * variance).sum() / len(confidence))
