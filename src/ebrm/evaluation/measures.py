"""What can be said of scorers on a benchmark besides its official scores: numbers by name, for each scorer.

Intervals are over clusters of items, as those of the scores, from at most 1,000 resamples.

On pairs of a better and a worse response (at most nine an item, see `ebrm.evaluation.pairs`):
    pairs: how many.
    accuracy: share of an item's pairs ranked rightly, a tie counting as wrong; mean over items.
    accuracy_ties_half: the same, a tie counting one half.
    ties: share of an item's pairs with equal rewards; mean over items.
    margin: reward of the better minus that of the worse response, in standard deviations of all rewards that this
        scorer gave in this benchmark; mean over an item's pairs, then over items.
    ece, ece_if_calibrated, brier, log_loss: calibration of P(better > worse), every pair counting the same; only where
        responses are right or wrong.
    error_auroc_confidence, error_auroc_std: does low confidence, or a large standard deviation, tell wrong pairs?
    aurc_confidence, aurc_std: area under the risk-coverage curve by the same, what is wrong among the pairs kept, on
        average over all shares kept; aurc_random and aurc_best: the areas of an uncertainty that knows nothing, and of
        one that knows all. aurc_gain_confidence, aurc_gain_std: aurc_random minus the area, what abstaining gains.
    length_matched_accuracy: accuracy on pairs whose longer response is at most 1.1 times as long as the shorter (in
        characters), every pair counting the same; length_matched_pairs: how many.

On items:
    length_correlation: Pearson correlation of reward and length within items.
    one_to_many, mrr: where one response among three or more is right: share of items in which it is strictly the
        first, and mean of one over its rank (ties against it); one_to_many_items: how many items.
    kendall, spearman: rank correlation of reward and gold within items, mean over items whose gold differs; 0 for an
        item whose rewards are all equal. Only where gold is graded.
    picked_gold: gold of the response with the highest reward (mean of those, if several), mean over items;
        picked_gold_best, picked_gold_random: the same for the best and for a random choice. Where gold is graded or
        several responses are right.

On responses:
    interval_coverage: share of the base scorer's rewards inside the interval of the refined scorer's density;
        interval_level: what the interval claims.

Refined scorers against their own base:
    fixed, broken: items whose official value rose or fell; sign_test_p: exact sign test of these, which takes items as
        independent (see `ebrm.metrics.accuracy.sign_test`).
    starc_to_base: STARC distance of the two rewards within prompts, 0 for the same up to scale and offset, 2 for
        opposite.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ebrm.benchmarks import padded
from ebrm.evaluation.cells import Official
from ebrm.evaluation.pairs import Pairs
from ebrm.evaluation.regressions import count_flips, reward_unit
from ebrm.evaluation.scored import Common
from ebrm.evaluation.scores import Scores
from ebrm.metrics import (
    Bootstrap,
    Calibration,
    Estimate,
    RiskCoverage,
    calibration,
    cluster_sums,
    error_auroc,
    interval_coverage,
    length_correlation,
    length_matched,
    pair_std,
    picked_gold,
    rank_correlation,
    reciprocal_rank,
    resample_sums,
    risk_coverage,
    sign_test,
    starc_estimate,
)

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

#: Resamples behind the intervals of these measures, at most.
MOST_RESAMPLES = 1000
#: How many times as long as the shorter a pair's longer response may be, to count as of the same length.
LENGTH_RATIO = 1.1


@dataclass(frozen=True, eq=False)
class Measures:
    """The measures of one scorer on one benchmark; see `ebrm.evaluation.results.ScorerResult` for the attributes."""

    metrics: Mapping[str, Estimate]
    calibration: Calibration | None
    risk: Mapping[str, RiskCoverage]
    margins: Floats


@dataclass(frozen=True, eq=False)
class _Ground:
    """What the measures of all scorers share.

    Attributes:
        common: the items.
        pairs: pairs of their responses.
        there: bool [n, r], where there is a response.
        cluster: cluster of each pair [p].
        item, response_cluster, prompt: item, cluster and prompt of each response [m].
        length: characters of each response [m].
        pair_length: characters of both sides of each pair [p, 2].
        right_wrong: whether every response is right or wrong.
        one_right: items with one right response among three or more.
        bootstrap: of the intervals.
    """

    common: Common
    pairs: Pairs
    there: NDArray[np.bool_]
    cluster: Integers
    item: Integers
    response_cluster: Integers
    prompt: Integers
    length: Floats
    pair_length: Floats
    right_wrong: bool
    one_right: Integers
    bootstrap: Bootstrap


def measure(
    common: Common,
    official: Official,
    pairs: Pairs,
    *,
    bootstrap: Bootstrap = Bootstrap(),
) -> dict[str, Measures]:
    """Measure every scorer; the module's text explains the numbers. What does not apply is not there.

    Args:
        common: the items compared.
        official: their official values.
        pairs: pairs of their responses.
        bootstrap: of the intervals, over clusters; more than 1,000 resamples are not used.
    """
    few = replace(bootstrap, resamples=min(bootstrap.resamples, MOST_RESAMPLES))
    ground = _ground(common, pairs, few)
    means = _item_means(ground)
    by_name = {scores.name: (column, scores) for column, scores in enumerate(common.scorers)}
    result = {}
    for column, scores in enumerate(common.scorers):
        metrics = {"pairs": _exact(len(pairs))}
        metrics |= {name: estimates[column] for name, estimates in means.items()}
        found, curve, risk, margins = _pair_measures(ground, scores)
        metrics |= found | _length_measures(ground, scores, margins)
        if len(ground.one_right):
            metrics["one_to_many_items"] = _exact(len(ground.one_right))
        if scores.interval is not None:
            metrics["interval_level"] = _exact(scores.interval_level)
        if scores.base in by_name:
            place, base = by_name[scores.base]
            metrics |= _against_base(ground, official, (place, base), (column, scores))
        result[scores.name] = Measures(metrics, curve, risk, margins)
    return result


def _ground(common: Common, pairs: Pairs, bootstrap: Bootstrap) -> _Ground:
    gold = common.gold
    there = np.isfinite(gold)
    length = np.full(gold.shape, np.nan)
    found = padded([[len(text) for text in item.responses] for item in common.benchmark.items])
    length[:, : found.shape[1]] = found
    place = np.nonzero(there)[0]
    right_wrong = bool(np.isin(gold[there], (0.0, 1.0)).all())
    several = (there.sum(axis=1) >= 3) & (np.nansum(gold, axis=1) == 1)
    return _Ground(
        common,
        pairs,
        there,
        common.cluster[pairs.item],
        place,
        common.cluster[place],
        common.prompt[place],
        length[there],
        np.stack([length[pairs.item, pairs.a], length[pairs.item, pairs.b]], axis=1),
        right_wrong,
        np.flatnonzero(several) if right_wrong else np.empty(0, np.int64),
        bootstrap,
    )


def _item_means(ground: _Ground) -> dict[str, list[Estimate]]:
    """The metrics that are means over items: name to one estimate a scorer, all from the same resamples."""
    common, pairs, gold = ground.common, ground.pairs, ground.common.gold
    values: dict[str, tuple[Integers, list[Floats]]] = {}
    paired = np.unique(pairs.item)

    def add(name: str, items: Integers, value: Floats) -> None:
        values.setdefault(name, (items, []))[1].append(value)

    def add_pairs(name: str, value: Floats) -> None:
        sums = np.bincount(pairs.item, weights=pairs.weight * value, minlength=len(gold))
        add(name, paired, np.asarray(sums, dtype=np.float64)[paired])

    every = np.arange(len(gold))
    varied = np.flatnonzero(np.nanmin(gold, axis=1) < np.nanmax(gold, axis=1))
    for scores in common.scorers:
        reward = scores.reward
        margin = reward[pairs.item, pairs.a] - reward[pairs.item, pairs.b]
        won, tied = (margin > 0).astype(np.float64), (margin == 0).astype(np.float64)
        add_pairs("accuracy", won)
        add_pairs("accuracy_ties_half", won + 0.5 * tied)
        add_pairs("ties", tied)
        add_pairs("margin", margin / reward_unit(reward))
        if len(ground.one_right):
            rank = reciprocal_rank(reward[ground.one_right], gold[ground.one_right])
            add("one_to_many", ground.one_right, (rank == 1).astype(np.float64))
            add("mrr", ground.one_right, rank)
        if not ground.right_wrong:
            for name, found in zip(("kendall", "spearman"), rank_correlation(reward, gold), strict=True):
                add(name, varied, np.nan_to_num(found[varied]))
        if not ground.right_wrong or (np.nansum(gold, axis=1) > 1).any():
            add("picked_gold", every, picked_gold(reward, gold))
            add("picked_gold_best", every, np.nanmax(gold, axis=1))
            add("picked_gold_random", every, np.nanmean(gold, axis=1))
    return _clustered_means(
        {name: (items, np.stack(columns, axis=1)) for name, (items, columns) in values.items()}, ground
    )


def _clustered_means(values: Mapping[str, tuple[Integers, Floats]], ground: _Ground) -> dict[str, list[Estimate]]:
    """Means over items of [m, S] values, each metric with its own items, with intervals over clusters."""
    scorers = len(ground.common.scorers)
    columns, rows = [], len(ground.common.gold)
    for items, value in values.values():
        table = np.zeros((rows, 1 + scorers))
        table[items, 0], table[items, 1:] = 1.0, value
        columns += list(table.T)
    if not columns:
        return {}
    sums = cluster_sums(columns, ground.common.cluster)
    draws = resample_sums(sums, bootstrap=ground.bootstrap)
    totals, clusters = sums.sum(axis=0), (sums != 0).sum(axis=0)
    result = {}
    for number, name in enumerate(values):
        place = number * (1 + scorers)
        count = np.where(draws[:, place] > 0, draws[:, place], np.nan)
        alone = clusters[place] < 2  # one cluster says nothing about how clusters differ
        result[name] = [
            ground.bootstrap.estimate(
                totals[column] / totals[place], np.full(1, np.nan) if alone else draws[:, column] / count
            )
            for column in range(place + 1, place + 1 + scorers)
        ]
    return result


def _pair_measures(
    ground: _Ground, scores: Scores
) -> tuple[dict[str, Estimate], Calibration | None, dict[str, RiskCoverage], Floats]:
    """Calibration of P(better > worse), what uncertainty knows of errors, and the margins [p]."""
    pairs, bootstrap = ground.pairs, ground.bootstrap
    probability = scores.probability(pairs.item, pairs.a, pairs.b)
    margins = scores.reward[pairs.item, pairs.a] - scores.reward[pairs.item, pairs.b]
    error = margins <= 0
    metrics: dict[str, Estimate] = {}
    curve = None
    if ground.right_wrong:
        curve = calibration(probability, ground.cluster, bootstrap=bootstrap)
        metrics |= {"ece": curve.ece, "ece_if_calibrated": _exact(curve.ece_if_calibrated)}
        metrics |= {"brier": curve.brier, "log_loss": curve.log_loss}
    uncertainty = {"confidence": 1 - np.maximum(probability, 1 - probability)}
    if scores.std is not None:
        uncertainty["std"] = pair_std(scores.std[pairs.item, pairs.a], scores.std[pairs.item, pairs.b])
    risk = {}
    for name, value in uncertainty.items():
        auroc = error_auroc(value, error, ground.cluster, bootstrap=bootstrap)
        if auroc is not None:
            metrics[f"error_auroc_{name}"] = auroc
        risk[name] = risk_coverage(value, error, ground.cluster, bootstrap=bootstrap)
        metrics |= {f"aurc_{name}": risk[name].area, f"aurc_gain_{name}": risk[name].gain}
    metrics |= {"aurc_random": _exact(risk["confidence"].random), "aurc_best": _exact(risk["confidence"].best)}
    return metrics, curve, risk, margins


def _length_measures(ground: _Ground, scores: Scores, margins: Floats) -> dict[str, Estimate]:
    bootstrap = ground.bootstrap
    correlation = length_correlation(
        scores.reward[ground.there], ground.length, ground.item, ground.response_cluster, bootstrap=bootstrap
    )
    correct, (first, second) = (margins > 0).astype(np.float64), ground.pair_length.T
    matched, count = length_matched(correct, first, second, ground.cluster, LENGTH_RATIO, bootstrap=bootstrap)
    found = {"length_correlation": correlation, "length_matched_accuracy": matched}
    return {name: estimate for name, estimate in found.items() if np.isfinite(estimate.value)} | {
        "length_matched_pairs": _exact(count)
    }


def _against_base(
    ground: _Ground, official: Official, base: tuple[int, Scores], refined: tuple[int, Scores]
) -> dict[str, Estimate]:
    """A refined scorer against its base; each is given with its column in the official values."""
    bootstrap = ground.bootstrap
    weight = official.weights[0][official.term]
    flips = count_flips(official.item, weight, official.value[:, base[0]], official.value[:, refined[0]])
    before, after = base[1].reward[ground.there], refined[1].reward[ground.there]
    metrics = {
        "fixed": _exact(flips.fixed),
        "broken": _exact(flips.broken),
        "sign_test_p": _exact(sign_test(flips.fixed, flips.broken)),
        "starc_to_base": starc_estimate(
            before, after, ground.prompt, None, ground.response_cluster, bootstrap=bootstrap
        ),
    }
    if refined[1].interval is not None:
        inside = refined[1].interval[ground.there]
        metrics["interval_coverage"] = interval_coverage(inside, before, ground.response_cluster, bootstrap=bootstrap)
    return metrics


def _exact(value: float) -> Estimate:
    """A number without an interval."""
    return Estimate(float(value), float("nan"), float("nan"))
