from __future__ import annotations

import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ebrm.curate import ConflictCount, filter_conflicts
from ebrm.errors import DataError

CHOSEN = torch.tensor([2.0, 1.0, 0.5, -1.0, 3.0])
REJECTED = torch.tensor([1.0, 4.0, 0.5, -1.5, 2.75])
rewards = st.lists(st.tuples(st.integers(-50, 50), st.integers(-50, 50)), min_size=1, max_size=30)


def sides(pairs: list[tuple[int, int]]) -> tuple[torch.Tensor, torch.Tensor]:
    chosen, rejected = torch.tensor(pairs, dtype=torch.float32).T
    return chosen, rejected


def test_a_known_answer():
    report = filter_conflicts(CHOSEN, REJECTED)
    assert report.keep.tolist() == [True, False, False, True, True]
    assert report.overall == ConflictCount(
        kept=3, dropped=1, tied=1, kept_margin=pytest.approx((1 + 0.5 + 0.25) / 3), dropped_margin=3.0
    )
    assert report.overall.kept_fraction == 0.6
    assert report.by_source == report.by_category == {}


def test_swapping_the_sides_keeps_the_other_pairs():
    report = filter_conflicts(REJECTED, CHOSEN)
    assert report.keep.tolist() == [False, True, False, False, False]
    assert (report.overall.kept, report.overall.dropped, report.overall.tied) == (1, 3, 1)
    assert (report.overall.kept_margin, report.overall.dropped_margin) == (3.0, pytest.approx(1.75 / 3))


def test_rewards_that_differ_in_the_last_digit_are_not_tied():
    one = torch.tensor([1.0, 1e8, 1e-30])
    above = torch.nextafter(one, torch.tensor(torch.inf))
    assert filter_conflicts(above, one).keep.all()
    assert filter_conflicts(one, above).overall.dropped == 3
    assert filter_conflicts(one, one).overall.tied == 3
    half = torch.tensor([1.0, 0.5], dtype=torch.bfloat16)
    assert filter_conflicts(half[:1], half[1:]).keep.tolist() == [True]


def test_groups_are_counted_in_alphabetical_order():
    report = filter_conflicts(
        CHOSEN, REJECTED, source=["web", "books", "web", None, ""], category=["a", "a", "b", "b", "b"]
    )
    counted = {name: (c.kept, c.dropped, c.tied) for name, c in report.by_source.items()}
    assert counted == {"-": (2, 0, 0), "books": (0, 1, 0), "web": (1, 0, 1)}
    assert list(counted) == ["-", "books", "web"]
    assert report.by_source["books"].kept_margin is None and report.by_source["books"].dropped_margin == 3.0
    assert {name: (c.kept, c.dropped, c.tied) for name, c in report.by_category.items()} == {
        "a": (1, 1, 0),
        "b": (2, 0, 1),
    }
    assert report.by_source["web"].kept_fraction == 0.5


@given(rewards, st.data())
def test_groups_add_up_to_the_whole(pairs, data):
    labels = data.draw(st.lists(st.sampled_from(["x", "y", None]), min_size=len(pairs), max_size=len(pairs)))
    report = filter_conflicts(*sides(pairs), source=labels, category=labels)
    assert report.by_source == report.by_category
    for count in ("kept", "dropped", "tied"):
        assert sum(getattr(c, count) for c in report.by_source.values()) == getattr(report.overall, count)
    assert report.overall.kept + report.overall.dropped + report.overall.tied == len(pairs)
    assert int(report.keep.sum()) == report.overall.kept


@given(rewards, st.floats(0.01, 100), st.integers(-100, 100))
def test_a_rising_affine_map_of_the_rewards_keeps_the_same_pairs(pairs, a, b):
    chosen, rejected = (side.double() for side in sides(pairs))
    report, mapped = filter_conflicts(chosen, rejected), filter_conflicts(a * chosen + b, a * rejected + b)
    assert torch.equal(report.keep, mapped.keep)
    if report.overall.kept_margin is not None:
        assert mapped.overall.kept_margin == pytest.approx(a * report.overall.kept_margin)


@given(rewards)
def test_swapped_labels_turn_kept_into_dropped(pairs):
    chosen, rejected = sides(pairs)
    report, swapped = filter_conflicts(chosen, rejected), filter_conflicts(rejected, chosen)
    assert not bool((report.keep & swapped.keep).any())
    assert swapped.overall == ConflictCount(
        kept=report.overall.dropped,
        dropped=report.overall.kept,
        tied=report.overall.tied,
        kept_margin=report.overall.dropped_margin,
        dropped_margin=report.overall.kept_margin,
    )


@given(rewards)
def test_filtering_what_was_kept_keeps_all_of_it(pairs):
    chosen, rejected = sides(pairs)
    keep = filter_conflicts(chosen, rejected).keep
    assert filter_conflicts(chosen[keep], rejected[keep]).keep.all()


def test_no_pairs():
    report = filter_conflicts(torch.zeros(0), torch.zeros(0), source=[])
    assert report.keep.shape == (0,) and report.overall == ConflictCount(0, 0, 0, None, None)
    assert report.overall.kept_fraction == 0.0
    assert "kept 0 of 0 pairs (0.0%)" in report.summary()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("side", [0, 1])
def test_a_reward_that_is_not_finite_is_refused_with_its_index(bad, side):
    pair = [CHOSEN.clone(), REJECTED.clone()]
    pair[side][3] = bad
    with pytest.raises(DataError, match=r"1 of 5 numbers \(rewards of .*\) are not finite, the first at index 3"):
        filter_conflicts(*pair)


def test_infinite_rewards_on_both_sides_are_no_tie():
    with pytest.raises(DataError, match="not finite, the first at index 0"):
        filter_conflicts(torch.tensor([math.inf]), torch.tensor([math.inf]))


def test_sides_and_labels_must_have_the_same_length():
    with pytest.raises(ValueError, match=r"expected two \[p\] tensors, got .*5.* and .*4"):
        filter_conflicts(CHOSEN, REJECTED[:4])
    with pytest.raises(ValueError, match=r"expected two \[p\] tensors"):
        filter_conflicts(CHOSEN.unsqueeze(1), REJECTED.unsqueeze(1))
    for labels in (["a"] * 4, ["a"] * 6):
        with pytest.raises(ValueError, match=f"{len(labels)} source labels were given for 5 pairs"):
            filter_conflicts(CHOSEN, REJECTED, source=labels)
        with pytest.raises(ValueError, match=f"{len(labels)} category labels were given for 5 pairs"):
            filter_conflicts(CHOSEN, REJECTED, category=labels)


def test_the_report_is_plain_and_says_it_in_one_sentence():
    report = filter_conflicts(CHOSEN, REJECTED, source=["a"] * 5)
    plain = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert plain["kept"] == 3 and plain["kept_fraction"] == 0.6 and plain["by_category"] == {}
    assert plain["by_source"]["a"] == {key: plain[key] for key in plain["by_source"]["a"]}
    assert "keep" not in plain
    assert report.summary() == (
        "Conflict filter: kept 3 of 5 pairs (60.0%), dropped 1 whose label the base RM contradicts and 1 ties; "
        "mean margin 0.583 where kept, 3 where dropped."
    )
    assert filter_conflicts(CHOSEN[:1], REJECTED[:1]).summary().endswith("and 0 ties.")


def test_what_is_only_counted_is_not_called_kept_or_dropped():
    report = filter_conflicts(torch.tensor([1.0, 0.0, 0.0, 2.0]), torch.tensor([0.0, 1.0, 2.0, 2.0]))
    assert report.summary(filtered=False) == (
        "The base RM contradicts the labels of 2 of 4 pairs (50.0%) and ties on 1; all are used."
    )
    assert report.overall.dropped_fraction == 0.5
    empty = filter_conflicts(torch.zeros(0), torch.zeros(0))
    assert empty.overall.dropped_fraction == 0.0
    assert empty.summary(filtered=False).startswith("The base RM contradicts the labels of 0 of 0 pairs (0.0%)")
