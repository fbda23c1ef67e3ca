"""Ranking of the responses to one prompt: order, best-of-n and RewardBench 2's ties, item by item.

Tables are [n, r]: one row an item, one column a response, NaN beyond an item's last response in both tables. Of right
and wrong responses two numbers matter: the *lead*, the lowest reward of a right response minus the highest of a wrong
one, and the *spread*, the highest minus the lowest reward of the right ones.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ebrm.errors import DataError
from ebrm.metrics.bootstrap import (
    Bootstrap,
    Estimate,
    Floats,
    as_array,
    as_floats,
    cluster_labels,
    clustered_mean,
    ratio,
)

#: Weights of the five parts of the ties score, in the order of `TiesScore`.
TIES_WEIGHTS = (0.30, 0.30, 0.20, 0.20, 0.01)
_CHUNK_CELLS = 1_000_000


@dataclass(frozen=True)
class OneToMany:
    """Right responses against many wrong ones.

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
        tied_right, ref_right: share whose lead is above 0: questions with several right answers, their partners.
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


def reciprocal_rank(rewards: ArrayLike, gold: ArrayLike) -> Floats:
    """One over the rank of the best right response [n]; its mean over items is the mean reciprocal rank (MRR).

    1 / (1 + number of wrong responses with at least the reward of the best right one): as in RewardMATH (arXiv
    2410.01729), ties count against the right response. Gold [n, r] is 1.0 for right and 0.0 for wrong responses. NaN
    for items without a right response.
    """
    rewards, gold, there = checked_tables(rewards, gold)
    if not np.isin(gold[there], (0.0, 1.0)).all():
        raise ValueError("the reciprocal rank needs responses that are right (1.0) or wrong (0.0)")
    best = np.max(rewards, axis=1, initial=-np.inf, where=gold == 1)
    before = ((gold == 0) & (rewards >= best[:, None])).sum(axis=1)
    return np.where((gold == 1).any(axis=1), 1 / (1 + before), np.nan)


def rank_correlation(rewards: ArrayLike, gold: ArrayLike) -> tuple[Floats, Floats]:
    """Kendall's tau-b [n] and Spearman's rho [n] of rewards and graded gold [n, r] within each item.

    Both are Σ a b / sqrt(Σ a² Σ b²) (Daniels, Biometrika 33, 1944): tau-b (Kendall 1945) with the signs of all
    differences as scores, rho with their sums, twice the centered average ranks. They equal SciPy's `kendalltau` and
    `spearmanr`; NaN for items whose rewards or golds are all equal.
    """
    rewards, gold, _ = checked_tables(rewards, gold)
    items, responses = rewards.shape
    tau, rho = np.full(items, np.nan), np.full(items, np.nan)
    chunk = max(1, _CHUNK_CELLS // max(1, responses**2))
    for start in range(0, items, chunk):
        rows = slice(start, start + chunk)
        first, second = (_difference_signs(table[rows]) for table in (rewards, gold))
        tau[rows] = _correlation(first.reshape(len(first), -1), second.reshape(len(second), -1))
        rho[rows] = _correlation(first.sum(axis=2), second.sum(axis=2))
    return tau, rho


def weighted_agreement(rewards: ArrayLike, gold: ArrayLike) -> Floats:
    """Weighted pair agreement with graded gold [n]: a pair of responses weighs 1 + |difference of its golds|.

    1 - Σ penalty / Σ w over the pairs of an item, w_ij = 1 + |g_i - g_j|: a pair in reversed order costs w_ij, equal
    rewards for different golds cost w_ij / 2, and equal golds cost nothing. From RewardAnything (arXiv 2506.03637),
    whose code gives 1 to items of fewer than two responses; here they are NaN.
    """
    rewards, gold, there = checked_tables(rewards, gold)
    agreement = np.full(len(gold), np.nan)
    chunk = max(1, _CHUNK_CELLS // max(1, gold.shape[1] ** 2))
    for start in range(0, len(gold), chunk):
        rows = slice(start, start + chunk)
        better = _difference_signs(gold[rows]) > 0  # each pair of different golds once, from its better side
        penalty = np.where(better, (1 - _difference_signs(rewards[rows])) / 2, 0.0)
        difference = np.where(there[rows], gold[rows], 0.0)
        weight = 1 + np.abs(difference[:, :, None] - difference[:, None, :])
        pairs = there[rows, :, None] & there[rows, None, :] & ~np.eye(gold.shape[1], dtype=bool)
        total = np.sum(weight, axis=(1, 2), where=pairs) / 2
        cost = np.sum(weight * penalty, axis=(1, 2))
        agreement[rows] = 1 - ratio(cost, total)
    return agreement


def item_tables(item: ArrayLike, *columns: ArrayLike) -> tuple[Floats, ...]:
    """Tables [n, r] of numbers of responses (rewards, golds) [m], from each response's item label [m].

    Items are in the sorted order of their labels, responses in the order of rows, NaN beyond an item's last one.
    """
    labels, row = np.unique(as_array(item), return_inverse=True)
    sizes = np.bincount(row, minlength=len(labels))
    order = np.argsort(row, kind="stable")
    place = np.empty(len(row), dtype=np.int64)
    place[order] = np.arange(len(row)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    tables = []
    for column in columns:
        values = as_floats(column, "a column")
        if values.shape != row.shape:
            raise ValueError(f"{len(row)} item labels and a column of shape {values.shape}")
        table = np.full((len(labels), int(sizes.max(initial=0))), np.nan)
        table[row, place] = values
        tables.append(table)
    return tuple(tables)


def picked_gold(rewards: ArrayLike, gold: ArrayLike) -> Floats:
    """Gold that best-of-n picks by the rewards [n], ties broken at random, in expectation; NaN without responses."""
    rewards, gold, there = checked_tables(rewards, gold)
    best = np.max(rewards, axis=1, initial=-np.inf, where=there)
    picked = there & (rewards == best[:, None])
    return ratio(np.sum(gold, axis=1, where=picked), picked.sum(axis=1))


def leads(rewards: ArrayLike, gold: ArrayLike) -> tuple[Floats, Floats]:
    """Lead (min right - max wrong) and spread (max right - min right) of each item [n], from tables [n, r].

    DataError: an item without a right (1.0) or a wrong (0.0) response, or with others.
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
    rewards: ArrayLike, gold: ArrayLike, cluster: ArrayLike | None = None, *, bootstrap: Bootstrap = Bootstrap()
) -> OneToMany:
    """Accuracy and mean reciprocal rank of right among many wrong responses (RewardMATH, arXiv 2410.01729).

    There with one right and nine wrong solutions a problem; any numbers of both will do. Gold [n, r] is 1.0 for right
    and 0.0 for wrong responses. For best-of-four with shared credit for ties at the top, as in RewardBench 2, take the
    mean of `picked_gold`.
    """
    lead, _ = leads(rewards, gold)
    labels = _labels(cluster, len(lead))
    parts = (lead > 0, lead >= 0, reciprocal_rank(rewards, gold))
    strict, with_ties, rank = (clustered_mean(part, labels, bootstrap=bootstrap) for part in parts)
    return OneToMany(strict, with_ties, rank, len(lead))


def ties_score(
    tied_rewards: ArrayLike,
    tied_gold: ArrayLike,
    ref_rewards: ArrayLike,
    ref_gold: ArrayLike,
    cluster: ArrayLike | None = None,
    *,
    bootstrap: Bootstrap = Bootstrap(),
) -> TiesScore:
    """The ties score of RewardBench 2: all right answers above the wrong ones, and closer to each other than to those.

    arXiv 2506.01937: a question with several right answers (tied) has a partner with one (ref). With the tied
    question's lead m and spread d, its partner's lead m', and least = min(m, m'), the score is

        0.30 mean(m > 0) + 0.30 mean(m' > 0) + 0.20 mean(m > d) + 0.20 mean(least > d) + 0.01 mean(tanh(least/d - 1))

    If d = 0 the last ratio is infinite with the sign of `least`, its tanh 1 or -1; 0/0 counts as 0. (The package
    `rewardbench` up to 0.1.4 leaves questions with d = 0 out of the last mean.) The weights sum to 1.01. Tables of
    tied questions are [n, r], those of their partners, in the same order, [n, s]; `cluster` is of a question with its
    partner.
    """
    lead, spread = leads(tied_rewards, tied_gold)
    ref_lead, _ = leads(ref_rewards, ref_gold)
    if len(lead) != len(ref_lead):
        raise ValueError(f"{len(lead)} tied questions and {len(ref_lead)} partners, expected one partner each")
    single = np.flatnonzero((as_floats(tied_gold, "gold") == 1).sum(axis=1) < 2)
    if len(single):
        raise DataError(
            f"{len(single)} of {len(lead)} tied questions have one right answer only, the first in row {single[0]}: "
            "the spread of right answers needs two or more."
        )
    labels = _labels(cluster, len(lead))
    parts = np.stack([lead > 0, ref_lead > 0, *ties_comparisons(lead, spread, ref_lead)]).astype(np.float64)
    score = clustered_mean(np.array(TIES_WEIGHTS) @ parts, labels, bootstrap=bootstrap)
    tied, ref, over, both, mean_margin = (float(np.sort(part).mean()) for part in parts)
    return TiesScore(score, tied, ref, over, both, mean_margin, len(lead))


def ties_comparisons(tied_lead: Floats, tied_spread: Floats, ref_lead: Floats) -> tuple[Floats, Floats, Floats]:
    """(m > d, least > d, tanh(least/d - 1)) of each question, the last three parts of `ties_score`, from [n] each."""
    least = np.minimum(tied_lead, ref_lead)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        margin = np.nan_to_num(np.tanh(least / tied_spread - 1), nan=0.0)
    return (tied_lead > tied_spread).astype(np.float64), (least > tied_spread).astype(np.float64), margin


def checked_tables(rewards: ArrayLike, gold: ArrayLike) -> tuple[Floats, Floats, NDArray[np.bool_]]:
    """Both tables [n, r] in float64, and where there are responses; DataError, ValueError: see the package."""
    rewards, gold = as_floats(rewards, "rewards"), as_floats(gold, "gold")
    if rewards.ndim != 2 or rewards.shape != gold.shape:
        raise ValueError(f"rewards {rewards.shape} and gold {gold.shape}: expected [n, r] of both")
    bad = np.flatnonzero(((np.isfinite(rewards) != np.isfinite(gold)) | np.isinf(rewards)).any(axis=1))
    if len(bad):
        raise DataError(
            f"{len(bad)} of {len(rewards)} items have a response without a finite reward, or a reward without a "
            f"response, the first in row {bad[0]}. Leave such items out for all rewards that are compared, and count "
            "them."
        )
    return rewards, gold, np.isfinite(gold)


def _labels(cluster: ArrayLike | None, items: int) -> NDArray[np.generic]:
    if not items:
        raise DataError("There are no items to evaluate. At least one is needed.")
    return cluster_labels(cluster, items)


def _difference_signs(table: Floats) -> NDArray[np.int64]:
    """Signs of all differences within a row [n, r, r]; 0 where a response is missing."""
    first, second = table[:, :, None], table[:, None, :]
    return (first > second).astype(np.int64) - (first < second)


def _correlation(first: NDArray[np.int64], second: NDArray[np.int64]) -> Floats:
    """Σ a b / sqrt(Σ a² Σ b²) of each row [n]; NaN where a side is all zero."""
    squares = np.float64(1) * (first**2).sum(axis=1) * (second**2).sum(axis=1)
    return ratio((first * second).sum(axis=1), np.sqrt(squares))
