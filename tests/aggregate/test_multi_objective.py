from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.special import softmax

from ebrm.aggregate import (
    EDITING,
    GENERATION,
    LLAMA3_70B_STEERLM,
    NEMOTRON_4_340B,
    Lagrangian,
    attribute_sum,
    base_and_bonus,
    bilevel_weights,
    expected_trusted,
    gate,
    gated,
    log_sigmoid_sum,
    min_norm_weights,
    verifiable_or_model,
    weighted_mean,
    weighted_sum,
)
from ebrm.groups import Groups

NAMES = ["helpfulness", "correctness", "coherence", "complexity", "verbosity"]


def table(seed, n=19, a=4):
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(n, a, dtype=torch.float64, generator=generator),
        torch.rand(a, dtype=torch.float64, generator=generator) + 0.1,
    )


def test_known_answers():
    rewards = torch.tensor([[1.0, 2.0, 3.0], [0.0, -1.0, 0.5]])
    weight = torch.tensor([2.0, 1.0, -1.0])
    assert weighted_sum(rewards, weight).tolist() == [1.0, -1.5]
    assert weighted_mean(rewards).tolist() == pytest.approx([2.0, -1 / 6])
    assert weighted_mean(rewards, torch.tensor([3.0, 1.0, 0.0])).tolist() == [1.25, -0.25]
    assert weighted_mean(rewards, torch.tensor([0.0, 7.0, 0.0])).tolist() == [2.0, -1.0]
    huge = torch.tensor([9e307, 9e307, 0.0], dtype=torch.float64)
    assert weighted_mean(rewards, huge).tolist() == [1.5, -0.5]


def test_published_weights():
    fours = {name: torch.tensor([4.0], dtype=torch.float64) for name in NAMES}
    assert attribute_sum(fours, LLAMA3_70B_STEERLM).tolist() == pytest.approx([8.2])
    assert attribute_sum(fours, NEMOTRON_4_340B).tolist() == pytest.approx([4 * 1.64])
    assert list(LLAMA3_70B_STEERLM) == list(NEMOTRON_4_340B) == NAMES
    for weights in (LLAMA3_70B_STEERLM, NEMOTRON_4_340B):
        # A shorter answer gains, all else equal.
        assert attribute_sum(fours | {"verbosity": torch.tensor([0.0])}, weights) > attribute_sum(fours, weights)


def test_the_scale_of_one_reward_changes_the_order():
    rewards, equal = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.ones(2)
    assert weighted_sum(rewards, equal).argmax() == 1
    assert weighted_sum(rewards * torch.tensor([1000.0, 1.0]), equal).argmax() == 0


def test_names_decide_and_not_their_order():
    one, two = torch.tensor([1.0, 2.0]), torch.tensor([5.0, 7.0])
    for attributes in ({"a": one, "b": two}, {"b": two, "unused": one, "a": one}):
        assert attribute_sum(attributes, {"b": 2.0, "a": -1.0}).tolist() == [9.0, 12.0]


GATES = ["smooth", "min", "product"]


def scores(seed, n=17, a=3):
    return torch.rand(n, a, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def doubles(*values):
    return torch.tensor(values, dtype=torch.float64)


def test_log_sigmoid_sum():
    at, above, below = (log_sigmoid_sum(doubles(r)[:, None], doubles(3.0)).item() for r in (3.0, 13.0, -7.0))
    assert at == pytest.approx(-math.log(2)) and above == pytest.approx(-4.54e-5, rel=1e-3)
    assert below == pytest.approx(-10.0000454, abs=1e-7)
    two = log_sigmoid_sum(torch.tensor([[4.0, -2.0], [1.0, 1.0]], dtype=torch.float64), torch.zeros(2))
    assert two.tolist() == pytest.approx([-2.145078, -0.626523], abs=1e-6)  # Equal sums: 2 and 2.
    # Where log(sigmoid) is -infinity in either type, and where it is exactly 0.
    for dtype in (torch.float32, torch.float64):
        assert log_sigmoid_sum(torch.tensor([[-1e4]], dtype=dtype), torch.zeros(1)).tolist() == [-1e4]
        assert log_sigmoid_sum(torch.tensor([[1e4]], dtype=dtype), torch.zeros(1)).tolist() == [0.0]


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(-50, 50), st.floats(0.1, 10))
def test_log_sigmoid_sum_moves_with_its_reference_alone(seed, offset, scale):
    rewards, reference = 6 * scores(seed) - 3, 2 * scores(seed + 1)
    found = log_sigmoid_sum(rewards, reference)
    moves = offset * scores(seed + 2)
    assert log_sigmoid_sum(rewards + moves, reference + moves).tolist() == pytest.approx(found.tolist(), abs=1e-10)
    assert found.tolist() == pytest.approx((rewards - reference).sigmoid().log().sum(1).tolist())
    one = log_sigmoid_sum(rewards[:, :1], reference[0, :1])
    assert torch.equal(one.argsort(), rewards[:, 0].argsort())
    assert bool((log_sigmoid_sum(rewards + 1, reference) > found).all())
    assert log_sigmoid_sum(rewards, reference[0]).tolist() == pytest.approx(
        log_sigmoid_sum(rewards, reference[:1].expand_as(rewards)).tolist()
    )
    if abs(scale - 1) > 0.1:  # Units matter.
        assert not torch.allclose(log_sigmoid_sum(scale * rewards, scale * reference), found)


def test_gradient_of_log_sigmoid_sum():
    rewards, reference = (6 * scores(0) - 3).requires_grad_(), scores(1).requires_grad_()
    assert torch.autograd.gradcheck(log_sigmoid_sum, (rewards, reference))
    log_sigmoid_sum(rewards, reference).sum().backward()
    expected = (reference - rewards).sigmoid()
    assert rewards.grad is not None and torch.allclose(rewards.grad, expected)


def test_gated():
    both, one, none = doubles(1, 1), doubles(0, 1), doubles(0, 0)
    soft = doubles(0.5, 1)[None]
    assert gated(both[None], soft).tolist() == pytest.approx([0.75])
    assert gated(one[None], soft).tolist() == pytest.approx([0.226134], abs=1e-6)
    assert gated(none[None], doubles(1, 1)[None]).tolist() == pytest.approx([0.090909], abs=1e-6)
    assert gated(both[None], doubles(1, 1)[None]).tolist() == [1.0]
    assert gated(both[None], soft, doubles(3, 1)).tolist() == pytest.approx([0.625])
    assert gated(one[None], soft, how="min").tolist() == gated(one[None], soft, how="product").tolist() == [0.0]
    assert gate(doubles(0.5, 0.4)[None], "min").tolist() == [0.4]
    assert gate(doubles(0.5, 0.4)[None], "product").tolist() == pytest.approx([0.2])


def test_one_failure_of_many_is_no_veto_with_the_smooth_gate():
    many = torch.ones(1, 10, dtype=torch.float64)
    many[0, 3] = 0
    assert gate(many).tolist() == pytest.approx([0.787], abs=5e-4)
    assert gate(many, "min").tolist() == gate(many, "product").tolist() == [0.0]
    assert gate(many, smoothing=1e-300).tolist() == pytest.approx([0.0], abs=1e-29)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from(GATES), st.integers(0, 2))
def test_gates_rise_with_every_score_and_do_not_depend_on_the_order(seed, how, column):
    given_ = scores(seed)
    found = gate(given_, how)
    raised = given_.clone()
    raised[:, column] = (raised[:, column] + 0.1).clamp_max(1)
    assert bool((gate(raised, how) >= found - 1e-15).all())
    assert gate(given_.flip(1), how).tolist() == pytest.approx(found.tolist())
    assert bool((found >= 0).all()) and bool((found <= 1).all())
    assert gate(given_, smoothing=1e-12).tolist() == pytest.approx((given_.log().mean(1).exp()).tolist(), abs=1e-9)
    assert gate(given_, smoothing=1e12).tolist() == pytest.approx([1.0] * 17)
    assert gate(given_[:, :1], "min").tolist() == gate(given_[:, :1], "product").tolist() == given_[:, 0].tolist()
    assert gated(given_, raised, how=how).tolist() == pytest.approx((found * raised.mean(1)).tolist())


def test_base_and_bonus():
    half = doubles(0.5, 0.5, 0.0)
    assert base_and_bonus(half, doubles(1, 0, 1), EDITING).tolist() == pytest.approx([0.5, 0.3, 0.0])
    assert base_and_bonus(half, doubles(1, 0, 1), GENERATION).tolist() == pytest.approx([0.5, 0.2, 0.0])
    assert base_and_bonus(half, doubles(1, 0, 1)).tolist() == pytest.approx([0.5, 0.25, 0.0])
    # Doing nothing keeps all and follows nothing: a sum prefers it.
    base, bonus = doubles(0.0, 0.4), doubles(1.0, 0.0)
    assert int((base / 2 + bonus / 2).argmax()) == 0 and int(base_and_bonus(base, bonus).argmax()) == 1


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0.1, 9), st.floats(0, 9))
def test_base_and_bonus_between_its_bounds(seed, first, second):
    base, bonus = scores(seed, a=2).T
    found = base_and_bonus(base, bonus, (first, second))
    assert bool((found <= base + 1e-15).all()) and bool((found >= base * first / (first + second) - 1e-15).all())
    assert found.tolist() == pytest.approx((base * (first + second * bonus) / (first + second)).tolist())
    assert base_and_bonus(base, bonus, (3 * first, 3 * second)).tolist() == pytest.approx(found.tolist())
    assert torch.equal(base_and_bonus(base, bonus, (first, 0.0)), base)
    assert bool((base_and_bonus(base, (bonus + 0.1).clamp_max(1), (first, second)) >= found).all())
    assert bool((base_and_bonus((base + 0.1).clamp_max(1), bonus, (first, second)) >= found).all())
    has = base > 0.5
    some = base_and_bonus(base, torch.where(has, bonus, torch.nan), (first, second), has)
    assert torch.equal(some, torch.where(has, found, base))


def test_verifiable_or_model():
    check, model = doubles(1.0, math.nan, 0.0), doubles(math.nan, 0.3, math.inf)
    verifiable = torch.tensor([True, False, True])
    assert verifiable_or_model(check, model, verifiable).tolist() == [1.0, 0.3, 0.0]
    ones, threes = torch.ones(3), torch.full((3,), 3.0)
    assert torch.equal(verifiable_or_model(ones, threes, torch.ones(3, dtype=torch.bool)), ones)
    assert torch.equal(verifiable_or_model(ones, threes, torch.zeros(3, dtype=torch.bool)), threes)
    passed = verifiable_or_model(torch.tensor([1, 0, 0]), doubles(0.0, 0.3, 0.5), verifiable)
    assert passed.tolist() == [1.0, 0.3, 0.0] and passed.dtype == torch.float64


def numbers(seed, *shape):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_known_answers_of_lagrangian():
    start = Lagrangian.start(torch.tensor([0.5, 0.0]), rate=2.0)
    assert start.multiplier.tolist() == pytest.approx([1 / 3] * 3)
    reward, met = torch.tensor([3.0, 0.0]), torch.tensor([[0.0, 3.0], [0.5, 1.0]])
    assert start.combine(reward, met).tolist() == pytest.approx([2.0, 0.5])
    # Means 0.25 and 2: the first falls short by 0.25, the second is met by 2.
    after = start.updated(met)
    assert after.level.tolist() == pytest.approx([0.5, -4.0])
    total = 1 + math.exp(0.5) + math.exp(-4)
    assert after.multiplier.tolist() == pytest.approx([1 / total, math.exp(0.5) / total, math.exp(-4) / total])
    assert start.level.tolist() == [0.0, 0.0]  # The old multipliers stay as they were.


def test_what_is_violated_gains_and_what_is_met_loses():
    state = Lagrangian.start(torch.tensor([0.8, 0.2]), rate=0.5)
    met = torch.tensor([[0.5, 0.5], [0.3, 0.9]])
    shares = [state.multiplier]
    for _ in range(200):
        state = state.updated(met)
        shares.append(state.multiplier)
    table = torch.stack(shares)
    assert bool((table[1:, 1] >= table[:-1, 1]).all()) and bool((table[1:, 2] <= table[:-1, 2]).all())
    assert table.sum(1).tolist() == pytest.approx([1.0] * 201)
    assert state.level.tolist() == [10.0, -10.0] and bool((state.multiplier > 0).all())
    # From the limit the way back is as long as the violation says.
    assert state.updated(torch.tensor([[10.8, 0.2]])).level.tolist() == pytest.approx([5.0, -10.0])


def test_no_requirements_and_no_rows():
    state = Lagrangian.start(torch.empty(0))
    reward = numbers(0, 4)
    assert torch.equal(state.combine(reward, torch.empty(4, 0)), reward)
    assert state.updated(torch.empty(4, 0)).multiplier.tolist() == [1.0]
    some = Lagrangian.start(torch.zeros(2))
    assert some.updated(torch.empty(0, 2)) is some
    assert some.combine(torch.empty(0), torch.empty(0, 2)).shape == (0,)


def gradients(seed, t, d):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(t, d, dtype=torch.float64, generator=generator) + 0.3


def test_known_answers_of_min_norm():
    two = torch.tensor([[1.0, 0.0], [0.0, 2.0]], dtype=torch.float64)
    found = min_norm_weights(two, normalize=False)
    assert found.tolist() == pytest.approx([0.8, 0.2])
    assert (found @ two).tolist() == pytest.approx([0.8, 0.4])
    assert (two @ (found @ two)).tolist() == pytest.approx([0.8, 0.8])  # Both improve as much.
    assert min_norm_weights(two).tolist() == pytest.approx([0.5, 0.5])
    against = torch.tensor([[1.0, 2.0], [-1.0, -2.0]])
    assert min_norm_weights(against, normalize=False).tolist() == pytest.approx([0.5, 0.5])
    assert (min_norm_weights(against) @ against).tolist() == pytest.approx([0.0, 0.0], abs=1e-6)
    same = torch.tensor([[3.0, 4.0]]).expand(3, 2)
    assert float((min_norm_weights(same, normalize=False) @ same).norm()) == pytest.approx(5.0)
    assert min_norm_weights(torch.tensor([[3.0, 4.0]])).tolist() == [1.0]


def test_corners_are_exact():
    # The short one decides alone: its product with the other exceeds its own length squared.
    assert min_norm_weights(torch.tensor([[1.0, 0.0], [5.0, 1.0]]), normalize=False).tolist() == [1.0, 0.0]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_two_objectives_have_a_closed_form(seed):
    one, two = gradients(seed, 2, 3)
    expected = float(((two - one) @ two / (one - two).square().sum()).clamp(0, 1))
    assert min_norm_weights(torch.stack([one, two]), normalize=False).tolist() == pytest.approx(
        [expected, 1 - expected], abs=1e-9
    )


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.integers(1, 9), st.booleans())
def test_the_common_gradient_improves_every_objective(seed, t, d, normalize):
    given_ = gradients(seed, t, d)
    weight = min_norm_weights(given_, normalize)
    assert bool((weight >= 0).all()) and float(weight.sum()) == pytest.approx(1)
    directions = given_ / given_.norm(dim=1, keepdim=True) if normalize else given_
    common = weight @ directions
    assert bool((directions @ common >= common.square().sum() - 1e-9).all())
    # No other weights are better: SciPy's general solver finds none.
    product = (directions @ directions.T).numpy()
    other = minimize(lambda w: w @ product @ w, [1 / t] * t, bounds=[(0, 1)] * t,
                     constraints={"type": "eq", "fun": lambda w: w.sum() - 1})  # fmt: skip
    assert float(common.square().sum()) <= other.fun + 1e-7


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(-200, 200))
def test_scale_rotation_and_order(seed, power):
    given_ = gradients(seed, 3, 5)
    weight = min_norm_weights(given_, normalize=False)
    rotation = torch.linalg.qr(gradients(seed + 1, 5, 5)).Q
    for other in (given_ * 10**power, given_ @ rotation):
        assert min_norm_weights(other, normalize=False).tolist() == pytest.approx(weight.tolist(), abs=1e-7)
    assert min_norm_weights(given_.flip(0), normalize=False).tolist() == pytest.approx(weight.flip(0).tolist())
    scaled = given_ * torch.tensor([[1.0], [10**power], [1.0]], dtype=torch.float64)
    assert min_norm_weights(scaled).tolist() == pytest.approx(min_norm_weights(given_).tolist(), abs=1e-7)


def test_no_gradient_at_all():
    nothing = torch.zeros(4, 3)
    assert min_norm_weights(nothing, normalize=False).tolist() == [0.25] * 4
    nothing[[0, 2, 3]] = 1.0
    assert min_norm_weights(nothing, normalize=False).tolist() == [0.0, 1.0, 0.0, 0.0]


def case(seed, n=60, a=3, prompts=9):
    generator = torch.Generator().manual_seed(seed)
    trusted = torch.randn(n, dtype=torch.float64, generator=generator)
    auxiliary = torch.randn(n, a, dtype=torch.float64, generator=generator)
    return trusted, auxiliary, Groups(torch.arange(n) % prompts, prompts)


def test_by_hand():
    # One prompt, rewards 0 and 1, β = 1: the policy chooses the second with probability σ(1 + w · 2).
    trusted, auxiliary, groups = torch.tensor([0.0, 1.0]), torch.tensor([[1.0], [3.0]]), Groups.of([0, 0])
    for weight in (0.0, 0.7, -2.0):
        value, gradient = expected_trusted(trusted, auxiliary, groups, torch.tensor([weight]))
        chance = 1 / (1 + math.exp(-1 - 2 * weight))
        assert value == pytest.approx(chance) and gradient.tolist() == pytest.approx([2 * chance * (1 - chance)])


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0.2, 5))
def test_value_and_gradient_against_scipy_and_finite_differences(seed, beta):
    trusted, auxiliary, groups = case(seed)
    weight = auxiliary[0].clone()
    value, gradient = expected_trusted(trusted, auxiliary, groups, weight, beta)
    by_hand = [
        softmax((trusted + auxiliary @ weight)[groups.index == x].numpy() / beta) @ trusted[groups.index == x].numpy()
        for x in range(9)
    ]
    assert value == pytest.approx(sum(by_hand) / 9)
    for k in range(3):
        step = 1e-5 * torch.eye(3, dtype=torch.float64)[k]
        up, down = (expected_trusted(trusted, auxiliary, groups, weight + s, beta)[0] for s in (step, -step))
        assert float(gradient[k]) == pytest.approx((up - down) / 2e-5, abs=1e-6)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_auxiliary_rewards_that_say_nothing_or_the_same(seed):
    trusted, auxiliary, groups = case(seed)
    per_prompt = groups.spread(torch.arange(9, dtype=torch.float64))
    policy = groups.softmax(trusted / 2)
    variance = groups.sum(policy * trusted.square()) - groups.sum(policy * trusted).square()
    columns = torch.stack([torch.ones(60, dtype=torch.float64), per_prompt, trusted, -trusted], 1)
    _, gradient = expected_trusted(trusted, columns, groups, torch.zeros(4), 2.0)
    expected = [0.0, 0.0, float(variance.mean() / 2), -float(variance.mean() / 2)]
    assert gradient.tolist() == pytest.approx(expected, abs=1e-9)
    uniform, none = expected_trusted(trusted, auxiliary, groups, torch.ones(3), 1e12)
    assert uniform == pytest.approx(float(groups.mean(trusted).mean())) and none.tolist() == pytest.approx([0.0] * 3)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(-9, 9))
def test_learned_weights_never_do_worse_here_and_do_not_see_offsets_or_order(seed, offset):
    trusted, auxiliary, groups = case(seed)
    found = bilevel_weights(trusted, auxiliary, groups, decay=0.01)
    assert found.after >= found.before
    assert found.before == pytest.approx(expected_trusted(trusted, auxiliary, groups, torch.zeros(3))[0])
    assert found.after == pytest.approx(expected_trusted(trusted, auxiliary, groups, found.weight)[0])
    moved = auxiliary + offset * groups.spread(torch.arange(9, dtype=torch.float64))[:, None]
    order = torch.randperm(60, generator=torch.Generator().manual_seed(seed))
    for other in (
        bilevel_weights(trusted, moved, groups, decay=0.01),
        bilevel_weights(trusted[order], auxiliary[order], Groups(groups.index[order], 9), decay=0.01),
    ):
        assert other.after == pytest.approx(found.after, abs=1e-6)
        assert other.weight.tolist() == pytest.approx(found.weight.tolist(), abs=1e-3)
    _, gradient = expected_trusted(trusted, auxiliary, groups, found.weight)
    assert gradient.tolist() == pytest.approx((0.01 * found.weight).tolist(), abs=1e-5)


def test_what_helps_gains_weight_and_what_misleads_is_turned_round():
    trusted, noise, groups = case(0, 3000, 1, 500)
    others = torch.cat([trusted[:, None] + noise, -trusted[:, None] + noise.flip(0), case(1, 3000, 1, 500)[1]], 1)
    found = bilevel_weights(trusted, others, groups, beta=2.0, decay=0.05)
    helps, misleads, nothing = found.weight.tolist()
    assert helps > 0.3 and misleads < -0.3 and abs(nothing) < 0.1
    assert found.after > found.before + 0.1
    assert float(bilevel_weights(trusted, others, groups, 2.0, 0.5).weight.norm()) < float(found.weight.norm())


def test_nothing_to_learn():
    trusted, auxiliary, groups = case(2)
    none = bilevel_weights(trusted, auxiliary[:, :0], groups)
    assert none.weight.shape == (0,) and none.after == none.before
    alone = bilevel_weights(trusted[:4], auxiliary[:4], Groups.of(range(4)))  # One response a prompt.
    assert alone.weight.tolist() == [0.0] * 3 and alone.after == alone.before == pytest.approx(
        float(trusted[:4].mean())
    )
    ties = bilevel_weights(torch.ones(60), auxiliary, groups)
    assert ties.weight.tolist() == pytest.approx([0.0] * 3, abs=1e-12) and ties.after == pytest.approx(1.0)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(-20, 20), st.floats(0.01, 100))
def test_offset_scale_and_order(seed, offset, scale):
    rewards, weight = table(seed)
    mean, total = weighted_mean(rewards, weight), weighted_sum(rewards, weight)
    assert mean.tolist() == pytest.approx((total / weight.sum()).tolist())
    assert bool((rewards.amin(1) - 1e-12 <= mean).all()) and bool((mean <= rewards.amax(1) + 1e-12).all())
    assert weighted_mean(scale * rewards + offset, scale * weight).tolist() == pytest.approx(
        (scale * mean + offset).tolist(), abs=1e-9
    )
    moved = weighted_sum(rewards + torch.tensor([offset, 0, 0, 0], dtype=torch.float64), weight)
    assert moved.tolist() == pytest.approx((total + offset * weight[0]).tolist(), abs=1e-9)
    columns = torch.randperm(4, generator=torch.Generator().manual_seed(seed))
    assert weighted_sum(rewards[:, columns], weight[columns]).tolist() == pytest.approx(total.tolist())
    single = torch.cat([weighted_sum(row[None], weight) for row in rewards])
    assert torch.equal(single, total)
