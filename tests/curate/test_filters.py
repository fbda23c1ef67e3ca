from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.curate.made_pairs import a_pair_each, generator

from ebrm.curate import (
    ConflictCount,
    consensus,
    dual_consistency,
    filter_conflicts,
    judge_agreement,
    principle_consensus,
    rubric_consistency,
)
from ebrm.errors import ConfigError, DataError
from ebrm.groups import Groups
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


def test_two_models_keep_flip_and_dispute():
    best = torch.tensor([0.9, 0.2, 0.9, 0.1, 0.5, 0.6])
    gold = torch.tensor([0.52, 0.4, 0.3, 0.8, 0.5, 0.51])
    agreed, disputed, report = dual_consistency(a_pair_each(6), best, gold)
    assert agreed.origin.tolist() == [0, 1, 5] and agreed.chosen.tolist() == [0, 3, 10]
    assert disputed.origin.tolist() == [2, 3, 4] and disputed.steps == ("given",)
    assert (report.kept, report.flipped, report.dropped, report.numbers) == (3, 1, 3, {"disputed": 3.0})
    agreed, disputed, _ = dual_consistency(a_pair_each(6), best.double(), gold, threshold=0.55)
    assert agreed.origin.tolist() == [1] and len(disputed) == 5


def test_two_perfect_models_flip_exactly_the_wrong_pairs_and_a_second_pass_nothing():
    reward = torch.randn(80, generator=generator(), dtype=torch.float64)
    pairs = a_pair_each(40)
    wrong = pairs.difference(reward) < 0
    p = torch.sigmoid(pairs.difference(reward))
    agreed, disputed, report = dual_consistency(pairs, p, p)
    assert torch.equal((agreed.done[:, -1] > 0), wrong) and len(disputed) == 0 and report.flipped == int(wrong.sum())
    again = torch.sigmoid(agreed.difference(reward))
    same, disputed, report = dual_consistency(agreed, again, again)
    assert report.flipped == report.dropped == 0 and torch.equal(same.chosen, agreed.chosen)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.1, 10))
def test_offset_and_scale_of_rewards_do_not_matter_at_one_half(seed, scale):
    random, pairs = generator(seed), a_pair_each(8)
    best, gold = torch.randn(2, 16, generator=random, dtype=torch.float64)

    def kept(best, gold, threshold=0.5):
        p = [torch.sigmoid(pairs.difference(reward)) for reward in (best, gold)]
        agreed, disputed, _ = dual_consistency(pairs, p[0], p[1], threshold)
        return [agreed.chosen.tolist(), disputed.chosen.tolist()]

    assert kept(scale * best, gold / scale) == kept(best, gold) == kept(gold, best)
    prompt = torch.randint(-3, 3, (8,), generator=random).double().repeat_interleave(2)
    assert kept(best + prompt, gold) == kept(best, gold)
    assert len(kept(best, gold, 0.7)[0]) <= len(kept(best, gold)[0])


def test_just_one_half_is_no_agreement():
    half, sure = torch.tensor([0.5]), torch.tensor([0.9])
    for best, gold in ((half, sure), (sure, half), (half, 1 - sure), (1 - sure, half)):
        assert len(dual_consistency(a_pair_each(1), best, gold)[1]) == 1


def test_a_higher_threshold_does_depend_on_scale():
    p = torch.tensor([0.6], dtype=torch.float64)
    assert len(dual_consistency(a_pair_each(1), p, p, 0.6)[0]) == 0
    assert len(dual_consistency(a_pair_each(1), torch.tensor([0.39]), torch.tensor([0.39]), 0.6)[0]) == 1


def test_consensus_by_hand():
    p = torch.tensor([[0.9, 0.4], [0.8, 0.6]], dtype=torch.float64)
    kept, report = consensus(a_pair_each(2), p)
    assert kept.origin.tolist() == [0] and report.dropped == 1 and kept.label.tolist() == [1.0]
    p = torch.tensor([[0.9, 0.1, 0.5, 0.51], [0.7, 0.4, 0.9, 0.99]], dtype=torch.float64)
    kept, report = consensus(a_pair_each(4), p, soft=True)
    assert kept.chosen.tolist() == [0, 3, 6] and kept.label.tolist() == pytest.approx([0.8, 0.75, 0.75])
    assert (report.flipped, report.relabeled) == (1, 3)
    assert consensus(a_pair_each(4), p, confidence=0.7)[0].origin.tolist() == [0]
    one, _ = consensus(a_pair_each(4), p[:1])
    assert one.origin.tolist() == [0, 1, 3]  # one model drops just what it does not know


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 3))
def test_consensus_knows_no_order_of_models_nor_sides(seed, models):
    random = generator(seed)
    p, pairs = torch.rand(models, 10, generator=random, dtype=torch.float64), a_pair_each(10)
    kept, _ = consensus(pairs, p, soft=True)
    other, _ = consensus(pairs, p[torch.randperm(models, generator=random)], soft=True)
    assert torch.equal(other.chosen, kept.chosen)
    turned, _ = pairs.after("turn", flip=torch.ones(10, dtype=torch.bool))
    back, _ = consensus(turned, 1 - p, soft=True)
    assert torch.equal(back.chosen, kept.chosen)
    torch.testing.assert_close(back.label, kept.label)
    assert bool((kept.label > 0.5).all())


def test_judges_have_to_agree():
    #                       ++++  ++++  +++-  ----  +++= ++--
    chosen = torch.tensor([[1.0, 9, 5, 0, 2, 1], [1, 9, 5, 0, 2, 1], [1, 9, 5, 0, 2, 0], [1, 9, 0, 0, 1, 0]])
    rejected = torch.tensor([[0.0, 8, 4, 1, 1, 0], [0, 8, 4, 1, 1, 0], [0, 8, 4, 1, 1, 1], [0, 8, 1, 1, 1, 1]])
    score = torch.stack([chosen, rejected], 2)
    kept, report = judge_agreement(a_pair_each(6), score)
    assert kept.origin.tolist() == [0, 1, 3] and kept.chosen.tolist() == [0, 2, 7]
    assert (report.flipped, report.dropped, report.numbers) == (1, 3, {"judges": 4})
    assert judge_agreement(a_pair_each(6), score, least=3)[0].origin.tolist() == [0, 1, 2, 3, 4]
    scale = torch.tensor([1.0, 10, 0.1, 3])[:, None, None]
    assert judge_agreement(a_pair_each(6), score * scale - 7)[0].origin.tolist() == [0, 1, 3]
    order = torch.tensor([2, 0, 3, 1])
    assert judge_agreement(a_pair_each(6), score[order])[0].chosen.tolist() == [0, 2, 7]


def test_no_pairs_of_agreement():
    none = a_pair_each(0)
    agreed, disputed, report = dual_consistency(none, torch.zeros(0), torch.zeros(0))
    assert len(agreed) == len(disputed) == report.given == 0
    assert consensus(none, torch.zeros(2, 0), soft=True)[1].given == 0
    assert judge_agreement(none, torch.zeros(2, 0, 2))[1].given == 0


ROWS = Groups.of([0, 0, 0, 0, 1, 1, 2, 2])
RANKED = PreferencePairs.of([0, 0, 1, 4, 6], [1, 2, 3, 5, 7])  # three pairs of one prompt, then one each


def test_a_rubric_has_to_be_right_on_the_pair_and_on_its_prompt() -> None:
    kept, report = rubric_consistency(RANKED, [0.9, 0.8, 0.3, 0.5, 0.51], ROWS)
    assert kept.origin.tolist() == [0, 1, 4] and report.numbers["right"] == pytest.approx(0.6)
    assert rubric_consistency(RANKED, [0.9, 0.2, 0.3, 1, 0], ROWS)[0].origin.tolist() == [3]  # a third is too little
    votes = torch.tensor([True, True, False, False, True])
    for threshold, left in ((0.0, [0, 1, 4]), (2 / 3, [0, 1, 4]), (0.7, [4]), (1.0, [4])):
        assert rubric_consistency(RANKED, votes, ROWS, threshold)[0].origin.tolist() == left
    assert rubric_consistency(RANKED, torch.ones(5), ROWS, 1.0)[0].origin.tolist() == list(range(5))
    assert len(rubric_consistency(RANKED.select(slice(0)), [], ROWS)[0]) == 0


def test_rubrics_of_no_prompt_and_thresholds_out_of_range_are_refused() -> None:
    with pytest.raises(DataError, match="1 of 1 pairs are of responses to different prompts"):
        rubric_consistency(PreferencePairs.of([0], [4]), [1.0], ROWS)
    with pytest.raises(ConfigError, match="`threshold` is 1.5"):
        rubric_consistency(RANKED, torch.ones(5), ROWS, 1.5)
    with pytest.raises(DataError, match="from 0 to 1"):
        rubric_consistency(RANKED, [2.0, 1, 1, 1, 1], ROWS)


def test_a_principle_is_kept_where_every_other_annotator_states_it() -> None:
    axes = torch.eye(3)
    assert [mask.tolist() for mask in principle_consensus([axes[:1], axes[:1]])] == [[True], [True]]
    assert [mask.tolist() for mask in principle_consensus([axes[:1], axes[1:2]])] == [[False], [False]]
    assert principle_consensus([axes])[0].tolist() == [True] * 3
    two = principle_consensus([axes, 2 * axes[:2]])
    three = principle_consensus([axes, 2 * axes[:2], axes[1:]])
    assert (two[0].tolist(), three[0].tolist()) == ([True, True, False], [False, True, False])
    near = torch.tensor([[0.79, (1 - 0.79**2) ** 0.5, 0.0], [0.81, (1 - 0.81**2) ** 0.5, 0.0]])
    assert principle_consensus([near, axes[:1]])[0].tolist() == [False, True]
    assert principle_consensus([axes[:1].int(), torch.zeros(0, 3)])[0].tolist() == [False]
    with pytest.raises(ConfigError, match="no annotators"):
        principle_consensus([])
    with pytest.raises(DataError, match=r"principles of annotator 1\) are 0"):
        principle_consensus([axes, torch.zeros(1, 3)])
