"""Measures of scorers on a benchmark besides its official scores: numbers by name, for each scorer.

Intervals are over clusters of items, as those of the scores, from at most 1,000 resamples.

On pairs of a better and a worse response, at most nine an item (means within an item, then over items):
    pairs: how many.
    accuracy, accuracy_ties_half: share ranked rightly, a tie as wrong or one half; ties: share of equal rewards.
    margin: reward of the better minus that of the worse, in standard deviations of all rewards of this scorer here.
The same, every pair counting the same:
    ece, ece_if_calibrated, brier, log_loss: calibration of P(better > worse), where responses are right or wrong.
    error_auroc_confidence, error_auroc_std: does low confidence, or a large standard deviation, tell wrong pairs?
    aurc_confidence, aurc_std: area under the risk-coverage curve, the mean error over all shares kept; aurc_random and
        aurc_best: of one that knows nothing, or all; aurc_gain_confidence, aurc_gain_std: aurc_random - area.
    length_matched_accuracy: on pairs whose longer response has at most 1.1 times the characters of the shorter;
        length_matched_pairs: how many.
On items:
    length_correlation: Pearson correlation of reward and length within items.
    one_to_many, mrr: where one response of three or more is right (one_to_many_items): share of items in which it is
        strictly the first, and mean of one over its rank (ties against it).
    kendall, spearman: rank correlation of reward and graded gold, mean over items whose gold differs; 0 for an item
        whose rewards are all equal.
    picked_gold: gold of the response with the highest reward (mean of several); picked_gold_best, picked_gold_random:
        of the best and a random choice. Where gold is graded or several responses are right.
On responses:
    interval_coverage: share of base rewards inside the refined density's interval; interval_level: as it claims.
Refined scorers against their own base:
    fixed, broken: items whose official value rose or fell; sign_test_p: exact sign test of these, items independent.
    starc_to_base: STARC distance within prompts, 0 for the same up to scale and offset, 2 for opposite.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ebrm.benchmarks import Floats, Integers, padded
from ebrm.data import conversation, message_words
from ebrm.evaluation.results import Common, Official, Regression, Scores
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
class _Shared:
    """What the measures of all scorers share, for n items, m responses and p pairs."""

    common: Common
    pairs: ResponsePairs
    there: NDArray[np.bool_]  # [n, r], where there is a response
    cluster: Integers  # of each pair [p]
    item: Integers  # of each response [m], as the next three
    response_cluster: Integers
    prompt: Integers
    length: Floats  # characters
    pair_length: Floats  # characters of both sides [p, 2]
    right_wrong: bool  # whether every response is right or wrong
    one_right: Integers  # items with one right response among three or more
    bootstrap: Bootstrap


def measure(
    common: Common, official: Official, pairs: ResponsePairs, *, bootstrap: Bootstrap = Bootstrap()
) -> dict[str, Measures]:
    """Measure every scorer, with intervals over clusters; a measure that does not apply is not there."""
    few = replace(bootstrap, resamples=min(bootstrap.resamples, MOST_RESAMPLES))
    shared = _shared(common, pairs, few)
    means = _item_means(shared)
    by_name = {scores.name: (column, scores) for column, scores in enumerate(common.scorers)}
    result = {}
    for column, scores in enumerate(common.scorers):
        metrics = {"pairs": _exact(len(pairs))}
        metrics |= {name: estimates[column] for name, estimates in means.items()}
        found, curve, risk, margins = _pair_measures(shared, scores)
        metrics |= found | _length_measures(shared, scores, margins)
        if len(shared.one_right):
            metrics["one_to_many_items"] = _exact(len(shared.one_right))
        if scores.interval is not None:
            metrics["interval_level"] = _exact(scores.interval_level)
        if scores.base in by_name:
            place, base = by_name[scores.base]
            metrics |= _against_base(shared, official, (place, base), (column, scores))
        result[scores.name] = Measures(metrics, curve, risk, margins)
    return result


def _shared(common: Common, pairs: ResponsePairs, bootstrap: Bootstrap) -> _Shared:
    gold = common.gold
    there = np.isfinite(gold)
    length = np.full(gold.shape, np.nan)
    found = padded([[len(message_words(reply)) for reply in item.responses] for item in common.benchmark.items])
    length[:, : found.shape[1]] = found
    place = np.nonzero(there)[0]
    right_wrong = bool(np.isin(gold[there], (0.0, 1.0)).all())
    several = (there.sum(axis=1) >= 3) & (np.nansum(gold, axis=1) == 1)
    return _Shared(
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


def _item_means(shared: _Shared) -> dict[str, list[Estimate]]:
    """The metrics that are means over items: name to one estimate a scorer, all from the same resamples."""
    common, pairs, gold = shared.common, shared.pairs, shared.common.gold
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
        if len(shared.one_right):
            rank = reciprocal_rank(reward[shared.one_right], gold[shared.one_right])
            add("one_to_many", shared.one_right, (rank == 1).astype(np.float64))
            add("mrr", shared.one_right, rank)
        if not shared.right_wrong:
            for name, found in zip(("kendall", "spearman"), rank_correlation(reward, gold), strict=True):
                add(name, varied, np.nan_to_num(found[varied]))
        if not shared.right_wrong or (np.nansum(gold, axis=1) > 1).any():
            add("picked_gold", every, picked_gold(reward, gold))
            add("picked_gold_best", every, np.nanmax(gold, axis=1))
            add("picked_gold_random", every, np.nanmean(gold, axis=1))
    return _clustered_means(
        {name: (items, np.stack(columns, axis=1)) for name, (items, columns) in values.items()}, shared
    )


def _clustered_means(values: Mapping[str, tuple[Integers, Floats]], shared: _Shared) -> dict[str, list[Estimate]]:
    """Means over items of [m, S] values, each metric with its own items, with intervals over clusters."""
    scorers = len(shared.common.scorers)
    columns, rows = [], len(shared.common.gold)
    for items, value in values.values():
        table = np.zeros((rows, 1 + scorers))
        table[items, 0], table[items, 1:] = 1.0, value
        columns += list(table.T)
    if not columns:
        return {}
    sums = cluster_sums(columns, shared.common.cluster)
    draws = resample_sums(sums, bootstrap=shared.bootstrap)
    totals, clusters = sums.sum(axis=0), (sums != 0).sum(axis=0)
    result = {}
    for number, name in enumerate(values):
        place = number * (1 + scorers)
        count = np.where(draws[:, place] > 0, draws[:, place], np.nan)
        alone = clusters[place] < 2  # one cluster says nothing about how clusters differ
        result[name] = [
            shared.bootstrap.estimate(
                totals[column] / totals[place], np.full(1, np.nan) if alone else draws[:, column] / count
            )
            for column in range(place + 1, place + 1 + scorers)
        ]
    return result


def _pair_measures(
    shared: _Shared, scores: Scores
) -> tuple[dict[str, Estimate], Calibration | None, dict[str, RiskCoverage], Floats]:
    """Calibration of P(better > worse), what uncertainty knows of errors, and the margins [p]."""
    pairs, bootstrap = shared.pairs, shared.bootstrap
    probability = scores.probability(pairs.item, pairs.a, pairs.b)
    margins = scores.reward[pairs.item, pairs.a] - scores.reward[pairs.item, pairs.b]
    error = margins <= 0
    metrics: dict[str, Estimate] = {}
    curve = None
    if shared.right_wrong:
        curve = calibration(probability, shared.cluster, bootstrap=bootstrap)
        metrics |= {"ece": curve.ece, "ece_if_calibrated": _exact(curve.ece_if_calibrated)}
        metrics |= {"brier": curve.brier, "log_loss": curve.log_loss}
    uncertainty = {"confidence": 1 - np.maximum(probability, 1 - probability)}
    if scores.std is not None:
        uncertainty["std"] = pair_std(scores.std[pairs.item, pairs.a], scores.std[pairs.item, pairs.b])
    risk = {}
    for name, value in uncertainty.items():
        auroc = error_auroc(value, error, shared.cluster, bootstrap=bootstrap)
        if auroc is not None:
            metrics[f"error_auroc_{name}"] = auroc
        risk[name] = risk_coverage(value, error, shared.cluster, bootstrap=bootstrap)
        metrics |= {f"aurc_{name}": risk[name].area, f"aurc_gain_{name}": risk[name].gain}
    metrics |= {"aurc_random": _exact(risk["confidence"].random), "aurc_best": _exact(risk["confidence"].best)}
    return metrics, curve, risk, margins


def _length_measures(shared: _Shared, scores: Scores, margins: Floats) -> dict[str, Estimate]:
    bootstrap = shared.bootstrap
    correlation = length_correlation(
        scores.reward[shared.there], shared.length, shared.item, shared.response_cluster, bootstrap=bootstrap
    )
    correct, (first, second) = (margins > 0).astype(np.float64), shared.pair_length.T
    matched, count = length_matched(correct, first, second, shared.cluster, LENGTH_RATIO, bootstrap=bootstrap)
    found = {"length_correlation": correlation, "length_matched_accuracy": matched}
    return {name: estimate for name, estimate in found.items() if np.isfinite(estimate.value)} | {
        "length_matched_pairs": _exact(count)
    }


def _against_base(
    shared: _Shared, official: Official, base: tuple[int, Scores], refined: tuple[int, Scores]
) -> dict[str, Estimate]:
    """A refined scorer against its base; each with its column in the official values."""
    bootstrap = shared.bootstrap
    weight = official.weights[0][official.term]
    fixed, broken = count_flips(official.item, weight, official.value[:, base[0]], official.value[:, refined[0]])
    before, after = base[1].reward[shared.there], refined[1].reward[shared.there]
    metrics = {
        "fixed": _exact(fixed),
        "broken": _exact(broken),
        "sign_test_p": _exact(sign_test(fixed, broken)),
        "starc_to_base": starc_estimate(
            before, after, shared.prompt, None, shared.response_cluster, bootstrap=bootstrap
        ),
    }
    if refined[1].interval is not None:
        inside = refined[1].interval[shared.there]
        metrics["interval_coverage"] = interval_coverage(inside, before, shared.response_cluster, bootstrap=bootstrap)
    return metrics


def _exact(value: float) -> Estimate:
    return Estimate(float(value), float("nan"), float("nan"))


#: Pairs of one item at most: nine is all of them for three right and three wrong responses, or one right, nine wrong.
MOST = 9

# Comparisons of two responses looked at together: bounds the memory.
_CHUNK_CELLS = 4_000_000


@dataclass(frozen=True, eq=False)
class ResponsePairs:
    """p pairs of responses, each of one item, ordered by item, better and worse response."""

    item: Integers  # place of the item in the benchmark [p]
    a: Integers  # the better response [p]
    b: Integers  # the worse response [p]
    weight: Floats  # one over the number of pairs of that item: every item weighs the same [p]

    def __len__(self) -> int:
        return len(self.item)


def right_wrong_pairs(gold: Floats, most: int = MOST, seed: int = 0, ids: Sequence[str] | None = None) -> ResponsePairs:
    """Pairs of responses of different gold [n, r], better first; at most `most` an item, drawn by seed and id alone."""
    if most < 1:
        raise ValueError(f"most is {most}; an item gives at least one pair")
    names: Sequence[str] = [str(number) for number in range(len(gold))] if ids is None else ids
    if len(names) != len(gold):
        raise ValueError(f"{len(gold)} items and {len(names)} ids")
    responses = gold.shape[1]
    size = max(1, _CHUNK_CELLS // max(1, responses**2))
    items, betters, worses = [], [], []
    for start in range(0, len(gold), size):
        part = gold[start : start + size]
        better = part[:, :, None] > part[:, None, :]  # NaN compares as False
        crowded = np.flatnonzero(better.sum(axis=(1, 2)) > most)
        if len(crowded):
            key = _random_keys([names[start + row] for row in crowded.tolist()], responses**2, seed)
            key[~better[crowded].reshape(len(crowded), -1)] = np.iinfo(np.uint64).max
            chosen = np.argpartition(key, most - 1, axis=1)[:, :most]
            kept = np.zeros((len(crowded), responses**2), dtype=bool)
            np.put_along_axis(kept, chosen, True, axis=1)
            better[crowded] = kept.reshape(-1, responses, responses)
        item, a, b = np.nonzero(better)
        items.append(item + start)
        betters.append(a)
        worses.append(b)
    item = np.concatenate(items, dtype=np.int64) if items else np.empty(0, np.int64)
    weight = 1.0 / np.bincount(item, minlength=len(gold))[item]
    return ResponsePairs(
        item,
        np.concatenate(betters, dtype=np.int64) if betters else np.empty(0, np.int64),
        np.concatenate(worses, dtype=np.int64) if worses else np.empty(0, np.int64),
        weight,
    )


def _random_keys(names: Sequence[str], count: int, seed: int) -> NDArray[np.uint64]:
    """Random numbers [names, count] by name: the output function of SplitMix64 (Steele et al. 2014)."""
    digest = b"".join(
        hashlib.blake2b(f"{seed}\0{name}".encode("utf-8", "surrogatepass"), digest_size=8).digest() for name in names
    )
    state = np.frombuffer(digest, dtype="<u8").astype(np.uint64)[:, None]
    key = state + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    key = (key ^ (key >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    key = (key ^ (key >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return key ^ (key >> np.uint64(31))


#: Regressions shown for each refined scorer.
EXAMPLES = 6

# Official values closer than this are equal but for rounding.
_ROUNDING = 1e-9


def count_flips(item: Integers, weight: Floats, base: Floats, refined: Floats) -> tuple[int, int]:
    """Items fixed and broken: mean value [k] by `weight` [k] risen or fallen (plain mean where all weights are 0)."""
    total, values = np.bincount(item, weights=weight), np.bincount(item)
    share = np.where(total[item] > 0, weight / np.where(total > 0, total, 1.0)[item], 1.0 / values[item])
    change = np.bincount(item, weights=share * (refined - base))
    return int((change > _ROUNDING).sum()), int((change < -_ROUNDING).sum())


def reward_unit(reward: Floats) -> float:
    """The standard deviation of a scorer's rewards over all responses, the unit of its margins; 1 if it is 0."""
    spread = float(np.nanstd(reward))
    return spread if spread > 0 else 1.0


def worst_regressions(
    common: Common, pairs: ResponsePairs, base: Scores, refined: Scores, most: int = EXAMPLES
) -> tuple[Regression, ...]:
    """Pairs that only the base ranks rightly, largest drop of margin (in each scorer's unit) first, one a prompt."""
    first, second = (
        scores.reward[pairs.item, pairs.a] - scores.reward[pairs.item, pairs.b] for scores in (base, refined)
    )
    drop = first / reward_unit(base.reward) - second / reward_unit(refined.reward)
    lost = np.flatnonzero((first > 0) & (second <= 0))
    items = common.benchmark.items
    worst = lost[np.argsort(-drop[lost], kind="stable")]
    found: list[Regression] = []
    seen: set[int] = set()
    for row in worst.tolist():
        place, right, wrong = int(pairs.item[row]), int(pairs.a[row]), int(pairs.b[row])
        prompt = int(common.prompt[place])
        if prompt in seen:
            continue
        seen.add(prompt)
        item = items[place]
        before, after = ((float(one.reward[place, right]), float(one.reward[place, wrong])) for one in (base, refined))
        asked, better, worse = conversation(item.prompt), item.responses[right], item.responses[wrong]
        texts = asked, message_words(better), message_words(worse)
        found.append(Regression(item.id, item.group, *texts, before, after, refined.name))
        if len(found) == most:
            break
    return tuple(found)
