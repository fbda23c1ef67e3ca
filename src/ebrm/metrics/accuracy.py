"""Accuracy of rewards on preference pairs: overall, refined against base, by category and group, and with ties."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ebrm.errors import ConfigError, DataError
from ebrm.metrics.bootstrap import (
    NOTHING,
    Bootstrap,
    Estimate,
    Floats,
    as_array,
    as_floats,
    cluster_labels,
    cluster_sums,
    clustered_mean,
    finite_array,
    resample_sums,
    share_interval,
)
from ebrm.metrics.power import FEW, smallest_difference
from ebrm.metrics.significance import sign_test
from ebrm.metrics.uncertainty import detection_auroc
from ebrm.metrics.within import check_nested

#: Under this name go pairs without a category, here and in the conflict filter's report.
NO_CATEGORY = "-"
Verdict = Literal["better", "worse", "no clear difference", "too few to tell"]
T = TypeVar("T")


@dataclass(frozen=True)
class PairedAccuracy:
    """Accuracy of two rewards on the same pairs, with intervals from the same resamples of the prompts.

    Attributes:
        base: share of pairs the base reward ranks correctly; a tie is wrong.
        refined: the same for the refined reward.
        difference: refined minus base.
        base_ties_half, refined_ties_half: as `base` and `refined`, a tie counting one half.
        pairs: number of pairs.
        prompts: number of distinct prompts, the unit that is resampled.
        flips_fixed, flips_broken: pairs wrong by the base reward and right by the refined one, and the reverse.
        ties_base, ties_refined: pairs whose two rewards are equal.
        sign_test: p-value of the exact sign test on the flips.
    """

    base: Estimate
    refined: Estimate
    difference: Estimate
    base_ties_half: Estimate
    refined_ties_half: Estimate
    pairs: int
    prompts: int
    flips_fixed: int
    flips_broken: int
    ties_base: int
    ties_refined: int
    sign_test: float
    bootstrap: Bootstrap

    @property
    def smallest(self) -> float | None:
        """The smallest difference that so many pairs could show, a share; None: too few for any.

        It is found with a probability of 80% (:func:`ebrm.metrics.smallest_difference`), each prompt counting once.
        """
        discordant = (self.flips_fixed + self.flips_broken) / self.pairs
        found = smallest_difference(discordant, min(self.pairs, self.prompts), level=self.bootstrap.level)
        return None if math.isnan(found) else found

    @property
    def verdict(self) -> Verdict:
        """Sign of the difference where its interval excludes zero; of fewer than `FEW` pairs, that they are too few."""
        if self.pairs < FEW:
            return "too few to tell"
        if not self.difference.excludes(0.0):
            return "no clear difference"
        return "better" if self.difference.value > 0 else "worse"


@dataclass(frozen=True)
class GroupAccuracy:
    """Accuracy over pairs and over groups.

    Attributes:
        mean: share of pairs that are right: groups count by their number of pairs.
        macro: mean of the groups' accuracies: groups count alike.
        worst: lowest accuracy of a group. It has no interval: the lowest of resampled groups is biased.
        worst_group: label of that group, the first in sorted order of equals.
        all_right: share of groups without a mistake (ACC+ where a group is a prompt).
        groups: number of groups.
    """

    mean: Estimate
    macro: Estimate
    worst: float
    worst_group: str
    all_right: Estimate
    groups: int


@dataclass(frozen=True)
class PreferenceRate:
    """Share of pairs whose first side has the higher reward: `strict`, and with a tie as one half; and counts."""

    strict: Estimate
    ties_half: Estimate
    ties: int
    pairs: int


@dataclass(frozen=True)
class HackPreference:
    """Preference for responses that game a metric over honest ones.

    Attributes:
        overall: the rate over all pairs; its `ties_half` is the hack preference rate, 0 best, 0.5 chance.
        by_method: the rate of each way of gaming, sorted by name; pairs without a name are under "-".
        macro: unweighted mean over ways of their `ties_half`.
        worst: the way of the highest `ties_half`, the first by name of equals.
        auroc: the reward as a detector of hacks, every hack against every honest response; 0.5 is blind, below it
            honest responses get more.
    """

    overall: PreferenceRate
    by_method: dict[str, PreferenceRate]
    macro: float
    worst: str
    auroc: Estimate


def correct_pairs(chosen: ArrayLike, rejected: ArrayLike, tie: float = 0.0) -> Floats:
    """Score pairs [p]: 1 where chosen > rejected, 0 where chosen < rejected, `tie` where they are equal.

    A tie is worth 0 by default, which asks for a strict order, as RewardBench does; 0.5 is a coin toss.
    """
    chosen = finite_array(chosen, "the reward of the chosen responses")
    rejected = finite_array(rejected, "the reward of the rejected responses", len(chosen))
    return np.where(chosen > rejected, 1.0, np.where(chosen == rejected, tie, 0.0))


def paired_accuracy(
    base_chosen: ArrayLike,
    base_rejected: ArrayLike,
    refined_chosen: ArrayLike,
    refined_rejected: ArrayLike,
    cluster: ArrayLike | None = None,
    *,
    bootstrap: Bootstrap = Bootstrap(),
) -> PairedAccuracy:
    """Compare a base and a refined reward on the same pairs [p each], paired.

    Where all prompts agree, the bootstrap has no spread: shares of 0 or 1 then have the interval of `share_interval`,
    and a difference the one that follows for the pairs fixed and broken. It is exactly 0
    where one reward rises with the other, so that they order everything alike.
    """
    base = correct_pairs(base_chosen, base_rejected)
    refined = correct_pairs(refined_chosen, refined_rejected)
    base_half = correct_pairs(base_chosen, base_rejected, tie=0.5)
    refined_half = correct_pairs(refined_chosen, refined_rejected, tie=0.5)
    if len(base) != len(refined):
        raise ValueError(f"{len(base)} base pairs and {len(refined)} refined pairs, expected the same pairs")
    labels = cluster_labels(cluster, len(base))
    sums = cluster_sums([np.ones(len(base)), base, refined, base_half, refined_half], labels)
    draws = resample_sums(sums, bootstrap=bootstrap)
    share = draws[:, 1:] / draws[:, :1]
    fixed = int(((base == 0) & (refined == 1)).sum())
    broken = int(((base == 1) & (refined == 0)).sum())
    difference = bootstrap.estimate((fixed - broken) / len(base), share[:, 1] - share[:, 0])
    if (
        difference.low == difference.high
        and {fixed, broken} <= {0, len(base)}
        and not _one_order(
            np.concatenate([as_floats(base_chosen, ""), as_floats(base_rejected, "")]),
            np.concatenate([as_floats(refined_chosen, ""), as_floats(refined_rejected, "")]),
        )
    ):
        flat = np.zeros(1)
        up, down = (share_interval(flips / len(base), flat, len(sums), bootstrap) for flips in (fixed, broken))
        difference = Estimate(difference.value, up.low - down.high, up.high - down.low)
    return PairedAccuracy(
        base=share_interval(float(base.mean()), share[:, 0], len(sums), bootstrap),
        refined=share_interval(float(refined.mean()), share[:, 1], len(sums), bootstrap),
        difference=difference,
        base_ties_half=share_interval(float(base_half.mean()), share[:, 2], len(sums), bootstrap),
        refined_ties_half=share_interval(float(refined_half.mean()), share[:, 3], len(sums), bootstrap),
        pairs=len(base),
        prompts=len(sums),
        flips_fixed=fixed,
        flips_broken=broken,
        ties_base=int((base_half == 0.5).sum()),
        ties_refined=int((refined_half == 0.5).sum()),
        sign_test=sign_test(fixed, broken),
        bootstrap=bootstrap,
    )


def _one_order(first: Floats, second: Floats) -> bool:
    """Whether the second reward [n] rises with the first and is equal where it is: the same order, scaled or bent."""
    order = np.argsort(first, kind="stable")
    steps, others = np.diff(first[order]), np.diff(second[order])
    return bool((others[steps > 0] > 0).all() and (others[steps == 0] == 0).all())


def paired_accuracy_by_category(
    base_chosen: ArrayLike,
    base_rejected: ArrayLike,
    refined_chosen: ArrayLike,
    refined_rejected: ArrayLike,
    cluster: ArrayLike | None,
    category: ArrayLike | Sequence[str | None],
    *,
    bootstrap: Bootstrap = Bootstrap(),
) -> dict[str, PairedAccuracy]:
    """`paired_accuracy` within each category [p] (str or None: "-"), sorted by name; none depends on the others."""
    sides = (base_rejected, refined_chosen, refined_rejected)
    rewards = [finite_array(base_chosen, "the base reward of the chosen responses")]
    rewards += [finite_array(side, "the reward of another side", len(rewards[0])) for side in sides]
    labels = cluster_labels(cluster, len(rewards[0]))

    def accuracy(rows: NDArray[np.bool_]) -> PairedAccuracy:
        first, second, third, fourth = (array[rows] for array in rewards)
        return paired_accuracy(first, second, third, fourth, labels[rows], bootstrap=bootstrap)

    return _by_name(category, len(rewards[0]), accuracy)


def group_accuracy(
    chosen: ArrayLike,
    rejected: ArrayLike,
    group: ArrayLike,
    tie: float = 0.0,
    cluster: ArrayLike | None = None,
    *,
    bootstrap: Bootstrap = Bootstrap(),
) -> GroupAccuracy:
    """Mean, macro and worst accuracy over users (Personalized RewardBench, arXiv 2604.07343), and ACC+.

    ACC+ is the share of groups all of whose pairs are ranked right (MM-RLHF, arXiv 2502.10391, and its public code).
    Rewards and `group`, a label of any sortable type, are [p]; each group lies in one cluster. `tie` is the worth of
    equal rewards, in [0, 1]; only pairs worth 1 are without a mistake.
    """
    if not 0 <= tie <= 1:
        raise ConfigError(f"tie is {tie}, expected 0 (wrong) to 1 (right)")
    right = correct_pairs(chosen, rejected, tie)
    groups = cluster_labels(group, len(right), "group")
    clusters = groups if cluster is None else cluster_labels(cluster, len(right))
    check_nested(groups, clusters)
    labels, first, place = np.unique(groups, return_index=True, return_inverse=True)
    pairs, total = cluster_sums([np.ones(len(right)), right], place).T
    accuracy, of_group = total / pairs, clusters[first]
    worst = int(np.argmin(accuracy))
    return GroupAccuracy(
        mean=clustered_mean(right, clusters, bootstrap=bootstrap),
        macro=clustered_mean(accuracy, of_group, bootstrap=bootstrap),
        worst=float(accuracy[worst]),
        worst_group=str(labels[worst]),
        all_right=clustered_mean(accuracy == 1, of_group, bootstrap=bootstrap),
        groups=len(labels),
    )


def preference_rate(
    first: ArrayLike, second: ArrayLike, cluster: ArrayLike | None = None, *, bootstrap: Bootstrap = Bootstrap()
) -> PreferenceRate:
    """Share of pairs with first > second, from rewards of both sides [p]."""
    half = correct_pairs(first, second, tie=0.5)
    labels = cluster_labels(cluster, len(half))
    return PreferenceRate(
        strict=clustered_mean(half == 1, labels, bootstrap=bootstrap),
        ties_half=clustered_mean(half, labels, bootstrap=bootstrap),
        ties=int((half == 0.5).sum()),
        pairs=len(half),
    )


def contrast_consistency(
    match: ArrayLike, mismatch: ArrayLike, cluster: ArrayLike | None = None, *, bootstrap: Bootstrap = Bootstrap()
) -> PreferenceRate:
    """Consistency on Contrast Instructions: similar prompts q, q' with different right responses y, y'.

    A consistent reward ranks (q, y) above the other combinations. *Instruction consistency* changes the prompt: match
    r(q, y), mismatch r(q', y). *Response consistency* changes the response: match r(q, y), mismatch r(q, y'). From The
    Trickle-down Impact of Reward (In-)consistency on RLHF (arXiv 2309.16155), whose code counts strictly: a reward that
    never looks at the prompt has an instruction consistency of 0, with ties as one half 0.5 (chance). An offset of a
    prompt's rewards changes instruction consistency. Give both directions as two rows of one cluster.
    """
    return preference_rate(match, mismatch, cluster, bootstrap=bootstrap)


def hack_preference_rate(
    hack: ArrayLike,
    honest: ArrayLike,
    method: ArrayLike | Sequence[str | None] | None = None,
    cluster: ArrayLike | None = None,
    *,
    bootstrap: Bootstrap = Bootstrap(),
) -> HackPreference:
    """Share of prompts whose response that games the stated metric gets more reward than the honest one (ours).

    For data like School of Reward Hacks (arXiv 2508.17511), which has both for each task. Use such data to evaluate,
    never as chosen responses. `hack` and `honest` are rewards [p], `method` how each hack games (str or None) [p]. An
    offset of a prompt changes the AUROC only.
    """
    overall = preference_rate(hack, honest, cluster, bootstrap=bootstrap)
    hack, honest = as_floats(hack, "hack"), as_floats(honest, "honest")
    labels = cluster_labels(cluster, len(hack))
    rates = _by_name(
        [None] * len(hack) if method is None else method,
        len(hack),
        lambda rows: preference_rate(hack[rows], honest[rows], labels[rows], bootstrap=bootstrap),
    )
    is_hack, both = np.repeat([1.0, 0.0], len(hack)), np.concatenate([labels, labels])
    auroc = detection_auroc(np.concatenate([hack, honest]), is_hack, both, bootstrap=bootstrap)
    assert auroc is not None  # there are as many hacks as honest responses
    return HackPreference(
        overall=overall,
        by_method=rates,
        macro=float(np.mean([rate.ties_half.value for rate in rates.values()])),
        worst=max(rates, key=lambda name: rates[name].ties_half.value),
        auroc=auroc,
    )


def tie_threshold(difference: ArrayLike, label: ArrayLike) -> float:
    """Tie calibration: the lowest threshold under which most pairs, human ties among them, are right.

    Pairs have a difference d [p], first minus second reward, and a label [p]: 1 (first better), -1 (second better) or 0
    (a tie). A pair is right if it is a tie and |d| <= threshold, or if it is none, |d| > threshold and d has the
    label's sign. Deutsch, Foster and Freitag, "Ties Matter" (arXiv 2305.14324), used for reward models in VideoReward
    (arXiv 2501.13918). This is the exact optimum, over 0 and all |d| (the scan in VideoReward's code is off by one at
    its ends). Find it on other pairs than those it is used on: there the accuracy is too high, as any maximum is.
    """
    difference, label = _labeled(difference, label)
    size = np.abs(difference)
    tried, place = np.unique(np.append(size, 0.0), return_inverse=True)
    place = place[:-1]
    tied = np.bincount(place, weights=label == 0, minlength=len(tried))
    concordant = np.bincount(place, weights=np.sign(difference) * label > 0, minlength=len(tried))
    right = np.cumsum(tied) + concordant.sum() - np.cumsum(concordant)
    return float(tried[np.argmax(right)])  # the first of equals


def accuracy_with_ties(
    difference: ArrayLike,
    label: ArrayLike,
    threshold: float,
    cluster: ArrayLike | None = None,
    *,
    bootstrap: Bootstrap = Bootstrap(),
) -> Estimate:
    """Share of pairs, ties among them, that are right if |difference| <= threshold is a tie; see `tie_threshold`.

    The interval takes the threshold as given: how it was found is not in it.
    """
    difference, label = _labeled(difference, label)
    if not threshold >= 0:
        raise ConfigError(f"threshold is {threshold}, expected 0 or more: the largest difference that is a tie")
    found = np.where(np.abs(difference) <= threshold, 0.0, np.sign(difference))
    return clustered_mean(found == label, cluster_labels(cluster, len(label)), bootstrap=bootstrap)


def accuracy_without_ties(
    difference: ArrayLike, label: ArrayLike, cluster: ArrayLike | None = None, *, bootstrap: Bootstrap = Bootstrap()
) -> Estimate:
    """Share of the pairs with a label of 1 or -1 whose difference [p] has that sign (equal is wrong), or NaN."""
    difference, label = _labeled(difference, label)
    clusters, decided = cluster_labels(cluster, len(label)), label != 0
    if not decided.any():
        return NOTHING
    right = np.sign(difference[decided]) == label[decided]
    return clustered_mean(right, clusters[decided], bootstrap=bootstrap)


def _by_name(
    names: ArrayLike | Sequence[str | None], rows: int, function: Callable[[NDArray[np.bool_]], T]
) -> dict[str, T]:
    labels = np.array([str(name or NO_CATEGORY) for name in as_array(np.asarray(names, dtype=object))])
    if len(labels) != rows:
        raise ValueError(f"{rows} pairs and {len(labels)} names of what they belong to, expected one a pair")
    if not rows:
        raise DataError("There are no pairs to evaluate. At least one pair is needed.")
    return {str(name): function(labels == name) for name in np.unique(labels)}


def _labeled(difference: ArrayLike, label: ArrayLike) -> tuple[Floats, Floats]:
    difference = finite_array(difference, "the difference of the rewards")
    label = finite_array(label, "the label", len(difference))
    bad = np.flatnonzero(~np.isin(label, (-1.0, 0.0, 1.0)))
    if len(bad):
        raise DataError(
            f"{len(bad)} of {len(label)} labels are none of 1 (first better), 0 (tie) and -1 (second better), the "
            f"first ({label[bad[0]]}) in row {bad[0]}."
        )
    return difference, label
