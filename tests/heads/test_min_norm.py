from __future__ import annotations

import pytest
import torch
from tests.heads.worlds import NONE, World, linear_truth, world

from ebrm.errors import DataError
from ebrm.heads import HeadConfig, fit_head
from ebrm.heads.bradley_terry import LinearHead
from ebrm.heads.data import Labels, head_data
from ebrm.heads.losses import pair_loss
from ebrm.heads.min_norm import MinNormHead
from ebrm.heads.standardize import Standardizer

WORLD = world(linear_truth, pairs=300, size=4)
USER = (torch.arange(len(WORLD.train)) % 10 == 0).long()  # nine pairs of objective 0 for one of objective 1


def turned() -> World:
    """Objective 1's labels go by the second number of the embedding alone."""
    train, e = WORLD.train, WORLD.embedding
    swap = (USER == 1) & (e[train.chosen, 1] < e[train.rejected, 1])
    chosen, rejected = torch.where(swap, train.rejected, train.chosen), torch.where(swap, train.chosen, train.rejected)
    return World(e, WORLD.reward, WORLD.truth, type(train)(chosen, rejected), WORLD.validation, WORLD.test)


def losses(head: LinearHead, made: World) -> list[float]:
    u = head.scores(head.standardizer.embed(made.embedding)).double()
    every = pair_loss(u[made.train.chosen], u[made.train.rejected])
    return [float(every[t == USER].mean()) for t in (0, 1)]


def test_every_step_improves_every_objective(monkeypatch: pytest.MonkeyPatch) -> None:
    made, before = turned(), [0.6931472] * 2
    for steps in (1, 3, 10, 40, 120):
        monkeypatch.setattr("ebrm.heads.min_norm._STEPS", steps)
        head = fit_head("min_norm", made.embedding, made.reward, made.train, NONE, labels=Labels(group=USER))
        assert isinstance(head, MinNormHead)
        now = losses(head, made)
        assert now[0] < before[0] + 1e-9 and now[1] < before[1] + 1e-9
        before = now
    pooled = fit_head("linear", made.embedding, made.reward, made.train, NONE, HeadConfig(l2=1e-4))
    assert isinstance(pooled, LinearHead)
    assert before[1] < losses(pooled, made)[1]  # the small objective is not outvoted


def test_one_objective_ends_where_the_linear_head_does() -> None:
    zero = torch.zeros(len(WORLD.train), dtype=torch.int64)
    settings = HeadConfig(l2=0.1)
    head = fit_head("min_norm", WORLD.embedding, WORLD.reward, WORLD.train, NONE, settings, labels=Labels(group=zero))
    linear = fit_head("linear", WORLD.embedding, WORLD.reward, WORLD.train, NONE, settings)
    assert isinstance(head, MinNormHead) and isinstance(linear, LinearHead)
    assert torch.allclose(head.weight, linear.weight, atol=1e-3)
    assert head.mixture.tolist() == [1.0]


def test_gradients_are_those_of_the_objectives_mean_losses() -> None:
    head = MinNormHead(4, HeadConfig(kind="min_norm", smoothing=0.1), 2)
    weight = torch.linspace(0.5, 2, len(WORLD.train))
    data = head_data(
        WORLD.embedding, WORLD.reward, WORLD.train, NONE, Labels(group=USER, weight=weight), Standardizer(4)
    )
    x, w = data.embedding.double(), torch.tensor([0.3, -0.2, 0.1, 1.0], dtype=torch.float64, requires_grad=True)
    difference = x[data.train.chosen] - x[data.train.rejected]
    members = torch.stack([USER == 0, USER == 1], 1).double()
    found = head._gradients(w.detach(), difference, members / members.sum(0), data)
    every = pair_loss(difference @ w, torch.zeros_like(data.weight), weight=data.weight, smoothing=0.1)
    for t in (0, 1):
        (expected,) = torch.autograd.grad(every[t == USER].mean(), w, retain_graph=True)
        assert torch.allclose(found[t], expected)


def test_objectives_have_to_be_named() -> None:
    with pytest.raises(DataError, match="Give their groups"):
        fit_head("min_norm", WORLD.embedding, WORLD.reward, WORLD.train, NONE)
    with pytest.raises(DataError, match="Objective 1 has no"):
        fit_head("min_norm", WORLD.embedding, WORLD.reward, WORLD.train, NONE, labels=Labels(group=2 * USER))
