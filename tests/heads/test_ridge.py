"""Ridge-penalized Bradley-Terry: SciPy's minimum, refits without each prompt, averages, few dimensions."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.special import softmax
from torch import Tensor

from ebrm.heads import pair_loss, ridge
from ebrm.heads.ridge import (
    PENALTIES,
    PRIOR_NONE,
    Candidate,
    Comparisons,
    average,
    candidates,
    clear_gain,
    comparisons,
    left_out,
    left_out_average,
    shares,
    solve,
)

SEEDS = st.integers(0, 2**31)


def draws(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def made(n: int = 40, d: int = 6, seed: int = 0, signal: float = 2.0, **changes: Any) -> dict[str, Any]:
    """Differences about as long as 1 with soft labels, weights, margins and prompts of one to four pairs."""
    g = draws(seed)
    difference = torch.randn(n, d, generator=g, dtype=torch.float64) / math.sqrt(d)
    right = torch.sigmoid(signal * difference.sum(1) + torch.randn(n, generator=g, dtype=torch.float64))
    values = {
        "difference": difference,
        "prompts": prompts_of(n),
        "label": right,
        "weight": 0.2 + 2 * torch.rand(n, generator=g, dtype=torch.float64),
        "margin": 0.3 * torch.randn(n, generator=g, dtype=torch.float64),
    }
    return values | changes


def prompts_of(n: int) -> list[str]:
    """Prompts of 1, 2, 3, 4, 1, 2, … pairs."""
    sizes = [1 + k % 4 for k in range(n)]
    return np.repeat([f"p{k}" for k in range(n)], sizes)[:n].tolist()


def of(values: dict[str, Any]) -> Comparisons:
    return comparisons(**values, generator=draws(0))


def scipy_solution(values: dict[str, Any], penalty: float, keep: np.ndarray | None = None) -> np.ndarray:
    """Weights on the embedding that minimize the loss of the pairs kept; weights have mean 1 over all pairs."""
    d, mu, w, m = (values[name].numpy() for name in ("difference", "label", "weight", "margin"))
    w = w / w.mean()
    keep = np.ones(len(d), dtype=bool) if keep is None else keep

    def loss(u: np.ndarray) -> float:
        z = d @ u
        pair = mu * np.logaddexp(0, m - z) + (1 - mu) * np.logaddexp(0, m + z)
        return (w * pair)[keep].sum() + 0.5 * penalty * u @ u

    def slope(u: np.ndarray) -> np.ndarray:
        z = d @ u
        by_z = w * ((1 - mu) / (1 + np.exp(-m - z)) - mu / (1 + np.exp(z - m)))
        return d[keep].T @ by_z[keep] + penalty * u

    return minimize(loss, np.zeros(d.shape[1]), jac=slope, method="BFGS", options={"gtol": 1e-10}).x


@pytest.mark.parametrize("penalty", [1e3, 10.0, 0.3])
@pytest.mark.parametrize("d", [6, 70])  # fewer and more numbers than pairs
def test_the_solution_is_where_scipy_finds_the_lowest_loss(d: int, penalty: float) -> None:
    values = made(d=d)
    pairs = of(values)
    found = pairs.back @ solve(pairs, penalty, torch.zeros(pairs.size, dtype=torch.float64))
    assert pairs.size == min(40, d)
    assert found.numpy() == pytest.approx(scipy_solution(values, penalty), abs=1e-6)


def test_separable_pairs_at_the_least_penalty_are_solved_from_a_far_start() -> None:
    values = made(20, 30, label=torch.ones(20, dtype=torch.float64), margin=torch.zeros(20, dtype=torch.float64))
    pairs = of(values)
    for start in (torch.zeros(20), torch.full((20,), 30.0), torch.full((20,), -30.0)):
        found = pairs.back @ solve(pairs, min(PENALTIES), start.double())
        assert found.numpy() == pytest.approx(scipy_solution(values, min(PENALTIES)), abs=1e-4)


@given(SEEDS)
def test_the_loss_is_the_pair_loss_and_its_slopes_are_its_derivatives(seed: int) -> None:
    values = made(9, 4, seed)
    pairs = of(values)
    z = (3 * torch.randn(9, generator=draws(seed), dtype=torch.float64)).requires_grad_()
    weight = values["weight"] / values["weight"].mean()
    expected = pair_loss(z, torch.zeros_like(z), label=values["label"], margin=values["margin"], weight=weight)
    found = pairs.loss(z)
    assert torch.allclose(found, expected)
    (first,) = torch.autograd.grad(found.sum(), z, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), z)
    slope, bend = pairs.slopes(z.detach())
    assert torch.allclose(slope, -first) and torch.allclose(bend, second)


@pytest.mark.parametrize("d", [6, 70])
def test_few_dimensions_keep_every_product_of_differences(d: int) -> None:
    values = made(d=d)
    pairs = of(values)
    difference = values["difference"]
    assert torch.allclose(pairs.reduced @ pairs.reduced.T, difference @ difference.T)
    assert torch.allclose(difference @ pairs.back, pairs.reduced)
    c = torch.randn(pairs.size, generator=draws(1), dtype=torch.float64)
    assert float((pairs.back @ c).norm()) == pytest.approx(float(c.norm()))  # the penalty is the same


def without(prompts: list[str]) -> list[np.ndarray]:
    """For each pair, which pairs are of other prompts."""
    names = np.array(prompts)
    return [names != name for name in prompts]


@pytest.mark.parametrize("penalty", [100.0, 3.0, 0.1])
def test_left_out_is_one_newton_step_on_the_other_prompts_pairs(penalty: float) -> None:
    values = made()
    pairs = of(values)
    c = solve(pairs, penalty, torch.zeros(pairs.size, dtype=torch.float64))
    slope, bend = pairs.slopes(pairs.reduced @ c)
    expected = []
    for place, keep in enumerate(without(values["prompts"])):
        f, s, b = (x[torch.from_numpy(keep)] for x in (pairs.reduced, slope, bend))
        second = f.T @ (b[:, None] * f) + penalty * torch.eye(pairs.size, dtype=torch.float64)
        expected.append(float(pairs.reduced[place] @ (c + torch.linalg.solve(second, f.T @ s - penalty * c))))
    assert left_out(pairs, c, penalty).numpy() == pytest.approx(np.array(expected), abs=1e-9)


@pytest.mark.parametrize(("penalty", "tolerance"), [(1000.0, 1e-5), (30.0, 1e-3), (1.0, 0.1)])
def test_left_out_is_near_exact_refits_without_the_prompt(penalty: float, tolerance: float) -> None:
    """To first order: the error is of the square of what one prompt moves, less where the penalty is large."""
    values = made()
    pairs = of(values)
    c = solve(pairs, penalty, torch.zeros(pairs.size, dtype=torch.float64))
    difference = values["difference"].numpy()
    exact = np.array(
        [difference[k] @ scipy_solution(values, penalty, keep) for k, keep in enumerate(without(values["prompts"]))]
    )
    moved = np.abs(exact - (pairs.reduced @ c).numpy()).max()
    assert moved > 3 * tolerance  # leaving out is not nothing
    assert left_out(pairs, c, penalty).numpy() == pytest.approx(exact, abs=tolerance)


def test_candidates_begin_with_none_and_end_where_less_penalty_is_hopeless() -> None:
    pairs = of(made(200, 150, label=(torch.arange(200) % 2).double()))  # labels that say nothing
    found = candidates(pairs)
    tried = [one.penalty for one in found]
    assert tried[0] == math.inf and tried[1:] == list(PENALTIES[: len(tried) - 1])
    assert not bool(found[0].weights.any()) and torch.equal(found[0].losses, pairs.loss(torch.zeros(200).double()))
    sums = [float(one.losses.sum()) for one in found]
    assert len(tried) < 1 + len(PENALTIES)
    assert sums[-1] > min(sums) + 20 and all(value <= min(sums) + 20 for value in sums[:-1])
    for one in found[1:]:
        assert torch.allclose(one.moved, left_out(pairs, one.weights, one.penalty))
        assert torch.equal(one.losses, pairs.loss(one.moved))


def candidate(penalty: float, *losses: float) -> Candidate:
    values = torch.tensor(losses, dtype=torch.float64)
    return Candidate(penalty, penalty * torch.ones(2, dtype=torch.float64), values + 1, values)


def test_shares_are_the_prior_times_the_evidence() -> None:
    few = [candidate(math.inf, 0.7, 0.7), candidate(10.0, 0.5, 0.6), candidate(1.0, 2.0, 0.1)]
    prior = np.log([PRIOR_NONE, (1 - PRIOR_NONE) / 2, (1 - PRIOR_NONE) / 2])
    expected = softmax(prior - np.array([1.4, 1.1, 2.1]))
    assert shares(few).numpy() == pytest.approx(expected, rel=1e-6)
    equal = [candidate(p, 0.7, 0.7) for p in (math.inf, 10.0, 1.0, 0.1)]
    assert float(shares(equal)[0]) == pytest.approx(PRIOR_NONE, rel=1e-6)
    with_nothing = [Candidate(math.inf, torch.zeros(2).double(), few[0].moved, few[0].losses), *few[1:]]
    weights, none = average(with_nothing)
    assert none == pytest.approx(expected[0], rel=1e-6)
    assert weights.tolist() == pytest.approx([10 * expected[1] + expected[2]] * 2, rel=1e-6)
    moved = left_out_average(few).numpy()
    assert moved == pytest.approx(1 + expected @ np.array([[0.7, 0.7], [0.5, 0.6], [2.0, 0.1]]), rel=1e-6)


@given(SEEDS, st.integers(1, 30), st.integers(1, 8))
def test_shares_sum_to_one_and_few_pairs_move_little(seed: int, n: int, d: int) -> None:
    found = candidates(of(made(n, d, seed, prompts=list(range(n)))))
    assert float(shares(found).sum()) == pytest.approx(1)
    weights, none = average(found)
    assert 0 < none < 1
    best = max(float(one.weights.norm()) for one in found)
    assert float(weights.norm()) <= (1 - none) * best + 1e-12  # never further than the share that moves


def test_one_pair_s_evidence_is_none_at_all() -> None:
    found = candidates(of(made(1, 5, label=torch.ones(1).double(), prompts=["p"])))
    assert all(float(one.moved.abs().max()) < 1e-5 for one in found)  # nothing is known without it
    assert float(shares(found)[0]) == pytest.approx(PRIOR_NONE, rel=1e-6)
    prompt = candidates(of(made(9, 5, prompts=["p"] * 9)))  # the pairs of one prompt are left out together
    assert all(float(one.moved.abs().max()) < 1e-5 for one in prompt)


def test_evidence_moves_the_weight_from_none_to_the_penalties() -> None:
    share = [average(candidates(of(made(n, 4, signal=3.0, prompts=list(range(n))))))[1] for n in (5, 40, 300)]
    assert share[0] > 0.5 > share[1] > share[2] and share[2] < 1e-6


def test_a_clear_gain_is_more_than_one_standard_error() -> None:
    none = candidate(math.inf, 1.0, 1.0, 1.0, 1.0)
    gains = np.array([0.5, 0.1, 0.4, -0.2])  # mean 0.2, standard error 0.159
    better = candidate(10.0, *(1 - gains))
    assert gains.mean() > gains.std(ddof=1) / 2 and clear_gain([none, better])
    noisy = candidate(10.0, *(1 - np.array([0.9, 0.1, 0.4, -0.8])))  # mean 0.15, standard error 0.36
    assert not clear_gain([none, noisy]) and not clear_gain([none, candidate(1.0, 1.0, 1.0, 1.0, 1.0)])
    assert clear_gain([none, noisy, better]) and not clear_gain([none])
    assert not clear_gain([candidate(math.inf, 1.0), candidate(10.0, 0.1)])  # one pair has no standard error


def test_pairs_of_one_prompt_count_together_for_a_clear_gain() -> None:
    none, better = candidate(math.inf, *[1.0] * 8), candidate(10.0, *[0.6] * 4, *[1.1] * 4)
    apart = (torch.arange(8).reshape(8, 1),)
    assert clear_gain([none, better]) and clear_gain([none, better], apart)
    two = (torch.arange(8).reshape(2, 4),)  # two prompts, one better and one worse
    assert not clear_gain([none, better], two)
    mixed = (torch.arange(8).reshape(4, 2).T.reshape(2, 4),)
    assert clear_gain([none, better], mixed)
    assert not clear_gain([none, better], (torch.arange(8).reshape(1, 8),))


@given(SEEDS)
@settings(max_examples=20)
def test_neither_the_order_of_pairs_nor_which_side_comes_first_matters(seed: int) -> None:
    values = made(12, 4, seed, prompts=[k // 2 for k in range(12)])
    order = torch.randperm(12, generator=draws(seed))
    moved = {name: value[order] for name, value in values.items() if isinstance(value, Tensor)}
    moved["prompts"] = [values["prompts"][k] for k in order.tolist()]
    turned = torch.arange(12) % 3 == 0
    moved["difference"][turned] *= -1
    moved["label"][turned] = 1 - moved["label"][turned]
    one, other = of(values), of(moved)
    assert torch.allclose(one.back @ average(candidates(one))[0], other.back @ average(candidates(other))[0], atol=1e-8)
    left = left_out_average(candidates(one))[order] * torch.where(turned, -1.0, 1.0)
    assert torch.allclose(left, left_out_average(candidates(other)), atol=1e-8)


def test_the_scale_of_the_weights_does_not_matter_and_a_weight_of_two_is_the_pair_twice() -> None:
    values = made()
    scaled = of(values | {"weight": 7 * values["weight"]})
    assert torch.allclose(scaled.weight, of(values).weight) and float(scaled.weight.mean()) == pytest.approx(1)
    twice = torch.cat([torch.arange(40), torch.arange(0, 40, 3)])
    weight = torch.ones(40, dtype=torch.float64)
    weight[::3] = 2
    repeated = {name: value[twice] for name, value in values.items() if isinstance(value, Tensor)}
    repeated |= {"prompts": [values["prompts"][k] for k in twice.tolist()], "weight": torch.ones(len(twice))}
    start = torch.zeros(6, dtype=torch.float64)
    one = solve(of(repeated), 3.0, start)
    # Weights have mean 1, so the penalty is relative to 40 pairs instead of 54.
    other = solve(of(values | {"weight": weight}), 3.0 * 40 / 54, start)
    assert torch.allclose(one, other, atol=1e-7)


def test_equal_embeddings_move_nothing() -> None:
    for d in (3, 50):
        pairs = of(made(d=d, difference=torch.zeros(40, d, dtype=torch.float64)))
        weights, none = average(candidates(pairs))
        assert not bool((pairs.back @ weights).any()) and none == pytest.approx(PRIOR_NONE, rel=1e-6)


def test_more_dimensions_than_are_kept_are_projected_on_the_leading_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    values = made(120, 60, seed=3, prompts=list(range(120)))
    values["difference"] = values["difference"] * 0.7 ** torch.arange(60)  # most of it in the first twenty
    whole = of(values)
    expected = whole.reduced @ average(candidates(whole))[0]
    monkeypatch.setattr(ridge, "MOST_DIMENSIONS", 25)
    few = of(values)
    assert few.reduced.shape == (120, 25) and few.back.shape == (60, 25)
    assert torch.allclose(few.back.T @ few.back, torch.eye(25, dtype=torch.float64), atol=1e-10)
    found = few.reduced @ average(candidates(few))[0]
    assert float((found - expected).norm()) < 0.01 * float(expected.norm())
    again = comparisons(**values, generator=draws(0))
    assert torch.equal(again.reduced, few.reduced)  # by the generator
