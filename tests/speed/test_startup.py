from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from benchmarks.startup import _REFINE, ALLOWED, commands
from tests.linear import linear_features

from ebrm.features import save_features
from ebrm.fitting import fit
from ebrm.heads import EnergyConfig, TrainingConfig


def test_what_is_allowed_is_said_of_commands_that_are_run(tmp_path):
    made = commands(Path("m"), Path("f"), tmp_path)
    assert set(ALLOWED) < set(made)
    assert made["ebrm info MODEL"] == [sys.executable, "-m", "ebrm", "info", "m"]


@pytest.mark.slow
def test_the_script_that_refines_runs(tmp_path):
    features = save_features(linear_features(), tmp_path / "f")
    fit(features, head=EnergyConfig(training=TrainingConfig(epochs=1))).model.save_pretrained(tmp_path / "m")
    script = _REFINE.format(model=str(tmp_path / "m"), features=str(tmp_path / "f"))
    subprocess.run([sys.executable, "-c", script], check=True)
