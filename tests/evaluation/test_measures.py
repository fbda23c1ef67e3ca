from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from tests.evaluation.suites import (
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
from ebrm.evaluation import MOST_RESAMPLES, Regression, ScoredBenchmark, Scores
from ebrm.evaluation import measures as module
from ebrm.evaluation.measures import (
    Measures,
    ResponsePairs,
    count_flips,
    measure,
    reward_unit,
    right_wrong_pairs,
    worst_regressions,
)
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
    gold = ((0, 1, 0), (1, 0, 0), (1, 0, 0), (1, 0, 0, 0), (1, 0), (1, 1, 0))
    made = benchmark([item(f"i{row}", one) for row, one in enumerate(gold)])
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
    found = []
    for each in (common, fewer):
        pairs = right_wrong_pairs(each.gold, ids=[i.id for i in each.benchmark.items])
        found.append(values(measure(each, official_values(fewer), pairs, bootstrap=Bootstrap(10))["rm"].metrics))
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


def test_a_constant_reward_has_no_margin_and_all_ties() -> None:
    made = pairwise()
    found = values(measured(made, (Scores("flat", np.full((len(made), 2), 7.0)),))["flat"].metrics)
    assert (found["accuracy"], found["accuracy_ties_half"], found["ties"], found["margin"]) == (0, 0.5, 1, 0)
    assert found["brier"] == 0.25 and found["aurc_random"] == 1 and "error_auroc_confidence" not in found


def rows(pairs: ResponsePairs) -> list[tuple[int, int, int]]:
    return list(zip(pairs.item.tolist(), pairs.a.tolist(), pairs.b.tolist(), strict=True))


def test_all_pairs_of_different_gold_the_better_first() -> None:
    gold = np.array([[0.0, 1.0, NAN], [0.2, 0.2, 0.9], [0.5, 0.5, 0.5]])
    pairs = right_wrong_pairs(gold)
    assert rows(pairs) == [(0, 1, 0), (1, 2, 0), (1, 2, 1)]
    assert pairs.weight.tolist() == [1.0, 0.5, 0.5]
    assert len(pairs) == 3
    assert {pairs.item.dtype, pairs.a.dtype, pairs.b.dtype} == {np.dtype(np.int64)}
    pairs = right_wrong_pairs(np.array([[1.0, 1.0, 1.0, 0.0, 0.0, 0.0]]))
    assert rows(pairs) == [(0, a, b) for a in range(3) for b in range(3, 6)] and pairs.weight.tolist() == [1 / 9] * 9
    assert len(right_wrong_pairs(np.random.default_rng(0).random((1, 9)), ids=["\ud83d"])) == 9  # no UTF-8


golds = st.lists(st.lists(st.sampled_from([0.0, 0.5, 1.0, NAN]), min_size=5, max_size=5), min_size=1, max_size=8)


@given(golds, st.integers(1, 7), st.integers(0, 3))
def test_pairs_are_right_and_as_many_as_they_can_be(table: list[list[float]], most: int, seed: int) -> None:
    gold = np.array(table)
    pairs = right_wrong_pairs(gold, most, seed)
    assert rows(pairs) == sorted(set(rows(pairs)))
    assert (gold[pairs.item, pairs.a] > gold[pairs.item, pairs.b]).all()
    for row in range(len(gold)):
        possible = sum(x > y for x in gold[row] for y in gold[row])
        assert (pairs.item == row).sum() == min(most, possible)
        assert pairs.weight[pairs.item == row].sum() == pytest.approx(float(possible > 0))


def test_chunks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    gold = np.random.default_rng(1).random((25, 8))
    whole = right_wrong_pairs(gold, 4)
    monkeypatch.setattr(module, "_CHUNK_CELLS", 200)
    parts = right_wrong_pairs(gold, 4)
    assert rows(parts) == rows(whole) and parts.weight.tolist() == whole.weight.tolist()


def test_every_pair_is_as_likely_to_be_drawn() -> None:
    items = 4000
    pairs = right_wrong_pairs(np.tile([0.1, 0.3, 0.2, 0.5], (items, 1)), most=2)
    _, count = np.unique(pairs.a * 4 + pairs.b, return_counts=True)
    assert len(count) == 6
    assert stats.chisquare(count).pvalue > 0.01
    # and so is every pair of pairs
    first, second = (pairs.a * 4 + pairs.b)[0::2], (pairs.a * 4 + pairs.b)[1::2]
    _, both = np.unique(np.stack([first, second]), axis=1, return_counts=True)
    assert len(both) == 15
    assert stats.chisquare(both).pvalue > 0.01


def test_no_items_give_no_pairs() -> None:
    pairs = right_wrong_pairs(np.empty((0, 0)))
    assert len(pairs) == 0 and pairs.item.dtype == np.int64 and pairs.weight.dtype == np.float64


def test_what_cannot_be() -> None:
    with pytest.raises(ValueError, match="most is 0"):
        right_wrong_pairs(np.ones((1, 2)), most=0)
    with pytest.raises(ValueError, match="2 items and 1 ids"):
        right_wrong_pairs(np.ones((2, 2)), ids=["a"])


def regressions(made: Benchmark, scorers: Sequence[Scores], **most: int) -> tuple[Regression, ...]:
    common = common_items(ScoredBenchmark(made, scorers))
    return worst_regressions(common, right_wrong_pairs(common.gold), *common.scorers, **most)


@pytest.mark.parametrize(
    ("item_of", "weight", "base", "refined", "expected"),
    [
        ([0, 1, 2, 3, 4], [0.2] * 5, [0, 0, 1, 1, 0], [1, 1, 0, 1, 0], (2, 1)),
        # Values that differ by rounding are no flip, and small weights hide none.
        ([0, 1], [1, 1], [0.1 + 0.2, 0.5], [0.3, 0.5 + 1e-8], (1, 0)),
        ([0, 1], [1, 1], [0.3, 0.5 + 1e-8], [0.1 + 0.2, 0.5], (0, 1)),
        ([0, 1], [1e-12, 1e-12], [0, 1], [1, 0], (1, 1)),
        # The second value weighs more, so the item is worse although the first rose by as much.
        ([0, 0], [0.1, 0.3], [0, 1], [1, 0], (0, 1)),
        ([0, 0], [0.3, 0.1], [0, 1], [1, 0], (1, 0)),
        ([0, 0], [0.5, 0.5], [0, 1], [1, 0], (0, 0)),
        # A value in no overall score does not matter beside one that is, and is all there is where none is.
        ([0, 0, 1, 1], [0.0, 0.5, 0.0, 0.0], [0, 1, 0, 1], [1, 0.9, 1, 0.5], (1, 1)),
    ],
)
def test_flips_count_each_item_once(
    item_of: list[int], weight: list[float], base: list[float], refined: list[float], expected: tuple[int, int]
) -> None:
    assert count_flips(np.array(item_of), np.array(weight), np.array(base), np.array(refined)) == expected


def test_the_unit_is_the_spread_of_all_rewards() -> None:
    reward = np.array([[1.0, 3.0, np.nan], [5.0, 7.0, 2.0]])
    assert reward_unit(reward) == pytest.approx(np.std([1, 3, 5, 7, 2]))
    assert reward_unit(np.full((3, 2), 4.0)) == 1.0


def test_the_worst_regressions_first_one_a_prompt() -> None:
    made = benchmark(
        [
            item("kept", (1, 0), "a", "safety"),
            item("small", (1, 0), "b", "safety"),
            item("large", (0, 1), "c", "maths", lengths=(3, 4)),
            item("larger, same prompt", (1, 0), "b", "safety"),
            item("tied", (1, 0), "d"),
            item("never right", (1, 0), "e"),
            item("fixed", (1, 0), "f"),
            item("tied before", (1, 0), "g"),
        ]
    )
    base = np.array([[2.0, 0], [1, 0], [0, 2.5], [1.5, 0], [1, 0], [0, 1], [0, 1], [1, 1]])
    refined = np.array([[1.0, 0], [0, 0.1], [2.5, 0], [0, 0.2], [0.5, 0.5], [0, 3], [3, 0], [0, 9]])
    scorers = (Scores("rm", base), Scores("new", refined, "rm"))
    found = regressions(made, scorers)
    assert [one.item for one in found] == ["large", "larger, same prompt", "tied"]
    large = found[0]
    assert (large.prompt, large.group, large.scorer) == ("c", "maths", "new")
    assert (large.right, large.wrong) == ("xxxx", "xxx")
    assert (large.base, large.refined) == ((2.5, 0.0), (0.0, 2.5))
    assert [one.item for one in regressions(made, scorers, most=1)] == ["large"]


def test_equal_drops_come_in_the_order_of_ids() -> None:
    generator = np.random.default_rng(0)
    names = [f"{row:03}" for row in generator.permutation(300)]
    made = benchmark([item(name, (1, 0)) for name in names])
    large = generator.random(300) < 0.5
    base = np.where(large[:, None], [[2.0, 0.0]], [[1.0, 0.0]])
    scorers = (Scores("rm", base), Scores("new", base[:, ::-1], "rm"))
    found = regressions(made, scorers, most=300)
    expected = sorted(np.array(names)[large]) + sorted(np.array(names)[~large])
    assert [one.item for one in found] == expected


def test_drops_are_measured_in_each_scorers_own_unit() -> None:
    made = pairwise(count=400, prompts=400)
    rm, refined = plain_scores(made, "rm"), refined_scores(made, "new", "rm", 0.6, 2)
    found = regressions(made, (rm, refined))
    assert len(found) == 6
    again = regressions(made, (rm, replace(refined, reward=1000 * refined.reward + 5)))
    assert [one.item for one in again] == [one.item for one in found]
    unit = [reward_unit(one.reward) for one in (rm, refined)]
    drops = [(one.base[0] - one.base[1]) / unit[0] - (one.refined[0] - one.refined[1]) / unit[1] for one in found]
    assert drops == sorted(drops, reverse=True)
    first, second = (one.reward[:, 0] - one.reward[:, 1] for one in (rm, refined))
    lost = (first > 0) & (second <= 0)
    assert drops == pytest.approx(np.sort((first / unit[0] - second / unit[1])[lost])[::-1][:6])


def test_turns_are_told_apart() -> None:
    made = benchmark([item("a", (1, 0))])
    turns = ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello."})
    made = replace(made, items=(replace(made.items[0], prompt=turns),))
    scorers = (Scores("rm", np.array([[1.0, 0.0]])), Scores("new", np.array([[0.0, 1.0]]), "rm"))
    assert regressions(made, scorers)[0].prompt == "system: Be brief.\n\nuser: Hello."
