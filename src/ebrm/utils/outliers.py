"""Outliers: numbers that overflowed among rewards and embeddings, by medians and quantiles, which they do not move."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

#: Rewards this many standard deviations (of the middle 80%) from the median are outliers, unless more than this share
#: of the rows are so: then it is how this reward model rewards.
OUTLYING = 20.0
_AT_MOST = 0.05
#: Standard deviations of a normal distribution between its 10th and its 90th percentile.
_MIDDLE = 2.5631
#: Up to this share of the rows are outliers, if they are this far from the median at least, and so many times further
#: than all others: no reward model rewards like that, and many of them hide one another in a standard deviation.
_MANY = 0.25
_HUGE = 1e4
_GAP = 100.0
#: Embeddings this many times as far from the middle as the median row is are outliers.
FAR = 100.0
#: Rows that the middle is taken of, and rows read at a time.
_SAMPLE = 1000
_ROWS = 4096


def outlying(reward: Tensor) -> Tensor:  # [n] -> [n]
    """Which of these rewards are outliers, bool: rare ones far from the middle, or up to a quarter that overflowed.

    None where the middle has no spread, and of fewer than 10 rewards only what overflowed.
    """
    values = reward.double()
    found = _overflowed(values)
    rest = (~found).nonzero().squeeze(1)
    found[rest[_far(values[rest])]] = True
    return found


def _overflowed(values: Tensor) -> Tensor:
    found = torch.zeros(len(values), dtype=torch.bool)
    if len(values) < 4:
        return found
    distance = (values - values.median()).abs()
    ordered = distance.sort().values
    before, after = ordered[:-1], ordered[1:]
    gaps = ((before > 0) & (after >= _HUGE) & (after > _GAP * before)).nonzero().squeeze(1)
    gaps = gaps[len(values) - 1 - gaps <= _MANY * len(values)]
    return distance > ordered[gaps[0]] if len(gaps) else found


def _far(values: Tensor) -> Tensor:
    if len(values) < 10:
        return torch.zeros(len(values), dtype=torch.bool)
    ordered = values.sort().values
    tenth = math.ceil(0.1 * (len(values) - 1))
    low, high = ordered[tenth], ordered[len(values) - 1 - tenth]
    far = (values - ordered[len(values) // 2]).abs() > OUTLYING * (high - low) / _MIDDLE
    rare = int(far.sum()) <= max(1, _AT_MOST * len(values))
    return far if rare and bool(high > low) else torch.zeros_like(far)


def outlying_embeddings(read: Callable[[Tensor], Tensor], rows: Tensor) -> Tensor:  # [n] -> [n]
    """Which of these rows have an outlying embedding, bool: far from the coordinate-wise median of all of them.

    Args:
        read: embeddings of some rows, [k] -> [k, d]; one that is not finite is no outlier here, but refused elsewhere.
        rows: which rows; read once, some at a time.
    """
    if len(rows) < 4:
        return torch.zeros(len(rows), dtype=torch.bool)
    some = rows[torch.linspace(0, len(rows) - 1, min(len(rows), _SAMPLE)).round().long()]
    center = read(some).double().median(0).values
    distance = torch.cat([(read(part).double() - center).norm(dim=1) for part in rows.split(_ROWS)])
    far = distance.isfinite() & (distance > FAR * distance.nanmedian())
    return far if int(far.sum()) <= _MANY * len(rows) else torch.zeros_like(far)
