from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats
from tests.evaluation.suites import (
    all_kinds,
    benchmark,
    best_of,
    item,
    pairwise,
    plain_scores,
    pool,
    refined_scores,
    reward_of,
    styles,
    three,
)  # fmt: skip

from ebrm.benchmarks import Benchmark, Score
from ebrm.evaluation import MOST_RESAMPLES, ScoredBenchmark, Scores
from ebrm.evaluation.measures import Measures, measure, right_wrong_pairs
from ebrm.evaluation.results import common_items, official_values
from ebrm.metrics import (
    Bootstrap,
    Estimate,
    calibration,
    clustered_mean,
    error_auroc,
    length_correlation,
    length_matched,
    risk_coverage,
    starc_distance,
)

NAN = float("nan")


def measured(made: Benchmark, scorers: Sequence[Scores], **settings: float) -> dict[str, Measures]:
    common = common_items(ScoredBenchmark(made, scorers))
    pairs = right_wrong_pairs(common.gold, ids=[one.id for one in common.benchmark.items])
    return measure(common, official_values(common), pairs, **{"bootstrap": Bootstrap(100)} | settings)


def values(metrics: Mapping[str, Estimate]) -> dict[str, float]:
    return {name: estimate.value for name, estimate in metrics.items()}


def same(first: Measures, second: Measures) -> bool:
    """Equal to the last bit, NaN where the other is NaN."""
    return repr(first) == repr(second) and first.margins.tobytes() == second.margins.tobytes()


def naive_pairs(made: Benchmark, scores: Scores) -> list[tuple[int, int, int]]:
    """(item, better, worse) for items with at most nine pairs."""
    return [
        (row, a, b)
        for row, one in enumerate(made.items)
        for a, x in enumerate(one.gold)
        for b, y in enumerate(one.gold)
        if x > y
    ]


@pytest.mark.parametrize("made", [pairwise(), best_of(), styles()], ids=lambda made: made.name)
def test_pair_measures_by_hand(made: Benchmark) -> None:
    scorers = (plain_scores(made, "rm", digits=0), refined_scores(made, "new", "rm"))
    found = measured(made, scorers)
    for scores in scorers:
        pairs = naive_pairs(made, scores)
        clusters = [made.clusters()[row] for row, _, _ in pairs]
        numbers = values(found[scores.name].metrics)
        unit = np.nanstd(scores.reward)
        kinds: dict[str, list[float]] = {"accuracy": [], "accuracy_ties_half": [], "ties": [], "margin": []}
        for row in range(len(made)):
            margins = [scores.reward[row, a] - scores.reward[row, b] for one, a, b in pairs if one == row]
            kinds["accuracy"].append(np.mean([m > 0 for m in margins]))
            kinds["accuracy_ties_half"].append(np.mean([1 if m > 0 else 0.5 if m == 0 else 0 for m in margins]))
            kinds["ties"].append(np.mean([m == 0 for m in margins]))
            kinds["margin"].append(np.mean(margins) / unit)
        for name, by_item in kinds.items():
            assert numbers[name] == pytest.approx(np.mean(by_item)), name
        assert numbers["pairs"] == len(pairs)
        place, a, b = np.array(pairs).T
        margins = scores.reward[place, a] - scores.reward[place, b]
        np.testing.assert_allclose(found[scores.name].margins, margins)
        p = scores.probability(place, a, b)
        curve = calibration(p, clusters)
        assert found[scores.name].calibration is not None
        assert numbers["ece"] == pytest.approx(curve.ece.value)
        assert numbers["ece_if_calibrated"] == pytest.approx(curve.ece_if_calibrated)
        assert numbers["brier"] == pytest.approx(np.mean((1 - p) ** 2))
        assert numbers["log_loss"] == pytest.approx(-np.log(p).mean())
        uncertainty = {"confidence": np.minimum(p, 1 - p)}
        if scores.std is not None:
            uncertainty["std"] = np.sqrt(scores.std[place, a] ** 2 + scores.std[place, b] ** 2)
        assert found[scores.name].risk.keys() == uncertainty.keys()
        for name, value in uncertainty.items():
            expected = error_auroc(value, margins <= 0)
            assert expected is not None
            assert numbers[f"error_auroc_{name}"] == pytest.approx(expected.value)
            curve_of = risk_coverage(value, margins <= 0)
            assert numbers[f"aurc_{name}"] == pytest.approx(curve_of.area.value)
            assert numbers[f"aurc_gain_{name}"] == pytest.approx(numbers["aurc_random"] - numbers[f"aurc_{name}"])
            np.testing.assert_allclose(found[scores.name].risk[name].risk, curve_of.risk)
        assert numbers["aurc_random"] == pytest.approx(np.mean(margins <= 0))
        assert numbers["aurc_best"] == pytest.approx(curve_of.best)
        length = np.array([[len(made.items[row].responses[side]) for side in sides] for row, *sides in pairs])
        expected_matched, count = length_matched(margins > 0, length[:, 0], length[:, 1], clusters)
        assert numbers["length_matched_pairs"] == count > 0
        assert numbers["length_matched_accuracy"] == pytest.approx(expected_matched.value)
    assert values(found["rm"].metrics)["ties"] > 0


def test_which_measures_apply() -> None:
    always = {
        "pairs", "accuracy", "accuracy_ties_half", "ties", "margin", "error_auroc_confidence", "aurc_confidence",
        "aurc_gain_confidence", "aurc_random", "aurc_best", "length_correlation", "length_matched_accuracy",
        "length_matched_pairs",
    }  # fmt: skip
    density = {"error_auroc_std", "aurc_std", "aurc_gain_std", "interval_level"}
    refined = {"fixed", "broken", "sign_test_p", "starc_to_base", "interval_coverage"}
    right_wrong = {"ece", "ece_if_calibrated", "brier", "log_loss"}
    one_right = {"one_to_many", "mrr", "one_to_many_items"}
    picked = {"picked_gold", "picked_gold_best", "picked_gold_random"}
    graded = {"kendall", "spearman"} | picked
    for made, own in (
        (pairwise(), right_wrong), (best_of(), right_wrong | one_right), (styles(), right_wrong | picked),
        (pool(), graded),
    ):  # fmt: skip
        found = measured(made, three(made))
        assert set(found["rm"].metrics) == always | own, made.name
        assert set(found["rm-refined"].metrics) == always | own | density | refined, made.name
        assert (found["rm"].calibration is None) == (made.name == "pool")
        assert set(found["rm"].risk) == {"confidence"} and set(found["rm-refined"].risk) == {"confidence", "std"}
    made = pairwise()
    alone = measured(made, (refined_scores(made, "new", "absent"),))["new"].metrics
    assert set(alone) == always | right_wrong | density


def test_one_to_many_and_reciprocal_rank() -> None:
    made = benchmark(
        [
            item("first", (0, 1, 0)),
            item("second", (1, 0, 0)),
            item("tied", (1, 0, 0)),
            item("last", (1, 0, 0, 0)),
            item("pair", (1, 0)),
            item("two right", (1, 1, 0)),
        ]
    )
    reward = np.array(
        [[0.0, 5, 1, NAN], [2, 3, 1, NAN], [2, 2, 2, NAN], [0, 1, 2, 3], [0, 1, NAN, NAN], [0, 1, 2, NAN]]
    )
    found = values(measured(made, (Scores("rm", reward),))["rm"].metrics)
    assert found["one_to_many_items"] == 4
    assert found["one_to_many"] == 1 / 4
    assert found["mrr"] == pytest.approx((1 + 1 / 2 + 1 / 3 + 1 / 4) / 4)
    assert found["picked_gold"] == pytest.approx((1 + 0 + 1 / 3 + 0 + 0 + 0) / 6)
    assert found["picked_gold_best"] == 1
    assert found["picked_gold_random"] == pytest.approx((1 / 3 * 3 + 1 / 4 + 1 / 2 + 2 / 3) / 6)


def test_rank_correlations_of_graded_gold() -> None:
    made = pool(count=12, responses=5)
    reward = reward_of(made, 1.0, 1)
    reward[0] = 3.0
    found = values(measured(made, (Scores("rm", reward),))["rm"].metrics)
    tau = [0.0] + [stats.kendalltau(reward[row], made.items[row].gold).statistic for row in range(1, 12)]
    rho = [0.0] + [stats.spearmanr(reward[row], made.items[row].gold).statistic for row in range(1, 12)]
    assert found["kendall"] == pytest.approx(np.mean(tau))
    assert found["spearman"] == pytest.approx(np.mean(rho))
    gold = made.gold()
    picked = [gold[row][reward[row] == reward[row].max()].mean() for row in range(12)]
    assert found["picked_gold"] == pytest.approx(np.mean(picked))
    assert found["picked_gold_best"] == pytest.approx(gold.max(axis=1).mean())
    assert found["picked_gold_random"] == pytest.approx(gold.mean())


def test_items_without_an_order_are_in_no_rank_correlation() -> None:
    made = pool(count=12, responses=4)
    flat = replace(made.items[3], gold=(0.5,) * 4)
    some = replace(made, items=(*made.items[:3], flat, *made.items[4:]), terms=lambda *_: None)
    common = common_items(ScoredBenchmark(some, (Scores("rm", reward_of(made, 1.0, 1)),)))
    without = made.take([row for row in range(12) if row != 3])
    fewer = common_items(ScoredBenchmark(without, (Scores("rm", np.delete(reward_of(made, 1.0, 1), 3, axis=0)),)))
    found = [
        values(
            measure(
                each,
                official_values(fewer),
                right_wrong_pairs(each.gold, ids=[i.id for i in each.benchmark.items]),
                bootstrap=Bootstrap(10),
            )["rm"].metrics
        )
        for each in (common, fewer)
    ]
    for name in ("kendall", "spearman", "accuracy", "pairs"):
        assert found[0][name] == pytest.approx(found[1][name]), name


def test_lengths_are_characters_and_centered_within_items() -> None:
    made = pairwise()
    rm = plain_scores(made, "rm")
    length = np.array([[len(text) for text in one.responses] for one in made.items])
    label = np.repeat(np.arange(len(made)), 2)
    clusters = np.repeat(made.clusters(), 2)
    expected = length_correlation(rm.reward.ravel(), length.ravel(), label, clusters, bootstrap=Bootstrap(500))
    found = measured(made, (rm,), bootstrap=Bootstrap(500))["rm"].metrics["length_correlation"]
    assert found.value == pytest.approx(expected.value)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=0.05)
    by_length = Scores("long", length.astype(float))
    assert measured(made, (by_length,))["long"].metrics["length_correlation"].value == pytest.approx(1)


def test_length_measures_that_do_not_exist_are_left_out() -> None:
    made = benchmark([item(f"i{row}", (1, 0), lengths=(3, 3)) for row in range(5)])
    found = measured(made, (plain_scores(made, "rm"),))["rm"].metrics
    assert "length_correlation" not in found and found["length_matched_pairs"].value == 5
    made = benchmark([item(f"i{row}", (1, 0), lengths=(3, 9)) for row in range(5)])
    found = measured(made, (plain_scores(made, "rm"),))["rm"].metrics
    assert "length_matched_accuracy" not in found and found["length_matched_pairs"].value == 0


def test_a_refined_reward_against_its_base() -> None:
    made = benchmark([item(f"i{row}", (1, 0), f"prompt {row // 2}") for row in range(6)])
    base = np.array([[1.0, 0], [0, 1], [0, 1], [1, 0], [1, 0], [3, 0]])
    refined = np.array([[2.0, 0], [1, 0], [1, 0], [1, 0], [0, 1], [1, 0.5]])
    interval = np.stack([np.full((6, 2), -0.5), np.full((6, 2), 2.5)], axis=-1)
    scorers = (
        Scores("other", refined),
        Scores("rm", base),
        Scores("new", refined, "rm", np.ones((6, 2)), interval, 0.8),
    )
    found = measured(made, scorers)["new"].metrics
    assert (found["fixed"].value, found["broken"].value) == (2, 1)
    assert found["sign_test_p"].value == pytest.approx(stats.binomtest(2, 3).pvalue)
    assert found["starc_to_base"].value == pytest.approx(
        starc_distance(base.ravel(), refined.ravel(), np.repeat(np.arange(3), 4))
    )
    assert found["starc_to_base"].value != pytest.approx(
        starc_distance(base.ravel(), refined.ravel(), np.repeat(np.arange(6), 2))
    )
    assert found["interval_coverage"].value == pytest.approx(11 / 12)
    assert found["interval_level"].value == 0.8
    for name in ("fixed", "broken", "sign_test_p", "interval_level", "pairs"):
        assert math.isnan(found[name].low) and math.isnan(found[name].high)
    assert "fixed" not in measured(made, scorers)["other"].metrics


def test_flips_follow_the_official_rule() -> None:
    made = styles(20)
    weights = {"chat/easy": 0.4, "chat/hard": 0.1, "code/easy": 0.1, "code/hard": 0.4}
    made = replace(made, scores=(Score("overall", "overall", weights), *made.scores[1:]))
    rm, refined = plain_scores(made, "rm", digits=1), refined_scores(made, "new", "rm", 1.0, 8)
    found = measured(made, (rm, refined))["new"].metrics
    change = np.zeros(20)
    for sign, scores in ((-1, rm), (1, refined)):
        terms = made.terms(made.items, scores.reward, None)
        for place, name, value in zip(terms.item, terms.term, terms.value, strict=True):
            change[place] += sign * value * weights[terms.names[name]]
    assert found["fixed"].value == (change > 1e-9).sum() and found["broken"].value == (change < -1e-9).sum()
    assert found["fixed"].value > 0 and found["broken"].value > 0


def test_intervals_are_over_clusters_and_from_a_thousand_resamples() -> None:
    made = pairwise(count=200, prompts=20)
    rm = plain_scores(made, "rm")
    found = measured(made, (rm,), bootstrap=Bootstrap(3000))
    assert same(found["rm"], measured(made, (rm,), bootstrap=Bootstrap(MOST_RESAMPLES))["rm"])
    assert not same(found["rm"], measured(made, (rm,), bootstrap=Bootstrap(MOST_RESAMPLES - 1))["rm"])
    won = (rm.reward[:, 0] > rm.reward[:, 1]).astype(float)
    expected = clustered_mean(won, made.clusters(), bootstrap=Bootstrap(4000, seed=3))
    mine = found["rm"].metrics["accuracy"]
    assert (mine.value, mine.low, mine.high) == pytest.approx((expected.value, expected.low, expected.high), abs=0.012)
    assert (
        measured(made, (rm,), bootstrap=Bootstrap(100, seed=1))["rm"].metrics["accuracy"]
        != measured(made, (rm,))["rm"].metrics["accuracy"]
    )
    narrow, wide = (
        measured(made, (rm,), bootstrap=Bootstrap(100, level))["rm"].metrics["accuracy"] for level in (0.5, 0.95)
    )
    assert wide.low < narrow.low < narrow.high < wide.high


def test_no_interval_from_one_cluster() -> None:
    made = benchmark(
        [item(f"i{row}", (1, 0, 0) if row < 2 else (1, 0), "one" if row < 2 else f"{row}") for row in range(9)]
    )
    found = measured(made, (plain_scores(made, "rm"),))["rm"].metrics
    assert math.isnan(found["mrr"].low) and math.isfinite(found["mrr"].value)
    assert math.isfinite(found["accuracy"].low)
    alone = made.take([0, 1])
    found = measured(alone, (plain_scores(alone, "rm"),))["rm"].metrics
    for name in ("accuracy", "margin", "mrr", "brier"):
        assert math.isnan(found[name].low) and math.isfinite(found[name].value), name


@pytest.mark.parametrize("made", all_kinds(), ids=lambda made: made.name)
def test_nothing_depends_on_the_order_of_items(made: Benchmark) -> None:
    order = np.random.default_rng(3).permutation(len(made))
    scorers = three(made)
    there = measured(made, scorers)
    turned = measured(made.take(order), [one.take(order) for one in scorers])
    for name, found in there.items():
        assert same(found, turned[name])


def test_a_constant_reward_has_no_margin_and_all_ties() -> None:
    made = pairwise()
    found = values(measured(made, (Scores("flat", np.full((len(made), 2), 7.0)),))["flat"].metrics)
    assert (found["accuracy"], found["accuracy_ties_half"], found["ties"], found["margin"]) == (0, 0.5, 1, 0)
    assert found["brier"] == 0.25 and found["aurc_random"] == 1 and "error_auroc_confidence" not in found
