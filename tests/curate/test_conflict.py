from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ebrm.curate import ConflictCount, filter_conflicts
from ebrm.pairs import PreferencePairs

CHOSEN = torch.tensor([2.0, 1.0, 0.5, -1.0, 3.0])
REJECTED = torch.tensor([1.0, 4.0, 0.5, -1.5, 2.75])
REWARDS = st.lists(st.tuples(st.integers(-50, 50), st.integers(-50, 50)), min_size=1, max_size=30)


def filtered(chosen, rejected, **columns):
    """The report on pairs with these rewards."""
    rows = torch.arange(2 * len(chosen)).view(2, -1)
    pairs = PreferencePairs.of(*rows, **columns)
    kept, report = filter_conflicts(pairs, torch.cat([torch.as_tensor(chosen), torch.as_tensor(rejected)]))
    assert kept.origin.tolist() == report.keep.nonzero().flatten().tolist() and kept.steps[-1] == "conflict filter"
    return report


def sides(pairs):
    return torch.tensor(pairs, dtype=torch.float64).T


def counted(counts):
    return {name: (count.kept, count.dropped, count.tied) for name, count in counts.items()}


def test_a_known_answer():
    report = filtered(CHOSEN, REJECTED)
    assert report.keep.tolist() == [True, False, False, True, True]
    assert report.overall == ConflictCount(
        kept=3, dropped=1, tied=1, kept_margin=pytest.approx((1 + 0.5 + 0.25) / 3), dropped_margin=3.0
    )
    assert report.overall.kept_fraction == 0.6
    assert report.by_source == report.by_category == {"-": report.overall}


def test_rewards_that_differ_in_the_last_digit_are_not_tied():
    one = torch.tensor([1.0, 1e8, 1e-30])
    above = torch.nextafter(one, torch.tensor(torch.inf))
    assert filtered(above, one).keep.all()
    assert filtered(one, above).overall.dropped == filtered(one, one).overall.tied == 3
    half = torch.tensor([1.0, 0.5], dtype=torch.bfloat16)
    assert filtered(half[:1], half[1:]).keep.tolist() == [True]


def test_groups_are_counted_in_alphabetical_order():
    report = filtered(CHOSEN, REJECTED, source=["web", "books", "web", None, ""], category=["a", "a", "b", "b", "b"])
    assert counted(report.by_source) == {"-": (2, 0, 0), "books": (0, 1, 0), "web": (1, 0, 1)}
    assert list(report.by_source) == ["-", "books", "web"]
    assert report.by_source["books"].kept_margin is None and report.by_source["books"].dropped_margin == 3.0
    assert counted(report.by_category) == {"a": (1, 1, 0), "b": (2, 0, 1)}
    assert report.by_source["web"].kept_fraction == 0.5


@given(REWARDS, st.data())
def test_groups_add_up_to_the_whole(pairs, data):
    labels = data.draw(st.lists(st.sampled_from(["x", "y", None]), min_size=len(pairs), max_size=len(pairs)))
    report = filtered(*sides(pairs), source=labels, category=labels)
    assert report.by_source == report.by_category
    for count in ("kept", "dropped", "tied"):
        assert sum(getattr(c, count) for c in report.by_source.values()) == getattr(report.overall, count)
    assert report.overall.kept + report.overall.dropped + report.overall.tied == len(pairs)


@given(REWARDS, st.floats(0.01, 100), st.integers(-100, 100))
def test_affine_maps_keep_the_same_pairs_swaps_the_others_and_what_was_kept_is_kept_again(pairs, a, b):
    chosen, rejected = sides(pairs)
    report, mapped = filtered(chosen, rejected), filtered(a * chosen + b, a * rejected + b)
    assert torch.equal(report.keep, mapped.keep)
    if report.overall.kept_margin is not None:
        assert mapped.overall.kept_margin == pytest.approx(a * report.overall.kept_margin)
    swapped, o = filtered(rejected, chosen), report.overall
    assert not bool((report.keep & swapped.keep).any())
    assert swapped.overall == ConflictCount(o.dropped, o.kept, o.tied, o.dropped_margin, o.kept_margin)
    assert filtered(chosen[report.keep], rejected[report.keep]).keep.all()


def test_the_report_is_plain_and_one_sentence():
    report = filtered(CHOSEN, REJECTED, source=["a"] * 5)
    plain = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert plain["kept"] == 3 and plain["kept_fraction"] == 0.6 and "keep" not in plain
    assert plain["by_source"]["a"] == {key: plain[key] for key in plain["by_source"]["a"]}
    assert report.summary() == (
        "Conflict filter: kept 3 of 5 pairs (60.0%), dropped 1 whose label the base RM contradicts and 1 ties; "
        "mean margin 0.583 where kept, 3 where dropped."
    )
    assert filtered(CHOSEN[:1], REJECTED[:1]).summary().endswith("and 0 ties.")
    counted_only = filtered([1.0, 0.0, 0.0, 2.0], [0.0, 1.0, 2.0, 2.0])
    assert counted_only.summary(filtered=False) == (
        "The base RM contradicts the labels of 2 of 4 pairs (50.0%) and ties on 1; all are used."
    )
    assert counted_only.overall.dropped_fraction == 0.5


def test_no_pairs():
    report = filtered([], [], source=[])
    assert report.keep.shape == (0,) and report.overall == ConflictCount(0, 0, 0, None, None)
    assert report.overall.kept_fraction == report.overall.dropped_fraction == 0.0
    assert "kept 0 of 0 pairs (0.0%)" in report.summary()
    assert report.summary(filtered=False).startswith("The base RM contradicts the labels of 0 of 0 pairs (0.0%)")
