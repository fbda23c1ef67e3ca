from __future__ import annotations

from pathlib import Path

import pytest
from tests.made import features, model, pairs, rm

from ebrm.model import EnergyRewardModel

__all__ = ["features", "model", "pairs", "rm"]


@pytest.fixture(scope="session")
def energy(model: Path) -> EnergyRewardModel:
    """The fitted model, its reward model loaded; texts that are too long lose their prompt's beginning."""
    from dataclasses import replace

    loaded = EnergyRewardModel.from_pretrained(model)
    loaded.backbone.text_rule = replace(loaded.backbone.text_rule, truncation="prompt_left")
    return loaded
