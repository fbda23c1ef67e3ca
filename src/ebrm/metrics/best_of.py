"""Right responses against many wrong ones: do they lead, and do equally good ones get about equal rewards?

All of it comes from two numbers of an item: its *lead*, the lowest reward of a right response minus the highest of a
wrong one, and its *spread*, the highest minus the lowest reward of the right ones.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ebrm.errors import DataError
from ebrm.metrics.bootstrap import Bootstrap, Estimate, cluster_labels, clustered_mean
from ebrm.metrics.ranking import checked_tables, reciprocal_rank

Floats = NDArray[np.float64]

#: Weights of the five parts of the ties score, in the order of `TiesScore`.
TIES_WEIGHTS = (0.30, 0.30, 0.20, 0.20, 0.01)


@dataclass(frozen=True)
class OneToMany:
    """How often every right response of an item beats all of its wrong ones.

    Attributes:
        accuracy: share of items whose lead is above 0: a tie is wrong.
        accuracy_with_ties: share of items whose lead is 0 or more: a tie is right.
        mrr: mean reciprocal rank of the best right response, wrong ones of equal reward before it.
        items: number of items.
    """

    accuracy: Estimate
    accuracy_with_ties: Estimate
    mrr: Estimate
    items: int


@dataclass(frozen=True)
class TiesScore:
    """The ties score of RewardBench 2 and its five parts, each a mean over questions.

    Attributes:
        score: 0.3, 0.3, 0.2, 0.2 and 0.01 times the parts, from -0.01 to 1.01, with its interval over questions.
        tied_right: share of questions with several right answers whose lead is above 0.
        ref_right: the same for their partners with one right answer.
        lead_over_spread: share of questions with several right answers whose lead is above their spread.
        both_leads_over_spread: share whose smaller lead, of the two partners, is above that spread.
        margin: mean of tanh(smaller lead / spread - 1).
        questions: number of questions.
    """

    score: Estimate
    tied_right: float
    ref_right: float
    lead_over_spread: float
    both_leads_over_spread: float
    margin: float
    questions: int


def leads(rewards: ArrayLike, gold: ArrayLike) -> tuple[Floats, Floats]:
    """Lead and spread of each item.

    Offsets of an item's rewards change neither; a positive factor is one of both.

    Args:
        rewards: rewards [n, r], NaN beyond an item's last response.
        gold: 1.0 for right and 0.0 for wrong responses [n, r], NaN beyond the last.

    Returns:
        (min right - max wrong [n], max right - min right [n]); the spread is 0 where one response is right.

    Raises:
        DataError: if a response has no finite reward or no gold, gold is not 0 or 1, or an item lacks right or wrong
            responses.
        ValueError: if the shapes differ or are not [n, r].
    """
    rewards, gold, there = checked_tables(rewards, gold)
    right, wrong = gold == 1, gold == 0
    bad = np.flatnonzero((there & ~right & ~wrong).any(axis=1) | ~right.any(axis=1) | ~wrong.any(axis=1))
    if len(bad):
        raise DataError(
            f"{len(bad)} of {len(gold)} items do not have right (1.0) and wrong (0.0) responses and no others, the "
            f"first in row {bad[0]}: {gold[bad[0]][there[bad[0]]].tolist()}. Leave such items out."
        )
    low = np.min(rewards, axis=1, initial=np.inf, where=right)
    high = np.max(rewards, axis=1, initial=-np.inf, where=right)
    return low - np.max(rewards, axis=1, initial=-np.inf, where=wrong), high - low


def one_to_many(
    rewards: ArrayLike,
    gold: ArrayLike,
    cluster: ArrayLike | None = None,
    *,
    bootstrap: Bootstrap = Bootstrap(),
) -> OneToMany:
    """Accuracy and mean reciprocal rank of right responses among many wrong ones.

    As in RewardMATH (arXiv 2410.01729), with one right and nine wrong solutions a problem; any numbers of both will do.
    `item_tables` makes the tables from rows. For best-of-four with shared credit for ties at the top, as in
    RewardBench 2, take the mean of `picked_gold`. A rising map of all rewards and offsets of items change nothing.

    Args:
        rewards: rewards [n, r], NaN beyond an item's last response.
        gold: 1.0 for right and 0.0 for wrong responses [n, r], NaN beyond the last.
        cluster: one label an item [n], the unit resampled; None: each item its own.
        bootstrap: of the intervals.

    Raises:
        DataError: see `leads`; or if there are no items.
        ValueError: if the arrays do not fit together.
    """
    lead, _ = leads(rewards, gold)
    cluster = _clusters(cluster, len(lead))

    def mean(value: ArrayLike) -> Estimate:
        return clustered_mean(value, cluster, bootstrap=bootstrap)

    return OneToMany(mean(lead > 0), mean(lead >= 0), mean(reciprocal_rank(rewards, gold)), len(lead))


def ties_score(
    tied_rewards: ArrayLike,
    tied_gold: ArrayLike,
    ref_rewards: ArrayLike,
    ref_gold: ArrayLike,
    cluster: ArrayLike | None = None,
    *,
    bootstrap: Bootstrap = Bootstrap(),
) -> TiesScore:
    """Whether rewards put all right answers above the wrong ones, and more so than they tell right ones apart.

    From RewardBench 2 (arXiv 2506.01937): a question with several right answers (tied) has a partner with one (ref).
    With the tied question's lead m and spread d, its partner's lead m', and least = min(m, m'), the score is

        0.30 mean(m > 0) + 0.30 mean(m' > 0) + 0.20 mean(m > d) + 0.20 mean(least > d) + 0.01 mean(tanh(least/d - 1))

    If d = 0 the last ratio is infinite with the sign of `least`, its tanh 1 or -1; 0/0 counts as 0. (The package
    `rewardbench` up to 0.1.4 leaves questions with d = 0 out of the last mean.) The weights sum to 1.01. A positive
    factor of all rewards and offsets of questions change nothing.

    Args:
        tied_rewards: rewards of the questions with several right answers [n, r].
        tied_gold: 1.0 for right and 0.0 for wrong answers [n, r].
        ref_rewards: rewards of their partners, in the same order [n, s].
        ref_gold: see `tied_gold` [n, s].
        cluster: one label a question [n], the unit resampled; None: each question, with its partner, its own.
        bootstrap: of the intervals.

    Raises:
        DataError: see `leads`; if there are no questions, or a tied question has one right answer only.
        ValueError: if the arrays do not fit together.
    """
    lead, spread = leads(tied_rewards, tied_gold)
    ref_lead, _ = leads(ref_rewards, ref_gold)
    if len(lead) != len(ref_lead):
        raise ValueError(f"{len(lead)} tied questions and {len(ref_lead)} partners, expected one partner each")
    single = np.flatnonzero((np.asarray(tied_gold, dtype=np.float64) == 1).sum(axis=1) < 2)
    if len(single):
        raise DataError(
            f"{len(single)} of {len(lead)} tied questions have one right answer only, the first in row {single[0]}: "
            "the spread of right answers needs two or more."
        )
    cluster = _clusters(cluster, len(lead))
    parts = np.stack([lead > 0, ref_lead > 0, *ties_comparisons(lead, spread, ref_lead)]).astype(np.float64)
    score = clustered_mean(np.array(TIES_WEIGHTS) @ parts, cluster, bootstrap=bootstrap)
    tied, ref, over, both, mean_margin = (float(np.sort(part).mean()) for part in parts)
    return TiesScore(score, tied, ref, over, both, mean_margin, len(lead))


def ties_comparisons(tied_lead: Floats, tied_spread: Floats, ref_lead: Floats) -> tuple[Floats, Floats, Floats]:
    """The last three parts of `ties_score` of each question, from leads and spreads [n]: its formula says which [n]."""
    least = np.minimum(tied_lead, ref_lead)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        margin = np.nan_to_num(np.tanh(least / tied_spread - 1), nan=0.0)
    return (tied_lead > tied_spread).astype(np.float64), (least > tied_spread).astype(np.float64), margin


def _clusters(cluster: ArrayLike | None, items: int) -> NDArray[np.generic]:
    if not items:
        raise DataError("There are no items to evaluate. At least one is needed.")
    return cluster_labels(cluster, items)
