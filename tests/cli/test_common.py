"""The sentence under the table says no more than the interval allows."""

from __future__ import annotations

import pytest

from ebrm.cli.common import verdict


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [(-0.1, 0.2, "No"), (0.0, 0.2, "No"), (0.01, 0.2, "better"), (-0.2, -0.01, "worse"), (None, None, "No")],
)  # fmt: skip
def test_verdict(low: float | None, high: float | None, said: str) -> None:
    assert said in verdict({"value": 0.1, "low": low, "high": high})
