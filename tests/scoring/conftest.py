from __future__ import annotations

from tests.made import features, model, pairs, rm

__all__ = ["features", "model", "pairs", "rm"]
