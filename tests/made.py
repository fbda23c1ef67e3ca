"""Fixtures: a tiny reward model, pairs, their features and a fitted model, made once through the command line."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.terminal import ebrm, preference_rows, write_lines


@pytest.fixture(scope="session")
def rm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch
    from tests.tiny import save_rm

    torch.set_num_threads(1)
    return save_rm(tmp_path_factory.mktemp("rm") / "tiny", "llama")


@pytest.fixture(scope="session")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_lines(tmp_path_factory.mktemp("pairs") / "pairs.jsonl", preference_rows(60))


@pytest.fixture(scope="session")
def features(rm: Path, pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("features") / "f"
    ran = ebrm("features", "--backbone", rm, "--data", pairs, "--out", out, "--shard-rows", 40, "-q")
    assert ran.code == 0, ran.err
    return out


@pytest.fixture(scope="session")
def model(features: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("model") / "m"

    with pytest.MonkeyPatch.context() as patched:  # figures take seconds
        patched.setattr("ebrm.report.write_report", lambda path, data: path.write_text("a report"))
        ran = ebrm(
            "fit",
            "--features",
            features,
            "--out",
            out,
            "--head",
            "energy",
            "--joint-widths",
            "12,6",
            "--epochs",
            2,
            "-q",
        )
    assert ran.code == 0, ran.err
    return out
