"""Heads with a hidden layer: what a linear head cannot tell, early stopping, users, the profitable direction."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.heads.toys import NONE, linear_truth, world, xor_truth
from torch.autograd import gradcheck

from ebrm.errors import DataError
from ebrm.heads import (
    DirectionalConfig,
    LinearConfig,
    PrototypesConfig,
    PrototypesHead,
    SiLUConfig,
    fit_head,
    load_head,
    pair_loss,
)
from ebrm.heads.two_layer import TwoLayers, hinge, ideal_point_difference
from ebrm.pairs import PreferencePairs


def test_two_layers() -> None:
    network = TwoLayers(3, 4)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
    assert network(torch.randn(5, 3)).tolist() == [[0.0]] * 5
    with torch.no_grad():
        network.first.weight[0, 0] = 1
        network.last[0, 0] = 2
    x = torch.zeros(2, 3)
    x[:, 0] = torch.tensor([0.0, 20.0])
    assert network(x).squeeze(1).tolist() == pytest.approx([0.0, 40.0], abs=1e-5)
    drawn = [TwoLayers(3, 4, generator=torch.Generator().manual_seed(seed)).last for seed in (1, 1, 2)]
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])


def test_what_no_linear_head_tells_two_layers_do() -> None:
    crossed = world(xor_truth, pairs=1500, size=2)
    keep = crossed.truth[crossed.test.chosen] != crossed.truth[crossed.test.rejected]
    found = []
    for config in (LinearConfig(), SiLUConfig(hidden=32, learning_rate=1e-2)):
        reward = crossed.refined(crossed.fit(config)).reward
        right = reward[crossed.test.chosen] > reward[crossed.test.rejected]
        found.append(float(right[keep].float().mean()))
    assert 0.3 < found[0] < 0.7 and found[1] > 0.85


def test_the_pass_with_the_lowest_held_out_loss_is_kept() -> None:
    few = world(linear_truth, pairs=90, size=60, seed=5)
    config = SiLUConfig(hidden=64, learning_rate=1e-2, weight_decay=0.0, epochs=40, patience=0)
    stopped, last = few.fit(config), few.fit(config, NONE)

    def held_out_loss(head) -> float:
        u = head.scores(head.standardizer.embed(few.embedding))
        return float(pair_loss(u[few.validation.chosen], u[few.validation.rejected]).mean())

    assert held_out_loss(stopped) < held_out_loss(last)


def test_the_directional_head_looks_for_what_pays_most() -> None:
    made = world(linear_truth, pairs=450, size=4)
    head = made.fit(DirectionalConfig(hidden=32, learning_rate=1e-2))
    plain = made.fit(SiLUConfig(hidden=32, learning_rate=1e-2))
    x = head.standardizer.embed(made.embedding)
    assert float(head.direction.norm()) <= 0.5 * float(x[made.rows].norm(dim=1).mean()) * (1 + 1e-5)
    truth = torch.linspace(2.0, -1.0, 4)
    assert float(torch.cosine_similarity(head.direction, truth, dim=0)) > 0.9
    found = float(head._guided(x, head.direction).mean())
    for seed in range(20):
        other = torch.randn(4, generator=torch.Generator().manual_seed(seed))
        assert found > float(head._guided(x, other * head.direction.norm() / other.norm()).mean())
    assert torch.allclose(head._guided(x, torch.zeros(4)), plain.scores(x), atol=1e-5)
    assert torch.equal(head.scores(x), head._guided(x, head.direction))


def test_known_answers_of_ideal_points() -> None:
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


def two_peoples(pairs: int = 1200) -> tuple[torch.Tensor, PreferencePairs, torch.Tensor]:
    """Ten users; the even ones want the first number high, the odd ones low."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2 * pairs, 3, generator=generator)
    user = torch.randint(10, (pairs,), generator=generator)
    a, b = torch.arange(0, 2 * pairs, 2), torch.arange(1, 2 * pairs, 2)
    first = (x[a, 0] > x[b, 0]) ^ (user % 2 == 1)
    return (
        x,
        PreferencePairs.of(torch.where(first, a, b), torch.where(first, b, a), source=[f"u{u}" for u in user.tolist()]),
        user,
    )


X, PAIRS, USER = two_peoples()
TRAIN, HELD, TEST = (PAIRS.select(part) for part in (slice(800), slice(800, 1000), slice(1000, 1200)))
BASE = X[:, 1]


@pytest.fixture(scope="module")
def head() -> PrototypesHead:
    config = PrototypesConfig(hidden=32, dimension=4, learning_rate=1e-2, epochs=30, patience=5)
    found = fit_head(config, X, BASE, TRAIN, HELD).head
    assert isinstance(found, PrototypesHead)
    return found


def test_two_peoples_are_told_apart_where_one_reward_is_at_chance(head: PrototypesHead) -> None:
    right = torch.zeros(200, dtype=torch.bool)
    for user in range(10):
        reward = head.user_reward(X, user)
        right |= (USER[1000:] == user) & (reward[TEST.chosen] > reward[TEST.rejected])
    assert float(right.float().mean()) > 0.93
    assert float(head.weights[:, 0].max() - head.weights[:, 0].min()) > 0.8
    linear = fit_head(LinearConfig(), X, BASE, TRAIN, HELD).head.refine(X, BASE).reward
    assert 0.35 < float((linear[TEST.chosen] > linear[TEST.rejected]).float().mean()) < 0.65


def test_a_new_user_is_placed_by_a_few_pairs(head: PrototypesHead) -> None:
    odd = [pair for pair in range(1000, 1200) if USER[pair] % 2][:20]
    weights = head.place(X[PAIRS.chosen[odd]], X[PAIRS.rejected[odd]])
    assert weights.shape == (2,) and float(weights.sum()) == pytest.approx(1)
    reward = head.user_reward(X, weights)
    assert float((reward[X[:, 0] < -1].mean() - reward[X[:, 0] > 1].mean()) / reward.std()) > 1
    assert head.place(X[:0], X[:0]).tolist() == [0.5, 0.5]


def test_a_user_who_is_one_prototype_and_one_prototype_for_all(head: PrototypesHead) -> None:
    x = head.standardizer.embed(X[:5])
    only = head._scores_by(x, torch.tensor([1.0, 0.0]))
    assert torch.allclose(only, -(head.place_items(x) - head.prototypes[0]).norm(dim=1), atol=1e-5)
    lone = fit_head(PrototypesConfig(prototypes=1, epochs=1), X, BASE, TRAIN, HELD).head
    assert isinstance(lone, PrototypesHead)
    for user in range(1, 10):
        assert torch.equal(lone.user_reward(X[:9], user), lone.user_reward(X[:9], 0))
    assert torch.allclose(lone.user_reward(X[:9], 0), lone.refine(X[:9], BASE[:9]).reward, atol=1e-5)


def test_users_are_told_apart_by_angles_too() -> None:
    """PAL-B: cosines times a scale; two tastes that one reward cannot serve, and a new user's place."""
    config = PrototypesConfig(similarity="angle", epochs=15, hidden=32, patience=0)
    head = fit_head(config, X, BASE, TRAIN, HELD).head
    assert isinstance(head, PrototypesHead)
    users = USER[1000:]
    right = torch.zeros(len(users), dtype=torch.bool)
    for user in range(10):
        reward = head.user_reward(X, user)
        right |= (users == user) & (reward[TEST.chosen] > reward[TEST.rejected])
    assert float(right.float().mean()) > 0.85
    odd = [pair for pair in range(1000, 1200) if USER[pair] % 2][:20]
    assert float((head.place(X[PAIRS.chosen[odd]], X[PAIRS.rejected[odd]]) - 0.5).abs().max()) > 0.2
    x = head.standardizer.embed(X[:6])
    weights = torch.tensor([0.3, 0.7])
    f, ideal = head.place_items(x).double(), (weights @ head.prototypes).double()
    cosine = f @ ideal / (f.norm(dim=1) * ideal.norm())
    scale = min(float(head.log_scale.exp()), 100.0)
    assert head._scores_by(x, weights).tolist() == pytest.approx((scale * cosine).tolist(), rel=1e-4, abs=1e-4)
    again = load_head(head.config, {name: value.clone() for name, value in head.state_dict().items()})
    assert torch.equal(again.refine(X[:6], BASE[:6]).reward, head.refine(X[:6], BASE[:6]).reward)
    with torch.no_grad():
        head.log_scale.fill_(9.0)  # more than log 100
    assert float(head._scores_by(x, weights).abs().max()) <= 100.001


def test_users_that_are_not_there_are_refused(head: PrototypesHead) -> None:
    for user in (-1, 10):
        with pytest.raises(DataError, match=f"no user {user}"):
            head.user_reward(X, user)
    with pytest.raises(DataError, match="no user 'nobody'; the head was fitted with u0, u1"):
        head.user_reward(X, "nobody")


def test_users_have_the_names_of_the_sources_also_after_loading(head: PrototypesHead) -> None:
    assert head.users == tuple(f"u{user}" for user in range(10))
    loaded = load_head(head.config, head.state_dict())
    assert isinstance(loaded, PrototypesHead) and loaded.users == head.users
    assert torch.equal(loaded.user_reward(X[:9], "u3"), head.user_reward(X[:9], 3))


def test_held_out_pairs_of_unknown_users_do_not_choose_the_pass() -> None:
    config = PrototypesConfig(hidden=8, dimension=2, learning_rate=1e-2, epochs=3)
    strangers = PreferencePairs.of(HELD.rejected, HELD.chosen, source=["stranger"] * len(HELD))
    one = fit_head(config, X, BASE, TRAIN, strangers).head.state_dict()
    none = fit_head(config, X, BASE, TRAIN, NONE).head.state_dict()
    assert all(torch.equal(one[name], none[name]) for name in one)
