from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.made import features, model, pairs, rm
from tests.serve.live import serving

from ebrm.client import Client
from ebrm.integrations import environment
from ebrm.model import EnergyRewardModel

__all__ = ["features", "model", "pairs", "rm"]


@pytest.fixture(scope="module")
def refined(model: Path) -> EnergyRewardModel:
    return EnergyRewardModel.from_pretrained(model)


@pytest.fixture(scope="module")
def server(model: Path) -> Iterator[str]:
    with serving(EnergyRewardModel.from_pretrained(model), token="secret") as live:
        yield live.url


@pytest.fixture
def no_shared_scorers() -> Iterator[None]:
    """Scorers opened by environment variables in a test are closed after it."""
    yield
    for opened in environment._scorers.values():
        if isinstance(opened, Client):
            opened.close()
    environment._scorers.clear()
    environment._designs.clear()
