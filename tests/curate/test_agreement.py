from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.curate.made_pairs import a_pair_each, generator

from ebrm.curate import consensus, dual_consistency, judge_agreement


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


def test_no_pairs():
    none = a_pair_each(0)
    agreed, disputed, report = dual_consistency(none, torch.zeros(0), torch.zeros(0))
    assert len(agreed) == len(disputed) == report.given == 0
    assert consensus(none, torch.zeros(2, 0), soft=True)[1].given == 0
    assert judge_agreement(none, torch.zeros(2, 0, 2))[1].given == 0
