from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ebrm.aggregate import ensembles as module
from ebrm.aggregate import neighbor_fusion


def case(seed, n=7, m=25, d=3):
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(shape, dtype=torch.float64, generator=generator) for shape in ((n, d), (n,), (m, d), (m,)))


def at(*degrees):
    angle = torch.tensor(degrees, dtype=torch.float64).deg2rad()
    return torch.stack([angle.cos(), angle.sin()], 1)


def test_known_answers():
    own, reward = at(0), torch.tensor([10.0], dtype=torch.float64)
    bank, others = 3 * at(10, -20, 60), torch.tensor([1.0, 2.0, 100.0], dtype=torch.float64)
    near, next_ = math.cos(math.radians(10)), math.cos(math.radians(20))  # 0.985 and 0.940; the third is at 0.5
    expected = (10 + near * 1 + next_ * 2) / (1 + near + next_)
    assert neighbor_fusion(own, reward, bank, others).tolist() == pytest.approx([expected])
    nearest = neighbor_fusion(own, reward, bank, others, neighbors=1)
    assert nearest.tolist() == pytest.approx([(10 + near) / (1 + near)])
    assert neighbor_fusion(own, reward, bank, others, threshold=0.99).tolist() == [10.0]
    without = neighbor_fusion(own, reward, bank, others, torch.tensor([0]))
    assert without.tolist() == pytest.approx([(10 + 2 * next_) / (1 + next_)])
    assert torch.equal(
        neighbor_fusion(own, reward, bank, others, torch.tensor([-1])), neighbor_fusion(own, reward, bank, others)
    )


def test_a_text_among_themselves_is_not_its_own_neighbor():
    rows, reward = at(0, 1, 90), torch.tensor([0.0, 1.0, 5.0], dtype=torch.float64)
    cosine = math.cos(math.radians(1))
    found = neighbor_fusion(rows, reward, rows, reward, torch.arange(3))
    assert found.tolist() == pytest.approx([cosine / (1 + cosine), 1 / (1 + cosine), 5.0])
    assert neighbor_fusion(rows[:1], reward[:1], rows[:1], reward[:1], torch.tensor([0])).tolist() == [0.0]


def test_equal_embeddings_share_the_last_places():
    bank, others = at(0, 0, 0, 5), torch.tensor([1.0, 2.0, 6.0, 100.0], dtype=torch.float64)
    found = neighbor_fusion(at(0), torch.zeros(1, dtype=torch.float64), bank, others, neighbors=2)
    assert found.tolist() == pytest.approx([2 * 3.0 / 3])  # Two places, and a mean of 3 in each.
    # One direction in forty lengths: their cosines differ in the last bit, and count as equal.
    one, _, near, others = case(0, 1, 40, 16)
    bank = (one + 0.3 * near[:1]) * others.exp()[:, None]
    cosine = float(torch.nn.functional.cosine_similarity(one, bank[:1]))
    found = neighbor_fusion(one, torch.zeros(1, dtype=torch.float64), bank, others, neighbors=2)
    assert found.tolist() == pytest.approx([2 * cosine * float(others.mean()) / (1 + 2 * cosine)])


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 30), st.floats(0.05, 0.95))
def test_against_brute_force(seed, k, threshold):
    embedding, reward, bank, others = case(seed)
    found = neighbor_fusion(embedding, reward, bank, others, threshold=threshold, neighbors=k)
    for i in range(len(reward)):
        cosine = torch.nn.functional.cosine_similarity(embedding[i], bank, dim=1).numpy()
        near = [j for j in np.argsort(-cosine)[:k] if cosine[j] >= threshold]
        total = reward[i] + sum(cosine[j] * others[j] for j in near)
        assert float(found[i]) == pytest.approx(float(total / (1 + sum(cosine[j] for j in near))))
        used = torch.cat([reward[i : i + 1], others[near]])
        assert used.min() - 1e-12 <= found[i] <= used.max() + 1e-12


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(-9, 9), st.floats(0.1, 9))
def test_invariances(seed, offset, scale):
    embedding, reward, bank, others = case(seed)
    options = {"threshold": 0.3, "neighbors": 4}
    found = neighbor_fusion(embedding, reward, bank, others, **options)
    moved = neighbor_fusion(embedding, scale * reward + offset, bank, scale * others + offset, **options)
    assert moved.tolist() == pytest.approx((scale * found + offset).tolist(), abs=1e-9)
    order = torch.randperm(25, generator=torch.Generator().manual_seed(seed))
    rotation = torch.linalg.qr(case(seed + 1, 3, 3)[0]).Q
    lengths = 10 ** (90 * case(seed)[1]).clamp(-250, 250)
    for other in (
        neighbor_fusion(embedding, reward, bank[order], others[order], **options),
        neighbor_fusion(embedding @ rotation, reward, bank @ rotation, others, **options),
        neighbor_fusion(embedding * lengths[:, None], reward, 5 * bank, others, **options),
        torch.cat([neighbor_fusion(embedding[[i]], reward[[i]], bank, others, **options) for i in range(7)]),
    ):
        assert other.tolist() == pytest.approx(found.tolist(), abs=1e-9)
    same = neighbor_fusion(embedding, torch.full((7,), 2.0), bank, torch.full((25,), 2.0), **options)
    assert same.tolist() == pytest.approx([2.0] * 7)


def test_parts_do_not_matter(monkeypatch):
    embedding, reward, bank, others = case(3)
    own = torch.tensor([0, -1, 24, 3, 3, -1, 1])
    whole = neighbor_fusion(embedding, reward, bank, others, own, 0.2)
    monkeypatch.setattr(module, "_CHUNK_CELLS", 60)
    assert neighbor_fusion(embedding, reward, bank, others, own, 0.2).tolist() == pytest.approx(whole.tolist())


def test_types_and_empty_sides():
    embedding, reward, bank, others = case(4)
    assert torch.equal(neighbor_fusion(embedding, reward, bank[:0], others[:0]), reward)
    assert neighbor_fusion(embedding[:0], reward[:0], bank, others).shape == (0,)
