"""Linear probes, centroids and directions of frozen embeddings."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression

from ebrm.errors import ConfigError, DataError
from ebrm.groups import Groups
from ebrm.heads import (
    demonstration_reward,
    directional_correction,
    directional_similarity,
    fit_centroids,
    fit_probe,
    nuisance_direction,
    remove_direction,
    reward_gradient_probe,
    spsa_gradient,
)
from ebrm.optimize import tilt_weights


def labeled(seed: int = 0, n: int = 300, classes: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    e = torch.randn(n, 4, generator=generator, dtype=torch.float64)
    noise = torch.randn(n, generator=generator, dtype=torch.float64)
    label = torch.bucketize(e[:, 0] + 0.7 * noise, torch.linspace(-0.5, 0.5, classes - 1, dtype=torch.float64))
    return e, 10 * label - 5


def test_it_is_scikit_learn_s_regression() -> None:
    e, label = labeled()
    probe = fit_probe(e, label, 0.05)
    x = ((e - e.mean(0)) / e.std(0, correction=0)).numpy()
    known = LogisticRegression(C=1 / (0.05 * len(e)), tol=1e-10, max_iter=1000).fit(x, label.numpy())
    logits = probe.logits(e).numpy()
    expected = known.decision_function(x)
    assert logits - logits.mean(1, keepdims=True) == pytest.approx(expected - expected.mean(1, keepdims=True), abs=1e-4)
    assert probe.predict(e).tolist() == known.predict(x).tolist() and set(probe.classes.tolist()) == {-5, 5, 15}
    assert probe.accuracy(e, label) == pytest.approx(known.score(x, label.numpy()))


def test_separable_classes_are_all_found_and_noise_is_at_chance() -> None:
    generator = torch.Generator().manual_seed(1)
    label = torch.randint(3, (900,), generator=generator)
    e = torch.randn(900, 5, generator=generator)
    blobs = e + 20 * torch.nn.functional.one_hot(label, 5)
    assert fit_probe(blobs[:600], label[:600]).accuracy(blobs[600:], label[600:]) == 1.0
    assert fit_probe(e[:600], label[:600]).accuracy(e[600:], label[600:]) == pytest.approx(1 / 3, abs=0.09)


@given(st.floats(0.01, 100), st.floats(-100, 100))
def test_units_of_the_embedding_do_not_matter(scale: float, offset: float) -> None:
    e, label = labeled(n=60)
    plain, moved = fit_probe(e, label), fit_probe(scale * e + offset, label)
    assert moved.logits(scale * e + offset).numpy() == pytest.approx(plain.logits(e).numpy(), abs=1e-4)


def test_a_number_that_never_changes_is_left_alone() -> None:
    e, label = labeled(n=60)
    probe = fit_probe(torch.cat([e, torch.full((60, 1), 7.0)], 1), label)
    assert bool(probe.weight.isfinite().all()) and np.abs(probe.weight[4].numpy()).max() < 1e-9


def test_what_cannot_be_told_apart_is_refused() -> None:
    e, label = labeled(n=20)
    with pytest.raises(DataError, match="same label"):
        fit_probe(e, torch.ones(20))
    with pytest.raises(DataError, match="same label"):
        fit_probe(e[:0], label[:0])
    with pytest.raises(DataError, match="index"):
        fit_probe(torch.where(e > 1, math.nan, e), label)
    with pytest.raises(ConfigError, match="penalty"):
        fit_probe(e, label, 0.0)
    with pytest.raises(ValueError, match="one label"):
        fit_probe(e, label[:3])
    assert math.isnan(fit_probe(e, label).accuracy(e[:0], label[:0]))


def blobs(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Groups 3 and 7 around (0, 0) and (10, 0)."""
    generator = torch.Generator().manual_seed(seed)
    e = 0.5 * torch.randn(60, 2, generator=generator, dtype=torch.float64)
    group = torch.tensor([3, 7]).repeat(30)
    e[group == 7, 0] += 10
    return e, group


def test_centroids_are_means_and_distances_euclid_s() -> None:
    e, group = blobs()
    found = fit_centroids(e, group)
    assert found.group.tolist() == [3, 7]
    assert torch.allclose(found.points, torch.stack([e[group == g].mean(0) for g in (3, 7)]))
    at = found.points + torch.tensor([[0.0, 0.0], [3.0, 4.0]], dtype=torch.float64)
    distance, nearest = found.nearest(at)
    assert distance.tolist() == pytest.approx([0.0, 5.0]) and nearest.tolist() == [3, 7]
    assert found.distance(e[:4]).shape == (4, 2) and found.distance(e[:0]).shape == (0, 2)
    middle = found.points.mean(0, keepdim=True)
    assert found.nearest(middle)[1].tolist() == [3]  # ties: the first


def test_the_limit_is_a_quantile_or_given() -> None:
    e, group = blobs()
    half = fit_centroids(e, group, quantile=0.5)
    assert float(half.keep(e).double().mean()) == pytest.approx(0.5, abs=0.02)
    assert bool(fit_centroids(e, group, limit=math.inf).keep(100 * e).all())
    assert fit_centroids(e, group, limit=2.0).keep(torch.tensor([[0.0, 1.0], [5.0, 0.0]])).tolist() == [True, False]
    assert not bool(fit_centroids(e, group).keep(torch.full((1, 2), 50.0)).any())


def test_several_centroids_a_group() -> None:
    e, _ = blobs()
    found = fit_centroids(e, torch.zeros(60, dtype=torch.int64), each=2)
    assert found.group.tolist() == [0, 0]
    assert sorted(found.points[:, 0].tolist()) == pytest.approx([0.0, 10.0], abs=0.4)
    again = fit_centroids(e, torch.zeros(60, dtype=torch.int64), each=2)
    assert torch.equal(found.points, again.points) and found.limit < 2


@given(st.floats(0, 6.3), st.floats(-50, 50))
def test_a_common_rotation_and_translation_change_no_distance(angle: float, move: float) -> None:
    e, group = blobs()
    c, s = math.cos(angle), math.sin(angle)
    turn = torch.tensor([[c, -s], [s, c]], dtype=torch.float64)
    plain, turned = fit_centroids(e, group), fit_centroids(e @ turn + move, group)
    assert torch.allclose(turned.distance(e @ turn + move), plain.distance(e))
    assert turned.limit == pytest.approx(plain.limit)


def test_what_has_no_centroid_is_refused() -> None:
    e, group = blobs()
    with pytest.raises(DataError, match="no embeddings"):
        fit_centroids(e[:0], group[:0])
    with pytest.raises(DataError, match="Group 7 has 1 rows"):
        fit_centroids(e[:3], group[:3], each=2)
    with pytest.raises(DataError, match=r"\(1, 0\)"):
        fit_centroids(torch.where(torch.arange(120).reshape(60, 2) == 2, math.inf, e), group)
    for wrong in ({"each": 0}, {"quantile": 1.5}, {"limit": -1.0}, {"limit": math.nan}):
        with pytest.raises(ConfigError):
            fit_centroids(e, group, **wrong)
    with pytest.raises(ValueError, match="one group"):
        fit_centroids(e, group[:3])
    with pytest.raises(ValueError, match=r"\[n, 2\]"):
        fit_centroids(e, group).distance(torch.zeros(1, 3))


def draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@given(st.integers(0, 2**31), st.floats(0, 3))
def test_the_guided_similarity(seed: int, w: float) -> None:
    e, q, b = draw(seed, 6, 4), draw(seed + 1, 6, 4), draw(seed + 2, 4)
    unit = lambda x: x / x.norm(dim=1, keepdim=True)  # noqa: E731
    plus, minus = unit(q + b), unit(q - b)
    expected = (e * (minus + w * (plus - minus))).sum(1)
    assert torch.allclose(directional_similarity(e, q, b, w), expected)
    assert torch.allclose(directional_similarity(e, q, torch.zeros(4), w), (e * unit(q)).sum(1))
    assert torch.allclose(directional_similarity(e, q, b, 1.0), (e * plus).sum(1))
    assert torch.allclose(directional_similarity(e, q, b, 0.5), (e * (plus + minus) / 2).sum(1))
    assert torch.allclose(directional_similarity(2 * e, 3 * q, 3 * b, w), 2 * expected)


def test_a_linear_head_is_refused_and_another_is_not() -> None:
    x, b, h = draw(0, 9, 3), draw(1, 3), draw(2, 3)
    for linear in (lambda e: e @ h, lambda e: e @ h + 1e4, lambda e: e.float() @ h.float()):
        with pytest.raises(ConfigError, match="linear head"):
            directional_correction(linear, x, b)
    layer = torch.nn.Linear(3, 1)
    with pytest.raises(ConfigError, match="linear head"):
        directional_correction(layer, x[:1].float(), b.float())

    def bent(e: torch.Tensor) -> torch.Tensor:
        return torch.tanh(e @ h)

    expected = bent(x - b) + 1.5 * (bent(x + b) - bent(x - b))
    assert torch.equal(directional_correction(bent, x, b), expected)
    assert torch.equal(directional_correction(bent, x, torch.zeros(3, dtype=torch.float64)), bent(x))
    assert directional_correction(bent, x[:0], b).shape == (0,)


def test_a_linear_head_s_rewards_move_by_2w_minus_1_times_its_product_with_b() -> None:
    """Why it is refused: with two rows the same everywhere, the check cannot see it, and this is what happens."""
    x, b, h = draw(0, 1, 3), draw(1, 3), draw(2, 3)
    moved = directional_correction(lambda e: e @ h, x, b, 1.5) - x @ h
    assert float(moved) == pytest.approx(2 * float(h @ b))


def lengths() -> tuple[torch.Tensor, torch.Tensor]:
    e = draw(0, 400, 5) * torch.tensor([1.0, 1.0, 3.0, 1.0, 0.5], dtype=torch.float64)
    return e, 100 + 20 * e[:, 1] + 0.1 * draw(1, 400)


def test_the_nuisance_s_direction_is_found_and_removed() -> None:
    e, length = lengths()
    u = nuisance_direction(e, length)
    assert float(u.norm()) == pytest.approx(1) and float(u[1]) > 0.999
    left = remove_direction(e, u)
    assert (left @ u).numpy() == pytest.approx(np.zeros(400), abs=1e-12)
    assert torch.allclose(remove_direction(left, u), left)
    assert abs(np.corrcoef(left.numpy().T, length.numpy())[-1, :-1]).max() < 0.15
    assert torch.allclose(remove_direction(e, -7 * u), left)


@given(st.floats(0.01, 1e3), st.floats(-1e3, 1e3), st.floats(0.01, 1e3))
def test_units_of_nuisance_and_embedding_do_not_matter(scale: float, offset: float, size: float) -> None:
    e, length = lengths()
    u = nuisance_direction(e, length)
    assert torch.allclose(nuisance_direction(e, scale * length + offset), u, atol=1e-6)
    assert torch.allclose(nuisance_direction(e, -length), -u)
    assert torch.allclose(nuisance_direction(size * e + 3, length), u, atol=1e-6)


def test_what_has_no_direction_is_refused() -> None:
    e, length = lengths()
    with pytest.raises(DataError, match="same for all 400"):
        nuisance_direction(e, torch.ones(400))
    with pytest.raises(DataError, match="same for all 0"):
        nuisance_direction(e[:0], length[:0])
    with pytest.raises(DataError, match="embeddings are equal"):
        nuisance_direction(torch.ones(400, 2), length)
    with pytest.raises(DataError, match=r"embedding.*\(3, 2\)"):
        nuisance_direction(torch.where(torch.arange(2000).reshape(400, 5) == 17, math.nan, e), length)
    with pytest.raises(ConfigError, match="penalty"):
        nuisance_direction(e, length, 0.0)
    with pytest.raises(ValueError, match="each of 400"):
        nuisance_direction(e, length[:3])
    with pytest.raises(DataError, match="length 0"):
        remove_direction(e, torch.zeros(5))
    with pytest.raises(ValueError, match="direction"):
        remove_direction(e, torch.ones(4))
    with pytest.raises(ValueError, match="response and prompt"):
        directional_similarity(e, e[:3], torch.ones(5))


# ---- demonstrations ------------------------------------------------------------------------------------------------


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


OF_DEMONSTRATION, OF_SAMPLE = Groups.of([0, 1, 2, 2]), Groups.of([0, 0, 1, 2, 1, 2, 0, 1, 2, 2])


def test_the_demonstrations_mean_is_that_of_the_tilted_samples() -> None:
    """Feature matching, the optimality condition of inverse reinforcement learning."""
    good, sample, beta, l2 = drawn(4, 3, seed=1), drawn(10, 3, seed=2), 0.7, 0.05
    w = demonstration_reward(good, sample, OF_DEMONSTRATION, OF_SAMPLE, beta, l2)
    tilted = tilt_weights(sample @ w, OF_SAMPLE, beta)
    gap = torch.zeros(3, dtype=torch.float64)
    for prompt in range(3):
        own = OF_SAMPLE.index == prompt
        gap += (good[OF_DEMONSTRATION.index == prompt].mean(0) - tilted[own] @ sample[own]) / 3
    assert torch.allclose(gap, l2 * w, atol=1e-7)


def test_a_large_beta_gives_the_difference_of_means_and_no_difference_gives_nothing() -> None:
    good, sample = drawn(4, 3, seed=3), drawn(10, 3, seed=4)
    w = demonstration_reward(good, sample, OF_DEMONSTRATION, OF_SAMPLE, beta=1e8, l2=0.5)
    of_prompts = [good[OF_DEMONSTRATION.index == p].mean(0) - sample[OF_SAMPLE.index == p].mean(0) for p in range(3)]
    assert torch.allclose(w, torch.stack(of_prompts).mean(0) / 0.5, atol=1e-5)
    none = demonstration_reward(sample, sample, OF_SAMPLE, OF_SAMPLE)
    assert torch.allclose(none, torch.zeros(3, dtype=torch.float64), atol=1e-6)


def test_one_prompt_s_offset_does_not_matter_and_demonstrations_win() -> None:
    good, sample = drawn(4, 3, seed=5) + 2, drawn(10, 3, seed=6)
    w = demonstration_reward(good, sample, OF_DEMONSTRATION, OF_SAMPLE)
    offset = drawn(3, 3, seed=7)
    moved = (good + offset[OF_DEMONSTRATION.index], sample + offset[OF_SAMPLE.index])
    assert torch.allclose(demonstration_reward(*moved, OF_DEMONSTRATION, OF_SAMPLE), w, atol=1e-6)
    assert float((good @ w).mean()) > float((sample @ w).mean())


def test_what_has_no_demonstrations_is_refused() -> None:
    good, sample = drawn(1, 2), drawn(2, 2)
    with pytest.raises(DataError, match="1 of 2 prompts are without demonstration or sample"):
        demonstration_reward(good, sample, Groups(torch.tensor([0]), 2), Groups.of([0, 1]))
    with pytest.raises(ValueError, match="1 prompts of demonstrations and 2 of samples"):
        demonstration_reward(good, sample, Groups.of([0]), Groups.of([0, 1]))
    with pytest.raises(DataError, match="no demonstrations"):
        demonstration_reward(good[:0], sample[:0], Groups.of([]), Groups.of([]))
    for more, name in (({"beta": 0.0}, "beta"), ({"l2": 0.0}, "l2")):
        with pytest.raises(ConfigError, match=f"`{name}` is 0.0"):
            demonstration_reward(good, sample[:1], Groups.of([0]), Groups.of([0]), **more)
    with pytest.raises(DataError, match="index"):
        demonstration_reward(good * math.nan, sample[:1], Groups.of([0]), Groups.of([0]))


# ---- gradients -----------------------------------------------------------------------------------------------------


def bent(e: torch.Tensor) -> torch.Tensor:
    return torch.tanh(e[:, 0]) + 0.5 * e[:, 1].square() - e[:, 2] * e[:, 0]


@given(st.integers(0, 1000), st.integers(1, 5), st.floats(0.1, 10))
@settings(max_examples=10, deadline=None)
def test_a_linear_reward_s_distance_is_its_gain_over_the_length_of_its_weights(seed, steps, gain) -> None:
    w, e = drawn(4, seed=seed), drawn(5, 4, seed=seed + 1)
    found = reward_gradient_probe(lambda x: x @ w + 3, e, gain, steps)
    assert found.distance.tolist() == pytest.approx([gain / float(w.norm())] * 5)
    assert found.norm.tolist() == pytest.approx([float(w.norm())] * 5)
    assert found.gained.tolist() == pytest.approx([gain] * 5)
    unit = reward_gradient_probe(lambda x: x @ (w / w.norm()), e)
    assert unit.distance.tolist() == pytest.approx([1.0] * 5)


def test_a_bent_reward_s_gain_is_measured_and_a_flat_one_s_distance_infinite() -> None:
    e = drawn(6, 3, seed=8)
    coarse, fine = (reward_gradient_probe(bent, e, 0.5, steps) for steps in (1, 200))
    assert torch.allclose(fine.gained, torch.full_like(fine.gained, 0.5), atol=0.02)
    assert float((coarse.gained - 0.5).abs().max()) > 0.02
    flat = reward_gradient_probe(lambda x: 0 * x.sum(1), e)
    assert bool(flat.distance.isinf().all()) and not bool(flat.gained.any())
    assert reward_gradient_probe(bent, e[:0]).distance.shape == (0,)
    for more, name in (({"gain": 0.0}, "gain"), ({"steps": 0}, "steps")):
        with pytest.raises(ConfigError, match=f"`{name}` is 0"):
            reward_gradient_probe(bent, e, **more)


def test_spsa_is_unbiased_for_a_linear_reward_with_the_variance_that_is_said() -> None:
    w, draws = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64), 400
    found = spsa_gradient(lambda x: x @ w, drawn(200, 3), torch.Generator().manual_seed(1), draws)
    variance = (w.square().sum() - w.square()) / draws
    assert torch.allclose(found.mean(0), w, atol=5 * float((variance / 200).sqrt().max()))
    assert found.var(0).tolist() == pytest.approx(variance.tolist(), rel=0.4)
    one = spsa_gradient(lambda x: 3 * x[:, 0], drawn(2, 1), torch.Generator().manual_seed(1), 1)
    assert one.flatten().tolist() == pytest.approx([3.0, 3.0])  # of one number, every draw is exact


def test_spsa_finds_the_gradient_of_a_bent_reward() -> None:
    e = drawn(3, 3, seed=9).requires_grad_()
    (slope,) = torch.autograd.grad(bent(e).sum(), e)
    found = spsa_gradient(bent, e.detach(), torch.Generator().manual_seed(2), 4000, size=1e-3)
    assert torch.allclose(found, slope, atol=0.15) and not found.requires_grad
    for more, name in (({"draws": 0}, "draws"), ({"size": 0.0}, "size")):
        with pytest.raises(ConfigError, match=f"`{name}` is 0"):
            spsa_gradient(bent, e.detach(), torch.Generator(), **more)
