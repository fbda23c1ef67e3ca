from __future__ import annotations

import json
from functools import partial

import pytest
import torch
from benchmarks import growth
from benchmarks.growth import Made, curve, draw, job, make_features, peak_bytes, record

from ebrm import fitting
from ebrm.features import open_features
from ebrm.heads import EnergyConfig, TrainingConfig


def test_made_features_are_whole_and_the_labels_are_by_the_hidden_cause(tmp_path):
    make_features(tmp_path, 8200, 8)
    features = open_features(tmp_path)
    assert (len(features), features.embedding_size, len(features.pairs)) == (8200, 8, 4100)
    cause = features.embedding(slice(None))[:, 0]
    assert bool((cause[features.pairs.chosen] >= cause[features.pairs.rejected]).all())
    agrees = (features.reward[features.pairs.chosen] > features.reward[features.pairs.rejected]).double().mean()
    assert 0.7 < float(agrees) < 0.8  # noise as large as the cause: 3/4
    assert len(set(features.pairs.prompt_id)) == 1025
    make_features(tmp_path, 8200, 8)  # there already


def test_made_rows_do_not_depend_on_how_they_are_read():
    made = Made(torch.arange(9000).float(), 6)
    assert torch.equal(made[4096:8192][:, 0], torch.arange(4096, 8192).float())
    assert torch.equal(made[4096:8192], made[4096:8192])
    assert not torch.equal(made[0:4096][:, 1:], made[4096:8192][:, 1:])


def test_every_job_is_done_on_every_size(tmp_path, monkeypatch):
    monkeypatch.setattr(growth, "in_a_process", job)
    monkeypatch.setattr(fitting, "fit", partial(fitting.fit, head=EnergyConfig(training=TrainingConfig(epochs=1))))
    points = curve(tmp_path, (600,), width=8)
    assert [(point["job"], point["rows"], point["d"]) for point in points] == [
        (what, 600, 8) for what in ("import", "open", "verify", "fit", "refine")
    ]
    assert all(point["seconds"] >= 0 and point["peak_bytes"] > 2**20 for point in points)
    fitted, refined = points[3:]
    assert fitted["epochs"] >= 1 and refined["rows_per_second"] == pytest.approx(600 / refined["seconds"])


def test_memory_is_this_process_s_and_grows_with_it():
    before = peak_bytes()
    block = torch.ones(64 * 2**20)
    assert peak_bytes() >= 256 * 2**20 and peak_bytes() >= before and float(block[-1]) == 1


def test_results_are_kept_side_by_side_and_drawn(tmp_path):
    path, picture = tmp_path / "growth.json", tmp_path / "performance" / "growth.svg"
    record("stream", [1], path)
    record("growth", [{"job": "fit", "rows": n, "seconds": n / 100, "peak_bytes": 2**30} for n in (10, 100)], path)
    record("stream", [2], path)
    results = json.loads(path.read_text())
    assert results["stream"] == [2] and len(results["growth"]) == 2
    assert [file.name for file in tmp_path.iterdir()] == ["growth.json"]
    draw(results["growth"], picture)
    first = picture.read_bytes()
    draw(results["growth"], picture)
    assert picture.read_bytes() == first and b"<svg" in first
