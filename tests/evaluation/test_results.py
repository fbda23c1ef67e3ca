from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from tests.evaluation.suites import benchmark, best_of, item, pairwise, plain_scores, refined_scores, three

from ebrm.data import prompt_id
from ebrm.errors import ConfigError, DataError
from ebrm.evaluation import ScoredBenchmark, Scores, prompt_ids
from ebrm.evaluation.results import INFINITE, NO_DENSITY, NOT_A_NUMBER, common_items


def test_everything_scored_keeps_everything() -> None:
    made = pairwise()
    common = common_items(ScoredBenchmark(made, three(made)))
    assert common.benchmark.items == made.items
    assert common.unscored_items == ()
    assert common.unscored == {"rm": {}, "rm-refined": {}, "poor": {}}
    np.testing.assert_array_equal(common.gold, common.benchmark.gold())


def test_items_that_one_scorer_lacks_are_left_out_for_all() -> None:
    made = best_of(count=10)
    rm, refined, poor = three(made)
    rm.reward[3, 0] = np.nan
    rm.reward[4, 1] = -np.inf
    rm.reward[5, :2] = np.nan, np.inf  # NaN is said first
    refined.std[6, 2] = np.nan
    refined.interval[7, 1, 0] = np.inf
    poor = replace(poor, unscored={0: "the text is too long", 3: "the text is too long", 9: "lost"})
    poor.reward[0] = np.nan
    common = common_items(ScoredBenchmark(made, (rm, refined, poor)))
    assert common.unscored == {
        "rm": {INFINITE: 1, NOT_A_NUMBER: 2},
        "rm-refined": {NO_DENSITY: 2},
        "poor": {"lost": 1, "the text is too long": 2},
    }
    assert common.unscored_items == ("b000", "b003", "b004", "b005", "b006", "b007", "b009")
    assert [one.id for one in common.benchmark.items] == ["b001", "b002", "b008"]
    for before, after in zip((rm, refined, poor), common.scorers, strict=True):
        np.testing.assert_array_equal(after.reward, before.reward[[1, 2, 8]])
    np.testing.assert_array_equal(common.gold, made.gold()[[1, 2, 8]])
    assert len(common.cluster) == len(common.prompt) == 3
    place = np.array([0, 1, 2])
    one, zero = np.ones(3, np.int64), np.zeros(3, np.int64)
    np.testing.assert_array_equal(
        common.scorers[1].probability(place, one, zero), refined.probability(np.array([1, 2, 8]), one, zero)
    )


def test_a_density_beyond_an_items_responses_does_not_matter() -> None:
    made = best_of(count=30)
    refined = refined_scores(made, "refined", "rm")
    beyond = np.isnan(refined.reward)
    assert beyond.any() and np.isnan(refined.std[beyond]).all()
    assert len(common_items(ScoredBenchmark(made, (refined,))).benchmark) == 30


def test_nothing_left_says_why() -> None:
    made = pairwise(count=4)
    rm, refined, poor = three(made)
    rm.reward[:3] = np.nan
    poor = replace(poor, unscored={3: "the text is too long"})
    with pytest.raises(DataError) as caught:
        common_items(ScoredBenchmark(made, (rm, refined, poor)))
    said = str(caught.value)
    assert "no item that all reward models could score" in said
    assert f"rm: 3 of 4 items: {NOT_A_NUMBER}" in said and "poor: 1 of 4 items: the text is too long" in said
    assert "rm-refined" not in said


def test_what_does_not_fit_is_refused() -> None:
    made = best_of(count=6)
    rm = plain_scores(made, "rm")
    beyond = np.where(np.isnan(rm.reward), 0.0, rm.reward)
    for error, said, scorers in (
        (ConfigError, "no reward model", ()),
        (ConfigError, "same name: rm", (rm, rm)),
        (ValueError, "rewards", (Scores("rm", rm.reward[:, :2]),)),
        (ValueError, "where there is no response", (Scores("rm", beyond),)),
        *((ValueError, f"item {k} is unscored", (Scores("rm", rm.reward, unscored={k: "?"}),)) for k in (6, -1)),
    ):
        with pytest.raises(error, match=said):
            common_items(ScoredBenchmark(made, scorers))
    with pytest.raises(DataError, match="no items left to score"):
        common_items(ScoredBenchmark(made.take([]), (Scores("rm", np.empty((0, 2))),)))


def test_clusters_and_prompts() -> None:
    prompts, clusters = ("same", "same", "other", "third", "third", "same"), ("", "", *["pair 1"] * 3, "pair 2")
    made = benchmark([item(name, (1, 0), p, cluster=c) for name, p, c in zip("abcdef", prompts, clusters, strict=True)])
    common = common_items(ScoredBenchmark(made, (plain_scores(made, "rm"),)))
    a, b, c, d, e, f = common.cluster.tolist()
    assert a == b and c == d == e and len({a, c, f}) == 3
    assert sorted({a, c, f}) == [0, 1, 2]
    a, b, c, d, e, f = common.prompt.tolist()
    assert a == b and d == e and len({a, c, d, f}) == 4
    turned = made.take([5, 4, 3, 2, 1, 0])
    other = common_items(ScoredBenchmark(turned, (plain_scores(made, "rm").take(np.arange(6)[::-1]),)))
    assert other.cluster.tolist() == common.cluster.tolist()
    assert other.benchmark.items == common.benchmark.items
    np.testing.assert_array_equal(other.scorers[0].reward, common.scorers[0].reward)


def test_clusters_are_those_of_the_benchmark() -> None:
    made = pairwise(count=30)
    names = made.clusters()
    expected = [sorted(set(names)).index(name) for name in names]
    assert common_items(ScoredBenchmark(made, (plain_scores(made, "rm"),))).cluster.tolist() == expected


def test_prompt_ids() -> None:
    made = pairwise(count=30, prompts=10)
    turns = ({"role": "user", "content": "question 1"}, {"role": "assistant", "content": "question 2"})
    items = [*made.items, replace(made.items[0], prompt=turns)]
    assert prompt_ids(items) == [prompt_id(one.prompt) for one in items]


def test_ids_of_the_items_left_out_are_sorted() -> None:
    made = benchmark([item(name, (1, 0)) for name in "dbac"])
    reward = np.array([[1.0, 0], [np.nan, 0], [np.nan, 0], [0, np.nan]])
    assert common_items(ScoredBenchmark(made, (Scores("rm", reward),))).unscored_items == ("a", "b", "c")


REWARD = np.array([[1.0, 0.0, np.nan], [2.0, 2.0, -1.0], [0.0, 3.0, np.nan]])


def places(*values: int) -> np.ndarray:
    return np.array(values)


def test_without_a_density_the_probability_is_bradley_terrys():
    scores = Scores("rm", REWARD)
    found = scores.probability(places(0, 1, 1), places(0, 0, 0), places(1, 1, 2))
    np.testing.assert_allclose(found, [1 / (1 + np.exp(-1)), 0.5, 1 / (1 + np.exp(-3))])


def test_taking_items_takes_everything_that_belongs_to_them():
    asked = []

    def prefer(item, a, b):
        asked.append(item.tolist())
        return np.full(len(item), 0.25)

    ends = np.stack([REWARD - 1, REWARD + 1], axis=-1)
    scores = Scores("m", REWARD, "rm", REWARD * 0 + 0.5, ends, 0.8, prefer, {1: "too long", 2: "refused"})
    some = scores.take(places(2, 0))
    np.testing.assert_array_equal(some.reward, REWARD[[2, 0]])
    np.testing.assert_array_equal(some.interval, ends[[2, 0]])
    assert some.std is not None and some.std.shape == (2, 3)
    assert (some.name, some.base, some.interval_level, some.unscored) == ("m", "rm", 0.8, {0: "refused"})
    assert some.probability(places(0, 1), places(0, 0), places(1, 1)) == pytest.approx([0.25, 0.25])
    assert asked == [[2, 0]]  # the density is asked for the items' places in the whole benchmark
    assert Scores("rm", REWARD).take(places(1)).prefer is None
