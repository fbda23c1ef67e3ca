from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from ebrm.evaluation import measures as module
from ebrm.evaluation.measures import Pairs, right_wrong_pairs

NAN = float("nan")


def rows(pairs: Pairs) -> list[tuple[int, int, int]]:
    return list(zip(pairs.item.tolist(), pairs.a.tolist(), pairs.b.tolist(), strict=True))


def test_all_pairs_of_different_gold_the_better_first() -> None:
    gold = np.array([[0.0, 1.0, NAN], [0.2, 0.2, 0.9], [0.5, 0.5, 0.5]])
    pairs = right_wrong_pairs(gold)
    assert rows(pairs) == [(0, 1, 0), (1, 2, 0), (1, 2, 1)]
    assert pairs.weight.tolist() == [1.0, 0.5, 0.5]
    assert len(pairs) == 3
    assert {pairs.item.dtype, pairs.a.dtype, pairs.b.dtype} == {np.dtype(np.int64)}


def test_three_right_and_three_wrong_give_all_nine() -> None:
    pairs = right_wrong_pairs(np.array([[1.0, 1.0, 1.0, 0.0, 0.0, 0.0]]))
    assert rows(pairs) == [(0, a, b) for a in range(3) for b in range(3, 6)]
    assert pairs.weight.tolist() == [1 / 9] * 9


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


def test_the_draw_of_an_item_depends_on_seed_and_id_alone() -> None:
    generator = np.random.default_rng(0)
    gold = generator.random((30, 12))
    ids = [f"item {row}" for row in range(30)]
    there = right_wrong_pairs(gold, ids=ids)
    order = generator.permutation(30)
    other = right_wrong_pairs(gold[order], ids=[ids[row] for row in order])
    assert sorted((ids[order[row]], a, b) for row, a, b in rows(other)) == sorted(
        (ids[row], a, b) for row, a, b in rows(there)
    )
    alone = right_wrong_pairs(gold[7:8], ids=ids[7:8])
    assert [(a, b) for _, a, b in rows(alone)] == [(a, b) for row, a, b in rows(there) if row == 7]
    assert rows(right_wrong_pairs(gold, seed=1, ids=ids)) != rows(there)
    assert rows(right_wrong_pairs(gold, ids=ids)) == rows(there)
    assert rows(right_wrong_pairs(gold)) == rows(right_wrong_pairs(gold, ids=[str(row) for row in range(30)]))


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


def test_ids_may_hold_what_utf_8_cannot() -> None:
    assert len(right_wrong_pairs(np.random.default_rng(0).random((1, 9)), ids=["\ud83d"])) == 9


def test_what_cannot_be() -> None:
    with pytest.raises(ValueError, match="most is 0"):
        right_wrong_pairs(np.ones((1, 2)), most=0)
    with pytest.raises(ValueError, match="2 items and 1 ids"):
        right_wrong_pairs(np.ones((2, 2)), ids=["a"])
