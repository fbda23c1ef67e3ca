from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ebrm.errors import ConfigError, DataError
from ebrm.heads.centroids import fit_centroids


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
