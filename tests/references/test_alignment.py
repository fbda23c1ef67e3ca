"""Transport plans, maps and similarities against their definitions."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from scipy.special import logsumexp

from ebrm.errors import ConfigError, DataError
from ebrm.references import GaussianMap, max_similarity, ot_alignment


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def algorithm_3(cost: np.ndarray, eps: float, mass: float) -> np.ndarray:
    """The paper's partial Sinkhorn in the log domain."""
    s, t = cost.shape
    tau = 1.0 if mass >= 0.999 else mass
    kernel, u, v = -cost / eps, np.zeros(s), np.zeros(t)
    for _ in range(4000):
        u = tau * (-np.log(s) - logsumexp(kernel + v, axis=1))
        v = tau * (-np.log(t) - logsumexp(kernel + u[:, None], axis=0))
    return np.exp(u[:, None] + kernel + v)


@pytest.mark.parametrize("mass", [0.5, 0.9, 1.0])
def test_the_plan_is_that_of_the_paper_s_algorithm(mass: float) -> None:
    reference, response = draw(6, 5), draw(4, 5, seed=1)
    found = ot_alignment(reference, response, mass=mass, regularization=0.1)
    u, v = (rows / rows.norm(dim=1, keepdim=True) for rows in (reference, response))
    cost = (1 - u @ v.T).numpy()
    plan = algorithm_3(cost, 0.1, mass)
    np.testing.assert_allclose(found.plan, plan, atol=1e-9)
    assert found.reward == pytest.approx(-(plan * cost).sum() / plan.sum(), abs=1e-8)
    assert found.mass == pytest.approx(plan.sum())
    if mass == 1:
        np.testing.assert_allclose(found.plan.sum(1), np.full(6, 1 / 6), atol=1e-9)
        np.testing.assert_allclose(found.plan.sum(0), np.full(4, 1 / 4), atol=1e-9)
    order = torch.tensor([2, 0, 3, 1])
    assert ot_alignment(reference, response[order], mass=mass, regularization=0.1).reward == pytest.approx(found.reward)


def test_known_plans() -> None:
    one = ot_alignment([[1.0, 0.0]], [[0.0, 1.0]])  # cost 1
    assert (
        one.mass
        == pytest.approx(math.exp(-((1 - 0.9) / (1 + 0.9)) / 0.05), abs=1e-9)
        == pytest.approx(0.349018, abs=1e-6)
    )
    assert one.reward == -1
    same = ot_alignment(torch.eye(2), torch.eye(2) * 3, mass=1.0)
    assert same.plan.diagonal().tolist() == pytest.approx([0.5 / (1 + math.exp(-20))] * 2)
    assert same.reward == pytest.approx(0, abs=1e-7)
    free = ot_alignment(torch.ones(3, 2), torch.ones(4, 2), mass=0.9)  # all costs are 0
    assert free.mass == pytest.approx(12 ** (0.1 / 1.9)) and free.mass > 1


def test_transport_refuses_what_has_no_direction_and_settings_it_cannot_solve(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="embeddings .of the response. are 0"):
        ot_alignment([[1.0, 0.0]], [[0.0, 0.0]])
    with pytest.raises(DataError, match="The reference has no tokens"):
        ot_alignment(torch.zeros(0, 2), [[1.0, 0.0]])
    with pytest.raises(DataError, match="not finite"):
        ot_alignment([[math.nan, 1.0]], [[1.0, 0.0]])
    with pytest.raises(DataError, match="3 numbers and the response's 2"):
        ot_alignment([[1.0, 0.0, 0.0]], [[1.0, 0.0]])
    with pytest.raises(ConfigError, match="too small for costs of up to 2; give at least 0.003"):
        ot_alignment([[1.0]], [[-1.0]], regularization=1e-3)
    with pytest.raises(ConfigError, match="`mass` is 0"):
        ot_alignment([[1.0]], [[1.0]], mass=0)
    monkeypatch.setitem(sys.modules, "ot", None)
    with pytest.raises(ConfigError, match="needs POT"):
        ot_alignment([[1.0]], [[1.0]])


def test_similarity_is_the_mean_of_best_matches_in_both_directions() -> None:
    u, v = draw(2, 3, 4), draw(2, 5, 4, seed=1)
    here, there = torch.tensor([[1, 1, 1], [1, 0, 1]]).bool(), torch.tensor([[1, 1, 0, 0, 0], [1, 1, 1, 1, 1]]).bool()
    for combine in ("mean", "f1"):
        found = max_similarity(u, v, here, there, combine=combine)  # type: ignore[arg-type]
        for row in range(2):
            a, b = u[row][here[row]].numpy(), v[row][there[row]].numpy()
            cosine = np.array([[x @ y / np.linalg.norm(x) / np.linalg.norm(y) for y in b] for x in a])
            p, r = cosine.max(1).mean(), cosine.max(0).mean()
            assert found[row].item() == pytest.approx((p + r) / 2 if combine == "mean" else 2 * p * r / (p + r))
    assert torch.equal(max_similarity(u, v, here, there), max_similarity(v, u, there, here))
    spoiled = v.masked_fill(~there[..., None], torch.nan)
    assert torch.equal(max_similarity(u, v, here, there), max_similarity(u, spoiled, here, there))


def test_similarity_of_known_tokens() -> None:
    basis = torch.eye(4)[None]
    assert max_similarity(basis, basis).tolist() == [1.0]
    assert max_similarity(basis[:, :2], basis[:, 2:]).tolist() == [0.0]
    assert max_similarity(basis[:, :2], basis).tolist() == [0.75]  # all of the response in the reference, half back
    assert max_similarity(basis[:, :2], basis, combine="f1").item() == pytest.approx(2 / 3)
    assert max_similarity(basis[:, [0, 0, 1, 1]], basis).tolist() == [0.75]
    assert max_similarity(-basis[:, :1], basis[:, :1], combine="f1").tolist() == [0.0]
    assert max_similarity(torch.zeros(0, 3, 2), torch.zeros(0, 2, 2)).shape == (0,)
    assert max_similarity(torch.ones(1, 1, 2, dtype=torch.int64), torch.ones(1, 1, 2)).dtype == torch.float32
    with pytest.raises(DataError, match="responses have no tokens, the first at index 1"):
        max_similarity(torch.ones(2, 1, 2), torch.ones(2, 1, 2), torch.tensor([[True], [False]]))
    with pytest.raises(ConfigError, match="combine"):
        max_similarity(basis, basis, combine="max")  # type: ignore[arg-type]


def test_the_gaussian_map_carries_mean_and_covariance_over() -> None:
    source, target = draw(400, 3), draw(500, 3, seed=1) @ draw(3, 3, seed=2) + torch.tensor([1.0, -2.0, 0.5])
    found = GaussianMap.fit(source, target, ridge=0)
    mapped = found(source)
    torch.testing.assert_close(mapped.mean(0), target.mean(0))
    torch.testing.assert_close(torch.cov(mapped.T), torch.cov(target.T))
    s, t = torch.cov(source.T).numpy(), torch.cov(target.T).numpy()
    root = sqrtm(s).real
    inverse = np.linalg.inv(root)
    np.testing.assert_allclose(found.matrix, inverse @ sqrtm(root @ t @ root).real @ inverse, atol=1e-8)
    moved = GaussianMap.fit(source, source + 3)  # equal covariances: a translation
    torch.testing.assert_close(moved.matrix, torch.eye(3, dtype=torch.float64))
    torch.testing.assert_close(moved(source), source + 3)
    assert moved.similarity(source, source + 3).tolist() == pytest.approx([1.0] * 400)
    with pytest.raises(DataError, match="at least two rows"):
        GaussianMap.fit(source[:1], target)
    with pytest.raises(DataError, match="cannot be inverted"):
        GaussianMap.fit(torch.ones(4, 2), torch.ones(4, 2))
