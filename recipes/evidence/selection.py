"""What selecting by a reward does to gold: best-of-n and KL-regularized optimization on pools of responses.

    rows, peaks = selection_rows({"base": reward, "refined": other}, {"rmb": study.tests["rmb"]})

Every method is asked for on the same prompts, beside three references: "random" (any response, equally often), "oracle"
(gold itself as the reward) and "longest" (the length of the response in characters). Gold along n is the exact mean
over all sets of n responses of a pool, gold along KL that of the tilted policy at that KL in nats (see
`ebrm.optimize`), so there is no sampling noise but that of the prompts, which is what the intervals are about.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ebrm.benchmarks import padded
from ebrm.evaluation import Axis, gold_curves, selection_axes
from ebrm.metrics import Bootstrap, Estimate, curve_peak, mean_curve

if TYPE_CHECKING:
    from study import TestSet

REFERENCES = ("random", "oracle", "longest")


@dataclass(frozen=True)
class CurveRow:
    """Mean gold over `prompts` prompts at a point of an axis; `left_out` have too few responses."""

    method: str
    pool: str
    axis: Axis
    x: float
    gold: float
    low: float
    high: float
    prompts: int
    left_out: int


@dataclass(frozen=True)
class PeakRow:
    """Where a curve peaks, the mean gold there and at the end of the axis, and the difference, with intervals."""

    method: str
    pool: str
    axis: Axis
    x: Estimate
    gold: Estimate
    end: Estimate
    loss: Estimate
    prompts: int


@dataclass(frozen=True)
class Curves:
    """Gold by prompt along both axes of one method on one pool [q, k], with what is resampled together [q]."""

    axes: dict[Axis, np.ndarray]
    gold: dict[Axis, np.ndarray]
    cluster: tuple[str, ...]
    left_out: int


def selection_rows(
    rewards: Mapping[str, np.ndarray],
    pools: Mapping[str, TestSet],
    least: int | Mapping[str, int] = 2,
    kl: Sequence[float] | None = None,
    resamples: int = 2000,
    seed: int = 0,
) -> tuple[list[CurveRow], list[PeakRow]]:
    """Curves and peaks of every method and reference on every pool.

    Args:
        rewards: method to the rewards of all texts of the study [n_texts], finite where a pool has a text.
        pools: name to items and where their responses stand among the texts.
        least: prompts with fewer responses are left out (and counted); one number, or one for each pool. Curves along
            n end at the smallest pool that stays, so a higher one gives longer curves over fewer prompts.
        kl: points on the axis of KL in nats, ascending; None: evenly from 0 to the log of the smallest pool's size.
        resamples, seed: of the intervals.

    Returns:
        (rows of the curves, rows of the peaks).

    Raises:
        ValueError: a method has the name of a reference, or no prompt of a pool has enough responses.
        DataError: a response without a finite reward.
    """
    rows, peaks = [], []
    for pool, tests in pools.items():
        for method, curves in pool_curves(rewards, tests, least if isinstance(least, int) else least[pool], kl):
            for axis, x in curves.axes.items():
                bootstrap = Bootstrap(resamples, seed=seed)
                mean = mean_curve(curves.gold[axis], curves.cluster, bootstrap=bootstrap)
                for at, *gold in zip(x, mean.value, mean.low, mean.high, strict=True):
                    numbers = map(float, (at, *gold))
                    rows.append(CurveRow(method, pool, axis, *numbers, len(curves.cluster), curves.left_out))
                peak = curve_peak(curves.gold[axis], x, curves.cluster, bootstrap=bootstrap)
                peaks.append(PeakRow(method, pool, axis, **vars(peak), prompts=len(curves.cluster)))
    return rows, peaks


def pool_curves(
    rewards: Mapping[str, np.ndarray], tests: TestSet, least: int = 2, kl: Sequence[float] | None = None
) -> Iterator[tuple[str, Curves]]:
    """Each method and reference with its curves by prompt, all on the same prompts: for paired comparisons, too."""
    if taken := set(rewards) & set(REFERENCES):
        raise ValueError(f"{', '.join(sorted(taken))}: names of references; call the methods something else")
    size = (tests.place >= 0).sum(axis=1)
    keep = np.flatnonzero(size >= least)
    if not len(keep):
        raise ValueError(f"no prompt has {least} responses; the most are {size.max(initial=0)}")
    benchmark = tests.benchmark.take(keep)
    gold, cluster = benchmark.gold(), benchmark.clusters()
    place = tests.place[keep, : gold.shape[1]]
    shortest = int(size[keep].min())
    axes = selection_axes(shortest, kl)
    length = padded([[len(response) for response in item.responses] for item in benchmark.items])
    tables = {"random": np.where(place >= 0, 0.0, np.nan), "oracle": gold, "longest": length}
    tables |= {name: np.where(place >= 0, np.asarray(reward)[place], np.nan) for name, reward in rewards.items()}
    for method, table in tables.items():
        yield method, Curves(axes, gold_curves(table, gold, axes), cluster, len(size) - len(keep))
