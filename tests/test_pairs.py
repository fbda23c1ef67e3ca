from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.curate.made_pairs import a_pair_each
from tests.other_device import other_device

from ebrm.errors import DataError
from ebrm.pairs import CurationReport, Done, PreferencePairs


def test_pairs_without_more_are_plain_statements() -> None:
    pairs = PreferencePairs.of(torch.tensor([4, 2], dtype=torch.int32), torch.tensor([1, 0]))
    assert len(pairs) == 2 and pairs.chosen.tolist() == [4, 2] and pairs.rejected.tolist() == [1, 0]
    assert pairs.weight.tolist() == pairs.label.tolist() == [1.0, 1.0] and pairs.margin.tolist() == [0.0, 0.0]
    assert pairs.origin.tolist() == [0, 1] and pairs.steps == ("given",)
    assert pairs.history(1) == ["given: made"]


def test_differences_follow_the_sides() -> None:
    pairs = PreferencePairs.of(torch.tensor([0, 2]), torch.tensor([1, 1]))
    reward = torch.tensor([3.0, 1.0, 0.5])
    assert pairs.difference(reward).tolist() == [2.0, -0.5]
    assert pairs.difference(torch.stack([reward, -reward])).tolist() == [[2.0, -0.5], [-2.0, 0.5]]
    flipped, _ = pairs.after("flip", flip=torch.tensor([True, False]))
    assert flipped.difference(reward).tolist() == [-2.0, -0.5]


def test_steps_compose_and_every_pair_knows_what_was_done_to_it() -> None:
    pairs = a_pair_each(4)
    flipped, report = pairs.after("flip", flip=torch.tensor([True, False, False, True]))
    assert flipped.chosen.tolist() == [1, 2, 4, 7] and flipped.rejected.tolist() == [0, 3, 5, 6]
    assert report == CurationReport(step="flip", given=4, kept=4, flipped=2)
    kept, report = flipped.after(
        "filter", keep=torch.tensor([True, False, True, True]), weight=torch.tensor([1.0, 5.0, 2.0, 1.0]),
        label=torch.tensor([1.0, 0.5, 0.7, 1.0]), margin=torch.tensor([0.0, 0.0, 0.0, -1.0]),
        numbers={"threshold": 0.5},
    )  # fmt: skip
    assert kept.origin.tolist() == [0, 2, 3] and kept.steps == ("given", "flip", "filter")
    assert kept.history(0) == ["given: made", "flip: flipped", "filter: kept"]
    assert kept.history(1) == ["given: made", "flip: kept", "filter: labeled, weighted"]
    assert kept.history(2) == ["given: made", "flip: flipped", "filter: margin"]
    # Counts are of the pairs that are left: the weight and label of the dropped one changed too.
    assert (report.kept, report.dropped, report.relabeled, report.reweighted, report.new_margins) == (3, 1, 1, 1, 1)
    assert pairs.chosen.tolist() == [0, 2, 4, 6] and pairs.steps == ("given",)  # as it was


def test_a_flip_turns_the_statement_and_keeps_its_columns() -> None:
    pairs = PreferencePairs.of([0], [1], weight=[2.0], label=[0.75], margin=[3.0])
    flipped, _ = pairs.after("flip", flip=torch.tensor([True]))
    assert (flipped.weight.tolist(), flipped.label.tolist(), flipped.margin.tolist()) == ([2.0], [0.75], [3.0])


@settings(max_examples=40, deadline=None)
@given(st.lists(st.booleans(), min_size=0, max_size=12))
def test_flipping_twice_is_nothing(flips: list[bool]) -> None:
    pairs, flip = a_pair_each(len(flips)), torch.tensor(flips, dtype=torch.bool)
    once, _ = pairs.after("flip", flip=flip)
    twice, report = once.after("flip", flip=flip)
    assert torch.equal(twice.chosen, pairs.chosen) and torch.equal(twice.rejected, pairs.rejected)
    assert report.flipped == sum(flips) and report.dropped == 0
    assert torch.equal((once.done[:, 1] & int(Done.FLIPPED)) > 0, flip)


def test_derived_pairs_keep_columns_and_history_of_their_parents() -> None:
    pairs, _ = a_pair_each(3).after("weigh", weight=torch.tensor([1.0, 2.0, 3.0]))
    made = pairs.derived("copies", torch.tensor([2, 2, 0]), torch.tensor([4, 5, 0]), torch.tensor([5, 4, 1]))
    assert made.weight.tolist() == [3.0, 3.0, 1.0] and made.origin.tolist() == [2, 2, 0]
    assert made.history(0) == ["given: made", "weigh: weighted", "copies: made"]
    report = made.report(given=3)
    assert (report.made, report.kept, report.dropped) == (3, 0, 3)
    assert report.summary() == "Copies: made 3 pairs from 3."


def test_reports_are_plain_and_say_it_in_one_sentence() -> None:
    report = CurationReport("flip the weakest", 2000, 1500, flipped=20, relabeled=3, numbers={"mean strength": 0.12345})
    plain = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert plain["dropped"] == 500 and plain["kept_fraction"] == 0.75
    assert plain["numbers"] == {"mean strength": 0.12345}
    assert report.summary() == (
        "Flip the weakest: kept 1,500 of 2,000 pairs (75.0%), dropped 500, flipped 20, changed the label of 3; "
        "mean strength 0.1235."
    )
    assert CurationReport("x", 0, 0, made=5).summary() == "X: made 5 pairs."
    assert CurationReport("x", 0, 0).summary() == "X: no pairs." and CurationReport("x", 0, 0).kept_fraction == 0.0
    assert CurationReport("x", 3, 0).summary() == "X: kept 0 of 3 pairs (0.0%)."


def test_no_pairs() -> None:
    none = torch.zeros(0, dtype=torch.int64)
    pairs, report = PreferencePairs.of(none, none).after("flip", flip=none.bool())
    assert len(pairs) == 0 and report.kept_fraction == 0.0 and pairs.done.shape == (0, 2)
    assert pairs.difference(torch.zeros(0)).shape == (0,)


def test_what_makes_no_sense_is_refused_with_its_index() -> None:
    rows = torch.tensor([0, 1])
    with pytest.raises(DataError, match="1 of 2 pairs are of a row with itself, the first at index 1"):
        PreferencePairs.of(rows, torch.tensor([1, 1]))
    with pytest.raises(DataError, match="below 0, the first at index 0"):
        PreferencePairs.of(rows - 1, rows + 1)
    with pytest.raises(ValueError, match=r"rejected: expected row numbers \[p\], one for each pair, got \(3,\)"):
        PreferencePairs.of(rows, torch.arange(3))
    with pytest.raises(TypeError, match="chosen: expected row numbers"):
        PreferencePairs.of(rows.double(), rows + 2)
    for bad in (math.nan, math.inf):
        with pytest.raises(DataError, match=r"\(weight\) are not finite, the first at index 1"):
            PreferencePairs.of(rows, rows + 2, weight=torch.tensor([1.0, bad]))
    with pytest.raises(DataError, match="weights of pairs are below 0, the first at index 0"):
        PreferencePairs.of(rows, rows + 2, weight=torch.tensor([-1.0, 1]))
    for bad in (-0.1, 1.1):
        with pytest.raises(DataError, match="labels of pairs are not probabilities, the first at index 1"):
            PreferencePairs.of(rows, rows + 2, label=torch.tensor([1.0, bad]))
    pairs = PreferencePairs.of(rows, rows + 2)
    with pytest.raises(ValueError, match="margin: 3 were given for 2 pairs"):
        pairs.after("x", margin=torch.zeros(3))
    with pytest.raises(ValueError, match=r"keep: expected bool \[2\]"):
        pairs.after("x", keep=torch.tensor([True]))
    with pytest.raises(ValueError, match="flip: expected bool"):
        pairs.after("x", flip=torch.tensor([1, 0]))
    with pytest.raises(DataError, match="1 of 2 pairs have rows beyond the 3 that there are, the first at index 1"):
        pairs.difference(torch.zeros(3))
    with pytest.raises(DataError, match="index 2"):
        pairs.difference(torch.tensor([0.0, 1.0, math.nan, 0.0]))


COLUMNS = dict(
    prompt_id=["x", "x", "y"], source=["a", None, "b"], category=None, where=["f:1", "f:2", "f:3"],
    rm_training=[True, False, True], label=[1, 0.5, 1], weight=[1, 2, 3], margin=[0, 0, 1], strength=[None, 2.0, 1.0],
)  # fmt: skip


def as_lists(pairs: PreferencePairs) -> dict[str, object]:
    return {
        name: value.nan_to_num(-9.0).tolist() if isinstance(value, torch.Tensor) else np.asarray(value).tolist()
        for name, value in vars(pairs).items()
        if value is not None
    }


@pytest.mark.parametrize("kind", [torch.tensor, np.array], ids=["tensors", "arrays"])
def test_lists_arrays_and_tensors_are_the_same_pairs(kind):
    known = PreferencePairs.of([0, 1, 2], [1, 2, 3], **COLUMNS, ratings=[1, None, 0, 1])
    numbers = {n: kind(COLUMNS[n]) for n in ("rm_training", "label", "weight", "margin")}
    numbers |= {"strength": kind([math.nan, 2, 1]), "ratings": kind([1, math.nan, 0, 1])}
    texts = {n: np.array(COLUMNS[n], object) for n in ("prompt_id", "source", "where")}
    assert as_lists(PreferencePairs.of(kind([0, 1, 2]), kind([1, 2, 3]), **texts, **numbers)) == as_lists(known)
    assert known.ratings.shape == (4, 1) and known.strength.dtype == known.label.dtype == torch.float64
    assert known.prompt_id.tolist() == ["x", "x", "y"] and known.category.tolist() == [None] * 3
    assert PreferencePairs.of([5], [6]).prompt_id.tolist() == ["pair-000000"]
    assert PreferencePairs.of([5], [6], prompt_id=torch.tensor([7])).prompt_id.tolist() == ["7"]


@pytest.mark.parametrize(
    ("which", "places"),
    [
        ([2, 0], [2, 0]), (np.array([2, 0]), [2, 0]), (torch.tensor([2, 0]), [2, 0]), ([True, False, True], [0, 2]),
        (slice(None, None, 2), [0, 2]), ([], []),
    ],
)  # fmt: skip
def test_a_selection_takes_every_column_and_leaves_rows_and_ratings(which, places):
    pairs = PreferencePairs.of([0, 1, 2], [1, 2, 3], **COLUMNS, ratings=torch.zeros(4, 2))
    some = pairs.select(which)
    for name, value in as_lists(pairs).items():
        known = value if name in ("steps", "ratings") else [value[i] for i in places]
        assert as_lists(some)[name] == known, name


def test_pairs_are_where_their_rows_are():
    known = PreferencePairs.of([0, 1, 2], [1, 2, 3], **COLUMNS, ratings=[1, None, 0, 1])
    with other_device() as device:
        pairs = PreferencePairs.of(torch.tensor([0, 1, 2]).to(device), [1, 2, 3], **COLUMNS, ratings=[1, None, 0, 1])
        for some, of in ((pairs, known), (known.to(device), known), (pairs.select([2, 0]), known.select([2, 0]))):
            assert some.device == device and as_lists(some) == as_lists(of)
        flipped, report = pairs.after("flip", flip=[True, False, False], keep=[True, True, False], weight=[1, 2, 9])
        assert flipped.device == device and flipped.chosen.tolist() == [1, 1] and report.kept == 2
        assert flipped.difference([0.0, 1.0, 5.0, 2.0]).tolist() == [1.0, -4.0]
        assert as_lists(pairs.to("cpu")) == as_lists(known)


def test_ratings_need_no_pairs():
    pairs = PreferencePairs.of([], [], ratings=[[1.0, None], [0.0, 2.0]])
    assert len(pairs) == 0 and pairs.ratings.shape == (2, 2) and bool(pairs.ratings[0, 1].isnan())
    assert len(pairs.select([])) == 0 and len(pairs.select(torch.zeros(0, dtype=torch.bool))) == 0


@pytest.mark.parametrize(
    ("columns", "error", "message"),
    [
        ({"prompt_id": "ab"}, TypeError, "prompt_id: expected a list or array with an entry for each of 2 pairs"),
        ({"prompt_id": ["a", None]}, TypeError, "prompt_id: expected strings or whole numbers, got None at index 1"),
        ({"source": ["a"]}, ValueError, "source: 1 were given for 2 pairs"),
        ({"source": ["a", 3]}, TypeError, "source: expected strings or None, got 3 at index 1"),
        ({"rm_training": [True, 0.5]}, TypeError, "rm_training: expected True or False, got 0.5 at index 1"),
        ({"label": "ab"}, TypeError, "label: expected numbers in a tensor, a NumPy array or a list"),
        ({"label": [1, None]}, TypeError, "label: expected numbers"),
        ({"margin": {"a": 1}}, TypeError, "margin: expected numbers"),
        ({"strength": [1, math.inf]}, DataError, r"1 of 2 numbers \(strength\) are infinite, the first at index 1"),
        ({"ratings": [1, 0]}, DataError, "1 of 2 pairs have rows beyond the 2 that there are"),
        ({"ratings": [[[1.0]]]}, ValueError, r"ratings: expected \[rows\] or \[rows, a\]"),
    ],
)
def test_columns_of_another_kind_are_refused_in_a_sentence(columns, error, message):
    with pytest.raises(error, match=message):
        PreferencePairs.of([0, 1], [1, 2], **columns)


@pytest.mark.parametrize("rows", [[0.0, 1.0], [True, False], "ab", [[0], [1, 2]], None, 3])
def test_rows_are_whole_numbers(rows):
    with pytest.raises((TypeError, ValueError), match="chosen: expected"):
        PreferencePairs.of(rows, [2, 3])


@pytest.mark.parametrize("which", [[0.5], [True], [[0]]])
def test_a_selection_is_a_mask_or_positions(which):
    with pytest.raises(ValueError, match=r"which: expected a bool mask \[2\] or positions"):
        PreferencePairs.of([0, 1], [1, 2]).select(which)
