from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ebrm.benchmarks import Item
from ebrm.benchmarks.rewardbench2 import TIES_WEIGHTS as BY_NAME
from ebrm.benchmarks.rewardbench2 import ties_and_best_of_four
from ebrm.errors import DataError
from ebrm.metrics import Bootstrap, leads, one_to_many, picked_gold, ties_score

NAN = np.nan
NINE = np.array([[1.0] + [0.0] * 9])


def ragged(generator: np.random.Generator, least: int, items: int = 12) -> tuple[np.ndarray, np.ndarray]:
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


def test_best_of_four_shares_the_credit() -> None:
    gold = np.array([[1.0, 0, 0, 0]] * 3)
    assert picked_gold([[2, 2, 2, 2], [3, 3, 1, 1], [1, 2, 0, 0]], gold).tolist() == [0.25, 0.5, 0.0]


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
    tables = [*ragged(generator, 2), *ragged(generator, 1)]
    items = [
        Item(f"Ties/{kind}:{n}", "q", tuple("abcdefg"[: len(kept)]), tuple(kept), "Ties", "row")
        for kind, gold in (("tied", tables[1]), ("ref", tables[3]))
        for n, row in enumerate(gold)
        for kept in (row[~np.isnan(row)].tolist(),)
    ]
    terms = ties_and_best_of_four(items, np.concatenate([tables[0], tables[2]]))
    parts = {name: terms.value[terms.term == terms.names.index(name)].mean() for name in BY_NAME}
    found = ties_score(*tables, bootstrap=Bootstrap(2))
    mine = (
        found.tied_right,
        found.ref_right,
        found.lead_over_spread,
        found.both_leads_over_spread,
        found.margin,
    )
    assert mine == pytest.approx(tuple(parts.values()))
    assert found.score.value == pytest.approx(sum(weight * parts[name] for name, weight in BY_NAME.items()))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.25, 4.0]))
def test_factor_offsets_order_and_padding_do_not_matter(seed: int, factor: float) -> None:
    generator = np.random.default_rng(seed)
    tables = [*ragged(generator, 2), *ragged(generator, 1)]
    ties, many = ties_score(*tables, bootstrap=Bootstrap(20)), one_to_many(*tables[:2], bootstrap=Bootstrap(20))
    questions, answers = generator.permutation(12), generator.permutation(9)
    offset = generator.integers(-8, 8, (12, 1))
    moved = []
    for number, table in enumerate(tables):
        padded = np.concatenate([table, np.full((12, 2), NAN)], axis=1)
        moved.append((padded if number % 2 else factor * padded + offset)[questions][:, answers])
    again, more = ties_score(*moved, bootstrap=Bootstrap(20)), one_to_many(*moved[:2], bootstrap=Bootstrap(20))
    assert [again.score.value, again.score.low, again.score.high] == pytest.approx(
        [ties.score.value, ties.score.low, ties.score.high]
    )
    assert (more.accuracy, more.accuracy_with_ties) == (many.accuracy, many.accuracy_with_ties)
    assert [more.mrr.value, more.mrr.low] == pytest.approx([many.mrr.value, many.mrr.low])


def test_intervals_are_over_clusters() -> None:
    rewards, gold = ragged(np.random.default_rng(3), 1, items=200)
    alone = one_to_many(rewards, gold).accuracy
    copies = one_to_many(
        np.repeat(rewards, 4, axis=0), np.repeat(gold, 4, axis=0), np.repeat(np.arange(200), 4)
    ).accuracy
    assert copies.high - copies.low == pytest.approx(alone.high - alone.low, rel=0.1)


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
