from __future__ import annotations

import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.curate.made_pairs import a_pair_each

from ebrm.curate import Done, Pairs, Report, head_difference
from ebrm.errors import DataError


def test_pairs_without_more_are_plain_statements() -> None:
    pairs = Pairs.of(torch.tensor([4, 2], dtype=torch.int32), torch.tensor([1, 0]))
    assert len(pairs) == 2 and pairs.chosen.tolist() == [4, 2] and pairs.rejected.tolist() == [1, 0]
    assert pairs.weight.tolist() == pairs.label.tolist() == [1.0, 1.0] and pairs.margin.tolist() == [0.0, 0.0]
    assert pairs.origin.tolist() == [0, 1] and pairs.steps == ("given",)
    assert pairs.history(1) == ["given: made"]


def test_differences_follow_the_sides() -> None:
    pairs = Pairs.of(torch.tensor([0, 2]), torch.tensor([1, 1]))
    reward = torch.tensor([3.0, 1.0, 0.5])
    assert pairs.difference(reward).tolist() == [2.0, -0.5]
    assert pairs.difference(torch.stack([reward, -reward])).tolist() == [[2.0, -0.5], [-2.0, 0.5]]
    flipped, _ = pairs.after("flip", flip=torch.tensor([True, False]))
    assert flipped.difference(reward).tolist() == [-2.0, -0.5]


def test_steps_compose_and_every_pair_knows_what_was_done_to_it() -> None:
    pairs = a_pair_each(4)
    flipped, report = pairs.after("flip", flip=torch.tensor([True, False, False, True]))
    assert flipped.chosen.tolist() == [1, 2, 4, 7] and flipped.rejected.tolist() == [0, 3, 5, 6]
    assert report == Report(step="flip", given=4, kept=4, flipped=2)
    kept, report = flipped.after(
        "filter",
        keep=torch.tensor([True, False, True, True]),
        weight=torch.tensor([1.0, 5.0, 2.0, 1.0]),
        label=torch.tensor([1.0, 0.5, 0.7, 1.0]),
        margin=torch.tensor([0.0, 0.0, 0.0, -1.0]),
        numbers={"threshold": 0.5},
    )
    assert kept.origin.tolist() == [0, 2, 3] and kept.steps == ("given", "flip", "filter")
    assert kept.history(0) == ["given: made", "flip: flipped", "filter: kept"]
    assert kept.history(1) == ["given: made", "flip: kept", "filter: labeled, weighted"]
    assert kept.history(2) == ["given: made", "flip: flipped", "filter: margin"]
    # Counts are of the pairs that are left: the weight and label of the dropped one changed too.
    assert (report.kept, report.dropped, report.relabelled, report.reweighted, report.new_margins) == (3, 1, 1, 1, 1)
    assert pairs.chosen.tolist() == [0, 2, 4, 6] and pairs.steps == ("given",)  # as it was


def test_a_flip_turns_the_statement_and_keeps_its_columns() -> None:
    pairs = Pairs.of(
        torch.tensor([0]), torch.tensor([1]), torch.tensor([2.0]), torch.tensor([0.75]), torch.tensor([3.0])
    )
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
    report = Report("flip the weakest", 2000, 1500, flipped=20, relabelled=3, numbers={"mean strength": 0.12345})
    plain = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert plain["dropped"] == 500 and plain["kept_fraction"] == 0.75
    assert plain["numbers"] == {"mean strength": 0.12345}
    assert report.summary() == (
        "Flip the weakest: kept 1,500 of 2,000 pairs (75.0%), dropped 500, flipped 20, changed the label of 3; "
        "mean strength 0.1235."
    )
    assert Report("x", 0, 0, made=5).summary() == "X: made 5 pairs."
    assert Report("x", 0, 0).summary() == "X: no pairs." and Report("x", 0, 0).kept_fraction == 0.0
    assert Report("x", 3, 0).summary() == "X: kept 0 of 3 pairs (0.0%)."


def test_no_pairs() -> None:
    none = torch.zeros(0, dtype=torch.int64)
    pairs, report = Pairs.of(none, none).after("flip", flip=none.bool())
    assert len(pairs) == 0 and report.kept_fraction == 0.0 and pairs.done.shape == (0, 2)
    assert pairs.difference(torch.zeros(0)).shape == (0,)


def test_what_makes_no_sense_is_refused_with_its_index() -> None:
    rows = torch.tensor([0, 1])
    with pytest.raises(DataError, match="1 of 2 pairs are of a row with itself, the first at index 1"):
        Pairs.of(rows, torch.tensor([1, 1]))
    with pytest.raises(DataError, match="below 0, the first at index 0"):
        Pairs.of(rows - 1, rows + 1)
    with pytest.raises(ValueError, match=r"rejected: expected row numbers \[p\], got \(3,\)"):
        Pairs.of(rows, torch.arange(3))
    with pytest.raises(ValueError, match="chosen: expected row numbers"):
        Pairs.of(rows.double(), rows + 2)
    for bad in (math.nan, math.inf):
        with pytest.raises(DataError, match=r"\(weight\) are not finite, the first at index 1"):
            Pairs.of(rows, rows + 2, weight=torch.tensor([1.0, bad]))
    with pytest.raises(DataError, match="weights of pairs are below 0, the first at index 0"):
        Pairs.of(rows, rows + 2, weight=torch.tensor([-1.0, 1]))
    for bad in (-0.1, 1.1):
        with pytest.raises(DataError, match="labels of pairs are not probabilities, the first at index 1"):
            Pairs.of(rows, rows + 2, label=torch.tensor([1.0, bad]))
    pairs = Pairs.of(rows, rows + 2)
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


def test_a_head_reads_only_the_rows_of_pairs() -> None:
    embedding = torch.tensor([[1.0], [math.nan], [5.0], [2.0]])
    pairs = Pairs.of(torch.tensor([2, 3]), torch.tensor([0, 2]))
    assert head_difference(lambda rows: 2 * rows[:, 0], embedding, pairs).tolist() == [8.0, -6.0]
    with pytest.raises(ValueError, match="gave 2 rewards for 3 embeddings"):
        head_difference(lambda rows: rows[:2, 0], embedding, pairs)
    with pytest.raises(DataError, match="reward by a fitted head"):
        head_difference(lambda rows: rows[:, 0] * math.inf, embedding, pairs)
