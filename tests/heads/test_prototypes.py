from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.autograd import gradcheck

from ebrm.errors import DataError
from ebrm.heads import HeadConfig, InferenceConfig, PairRows, fit_head
from ebrm.heads.data import Labels
from ebrm.heads.prototypes import PrototypeHead, hinge, ideal_point_difference


def test_known_answers() -> None:
    left, right, ideal = torch.tensor([[1.0]]), torch.tensor([[3.0]]), torch.tensor([0.0])
    assert ideal_point_difference(left, right, ideal).tolist() == [2.0]  # the left one is nearer by 2
    assert hinge(ideal_point_difference(left, right, ideal)).tolist() == [0.0]
    assert hinge(ideal_point_difference(right, left, ideal)).tolist() == [3.0]
    assert hinge(torch.tensor([0.0, 1.0, 0.5])).tolist() == [1.0, 0.0, 0.5]


@given(st.integers(0, 2**31))
def test_a_common_rotation_or_translation_changes_nothing(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    a, b, c = torch.randn(3, 5, 4, generator=generator, dtype=torch.float64)
    turn, _ = torch.linalg.qr(torch.randn(4, 4, generator=generator, dtype=torch.float64))
    move = torch.randn(4, generator=generator, dtype=torch.float64)
    plain = ideal_point_difference(a, b, c)
    assert torch.allclose(ideal_point_difference(a @ turn + move, b @ turn + move, c @ turn + move), plain, atol=1e-9)
    assert torch.allclose(ideal_point_difference(b, a, c), -plain)
    assert not torch.allclose(ideal_point_difference(2 * a, 2 * b, 2 * c), plain)


def test_gradients_against_finite_differences_and_at_the_ideal_point() -> None:
    values = torch.randn(3, 2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert gradcheck(ideal_point_difference, [v.requires_grad_() for v in values])
    at = torch.zeros(1, 2, requires_grad=True)
    ideal_point_difference(at, torch.ones(1, 2), torch.zeros(2)).sum().backward()
    assert bool(at.grad.isfinite().all())  # type: ignore[union-attr]


def two_peoples(pairs: int = 1200) -> tuple[torch.Tensor, PairRows, torch.Tensor]:
    """Ten users; the even ones want the first number high, the odd ones low."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2 * pairs, 3, generator=generator)
    user = torch.randint(10, (pairs,), generator=generator)
    a, b = torch.arange(0, 2 * pairs, 2), torch.arange(1, 2 * pairs, 2)
    first = (x[a, 0] > x[b, 0]) ^ (user % 2 == 1)
    return x, PairRows(torch.where(first, a, b), torch.where(first, b, a)), user


X, PAIRS, USER = two_peoples()
TRAIN, HELD, TEST = (
    PairRows(PAIRS.chosen[p], PAIRS.rejected[p]) for p in (slice(800), slice(800, 1000), slice(1000, 1200))
)
BASE = X[:, 1]
SETTINGS = HeadConfig(hidden=32, dimension=4, learning_rate=1e-2, epochs=30, patience=5)


@pytest.fixture(scope="module")
def head() -> PrototypeHead:
    labels = Labels(group=USER[:800], validation_group=USER[800:1000])
    found = fit_head("prototypes", X, BASE, TRAIN, HELD, SETTINGS, labels=labels)
    assert isinstance(found, PrototypeHead)
    return found


def test_two_peoples_are_told_apart_where_one_reward_is_at_chance(head: PrototypeHead) -> None:
    right = torch.zeros(200, dtype=torch.bool)
    for user in range(10):
        reward = head.user_reward(X, user)
        right |= (USER[1000:] == user) & (reward[TEST.chosen] > reward[TEST.rejected])
    assert float(right.float().mean()) > 0.93
    assert float(head.weights[:, 0].max() - head.weights[:, 0].min()) > 0.8
    linear = fit_head("linear", X, BASE, TRAIN, HELD).refine(X, BASE, InferenceConfig()).reward
    assert 0.35 < float((linear[TEST.chosen] > linear[TEST.rejected]).float().mean()) < 0.65


def test_a_new_user_is_placed_by_a_few_pairs(head: PrototypeHead) -> None:
    odd = [pair for pair in range(1000, 1200) if USER[pair] % 2][:20]
    weights = head.place(X[PAIRS.chosen[odd]], X[PAIRS.rejected[odd]])
    assert weights.shape == (2,) and float(weights.sum()) == pytest.approx(1)
    reward = head.user_reward(X, weights)
    assert float((reward[X[:, 0] < -1].mean() - reward[X[:, 0] > 1].mean()) / reward.std()) > 1
    assert head.place(X[:0], X[:0]).tolist() == [0.5, 0.5]


def test_a_user_who_is_one_prototype_and_one_prototype_for_all(head: PrototypeHead) -> None:
    x = head.standardizer.embed(X[:5])
    only = head._scores_by(x, torch.tensor([1.0, 0.0]))
    assert torch.allclose(only, -(head.place_items(x) - head.prototypes[0]).norm(dim=1), atol=1e-5)
    lone = fit_head(
        "prototypes", X, BASE, TRAIN, HELD, HeadConfig(prototypes=1, epochs=1), labels=Labels(group=USER[:800])
    )
    assert isinstance(lone, PrototypeHead)
    for user in range(1, 10):
        assert torch.equal(lone.user_reward(X[:9], user), lone.user_reward(X[:9], 0))
    assert torch.allclose(lone.user_reward(X[:9], 0), lone.refine(X[:9], BASE[:9], InferenceConfig()).reward, atol=1e-5)


def test_users_that_are_not_there_are_refused(head: PrototypeHead) -> None:
    for user in (-1, 10):
        with pytest.raises(DataError, match=f"no user {user}"):
            head.user_reward(X, user)
    labels = Labels(group=USER[:800].clamp_max(3), validation_group=USER[800:1000])
    with pytest.raises(DataError, match="user above 3"):
        fit_head("prototypes", X, BASE, TRAIN, HELD, SETTINGS, labels=labels)
