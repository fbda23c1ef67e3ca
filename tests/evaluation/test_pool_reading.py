from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tests.linear import linear_features
from tests.terminal import write_lines

from ebrm.backbone import Backbone
from ebrm.benchmarks import Benchmark, open_file
from ebrm.errors import DataError
from ebrm.evaluation import read_pool, tokens_of
from ebrm.evaluation.score_models import NOT_READ
from ebrm.features import open_features
from ebrm.model import EnergyRewardModel


@pytest.fixture
def benchmark(tmp_path: Path) -> Benchmark:
    rows = [
        {
            "prompt": f"How much is {n}?",
            "responses": [f"{n}", f"{n + 1}", "some"][: 2 + n % 2],
            "gold": [1.0, 0.25, 0][: 2 + n % 2],
        }
        for n in range(6)
    ]
    rows[4]["responses"] = ["word " * 300, "no"]
    return open_file(write_lines(tmp_path / "pool.jsonl", rows))


def test_responses_are_read_as_the_features_were(
    features: Path, model: Path, benchmark: Benchmark, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = read_pool(open_features(features), benchmark, tmp_path / "cache", {})
    assert found.left_out == {NOT_READ: 1} and found.gold.shape == (5, 3) and found.count == 15
    assert found.prompt.tolist() == [0, 0, 1, 1, 1, 2, 2, 3, 3, 3, 4, 4, 4]
    texts = [(item.prompt, text) for k, item in enumerate(benchmark.items) if k != 4 for text in item.responses]
    reading, _ = EnergyRewardModel.from_pretrained(model).backbone.read_texts(*zip(*texts, strict=True))
    torch.testing.assert_close(found.base, reading.reward, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found.embedding, reading.embedding, atol=2e-3, rtol=2e-3)  # kept in half precision
    assert bool((found.length > 3).all())
    table = found.table(found.base)
    np.testing.assert_array_equal(np.isfinite(table), np.isfinite(found.gold))
    assert table[1, 2] == pytest.approx(float(found.base[4]))

    monkeypatch.setattr(Backbone, "read", lambda *_: pytest.fail("a text was read again"))
    again = read_pool(open_features(features), benchmark, tmp_path / "cache", {})
    assert again.count == 0 and torch.equal(again.embedding, found.embedding)


def test_imported_features_know_no_reward_model(benchmark: Benchmark, tmp_path: Path) -> None:
    imported = linear_features(4)
    with pytest.raises(DataError, match="made elsewhere"):
        read_pool(imported, benchmark, tmp_path, {})
    assert tokens_of(imported) is None


def test_lengths_of_features(features: Path) -> None:
    opened = open_features(features)
    tokens = tokens_of(opened)
    assert tokens is not None and tokens.shape == (len(opened),) and tokens.min() > 0
