"""Order of responses, right among wrong ones, best-of-n and the ties score."""

from __future__ import annotations

import itertools
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from tests.metrics.shared import NAN, numbers

from ebrm.benchmarks import Item
from ebrm.benchmarks.rewardbench2 import TIES_WEIGHTS as BY_NAME
from ebrm.benchmarks.rewardbench2 import ties_and_best_of_four
from ebrm.errors import DataError
from ebrm.metrics import (
    Bootstrap,
    item_tables,
    leads,
    one_to_many,
    picked_gold,
    rank_correlation,
    reciprocal_rank,
    ties_score,
    weighted_agreement,
)

NINE = np.array([[1.0] + [0.0] * 9])


def ragged(seed: int, grades: int) -> tuple[np.ndarray, np.ndarray]:
    """Items of 1 to 7 responses with few different rewards and golds, so that there are ties."""
    generator = np.random.default_rng(seed)
    rewards, gold = generator.integers(0, 5, (30, 7)) / 3, generator.integers(0, grades, (30, 7)).astype(float)
    missing = np.arange(7) >= generator.integers(1, 8, 30)[:, None]
    return np.where(missing, NAN, rewards), np.where(missing, NAN, gold)


def test_reciprocal_rank_by_hand() -> None:
    gold = np.array([[1.0] + [0.0] * 9])
    assert reciprocal_rank(np.array([[5.0] + [1.0] * 9]), gold) == [1.0]
    assert reciprocal_rank(np.array([[5.0, 5.0] + [1.0] * 8]), gold) == [0.5]  # a tie counts against it
    assert reciprocal_rank(np.ones((1, 10)), gold) == [0.1]
    assert reciprocal_rank(-np.array([[5.0] + [1.0] * 9]), gold) == [0.1]


def test_other_right_responses_do_not_stand_in_the_way() -> None:
    gold = [[1, 1, 0, 0], [0, 0, 0, NAN], [1, 1, NAN, NAN]]
    found = reciprocal_rank([[4, 2, 3, 1], [1, 2, 3, NAN], [2, 2, NAN, NAN]], gold)
    assert found == pytest.approx([1, NAN, 1], nan_ok=True)
    assert reciprocal_rank([[2, 1, 3, 3]], [[1, 1, 0, 0]]) == pytest.approx([1 / 3])


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_reciprocal_rank_is_that_of_a_sorted_list(seed: int) -> None:
    rewards, gold = ragged(seed, 2)
    for found, row, right in zip(reciprocal_rank(rewards, gold), rewards, gold, strict=True):
        there = ~np.isnan(row)
        # Best first, the wrong before the right among equals.
        ranked = sorted(zip(row[there], right[there], strict=True), key=lambda pair: (-pair[0], pair[1]))
        wrong_before = list(itertools.takewhile(lambda pair: pair[1] == 0, ranked))
        expected = 1 / (1 + len(wrong_before)) if right[there].any() else NAN
        assert found == pytest.approx(expected, nan_ok=True)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_rank_correlations_are_scipys(seed: int) -> None:
    rewards, gold = ragged(seed, 4)
    tau, rho = rank_correlation(rewards, gold)
    for number, (row, worth) in enumerate(zip(rewards, gold, strict=True)):
        there = ~np.isnan(row)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", stats.ConstantInputWarning)
            expected = [
                function(row[there], worth[there]).statistic if there.sum() > 1 else NAN
                for function in (stats.kendalltau, stats.spearmanr)
            ]
        assert [tau[number], rho[number]] == pytest.approx(expected, nan_ok=True)


def test_rank_correlations_of_the_perfect_the_reversed_and_the_constant() -> None:
    gold = np.array([[3.0, 1.0, 2.0, 5.0]] * 3)
    tau, rho = rank_correlation([[0.3, 0.1, 0.2, 9.0], [-3, -1, -2, -5], [7, 7, 7, 7]], gold)
    for found in (tau, rho):
        assert found[:2].tolist() == [1.0, -1.0] and np.isnan(found[2])
    assert np.isnan(rank_correlation([[1.0, 2.0]], [[4.0, 4.0]])).all()


def test_chunks_cover_every_item(monkeypatch: pytest.MonkeyPatch) -> None:
    tables = ragged(1, 4)
    whole, agreement = rank_correlation(*tables), weighted_agreement(*tables)
    monkeypatch.setattr("ebrm.metrics.ranking._CHUNK_CELLS", 4 * 49)
    assert np.array_equal(whole, rank_correlation(*tables), equal_nan=True)
    assert np.array_equal(agreement, weighted_agreement(*tables), equal_nan=True)


def test_picked_gold_averages_ties_at_the_top() -> None:
    rewards = [[1, 3, 2], [2, 2, 1], [5, NAN, NAN], [NAN, NAN, NAN]]
    gold = [[0.1, 0.7, 0.9], [1, 0, 5], [0.25, NAN, NAN], [NAN, NAN, NAN]]
    assert picked_gold(rewards, gold) == pytest.approx([0.7, 0.5, 0.25, NAN], nan_ok=True)
    assert picked_gold([[-2.0, -1.0]], [[4.0, -7.0]]).tolist() == [-7.0]


def test_weighted_agreement_by_hand() -> None:
    found = weighted_agreement(
        [[5, 3, 1], [1, 3, 5], [5, 1, 3], [2, 2, 2], [1, 2, NAN], [7, NAN, NAN], [NAN] * 3],
        [[5, 3, 1], [5, 3, 1], [5, 3, 1], [5, 3, 1], [4, 4, NAN], [1, NAN, NAN], [NAN] * 3],
    )
    # Third: the pairs weigh 3, 5 and 3; the last one is reversed. Fifth: equal golds, which no order contradicts.
    assert found == pytest.approx([1, 0, 8 / 11, 0.5, 1, NAN, NAN], nan_ok=True)
    assert weighted_agreement([[1.0, 1.0, 0.0]], [[3.0, 1.0, 1.0]]) == pytest.approx([1 - (3 / 2) / (3 + 3 + 1)])


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_weighted_agreement_is_that_of_a_loop_over_pairs(seed: int) -> None:
    rewards, gold = ragged(seed, 4)
    found = weighted_agreement(rewards, gold)
    for number, (row, worth) in enumerate(zip(rewards, gold, strict=True)):
        cost = total = 0.0
        for i, j in itertools.combinations(np.flatnonzero(~np.isnan(row)), 2):
            weight = 1 + abs(worth[i] - worth[j])
            product = np.sign(row[i] - row[j]) * np.sign(worth[i] - worth[j])
            total += weight
            cost += weight if product < 0 else weight / 2 if row[i] == row[j] and worth[i] != worth[j] else 0
        assert found[number] == pytest.approx(1 - cost / total if total else NAN, nan_ok=True)
    assert weighted_agreement(np.exp(rewards), gold + 5) == pytest.approx(found, nan_ok=True)
    assert np.nanmax(np.abs(weighted_agreement(rewards, 3 * gold) - found)) > 1e-3  # the unit of gold does matter


def test_item_tables_keep_the_order_of_rows() -> None:
    rewards, gold = item_tables(["b", "a", "b", "c", "b", "a"], [1, 2, 3, 4, 5, 6], [0, 1, 0, 1, 1, 0])
    assert rewards == pytest.approx(np.array([[2, 6, NAN], [1, 3, 5], [4, NAN, NAN]]), nan_ok=True)
    assert gold == pytest.approx(np.array([[1, 0, NAN], [0, 0, 1], [1, NAN, NAN]]), nan_ok=True)
    assert item_tables([], [])[0].shape == (0, 0)
    with pytest.raises(ValueError, match=r"2 item labels and a column of shape \(1,\)"):
        item_tables(["a", "b"], [1.0])


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_nothing_depends_on_the_order_of_responses(seed: int) -> None:
    rewards, gold = ragged(seed, 2)
    order = np.random.default_rng(seed).permutation(rewards.shape[1])
    for function in (reciprocal_rank, picked_gold, weighted_agreement):
        assert function(rewards, gold) == pytest.approx(function(rewards[:, order], gold[:, order]), nan_ok=True)
    for one, two in zip(
        rank_correlation(rewards, gold), rank_correlation(rewards[:, order], gold[:, order]), strict=True
    ):
        assert one == pytest.approx(two, nan_ok=True)


def test_no_items_give_no_numbers() -> None:
    empty = np.empty((0, 3))
    assert len(reciprocal_rank(empty, empty)) == len(picked_gold(empty, empty)) == 0
    assert len(weighted_agreement(empty, empty)) == 0
    assert [len(found) for found in rank_correlation(empty, empty)] == [0, 0]


@pytest.mark.parametrize("function", [reciprocal_rank, rank_correlation, picked_gold, weighted_agreement])
@pytest.mark.parametrize("bad", [NAN, np.inf, -np.inf])
def test_rewards_that_are_missing_or_infinite_are_named(function: object, bad: float) -> None:
    rewards, gold = np.ones((3, 2)), np.tile([1.0, 0.0], (3, 1))
    rewards[1, 0] = rewards[2, 1] = bad
    with pytest.raises(DataError, match="2 of 3 items have a response without a finite reward.* row 1"):
        function(rewards, gold)  # type: ignore[operator]


def right_first(generator: np.random.Generator, least: int, items: int = 12) -> tuple[np.ndarray, np.ndarray]:
    """Items of `least` to 3 right responses, then 1 to 4 wrong ones, with few different rewards: there are ties."""
    right, wrong = generator.integers(least, 4, items)[:, None], generator.integers(1, 5, items)[:, None]
    column = np.arange(7)
    gold = np.where(column < right, 1.0, np.where(column < right + wrong, 0.0, NAN))
    rewards = generator.integers(0, 5, (items, 7)) / 2 + (gold == 1)
    return np.where(np.isnan(gold), NAN, rewards), gold


def test_leads_by_hand() -> None:
    lead, spread = leads([[5, 3, 1, 2], [1, 4, NAN, NAN]], [[1, 1, 0, 0], [1, 0, NAN, NAN]])
    assert lead.tolist() == [1, -3] and spread.tolist() == [2, 0]


def test_known_one_to_many() -> None:
    for rewards, expected in (
        ([5.0] + [1.0] * 9, (1, 1, 1)),
        ([5.0, 5.0] + [1.0] * 8, (0, 1, 0.5)),
        ([1.0] * 10, (0, 1, 0.1)),
        ([1.0, 5.0] + [0.0] * 8, (0, 0, 0.5)),
    ):
        found = one_to_many([rewards], NINE)
        assert (found.accuracy.value, found.accuracy_with_ties.value, found.mrr.value) == expected
    every_place = np.stack([np.roll(np.arange(10.0), shift) for shift in range(10)])
    found = one_to_many(every_place, np.repeat(NINE, 10, axis=0))
    assert found.accuracy.value == pytest.approx(0.1) and found.items == 10
    assert found.mrr.value == pytest.approx(np.sum(1 / np.arange(1, 11)) / 10)
    assert found.accuracy.low < 0.1 < found.accuracy.high


def test_known_ties_scores() -> None:
    tied, ref = [[1.0, 1, 0, 0]], [[1.0, 0]]
    perfect = ties_score([[5, 4, 1, 0]] * 3, tied * 3, [[3, 0]] * 3, ref * 3)  # spread 1, leads 3
    assert perfect.score.value == pytest.approx(1.009640, abs=5e-7)
    assert perfect.score.value == pytest.approx(1 + 0.01 * np.tanh(2)) and perfect.questions == 3
    assert ties_score([[4, 4, 1, 0]], tied, [[3, 0]], ref).score.value == pytest.approx(1.01)  # no spread: tanh(inf)
    assert ties_score([[0, 0, 1, 4]], tied, [[3, 0]], ref).score.value == pytest.approx(0.30 - 0.01)
    assert ties_score([[2, 2, 2, 2]], tied, [[2, 2]], ref).score.value == 0  # 0/0 counts as 0
    one = ties_score([[5, 3, 2, 0]], tied, [[9, 0]], ref)  # lead 1, spread 2
    assert (one.tied_right, one.ref_right, one.lead_over_spread, one.both_leads_over_spread) == (1, 1, 0, 0)
    assert one.margin == pytest.approx(np.tanh(-0.5)) and one.score.value == pytest.approx(0.6 + 0.01 * np.tanh(-0.5))
    half = ties_score([[5, 4, 1, 0]], tied, [[0.5, 0]], ref)  # the partner's lead is the smaller
    assert (half.lead_over_spread, half.both_leads_over_spread) == (1, 0)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_the_ties_score_is_that_of_the_benchmark(seed: int) -> None:
    generator = np.random.default_rng(seed)
    tables = [*right_first(generator, 2), *right_first(generator, 1)]
    items = [
        Item(f"Ties/{kind}:{n}", "q", tuple("abcdefg"[: len(kept)]), tuple(kept), "Ties", "row")
        for kind, gold in (("tied", tables[1]), ("ref", tables[3]))
        for n, row in enumerate(gold)
        for kept in (row[~np.isnan(row)].tolist(),)
    ]
    terms = ties_and_best_of_four(items, np.concatenate([tables[0], tables[2]]))
    parts = {name: terms.value[terms.term == terms.names.index(name)].mean() for name in BY_NAME}
    found = ties_score(*tables, bootstrap=Bootstrap(2))
    mine = (found.tied_right, found.ref_right, found.lead_over_spread, found.both_leads_over_spread, found.margin)
    assert mine == pytest.approx(tuple(parts.values()))
    assert found.score.value == pytest.approx(sum(weight * parts[name] for name, weight in BY_NAME.items()))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_the_order_of_answers_and_padding_do_not_matter(seed: int) -> None:
    generator = np.random.default_rng(seed)
    tables = [*right_first(generator, 2), *right_first(generator, 1)]
    answers = generator.permutation(9)
    moved = [np.concatenate([table, np.full((12, 2), NAN)], axis=1)[:, answers] for table in tables]
    for function, count in ((ties_score, 4), (one_to_many, 2)):
        one, two = (function(*given[:count], bootstrap=Bootstrap(20)) for given in (tables, moved))
        assert numbers(two) == pytest.approx(numbers(one))


def test_bad_tables_are_named() -> None:
    with pytest.raises(DataError, match="1 of 1 items"):
        picked_gold([[1.0, 2.0]], [[1.0, NAN]])  # a reward where there is no response
    with pytest.raises(DataError, match="1 of 1 items"):
        picked_gold([[1.0, np.inf]], [[1.0, NAN]])
    with pytest.raises(ValueError, match=r"rewards \(1, 2\) and gold \(1, 3\)"):
        picked_gold([[1.0, 2.0]], [[1.0, 2.0, 3.0]])
    with pytest.raises(ValueError, match="right .1.0. or wrong .0.0."):
        reciprocal_rank([[1.0, 2.0]], [[1.0, 0.5]])


def test_bad_input_is_named() -> None:
    for gold in ([[1, 1]], [[0, 0]], [[1, 0.5]]):
        with pytest.raises(DataError, match="1 of 1 items do not have right .* row 0"):
            one_to_many([[1, 2]], gold)
    with pytest.raises(DataError, match="2 of 2 items do not have"):
        one_to_many(np.full((2, 3), NAN), np.full((2, 3), NAN))
    with pytest.raises(DataError, match="without a finite reward.* row 1"):
        leads([[1, 2], [NAN, 2]], [[1, 0], [1, 0]])
    with pytest.raises(DataError, match="no items"):
        one_to_many(np.empty((0, 2)), np.empty((0, 2)))
    with pytest.raises(ValueError, match=r"rewards \(1, 2\) and gold \(1, 3\)"):
        leads([[1, 2]], [[1, 0, 0]])
    with pytest.raises(DataError, match="1 of 1 tied questions have one right answer only, the first in row 0"):
        ties_score([[1, 2]], [[1, 0]], [[1, 2]], [[1, 0]])
    with pytest.raises(ValueError, match="1 tied questions and 2 partners"):
        ties_score([[1, 2, 0]], [[1, 1, 0]], [[1, 2]] * 2, [[1, 0]] * 2)
    with pytest.raises(ValueError, match="1 rows and cluster labels"):
        one_to_many([[1, 2]], [[1, 0]], cluster=["a", "b"])
