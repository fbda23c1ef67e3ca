"""Seconds of two or more ways to do one thing, measured in turns, and the figure they make."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Ratio:
    """How many times faster ours is: medians over the turns, and the spread of the turns' own ratios.

    Attributes:
        plain_seconds, ours_seconds: medians.
        ratio: plain_seconds / ours_seconds.
        low, high: least and greatest ratio of one turn.
    """

    plain_seconds: float
    ours_seconds: float
    ratio: float
    low: float
    high: float

    @classmethod
    def of(cls, plain: list[float], ours: list[float]) -> Ratio:
        """From the seconds of every turn; medians hold, so `ratio` lies between `low` and `high`."""
        turns = [p / o for p, o in zip(plain, ours, strict=True)]
        p, o = statistics.median(plain), statistics.median(ours)
        return cls(p, o, p / o, min(turns), max(turns))

    def with_plain_times(self, factor: float) -> Ratio:
        """As if plain had done `factor` times the work at the same rate; whoever uses it says so in the figure."""
        return Ratio(
            self.plain_seconds * factor, self.ours_seconds, self.ratio * factor, self.low * factor, self.high * factor
        )


@dataclass(frozen=True)
class Figure:
    """One line of the table: what was timed, at which size, and the ratio it must reach (None: no requirement)."""

    figure: str
    d: int
    network: str
    rows: int
    device: str
    threads: int
    plain_seconds: float
    ours_seconds: float
    ratio: float
    ratio_low: float
    ratio_high: float
    required: float | None

    @classmethod
    def from_ratio(
        cls,
        figure: str,
        ratio: Ratio,
        *,
        d: int,
        network: str,
        rows: int,
        device: str = "cpu",
        required: float | None = None,
    ) -> Figure:
        """The figure of a measured ratio, with the threads torch uses now."""
        return cls(
            figure, d, network, rows, device, torch.get_num_threads(),
            ratio.plain_seconds, ratio.ours_seconds, ratio.ratio, ratio.low, ratio.high, required,
        )  # fmt: skip

    @property
    def met(self) -> bool:
        """Whether the ratio reaches what is required; true where nothing is."""
        return self.required is None or self.ratio >= self.required


def seconds(work: Callable[[], object]) -> float:
    """Wall time of one call, with everything it left running on a GPU."""
    _synchronize()
    started = time.perf_counter()
    work()
    _synchronize()
    return time.perf_counter() - started


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def compare_each(
    plain: Callable[[], object], ours: Mapping[str, Callable[[], object]], repeats: int, *, warm_up: bool = True
) -> dict[str, Ratio]:
    """Ratios of several ways of ours to the same plain runs: in every turn plain once, then each of ours once.

    Args:
        plain: the plain way.
        ours: our ways, by name.
        repeats: turns.
        warm_up: run each once, untimed, before the first turn; leave out where the same work has just run.
    """
    if warm_up:
        for work in (plain, *ours.values()):
            work()
    of_plain: list[float] = []
    of_ours: dict[str, list[float]] = {name: [] for name in ours}
    for _ in range(repeats):
        of_plain.append(seconds(plain))
        for name, work in ours.items():
            of_ours[name].append(seconds(work))
    return {name: Ratio.of(of_plain, taken) for name, taken in of_ours.items()}


def compare(plain: Callable[[], object], ours: Callable[[], object], repeats: int, *, warm_up: bool = True) -> Ratio:
    """Time both in turns (plain, ours, plain, ours, ...), after one untimed run of each."""
    return compare_each(plain, {"ours": ours}, repeats, warm_up=warm_up)["ours"]
