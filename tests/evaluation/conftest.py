"""Models and features that the tests of this folder share."""

from __future__ import annotations

from tests.made import features, model, pairs, rm

__all__ = ["features", "model", "pairs", "rm"]
