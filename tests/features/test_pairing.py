from __future__ import annotations

import logging

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ebrm.errors import FeaturesError
from ebrm.features.pairing import make_pairs


def arrays(**columns):
    return {
        name: np.array(values, dtype=object if any(v is None or isinstance(v, str) for v in values) else None)
        for name, values in columns.items()
    }


def sides(pairs):
    return list(zip(pairs.chosen.tolist(), pairs.rejected.tolist(), strict=True))


def test_without_columns_rows_alternate_and_that_is_said(caplog):
    with caplog.at_level(logging.INFO):
        pairs, how = make_pairs({}, 6)
    assert sides(pairs) == [(0, 1), (2, 3), (4, 5)] and len(set(pairs.prompt_id)) == 3
    assert how == "rows taken as chosen, rejected, chosen, …" and how in caplog.text
    assert pairs.where.tolist() == ["rows 0, 1", "rows 2, 3", "rows 4, 5"]


def test_an_odd_number_of_rows_does_not_alternate():
    with pytest.raises(FeaturesError, match="number is odd .7."):
        make_pairs({}, 7)


def test_by_row_numbers():
    pairs, _ = make_pairs(arrays(chosen=[4, 0, 1, 5], rejected=[3, 1, 2, 6]), 7)
    assert sides(pairs) == [(4, 3), (0, 1), (1, 2), (5, 6)]
    # Rows 0, 1 and 2 answer one prompt; a split must not take them apart.
    assert pairs.prompt_id.tolist() == ["row-000003", "row-000000", "row-000000", "row-000005"]


@given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)).filter(lambda p: p[0] != p[1]), min_size=1, max_size=12)
)
def test_pairs_share_a_prompt_exactly_if_rows_connect_them(edges):
    pairs, _ = make_pairs({"chosen": np.array([a for a, _ in edges]), "rejected": np.array([b for _, b in edges])}, 10)
    groups: list[set[int]] = []
    for edge in edges:
        joined = set(edge).union(*(group for group in groups if group & set(edge)))
        groups = [group for group in groups if not group & joined] + [joined]
    for i, a in enumerate(edges):
        for j, b in enumerate(edges):
            together = any(a[0] in group and b[0] in group for group in groups)
            assert (pairs.prompt_id[i] == pairs.prompt_id[j]) == together


def test_by_pair_ids_in_order_of_first_appearance():
    pairs, _ = make_pairs(arrays(pair_id=["x", "y", "y", "x"], is_chosen=[0, 1, 0, 1]), 4)
    assert sides(pairs) == [(3, 0), (1, 2)] and pairs.prompt_id.tolist() == ["x", "y"]
    pairs, _ = make_pairs(arrays(pair_id=[7, 7], is_chosen=[False, True]), 2)
    assert sides(pairs) == [(1, 0)] and pairs.prompt_id.tolist() == ["7"]


@pytest.mark.parametrize(("order", "values"), [("rank", [2, 1, 3, 1, 2, 1]), ("gold", [0.5, 0.9, -1, 3, 2, 3])])
def test_the_best_of_a_group_against_every_worse_one(order, values):
    pairs, how = make_pairs(arrays(group_id=["a", "a", "a", "b", "b", "b"], **{order: values}), 6)
    assert sides(pairs) == [(1, 0), (1, 2), (3, 4)]
    assert pairs.prompt_id.tolist() == ["a", "a", "b"]
    assert order in how and "1 tied" in how


def test_groups_need_not_lie_together():
    pairs, _ = make_pairs(arrays(group_id=[1, 2, 1, 2], gold=[0, 5, 1, 4]), 4)
    assert sides(pairs) == [(2, 0), (1, 3)]


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 4)), min_size=2, max_size=20))
def test_rank_is_gold_upside_down_and_every_pair_is_right(rows):
    group, gold = np.array(rows).T
    try:
        pairs, _ = make_pairs({"group_id": group, "gold": gold}, len(rows))
    except FeaturesError:
        assert all(len({v for g, v in rows if g == k}) <= 1 for k in range(4))
        return
    by_rank, _ = make_pairs({"group_id": group, "rank": -gold}, len(rows))
    assert sides(by_rank) == sides(pairs)
    assert (group[pairs.chosen] == group[pairs.rejected]).all()
    assert (gold[pairs.chosen] > gold[pairs.rejected]).all()
    assert all(gold[c] == gold[group == group[c]].max() for c in pairs.chosen)


def test_other_columns_are_the_chosen_rows():
    columns = arrays(
        pair_id=[0, 0, 1, 1], is_chosen=[0, 1, 1, 0], prompt_id=["p", "p", "q", "q"], source=["a", "b", "c", None],
        category=["1", "2", None, "4"], strength=[1.0, 2.0, 3.0, 4.0], split=["test", "train", "test", "train"],
        rm_training=[False, True, False, True], where=["w0", "w1", "w2", "w3"],
    )  # fmt: skip
    pairs, _ = make_pairs(columns, 4)
    assert pairs.prompt_id.tolist() == ["p", "q"] and pairs.source.tolist() == ["b", "c"]
    assert pairs.category.tolist() == ["2", None] and pairs.strength.tolist() == [2.0, 3.0]
    assert pairs.split.tolist() == ["train", "test"] and pairs.rm_training.tolist() == [True, False]
    assert pairs.where.tolist() == ["w1", "w2"]


@pytest.mark.parametrize("missing", [None, np.nan])
def test_what_is_not_known_of_a_pair_may_be_missing(missing):
    pairs, _ = make_pairs(arrays(strength=[missing, 1.0, 2.0, 3.0], rm_training=[missing, 1, 1, 1]), 4)
    assert np.isnan(pairs.strength[0]) and pairs.strength[1] == 2 and pairs.rm_training.tolist() == [False, True]


def test_with_row_numbers_other_columns_may_be_the_pairs():
    columns = arrays(chosen=[0, 1, 2], rejected=[1, 2, 3], prompt_id=["p", "p", "p"], source=["a", "b", "c", "d"])
    pairs, _ = make_pairs(columns, 4)
    assert pairs.source.tolist() == ["a", "b", "c"] and set(pairs.prompt_id) == {"p"}
    pairs, _ = make_pairs(arrays(chosen=[0, 3], rejected=[1, 2], source=["a", "b"], category=["0", "1", "2", "3"]), 4)
    assert pairs.source.tolist() == ["a", "b"] and pairs.category.tolist() == ["0", "3"]


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"chosen": [0]}, "`rejected` is missing"),
        ({"is_chosen": [0, 1, 0, 1]}, "`pair_id` is missing"),
        ({"chosen": [0, 1], "rejected": [2]}, "`chosen` has 2 entries and `rejected` 1"),
        ({"chosen": [0, 4], "rejected": [1, 2]}, r"Entry 1 of `chosen` is 4, but there are 4 rows \(0 to 3\)"),
        ({"chosen": [0], "rejected": [-1]}, "Entry 0 of `rejected` is -1"),
        ({"chosen": [0.5], "rejected": [1]}, "type float64; expected row numbers"),
        ({"chosen": [0, 2], "rejected": [1, 2]}, "Pair 1 has row 2 as both"),
        ({"pair_id": [0, 0, 1, 1], "is_chosen": [1, 0, 1, 1]}, "1 of 2 pair ids .* first is 1, with 2 chosen and 0"),
        ({"pair_id": [0, 0, 0, 1], "is_chosen": [1, 0, 0, 1]}, "2 of 2 pair ids .* first is 0, with 1 chosen and 2"),
        ({"pair_id": [0, 0, 1, 1], "is_chosen": [1, 0, 2, 0]}, "Row 2 has is_chosen = 2"),
        ({"pair_id": ["a", None, "b", "b"], "is_chosen": [1, 0, 1, 0]}, "Row 1 has no `pair_id`"),
        ({"pair_id": [0, 0], "is_chosen": [1, 0, 1, 0]}, r"`pair_id` has shape \[2\]; expected \[4\]"),
        ({"group_id": [0, 0, 1, 1]}, "needs one of `rank` .* there are neither"),
        ({"group_id": [0, 0, 1, 1], "rank": [1, 2, 1, 2], "gold": [1, 2, 1, 2]}, "there are both"),
        ({"group_id": [0, 0, 1, 1], "gold": [1, np.nan, 1, 2]}, "Row 1 has no `gold`"),
        ({"group_id": [0, 0, 1, 1], "gold": [1, 1, 2, 2]}, "holds no pair"),
        ({"prompt_id": ["a", "b", "c", "c"]}, "Pair 0 .rows 0 and 1. has the prompt ids 'a' and 'b'"),
        ({"strength": [1.0, 2.0, "high", 1.0]}, "Pair 1 has strength = 'high'; expected a number, or nothing"),
        ({"rm_training": ["False", "", "", ""]}, "Pair 0 has rm_training = 'False'; expected true or false"),
        ({"source": ["a", "b"]}, r"`source` has shape \[2\]; expected \[4\]"),
        ({"chosen": [0], "rejected": [1], "source": ["a", "b"]}, r"expected \[4\] .* or \[1\] \(one a pair\)"),
    ],
)
def test_columns_that_contradict_each_other_are_refused(columns, said):
    with pytest.raises(FeaturesError, match=said):
        make_pairs(arrays(**columns), 4)
