"""Residual head: base reward plus a linear correction; SciPy, units to the bit, anchors, who has seen the pairs."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.special import softmax
from scipy.stats import spearmanr
from tests.heads.toys import NONE, World, linear_truth, world
from torch import Tensor

from ebrm.errors import ConfigError, DataError, ModelError
from ebrm.heads import Anchors, LinearConfig, ResidualConfig, ResidualHead, fit_head, head_fitter, load_head, ridge
from ebrm.heads.ridge import PENALTIES, PRIOR_NONE
from ebrm.pairs import PreferencePairs

WORLD = world(linear_truth, pairs=240, size=5, seed=1)
PAIRS = len(WORLD.train)
SEEN = ("no", "yes", "unknown")


def fit(made: World = WORLD, config: ResidualConfig = ResidualConfig(), **more: Any) -> ResidualHead:  # noqa: B008
    """The head; `pairs_seen`, `anchors` and `validation` apart, `more` are columns of the training pairs."""
    given = {name: more.pop(name) for name in ("pairs_seen", "anchors") if name in more}
    held = more.pop("validation", made.validation)
    train = PreferencePairs.of(made.train.chosen, made.train.rejected, **more)
    head = fit_head(config, made.embedding, made.reward, train, held, **given).head
    assert isinstance(head, ResidualHead)
    return head


def unseen(made: World, reward: Tensor) -> World:
    """The same pairs with other base rewards."""
    return replace(made, reward=reward)


def useless(made: World = WORLD, seed: int = 0) -> dict[str, Any]:
    """Labels at random, for training pairs and held-out pairs."""
    generator = torch.Generator().manual_seed(seed)
    train, held = (
        (torch.rand(len(pairs), generator=generator) < 0.5).double() for pairs in (made.train, made.validation)
    )
    return {"label": train, "validation": replace(made.validation, label=held)}


def logits(head: ResidualHead, made: World = WORLD) -> Tensor:
    """z of every row."""
    base = head.standardizer.to_internal64(made.reward)
    return head.located(head.standardizer.embed(made.embedding), base)


@pytest.fixture(scope="module")
def moved() -> ResidualHead:
    return fit()


# -- the fit ---------------------------------------------------------------------------------------------------------


def test_the_weights_are_scipy_s_averaged_by_the_evidence_of_prompts_left_out() -> None:
    """Everything again from its definition: SciPy's minima, refits to first order by dense matrices, softmax."""
    g = torch.Generator().manual_seed(2)
    few = world(linear_truth, pairs=120, size=4, seed=5)
    p, h = len(few.train), len(few.validation)
    label, weight = 0.8 + 0.2 * torch.rand(p + h, generator=g), 0.5 + torch.rand(p + h, generator=g)
    margin = 0.2 * torch.randn(p + h, generator=g)
    prompts = [f"p{k // 2}" for k in range(p + h)]
    columns = [{"label": label[part], "weight": weight[part], "margin": margin[part], "prompt_id": prompts[part]}
               for part in (slice(0, p), slice(p, p + h))]  # fmt: skip
    held = PreferencePairs.of(few.validation.chosen, few.validation.rejected, **columns[1])
    head = fit(few, ResidualConfig(label_smoothing=0.1), validation=held, **columns[0])

    rows = few.rows.numpy()
    e = few.embedding.double().numpy()
    x = (e - e[rows].mean(0)) / e[rows].std(0) / math.sqrt(4)
    d = x[np.r_[few.train.chosen, held.chosen]] - x[np.r_[few.train.rejected, held.rejected]]
    mu = 0.9 * label.double().numpy() + 0.1 * (1 - label.double().numpy())
    w, m = weight.double().numpy() / weight.double().numpy().mean(), margin.double().numpy()

    def losses(z: np.ndarray) -> np.ndarray:
        return w * (mu * np.logaddexp(0, m - z) + (1 - mu) * np.logaddexp(0, m + z))

    found, evidence = [np.zeros(4)], [-losses(np.zeros(p + h)).sum()]
    for penalty in PENALTIES:
        c = minimize(lambda u, k=penalty: losses(d @ u).sum() + 0.5 * k * u @ u, np.zeros(4), options={"gtol": 1e-9}).x
        up, down = 1 / (1 + np.exp(d @ c - m)), 1 / (1 + np.exp(-d @ c - m))
        slope, bend = w * (mu * up - (1 - mu) * down), w * (mu * up * (1 - up) + (1 - mu) * down * (1 - down))
        moved = np.empty(p + h)
        for place, prompt in enumerate(prompts):
            keep = np.array(prompts) != prompt
            second = d[keep].T @ (bend[keep, None] * d[keep]) + penalty * np.eye(4)
            moved[place] = d[place] @ (c + np.linalg.solve(second, d[keep].T @ slope[keep] - penalty * c))
        found.append(c)
        evidence.append(-losses(moved).sum())
    prior = [PRIOR_NONE] + [(1 - PRIOR_NONE) / len(PENALTIES)] * len(PENALTIES)
    expected = softmax(np.log(prior) + np.array(evidence)) @ np.array(found) / math.sqrt(4)
    assert np.abs(expected).max() > 0.3
    assert head.weight.numpy() == pytest.approx(expected, rel=1e-3, abs=1e-4)


def test_the_logits_are_the_weighted_base_reward_plus_the_correction(moved: ResidualHead) -> None:
    assert float(moved.base_weight) == pytest.approx(0.35)  # the fixed prior, without anchors
    r, e = WORLD.reward.double().numpy(), WORLD.embedding.double().numpy()
    rows = WORLD.rows.numpy()
    internal = (r - r[rows].mean()) / r[rows].std()
    x = (e - e[rows].mean(0)) / e[rows].std(0)
    z = 0.35 * internal + x @ moved.weight.double().numpy()
    assert logits(moved).numpy() == pytest.approx(z, abs=1e-4)
    refined = r[rows].mean() + r[rows].std() * (z - z[rows].mean()) / z[rows].std()
    assert WORLD.refined(moved).reward.numpy() == pytest.approx(refined, abs=1e-3)
    less = copy.deepcopy(moved)
    for head, sharp in ((moved, float(moved.sharpness)), (less, 0.5)):
        head.sharpness.fill_(sharp)
        p = head.prefer((WORLD.embedding[:9], WORLD.embedding[9:18]), (WORLD.reward[:9], WORLD.reward[9:18]))
        assert p.numpy() == pytest.approx(1 / (1 + np.exp(-sharp * (z[:9] - z[9:18]))), abs=1e-5)
    noise = float(r[rows].std() / z[rows].std()) * math.pi / math.sqrt(6)
    assert WORLD.refined(less).std.numpy() == pytest.approx(np.full(len(r), noise / 0.5), rel=1e-4)


def test_it_orders_pairs_better_than_the_base_reward(moved: ResidualHead) -> None:
    noisy = world(linear_truth, pairs=900, size=5, seed=1)
    refined = noisy.refined(fit(noisy)).reward
    assert noisy.accuracy(refined) > noisy.accuracy(noisy.reward) + 0.02


def test_labels_at_random_give_nearly_the_base_reward() -> None:
    many = world(linear_truth, pairs=450, size=40)
    for seed in range(4):
        head = fit(many, **useless(many, seed))
        assert 0 < float(head.correction(many.embedding).std()) < 0.2 * float(head.base_weight)
        assert spearmanr(many.refined(head).reward, many.reward).statistic > 0.98
    assert float(fit().correction(WORLD.embedding).std()) > 0.35


@pytest.mark.parametrize("seen", SEEN)
def test_labels_that_say_nothing_give_the_base_reward_to_the_bit(seen: str) -> None:
    half = {"label": torch.full((PAIRS,), 0.5), "validation": NONE, "pairs_seen": seen}
    assert torch.equal(WORLD.refined(fit(**half)).reward, WORLD.reward)
    equal = replace(WORLD, embedding=torch.ones_like(WORLD.embedding))
    assert torch.equal(WORLD.refined(fit(equal, pairs_seen=seen)).reward, WORLD.reward)


def test_no_pairs_are_needed_to_hold_out_and_all_of_them_are_fitted_on() -> None:
    both = replace(
        WORLD,
        train=PreferencePairs.of(
            *(
                torch.cat([getattr(p, side) for p in (WORLD.train, WORLD.validation)])
                for side in ("chosen", "rejected")
            ),
            prompt_id=[f"p{k}" for k in range(PAIRS + len(WORLD.validation))],
        ),
    )
    together = fit_head(ResidualConfig(), both.embedding, both.reward, both.train, NONE).head
    apart = fit_head(
        ResidualConfig(), both.embedding, both.reward, both.train.select(slice(0, PAIRS)),
        both.train.select(slice(PAIRS, len(both.train))),
    ).head  # fmt: skip
    x, y = (head.standardizer.embed(WORLD.embedding) @ head.weight for head in (together, apart))
    assert float((x - x.mean() - y + y.mean()).abs().max()) < 0.1 * float(x.std())  # but for what is standardized on
    assert not torch.equal(fit(validation=NONE).weight, fit().weight)


def test_weights_of_held_out_pairs_are_in_the_unit_of_the_others() -> None:
    plain = fit()
    both = {
        "weight": torch.full((PAIRS,), 4.0),
        "validation": replace(WORLD.validation, weight=4 * WORLD.validation.weight),
    }
    assert torch.equal(fit(**both).weight, plain.weight)
    wrong = replace(WORLD.validation, label=torch.zeros(len(WORLD.validation), dtype=torch.float64))
    right, other = (fit(weight=torch.full((PAIRS,), 1e4), validation=held) for held in (WORLD.validation, wrong))
    assert torch.allclose(right.weight, other.weight, rtol=0.01)  # they count next to nothing
    assert not torch.allclose(plain.weight, fit(validation=wrong).weight, rtol=0.2)


@given(st.integers(0, 2**31))
@settings(max_examples=15)
def test_the_order_of_pairs_and_of_their_sides_does_not_matter(seed: int) -> None:
    few = world(linear_truth, pairs=30, size=3, seed=4)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(few.train), generator=generator)
    turned = torch.rand(len(few.train), generator=generator) < 0.5
    c, r = few.train.chosen[order], few.train.rejected[order]
    other = PreferencePairs.of(torch.where(turned, r, c), torch.where(turned, c, r), label=(~turned).double())
    one = fit_head(ResidualConfig(), few.embedding, few.reward, few.train, few.validation, pairs_seen="no").head
    two = fit_head(ResidualConfig(), few.embedding, few.reward, other, few.validation, pairs_seen="no").head
    assert torch.allclose(few.refined(one).reward, few.refined(two).reward, atol=1e-4)


def test_a_row_s_result_does_not_depend_on_the_other_rows(moved: ResidualHead) -> None:
    for head in (moved, fit(anchors=far())):
        whole = WORLD.refined(head)
        for rows in (slice(0, 1), slice(3, 50), torch.tensor([7, 7, 2])):
            part = head.refine(WORLD.embedding[rows], WORLD.reward[rows])
            for name in vars(part):
                assert torch.allclose(getattr(part, name), getattr(whole, name)[rows], rtol=1e-6, atol=1e-6), name


def test_many_rows_are_read_a_few_at_a_time(moved: ResidualHead, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = WORLD.refined(moved)
    monkeypatch.setattr("ebrm.heads.data._READ_FLOATS", 35)  # seven rows
    assert torch.equal(WORLD.refined(moved).reward, whole.reward) and torch.equal(WORLD.refined(moved).std, whole.std)


def test_more_numbers_than_are_fitted_in_full_stay_close(monkeypatch: pytest.MonkeyPatch) -> None:
    wide = world(linear_truth, pairs=150, size=40, seed=2)
    wide = replace(wide, embedding=wide.embedding + 6 * wide.embedding[:, :1] @ torch.ones(1, 40) + wide.truth[:, None])
    expected = wide.refined(fit(wide)).reward
    monkeypatch.setattr(ridge, "MOST_DIMENSIONS", 30)
    found = wide.refined(fit(wide)).reward
    assert not torch.equal(found, expected) and torch.equal(found, wide.refined(fit(wide)).reward)
    assert spearmanr(found, expected).statistic > 0.98


def test_label_noise_that_is_smoothed_and_a_given_base_weight_are_used() -> None:
    plain, smooth = fit(), fit(config=ResidualConfig(label_smoothing=0.2))
    assert float(smooth.weight.norm()) < 0.8 * float(plain.weight.norm())
    for seen in SEEN:
        assert float(fit(config=ResidualConfig(base_weight=3.0), pairs_seen=seen).base_weight) == 3.0
    heavy = fit(config=ResidualConfig(base_weight=1e4))
    assert spearmanr(WORLD.refined(heavy).reward, WORLD.reward).statistic > 0.9999


# -- units -----------------------------------------------------------------------------------------------------------


@given(st.floats(-1e4, 1e4), st.floats(1e-3, 1e3), st.integers(0, 2**31))
@settings(max_examples=20)
def test_without_a_correction_the_reward_is_the_base_reward_to_the_bit(mean: float, std: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    base = (mean + std * torch.randn(len(WORLD.reward), generator=generator, dtype=torch.float64)).float()
    base[:2] = torch.tensor([mean - 9 * std, mean + 20 * std])
    head = fit(unseen(WORLD, base), **useless(), pairs_seen="yes")
    assert not bool(head.weight.any())
    assert torch.equal(head.refine(WORLD.embedding, base).reward, base)
    assert torch.equal(head(WORLD.embedding, base), base)
    moved = fit(unseen(WORLD, base))
    assert bool(moved.weight.any()) and torch.equal(moved.unmoved().refine(WORLD.embedding, base).reward, base)


def test_a_reward_twenty_deviations_up_stays_there_as_unsure_as_the_others(moved: ResidualHead) -> None:
    rows, std = WORLD.rows, float(WORLD.reward[WORLD.rows].std(correction=0))
    steps = torch.tensor([0.0, 1.0, 2.0, 20.0, 40.0]) * std
    e, base = WORLD.embedding[rows[:1]].expand(5, -1), WORLD.reward[rows[0]] + steps
    still = moved.unmoved()
    assert torch.allclose(still.refine(e, base).reward, base)
    for head in (moved, still):
        at = head.refine(e, base)
        assert bool((at.std == at.std[0]).all()) and bool((at.std == WORLD.refined(head).std[0]).all())
        slope = (at.reward - at.reward[0]).double()[1:] / steps[1:].double()
        assert slope.numpy() == pytest.approx(np.full(4, float(slope[0])), rel=1e-4)  # no end, no bend
        assert float(slope[0]) > 0.1


@given(st.floats(-100, 100), st.floats(0.01, 100), st.sampled_from(SEEN))
@settings(max_examples=20)
def test_an_affine_change_of_base_rewards_changes_units_alone(shift: float, scale: float, seen: str) -> None:
    small = world(linear_truth, pairs=60, size=3, seed=6, offset=0.0)
    base = small.reward.double()
    one, two = (fit(unseen(small, r), pairs_seen=seen) for r in (base, scale * base + shift))
    assert torch.equal(one.weight, two.weight)
    assert float(two.base_weight) == pytest.approx(float(one.base_weight), rel=1e-5)
    a, b = one.refine(small.embedding, base), two.refine(small.embedding, scale * base + shift)
    assert torch.allclose(b.reward, (scale * a.reward.double() + shift).float(), rtol=1e-4, atol=1e-4 * scale)
    assert torch.allclose(b.std, scale * a.std, rtol=1e-4)


@pytest.mark.parametrize("seen", SEEN)
def test_mean_and_spread_over_the_training_rows_are_the_base_reward_s(seen: str) -> None:
    refined = WORLD.refined(fit(pairs_seen=seen)).reward[WORLD.rows].double()
    base = WORLD.reward[WORLD.rows].double()
    assert float(refined.mean()) == pytest.approx(float(base.mean()), abs=1e-4)
    assert float(refined.std()) == pytest.approx(float(base.std()), rel=1e-5)


def test_ties_stay_ties() -> None:
    for head in (fit(), fit(anchors=far()), fit(**useless(), pairs_seen="yes")):
        e, r = WORLD.embedding[[3, 9, 3, 3]], WORLD.reward[[3, 9, 3, 3]]
        at = head.refine(e, r).reward
        assert at[0] == at[2] == at[3] != at[1]
        assert head.prefer((e[:1], e[2:3]), (r[:1], r[2:3])).tolist() == [0.5]


# -- who has seen the pairs ------------------------------------------------------------------------------------------


def knowing(made: World, strength: float) -> Tensor:
    """Base rewards that go with the labels of the training pairs, more so with a larger strength."""
    reward = torch.randn(len(made.reward), generator=torch.Generator().manual_seed(9))
    for pairs in (made.train, made.validation):
        reward[pairs.chosen] += strength
        reward[pairs.rejected] -= strength
    return reward


def test_unless_pairs_are_unseen_how_well_the_base_reward_fits_labels_decides_nothing() -> None:
    right, wrong = knowing(WORLD, 2.0), knowing(WORLD, -2.0)
    for seen in ("unknown", "yes"):
        heads = [fit(unseen(WORLD, reward), pairs_seen=seen) for reward in (WORLD.reward, right, wrong)]
        assert all(torch.equal(head.weight, heads[0].weight) for head in heads)
        assert all(torch.equal(head.base_weight, heads[0].base_weight) for head in heads)
    unknown, no = fit(), fit(pairs_seen="no")
    assert torch.equal(unknown.weight, no.weight)  # the correction is of the labels in any case


def test_where_pairs_are_unseen_a_base_reward_that_predicts_labels_weighs_more() -> None:
    alphas = [float(fit(unseen(WORLD, knowing(WORLD, s)), pairs_seen="no").base_weight) for s in (-2.0, 0.1, 2.0)]
    assert alphas[0] == pytest.approx(0.35) and alphas[1] < alphas[2] and alphas[2] > 1.3  # logits a deviation
    assert min(float(fit(pairs_seen=seen).base_weight) for seen in ("no", "unknown")) >= 0.35


# In the second case the prior of the sharpness decides, in the third the base rewards of pairs that are not near.
@pytest.mark.parametrize(("count", "seed", "kept"), [(120, 8, False), (30, 10, True), (120, 12, True)])
def test_base_weight_and_sharpness_of_unseen_pairs_are_the_likeliest_with_prompts_left_out(
    count: int, seed: int, kept: bool
) -> None:
    """The correction of pairs of which a share k is near, and then what of α and s predicts each pair without it."""
    few, other = (world(linear_truth, pairs=count, size=5, seed=one) for one in (seed, seed + 1))
    close = Anchors(other.embedding + OFFSET / 6, other.reward, [f"a{row}" for row in range(2 * count)])
    head = fit(few, pairs_seen="no", anchors=close if kept else None)
    both = [few.train, few.validation]
    c, r = (torch.cat([getattr(p, side) for p in both]) for side in ("chosen", "rejected"))
    x = head.standardizer.embed(few.embedding)
    k = head.near(x)
    assert bool((k[c] < 0.9).any()) == kept
    near = k[:, None] * x.double() / math.sqrt(5)
    pairs = ridge.comparisons(near[c] - near[r], list(range(len(c))), generator=torch.Generator())
    found = ridge.candidates(pairs)
    u = pairs.back @ ridge.average(found)[0] / math.sqrt(5)
    assert torch.allclose(head.weight.double(), u, rtol=1e-4)
    base = head.standardizer.to_internal64(few.reward)
    others, steps = (0.25, (0, 0.35, 0.7, 1, 1.4, 2, 2.8, 4, 5.6)) if kept else (0.35, (1, 1.4, 2, 2.8, 4, 5.6))

    def z(alpha: float) -> Tensor:
        whole = (alpha * k + 1 - k) * base
        return whole[c] - whole[r] + ridge.left_out_average(found)

    def loss(value: Tensor) -> float:
        return float(-torch.nn.functional.logsigmoid(value).sum())

    alpha = min((others * step for step in steps), key=lambda one: loss(z(one)))
    assert float(head.base_weight) == pytest.approx(alpha)
    sharp = min((2 ** (step / 4) for step in range(-12, 9)), key=lambda s: loss(s * z(alpha)) + 0.5 * math.log(s) ** 2)
    assert float(head.sharpness) == pytest.approx(sharp)


def test_on_its_own_pairs_the_base_reward_comes_back_unless_labels_favor_a_correction() -> None:
    assert torch.equal(WORLD.refined(fit(**useless(), pairs_seen="yes")).reward, WORLD.reward)
    clear = fit(pairs_seen="yes")
    rows = clear.standardizer.embed(WORLD.embedding[WORLD.rows]).double()
    correction = (rows @ clear.weight.double()).std(correction=0)
    assert float(clear.base_weight) == pytest.approx(0.25 * float(correction), rel=1e-2)
    assert torch.equal(clear.weight, fit().weight)


def test_probabilities_are_no_sharper_than_the_labels_allow_unless_pairs_are_unseen() -> None:
    known = unseen(WORLD, knowing(WORLD, 3.0))
    for seen in ("unknown", "yes"):
        assert 2**-3 <= float(fit(known, pairs_seen=seen).sharpness) <= 1
    assert float(fit(known, pairs_seen="no").sharpness) > 1
    assert float(fit(unseen(WORLD, knowing(WORLD, -3.0))).sharpness) < 1


# -- anchors ---------------------------------------------------------------------------------------------------------

OFFSET = torch.tensor([6.0, -6.0, 6.0, 0.0, 0.0])


def elsewhere(count: int = 200, seed: int = 3) -> tuple[Tensor, Tensor]:
    """Texts far from those of the pairs, and their base rewards."""
    generator = torch.Generator().manual_seed(seed)
    embedding = torch.randn(count, 5, generator=generator) + OFFSET
    return embedding, 40 + 3 * torch.randn(count, generator=generator)


def far(count: int = 200) -> Anchors:
    embedding, reward = elsewhere(count)
    return Anchors(embedding, reward, [f"a{k // 2}" for k in range(count)])


def test_without_anchors_every_text_is_near(moved: ResidualHead) -> None:
    assert torch.equal(moved.near(torch.randn(4, 5) * 100), torch.ones(4, dtype=torch.float64))
    assert math.isinf(float(moved.gate[-1]))


def test_anchors_keep_the_base_order_and_the_pairs_keep_the_correction(moved: ResidualHead) -> None:
    held, base = elsewhere(300, seed=11)
    kept = fit(anchors=far())
    near = kept.near(kept.standardizer.embed(held))
    here = kept.near(kept.standardizer.embed(WORLD.embedding))
    assert float(near.mean()) < 0.1 and float(here.mean()) > 0.9
    assert bool((here <= 1).all()) and bool((near > 0).all())
    order = [float(spearmanr(head.refine(held, base).reward, base).statistic) for head in (kept, moved)]
    assert order[0] > 0.99 and order[1] < 0.9
    drift = [float((head.refine(held, base).reward - base).abs().mean()) for head in (kept, moved)]
    assert drift[0] < drift[1]
    gain = [WORLD.accuracy(WORLD.refined(head).reward) for head in (kept, moved)]
    assert gain[0] > gain[1] - 0.06


def test_infinitely_far_the_logits_are_the_base_reward() -> None:
    kept = fit(anchors=far())
    x = kept.standardizer.embed(WORLD.embedding[:3] + 1000 * OFFSET)
    base = torch.tensor([-1.0, 0.5, 20.0], dtype=torch.float64)
    assert kept.near(x).tolist() == [0, 0, 0]
    assert torch.equal(kept.located(x, base), base)


def test_half_way_both_are_mixed() -> None:
    head = copy.deepcopy(fit(anchors=far()))
    x = head.standardizer.embed(WORLD.embedding[:1])
    level = float(x[0].double() @ head.gate[:-1].double())
    for odds, k in ((-1.0, 2 / (1 + math.e)), (0.0, 1.0), (2.0, 1.0)):
        head.gate[-1] = odds - level
        base = torch.tensor([0.7], dtype=torch.float64)
        z = float(head.base_weight) * 0.7 * k + (1 - k) * 0.7 + k * float(x[0].double() @ head.weight.double())
        assert float(head.near(x)) == pytest.approx(k, rel=1e-6)
        assert float(head.located(x, base)) == pytest.approx(z, rel=1e-6)


def test_the_classifier_of_anchors_is_scipy_s() -> None:
    """Both sides have half of the weight; penalties are averaged by their evidence, so the separation is a range."""
    anchors = far(150)
    kept = fit(anchors=anchors)
    x = kept.standardizer.embed(WORLD.embedding[WORLD.rows]).double().numpy() / math.sqrt(5)
    y = kept.standardizer.embed(anchors.embedding[:]).double().numpy() / math.sqrt(5)
    both = np.hstack([np.vstack([x, y]), np.full((len(x) + len(y), 1), 3.0)])
    sign = np.r_[np.ones(len(x)), -np.ones(len(y))]
    weight = np.r_[np.full(len(x), 0.5 / len(x)), np.full(len(y), 0.5 / len(y))] * len(both)

    def loss(v: np.ndarray, penalty: float) -> float:
        return (weight * np.logaddexp(0, -sign * (both @ v))).sum() + 0.5 * penalty * v @ v

    best = {p: minimize(loss, np.zeros(6), args=(p,), options={"gtol": 1e-7}).x for p in PENALTIES}
    found = np.r_[kept.gate[:-1].double().numpy() * math.sqrt(5), float(kept.gate[-1]) / 3]
    cosine = max(found @ v / np.linalg.norm(found) / np.linalg.norm(v) for v in best.values())
    assert cosine > 0.999
    lengths = [np.linalg.norm(v) for v in best.values()]
    assert lengths[2] < np.linalg.norm(found) <= lengths[-1] * (1 + 1e-6)
    odds = both @ found
    assert ((odds > 0) == (sign > 0)).mean() > 0.97


def test_anchors_like_the_pairs_texts_keep_nothing_back_however_many_they_are() -> None:
    generator = torch.Generator().manual_seed(5)
    for count in (60, 1000):
        embedding = torch.randn(count, 5, generator=generator)
        alike = Anchors(embedding, torch.randn(count, generator=generator), [f"a{row}" for row in range(count)])
        head = fit(anchors=alike)
        assert float(head.near(head.standardizer.embed(WORLD.embedding)).mean()) > 0.8


def test_many_anchors_are_thinned_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ebrm.heads.residual._CLASSIFIED", 50)
    kept = fit(anchors=far(2000))
    held, base = elsewhere(300, seed=11)
    assert spearmanr(kept.refine(held, base).reward, base).statistic > 0.97


def test_anchors_are_refused_by_other_heads_and_where_columns_differ() -> None:
    with pytest.raises(ConfigError, match="linear head has no use for anchors; the residual head keeps to them"):
        fit_head(LinearConfig(), WORLD.embedding, WORLD.reward, WORLD.train, NONE, anchors=far())
    for reward, names in ((torch.zeros(3), ["a"] * 4), (torch.zeros(4), ["a"] * 3)):
        with pytest.raises(DataError, match="4 embeddings, . base rewards and . prompt ids"):
            Anchors(torch.zeros(4, 5), reward, names)
    with pytest.raises(DataError, match="at least one row"):
        Anchors(torch.zeros(0, 5), torch.zeros(0), [])
    bad = far()
    bad.embedding[7, 1] = torch.nan
    with pytest.raises(ModelError, match="embedding of row"):
        fit(anchors=bad)


# -- the head --------------------------------------------------------------------------------------------------------


def test_state_goes_through_saving_byte_for_byte(moved: ResidualHead) -> None:
    for head in (moved, fit(anchors=far()), moved.unmoved()):
        loaded = load_head(head.config, copy.deepcopy(head.state_dict()))
        a, b = head.state_dict(), loaded.state_dict()
        assert a.keys() == b.keys()
        assert all(a[name].numpy().tobytes() == b[name].numpy().tobytes() for name in a)
        assert torch.equal(WORLD.refined(loaded).reward, WORLD.refined(head).reward)


def test_it_says_that_it_needs_base_rewards(moved: ResidualHead) -> None:
    for call in (lambda: moved(WORLD.embedding), lambda: moved.location_scale(WORLD.embedding)):
        with pytest.raises(ModelError, match="adds to the base reward, and none is given. Give the base rewards"):
            call()
    with pytest.raises(ConfigError, match="rewards are of embeddings alone: take linear"):
        head_fitter(ResidualConfig(), base_reward=WORLD.reward)


def test_gradients_reach_the_embedding_through_correction_and_gate() -> None:
    for head in (fit(), fit(anchors=far())):
        e = (WORLD.embedding[:4] + 0.5 * OFFSET).clone().requires_grad_()
        base = WORLD.reward[:4]
        (gradient,) = torch.autograd.grad(head(e, base).sum(), e)
        step = 1e-2
        for k in range(5):
            up, down = (head((e + sign * step * torch.eye(5)[k]).detach(), base) for sign in (1, -1))
            assert ((up - down) / (2 * step)).numpy() == pytest.approx(gradient[:, k].numpy(), rel=0.03, abs=0.02)
        base = base.clone().requires_grad_()
        (by_base,) = torch.autograd.grad(head(e.detach(), base).sum(), base)
        assert bool((by_base > 0).all())
