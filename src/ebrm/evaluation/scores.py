"""What one reward says of a benchmark's responses."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Scores:
    """Rewards of one scorer for the n items of a benchmark, in tables [n, r] like `Benchmark.gold()`.

    Attributes:
        name: the scorer, unique in an evaluation ("my-rm", "my-ebrm").
        reward: float64 [n, r]; NaN beyond an item's last response and where there is no reward.
        base: name of the scorer that this one refines; None for a reward model itself.
        std: float64 [n, r], standard deviation of the reward's density; None where there is no density.
        interval: float64 [n, r, 2], ends of the density's central interval; None where there is no density.
        interval_level: coverage that the interval claims.
        prefer: P(response a of item i > its response b) under the densities, from (i [p], a [p], b [p]) to [p]; None
            where there is no density: then it is the logistic function of the reward difference (Bradley-Terry).
        unscored: why an item has no reward, by its place in the benchmark.
    """

    name: str
    reward: Floats
    base: str | None = None
    std: Floats | None = None
    interval: Floats | None = None
    interval_level: float = 0.9
    prefer: Callable[[Integers, Integers, Integers], Floats] | None = None
    unscored: Mapping[int, str] = field(default_factory=dict)

    def probability(self, item: Integers, a: Integers, b: Integers) -> Floats:
        """P(response `a` of `item` is better than its response `b`) [p]."""
        if self.prefer is not None:
            return self.prefer(item, a, b)
        return np.asarray(expit(self.reward[item, a] - self.reward[item, b]), dtype=np.float64)

    def take(self, index: Integers) -> Scores:
        """The scores of the items at `index`, in that order."""
        prefer = self.prefer
        place = {int(old): new for new, old in enumerate(index)}
        return Scores(
            self.name,
            self.reward[index],
            self.base,
            None if self.std is None else self.std[index],
            None if self.interval is None else self.interval[index],
            self.interval_level,
            None if prefer is None else lambda item, a, b: prefer(np.asarray(index)[item], a, b),
            {place[old]: reason for old, reason in self.unscored.items() if old in place},
        )
