from __future__ import annotations

import json

import pytest
from benchmarks import stream
from benchmarks.growth import make_features
from benchmarks.stream import LARGE_ROW, SMALL_ROW, make_file, rows, score

from ebrm.fitting import fit
from ebrm.heads import EnergyConfig, TrainingConfig


@pytest.mark.parametrize(("kind", "size", "long"), [("large", 1e6, LARGE_ROW), ("small", 1e5, SMALL_ROW)])
def test_files_are_of_the_size_asked_for_and_every_text_is_another(tmp_path, kind, size, long):
    count = make_file(tmp_path / "f.jsonl", kind, size)
    lines = (tmp_path / "f.jsonl").read_text().splitlines()
    assert len(lines) == count == size // long
    assert all(abs(len(line) - long) < 0.02 * long for line in lines)
    made = [json.loads(line) for line in lines]
    assert made == list(rows(kind, size))
    assert len({row["response"] for row in made}) > 0.9 * count and len({row["prompt"] for row in made}) == count


@pytest.mark.slow
def test_the_command_is_run_and_its_memory_measured(tmp_path):
    make_features(tmp_path / "features", 400, 8)
    head = EnergyConfig(training=TrainingConfig(epochs=1))
    fit(tmp_path / "features", head=head).model.save_pretrained(tmp_path / "model")
    seconds, peak = score(tmp_path / "model", tmp_path / "features", tmp_path / "out.jsonl")
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 200
    assert seconds > 0 and peak > 50 * 2**20  # torch alone is more
    with pytest.raises(RuntimeError, match="ended with 2"):
        stream.score(tmp_path / "nothing", tmp_path / "features", tmp_path / "out.jsonl")
