"""What selecting by a reward does to gold on the pools: rows of the table, and the curves they are read off.

Gold is averaged over seeds for each prompt first; intervals are over prompts. "gain" is a method's gold minus the base
reward's at the same place, on the same prompts. Gold is in the pool's own unit, from 0 to 1.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from reward_files import Refinements
from selection import REFERENCES, pool_curves
from summary import Row

from ebrm.aggregate import pessimistic
from ebrm.evaluation import Axis, longest_axis
from ebrm.metrics import Estimate, curve_peak, mean_curve

QUESTION = "4 selection"
NOISES = (0.0, 0.25)
METHODS = (
    "base",
    "EBRM",
    "EBRM, mode",
    "SiLU head",
    "5 SiLU heads, mean",
    "5 SiLU heads, WCO",
    "5 SiLU heads, UWO",
)
#: How many standard deviations are taken off EBRM's reward, and what that is called.
PESSIMISM = {"EBRM, mean - 1 std": 1.0, "EBRM, mean - 2 std": 2.0}
KL = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0, 2.25)
SHOWN: dict[Axis, tuple[float, ...]] = {"n": (2, 4, 8, 16), "kl": (0.5, 1.0, 2.0)}
COLUMNS = ("base_rm", "pool", "noise", "method", "axis", "x", "gold", "low", "high", "prompts")


@dataclass(frozen=True)
class Curve:
    """Gold by prompt along an axis [k], mean over seeds [q, k], and what is resampled together [q]."""

    x: np.ndarray
    gold: np.ndarray
    cluster: tuple[str, ...]


def selecting_rewards(cell: Refinements) -> dict[str, np.ndarray]:
    """The rewards that are selected by: method to [n]."""
    found = {name: cell.reward[name] for name in METHODS if name in cell.reward}
    mean, std = (torch.from_numpy(np.asarray(table["EBRM"])) for table in (cell.reward, cell.std))
    return found | {name: pessimistic(mean, std, weight).numpy() for name, weight in PESSIMISM.items()}


def mean_curves(cells: Sequence[Refinements], pool: str) -> dict[tuple[str, Axis], Curve]:
    """(method, axis) to its curve on a pool, mean over base reward models that differ in their seed."""
    found: dict[tuple[str, Axis], list[Curve]] = {}
    for cell in cells:
        test = cell.texts.pools[pool]
        least = longest_axis((test.place >= 0).sum(axis=1))
        kl = [at for at in KL if at <= np.log(least)]
        for method, curves in pool_curves(selecting_rewards(cell), test, least, kl):
            for axis, x in curves.axes.items():
                found.setdefault((method, axis), []).append(Curve(x, curves.gold[axis], curves.cluster))
    return {
        key: Curve(same[0].x, np.mean([curve.gold for curve in same], axis=0), same[0].cluster)
        for key, same in found.items()
    }


def selection_tables(cells: Sequence[Refinements]) -> tuple[list[Row], list[list[object]]]:
    """Rows of the table, and lines of curves.csv, of base reward models of one kind and noise on all pools."""
    rows: list[Row] = []
    lines: list[list[object]] = []
    for pool in cells[0].texts.pools:
        curves = mean_curves(cells, pool)
        for (method, axis), curve in curves.items():
            prompts = len(curve.cluster)
            mean = mean_curve(curve.gold, curve.cluster)
            for numbers in zip(curve.x, mean.value, mean.low, mean.high, strict=True):
                x, *gold = numbers
                at = [cells[0].base_rm, pool, f"{cells[0].noise:.2f}", method, axis, f"{x:g}"]
                lines.append([*at, *(f"{value:.4f}" for value in gold), prompts])
            seeds = 0 if method in REFERENCES else len(cells)
            for metric, found in _metrics(axis, curve, curves["base", axis]):
                if metric.startswith("gain") and method == "base":
                    continue
                about = (QUESTION, cells[0].base_rm, cells[0].noise, method, pool, "overall", metric)
                rows.append(Row(*about, found.value, found.low, found.high, seeds, prompts))
    return rows, lines


def _metrics(axis: Axis, curve: Curve, base: Curve) -> Iterator[tuple[str, Estimate]]:
    """What the table says of a curve."""
    name = {"n": "n=", "kl": "KL "}[axis]
    places = {float(x) for x in SHOWN[axis] if x in curve.x}
    places |= {float(curve.x[-1])} if axis == "n" else set()
    for kind, gold in (("gold", curve.gold), ("gain", curve.gold - base.gold)):
        mean = mean_curve(gold, curve.cluster)
        for place in sorted(places):
            at = int(np.flatnonzero(curve.x == place)[0])
            numbers: Mapping[str, np.ndarray] = vars(mean)
            yield f"{kind} at {name}{place:g}", Estimate(*(float(numbers[end][at]) for end in ("value", "low", "high")))
    peak = curve_peak(curve.gold, curve.x, curve.cluster)
    yield f"peak {'n' if axis == 'n' else 'KL'}", peak.x
    yield f"loss past the peak, {'n' if axis == 'n' else 'KL'}", peak.loss
