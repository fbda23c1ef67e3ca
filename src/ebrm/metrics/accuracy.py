"""How often a reward ranks the chosen response above the rejected one, and whether refining changed it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import binomtest

from ebrm.errors import DataError
from ebrm.metrics.bootstrap import (
    Bootstrap,
    Estimate,
    cluster_sums,
    finite_array,
    resample_sums,
)

#: Under this name go pairs without a category, here and in the conflict filter's report.
NO_CATEGORY = "-"
Verdict = Literal["better", "worse", "no clear difference"]


@dataclass(frozen=True)
class PairedAccuracy:
    """Accuracy of two rewards on the same pairs, with intervals from the same resamples of the prompts.

    Attributes:
        base: share of pairs the base reward ranks correctly; a tie is wrong.
        refined: the same for the refined reward.
        difference: refined minus base.
        base_ties_half: as `base`, a tie counting one half.
        refined_ties_half: as `refined`, a tie counting one half.
        pairs: number of pairs.
        prompts: number of distinct prompts, the unit that is resampled.
        flips_fixed: pairs the base reward had wrong and the refined one has right.
        flips_broken: pairs the base reward had right and the refined one has wrong.
        ties_base: pairs whose two base rewards are equal.
        ties_refined: pairs whose two refined rewards are equal.
        sign_test: p-value of the exact sign test on the flips, see `sign_test`.
        bootstrap: of the intervals.
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
    def verdict(self) -> Verdict:
        """What the interval of the difference allows to say; one that touches zero allows nothing."""
        if not self.difference.excludes(0.0):
            return "no clear difference"
        return "better" if self.difference.value > 0 else "worse"


def correct_pairs(chosen: ArrayLike, rejected: ArrayLike, tie: float = 0.0) -> NDArray[np.float64]:
    """Score pairs: 1 where chosen > rejected, 0 where chosen < rejected, `tie` where they are equal.

    Args:
        chosen: rewards of the chosen responses [p].
        rejected: rewards of the rejected responses [p].
        tie: worth of a tie; 0 (default) asks for a strict order, as RewardBench does; 0.5 is a coin toss.
    """
    chosen = finite_array(chosen, "the reward of the chosen responses")
    rejected = finite_array(rejected, "the reward of the rejected responses", len(chosen))
    return np.where(chosen > rejected, 1.0, np.where(chosen == rejected, tie, 0.0))


def sign_test(fixed: int, broken: int) -> float:
    """Two-sided p-value of the exact sign test on discordant pairs (McNemar's test in its exact form).

    Under the hypothesis that refining changes nothing, a changed pair is as likely to be fixed as broken. The test
    takes the changed pairs as independent: it IGNORES that pairs of one prompt go together, and is too sure of itself
    where prompts have many pairs. The bootstrap interval of the difference does not have this flaw.

    Args:
        fixed: pairs only the refined reward ranks correctly.
        broken: pairs only the base reward ranks correctly.

    Returns:
        The p-value; 1.0 when nothing changed.
    """
    return float(binomtest(fixed, fixed + broken, 0.5).pvalue) if fixed + broken else 1.0


def paired_accuracy(
    base_chosen: ArrayLike,
    base_rejected: ArrayLike,
    refined_chosen: ArrayLike,
    refined_rejected: ArrayLike,
    prompt_id: ArrayLike,
    *,
    bootstrap: Bootstrap = Bootstrap(),
) -> PairedAccuracy:
    """Compare a base and a refined reward on the same pairs, resampling prompts.

    Args:
        base_chosen: base rewards of the chosen responses [p].
        base_rejected: base rewards of the rejected responses [p].
        refined_chosen: refined rewards of the chosen responses [p].
        refined_rejected: refined rewards of the rejected responses [p].
        prompt_id: one label a pair [p]; pairs with equal labels are resampled together.
        bootstrap: of the intervals.

    Raises:
        DataError: if there are no pairs or a reward is not finite.
        ValueError: if the arrays differ in length.
    """
    base = correct_pairs(base_chosen, base_rejected)
    refined = correct_pairs(refined_chosen, refined_rejected)
    base_half = correct_pairs(base_chosen, base_rejected, tie=0.5)
    refined_half = correct_pairs(refined_chosen, refined_rejected, tie=0.5)
    prompt_id = np.asarray(prompt_id)
    if not len(base) == len(refined) == len(prompt_id):
        raise ValueError(f"{len(base)} base pairs, {len(refined)} refined pairs and {len(prompt_id)} prompt ids")

    sums = cluster_sums([np.ones(len(base)), base, refined, base_half, refined_half], prompt_id)
    draws = resample_sums(sums, bootstrap=bootstrap)
    share = draws[:, 1:] / draws[:, :1]

    def estimate(value: NDArray[np.float64], draw: NDArray[np.float64]) -> Estimate:
        return bootstrap.estimate(float(value.mean()), draw)

    fixed = int(((base == 0) & (refined == 1)).sum())
    broken = int(((base == 1) & (refined == 0)).sum())
    return PairedAccuracy(
        base=estimate(base, share[:, 0]),
        refined=estimate(refined, share[:, 1]),
        difference=bootstrap.estimate((fixed - broken) / len(base), share[:, 1] - share[:, 0]),
        base_ties_half=estimate(base_half, share[:, 2]),
        refined_ties_half=estimate(refined_half, share[:, 3]),
        pairs=len(base),
        prompts=len(sums),
        flips_fixed=fixed,
        flips_broken=broken,
        ties_base=int((base_half == 0.5).sum()),
        ties_refined=int((refined_half == 0.5).sum()),
        sign_test=sign_test(fixed, broken),
        bootstrap=bootstrap,
    )


def paired_accuracy_by_category(
    base_chosen: ArrayLike,
    base_rejected: ArrayLike,
    refined_chosen: ArrayLike,
    refined_rejected: ArrayLike,
    prompt_id: ArrayLike,
    category: ArrayLike,
    *,
    bootstrap: Bootstrap = Bootstrap(),
) -> dict[str, PairedAccuracy]:
    """Apply `paired_accuracy` within each category.

    Args:
        category: one label a pair [p], str or None; pairs without one are reported under "-".
        base_chosen: as in `paired_accuracy`, like all others.
        base_rejected: see `paired_accuracy`.
        refined_chosen: see `paired_accuracy`.
        refined_rejected: see `paired_accuracy`.
        prompt_id: see `paired_accuracy`.
        bootstrap: of the intervals.

    Returns:
        Category to its accuracy, sorted by name. A category's numbers do not depend on the other categories.
    """
    rewards = [np.asarray(a) for a in (base_chosen, base_rejected, refined_chosen, refined_rejected)]
    prompt_id = np.asarray(prompt_id)
    labels = np.array([str(name or NO_CATEGORY) for name in np.asarray(category, dtype=object)])
    if len(labels) != len(rewards[0]):
        raise ValueError(f"{len(rewards[0])} pairs and {len(labels)} categories")
    if not len(labels):
        raise DataError("There are no pairs to evaluate. At least one pair is needed.")
    result = {}
    for name in np.unique(labels):
        rows = labels == name
        first, second, third, fourth = (array[rows] for array in rewards)
        result[str(name)] = paired_accuracy(first, second, third, fourth, prompt_id[rows], bootstrap=bootstrap)
    return result
