"""What the tests of metrics share."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np

from ebrm.metrics import Bootstrap, Estimate

NAN = np.nan


def numbers(result: Any) -> list[float]:
    """All numbers of a result, in order."""
    if isinstance(result, str | Bootstrap | None):
        return []
    if is_dataclass(result):
        return [number for field in fields(result) for number in numbers(getattr(result, field.name))]
    if isinstance(result, dict):
        return [number for value in result.values() for number in numbers(value)]
    if isinstance(result, list | tuple | np.ndarray):
        return [number for value in result for number in numbers(value)]
    return [float(result)]


def estimates(result: Any) -> list[Estimate]:
    """All estimates of a result, in order."""
    if isinstance(result, Estimate):
        return [result]
    if is_dataclass(result):
        return [found for field in fields(result) for found in estimates(getattr(result, field.name))]
    if isinstance(result, dict | list | tuple):
        return [
            found for value in (result.values() if isinstance(result, dict) else result) for found in estimates(value)
        ]
    return []


def width(estimate: Estimate) -> float:
    return estimate.high - estimate.low


def ends(estimate: Estimate) -> tuple[float, float]:
    return estimate.low, estimate.high


def coverage(found: Iterable[Estimate], truth: float) -> float:
    """Share of intervals that hold the truth."""
    return float(np.mean([not estimate.excludes(truth) for estimate in found]))
