"""Features made elsewhere come in, and are fitted and scored without a text."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from tests.terminal import ebrm

from ebrm.features import open_features


def arrays(folder: Path) -> Path:
    rng = np.random.default_rng(0)
    embedding = rng.normal(size=(160, 6)).astype(np.float32)
    score = embedding @ np.arange(1, 7, dtype=np.float32)
    order = np.argsort(score.reshape(-1, 2), axis=1) + np.arange(0, 160, 2)[:, None]
    np.savez(folder / "made.npz", embedding=embedding, score=score, chosen=order[:, 1], rejected=order[:, 0])
    return folder / "made.npz"


def test_import_fit_and_score(tmp_path: Path) -> None:
    source = arrays(tmp_path)
    ran = ebrm(
        "import", "--arrays", source, "--column", "reward=score", "--backbone-name", "mine", "--out", tmp_path / "f"
    )
    assert ran.code == 0, ran.err
    features = open_features(tmp_path / "f")
    assert features.manifest["backbone"]["name"] == "mine" and len(features.pairs) == 80
    assert (features.reward[features.pairs.chosen] > features.reward[features.pairs.rejected]).all()
    quick = ("--head", "energy", "--joint-widths", "12,6", "--epochs", 2, "-q")
    ran = ebrm("fit", "--features", tmp_path / "f", "--out", tmp_path / "m", *quick)
    assert ran.code == 0, ran.err
    ran = ebrm("score", tmp_path / "m", tmp_path / "f", "--out", tmp_path / "scored.jsonl", "-q")
    assert ran.code == 0, ran.err
    assert len((tmp_path / "scored.jsonl").read_text().splitlines()) >= 80
    ran = ebrm("import", "--arrays", source, "--out", tmp_path / "g")
    assert ran.code == 2 and "reward" in ran.err and not (tmp_path / "g").exists()
