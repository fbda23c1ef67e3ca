from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
from tests.made import features, model, pairs, rm

__all__ = ["features", "model", "pairs", "rm"]


@pytest.fixture(autouse=True)
def log_levels() -> Iterator[None]:
    """A command run without `main` sets log levels and does not put them back."""
    loggers = [logging.getLogger(), logging.getLogger("ebrm")]
    levels = [logger.level for logger in loggers]
    yield
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)
