from __future__ import annotations

import numpy as np
import pytest
import torch
from benchmarks import features
from benchmarks.features import MIXES, Shape, bare, best_size, build, by_budget, measure, texts

TINY = (Shape("llama", 128, 2, "float32"), Shape("bert", 32, 2, "float32"), Shape("qwen3", 128, 2, "bfloat16"))


@pytest.mark.parametrize("shape", TINY)
def test_ebrm_and_the_bare_forward_give_the_same_rewards(shape: Shape) -> None:
    backbone, ids = build(shape), texts(np.array([5, 40, 17, 40, 3]))
    tolerance = 1e-5 if shape.dtype == "float32" else 3e-2
    for size in (1, 2, 5):
        rewards = bare(backbone.model, ids, size)
        torch.testing.assert_close(backbone.read(ids).reward, rewards, atol=tolerance, rtol=tolerance)
    assert float(rewards.std()) > 1e-3
    assert backbone.embedding_size == 2 * shape.width and backbone.layers.indices == (1,)


@pytest.mark.parametrize("mix", MIXES)
def test_lengths_are_mixed_and_the_same_every_time(mix: str) -> None:
    lengths = MIXES[mix](2000)
    assert lengths.min() >= 8 and 400 < lengths.max() <= 512 and len(lengths) == 2000
    assert abs(np.median(lengths) - {"log-normal": 120, "flat": 260}[mix]) < 12
    np.testing.assert_array_equal(lengths, MIXES[mix](2000))
    assert [len(row) for row in texts(lengths[:9])] == lengths[:9].tolist()


@pytest.mark.parametrize(
    ("taken", "tried", "found"),
    [
        ([3, 2, 1, 2, 3, 0], [2, 4, 8, 16, 32], 8),
        ([1, 2, 3], [2, 4, 8], 2),
        ([6, 5, 4, 3, 2, 1], [2, 4, 8, 16, 32, 64], 64),
    ],
)
def test_the_best_batch_size_is_the_fastest(
    monkeypatch: pytest.MonkeyPatch, taken: list[int], tried: list[int], found: int
) -> None:
    sizes: list[int] = []
    monkeypatch.setattr(features, "bare", lambda model, ids, size: sizes.append(size))

    def clock(work) -> float:
        work()
        return taken[len(sizes) - 1]

    monkeypatch.setattr(features, "seconds", clock)
    assert best_size(torch.nn.Identity(), []) == found and sizes == tried


def test_three_figures_of_a_model() -> None:
    made = list(measure(TINY[0], "log-normal", 6, 1))
    assert [figure.required for figure in made] == [3.0, 1.2, None]
    assert {(figure.rows, figure.d, figure.network) for figure in made} == {(6, 256, "llama-128x2 float32, log-normal")}
    assert made[1].plain_seconds <= made[0].plain_seconds


def test_a_reading_that_is_not_the_models_own_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "bare", lambda model, ids, size: torch.full((len(ids),), 7.0))
    with pytest.raises(AssertionError, match="not close"):
        next(measure(TINY[0], "flat", 3, 1))


def test_texts_are_read_once_a_turn_with_each_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[int] = []

    def seconds(work) -> float:
        work()
        used.append(work.func.__self__.token_budget)
        return float(len(used))

    monkeypatch.setattr(features, "seconds", seconds)
    assert by_budget(Shape("llama", 128, 2, "float32"), (64, 2048), 3, 3) == {64: 3.0, 2048: 4.0}
    assert used == [64, 2048] * 3
