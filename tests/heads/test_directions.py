from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.heads.worlds import linear_truth, world

from ebrm.errors import ConfigError, DataError
from ebrm.heads import HeadConfig, fit_head
from ebrm.heads.directions import (
    DirectionalHead,
    directional_correction,
    directional_similarity,
    nuisance_direction,
    remove_direction,
)


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


def test_the_directional_head_looks_for_what_pays_most() -> None:
    made = world(linear_truth, pairs=450, size=4)
    settings = HeadConfig(hidden=32, learning_rate=1e-2)
    args = (made.embedding, made.reward, made.train, made.validation, settings)
    head, plain = fit_head("directional", *args), fit_head("silu", *args)
    assert isinstance(head, DirectionalHead)
    x = head.standardizer.embed(made.embedding)
    rows = torch.unique(torch.cat([made.train.chosen, made.train.rejected]))
    assert float(head.direction.norm()) <= 0.5 * float(x[rows].norm(dim=1).mean()) * (1 + 1e-5)
    truth = torch.linspace(2.0, -1.0, 4)
    assert float(torch.cosine_similarity(head.direction, truth, dim=0)) > 0.9
    found = float(head._guided(x, head.direction).mean())
    for seed in range(20):
        other = draw(seed, 4).float()
        assert found > float(head._guided(x, other * head.direction.norm() / other.norm()).mean())
    assert torch.allclose(head._guided(x, torch.zeros(4)), plain.scores(x), atol=1e-5)
    assert torch.equal(head.scores(x), head._guided(x, head.direction))


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
