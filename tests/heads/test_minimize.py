from __future__ import annotations

import pytest
import torch
from torch import nn

from ebrm.errors import ModelError
from ebrm.heads.minimize import PENALTIES, UNMEASURED_PENALTY, best_penalty, early_stopping, lowest

TARGET = torch.tensor([3.0, -2.0], dtype=torch.float64)


def square(w: torch.Tensor) -> torch.Tensor:
    return 0.5 * (w - TARGET).square().sum()


def test_the_lowest_point_of_a_penalized_square() -> None:
    for l2 in (0.0, 0.5, 3.0):
        assert torch.allclose(lowest(square, torch.zeros(2), l2), TARGET / (1 + l2), atol=1e-7)


def test_a_loss_that_is_not_finite_is_refused() -> None:
    with pytest.raises(ModelError, match="not finite"):
        lowest(lambda w: (w * torch.nan).sum(), torch.zeros(2), 0.1)


def test_the_penalty_with_the_lowest_held_out_loss() -> None:
    wanted = TARGET / (1 + 0.3)
    weights, l2 = best_penalty(square, lambda w: float((w - wanted).square().sum()), torch.zeros(2), None)
    assert l2 == 0.3 and torch.allclose(weights, wanted, atol=1e-6)
    assert best_penalty(square, None, torch.zeros(2), None)[1] == UNMEASURED_PENALTY
    weights, l2 = best_penalty(square, lambda w: float(w.square().sum()), torch.zeros(2), 0.7)
    assert l2 == 0.7 and torch.allclose(weights, TARGET / 1.7, atol=1e-6)
    bumpy = iter([3.0, 4.0, 2.0, 5.0, 6.0, 1.0])
    assert best_penalty(square, lambda w: next(bumpy), torch.zeros(2), None)[1] == PENALTIES[2]  # two worse in a row
    assert best_penalty(square, lambda w: 1.0, torch.zeros(2), None)[1] == PENALTIES[0]  # ties: the stronger


def run(values: list[float], patience: int) -> tuple[int, int, float]:
    """Early stopping against held-out losses that are given: (pass kept, passes made, its weight)."""
    network = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(network.weight)
    seen: list[float] = []

    def held_out() -> float:
        seen.append(float(network.weight.detach()))
        return values[len(seen) - 1]

    kept = early_stopping(
        network, lambda g: [torch.zeros(1)], lambda batch: -network.weight.sum(), held_out, learning_rate=0.1,
        weight_decay=0.0, epochs=len(values), patience=patience, generator=torch.Generator(),
    )  # fmt: skip
    assert float(network.weight.detach()) == seen[kept - 1]
    return kept, len(seen), float(network.weight.detach())


def test_early_stopping_keeps_the_best_pass_and_stops_after_patience() -> None:
    assert run([3.0, 1.0, 2.0, 2.0, 0.5], 2)[:2] == (2, 4)
    assert run([3.0, 1.0, 2.0, 2.0, 0.5], 0)[:2] == (5, 5)
    assert run([1.0, 1.0, 1.0], 3)[:2] == (1, 3)


def test_without_held_out_pairs_the_last_pass_is_kept_and_nan_is_refused() -> None:
    network = nn.Linear(1, 1, bias=False)
    more = {"learning_rate": 0.1, "weight_decay": 0.0, "epochs": 3, "patience": 1, "generator": torch.Generator()}
    batches = lambda g: [torch.zeros(1)]  # noqa: E731
    assert early_stopping(network, batches, lambda b: network.weight.sum(), None, **more) == 3  # type: ignore[arg-type]
    with pytest.raises(ModelError, match="pass 1"):
        early_stopping(network, batches, lambda b: network.weight.sum() * torch.nan, None, **more)  # type: ignore[arg-type]
