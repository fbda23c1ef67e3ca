"""Rows that belong together (the responses to one prompt), and what is computed of each group: no loop over rows."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Groups:
    """Which of `count` groups each row belongs to; rows of a group may stand anywhere.

    Reductions take values [n] (float64 is best: a sum's last bits depend on the order of rows) and give one number a
    group [count]; `spread` gives each row its group's number. A group without rows has sum 0, and NaN for the rest.

    Attributes:
        index: the group of each row [n], int64 in 0 … count - 1.
        count: number of groups.
    """

    index: Tensor
    count: int

    @classmethod
    def of(cls, ids: Sequence[Hashable] | Tensor) -> Groups:
        """The groups of rows with equal `ids` [n], numbered in the order of first appearance."""
        if isinstance(ids, Tensor):
            known, index = torch.unique(ids, return_inverse=True)
            first = torch.full((len(known),), len(ids)).scatter_reduce_(0, index, torch.arange(len(ids)), "amin")
            return cls(first.argsort().argsort()[index], len(known))
        numbers: dict[Hashable, int] = {}
        return cls(torch.tensor([numbers.setdefault(id, len(numbers)) for id in ids], dtype=torch.int64), len(numbers))

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.index)

    @cached_property
    def sizes(self) -> Tensor:
        """Rows in each group [count], int64."""
        return torch.bincount(self.index, minlength=self.count)

    def spread(self, of_groups: Tensor) -> Tensor:  # [count] -> [n]
        """Each row's group's value."""
        return of_groups[self.index]

    def sum(self, values: Tensor) -> Tensor:  # [n] -> [count]
        """Sum of each group."""
        return values.new_zeros(self.count).index_add_(0, self._of(values), values)

    def mean(self, values: Tensor) -> Tensor:  # [n] -> [count]
        """Mean of each group."""
        return self.sum(values) / self.sizes

    def std(self, values: Tensor, ddof: int = 0) -> Tensor:  # [n] -> [count]
        """Standard deviation of each group, divisor size - ddof; NaN for groups of `ddof` rows or fewer.

        Exactly 0 where all values of a group are equal.
        """
        off = values - self.spread(self.mean(values))
        same = self.minimum(values) == self.maximum(values)
        left = (self.sizes - ddof).to(values).clamp_min(0)
        square = self.sum(off.square()) / left
        return torch.where(same & (left > 0), torch.zeros_like(square), square).sqrt()

    def minimum(self, values: Tensor) -> Tensor:  # [n] -> [count]
        """Lowest value of each group."""
        return self._extreme(values, "amin")

    def maximum(self, values: Tensor) -> Tensor:  # [n] -> [count]
        """Highest value of each group."""
        return self._extreme(values, "amax")

    def logsumexp(self, values: Tensor) -> Tensor:  # [n] -> [count]
        """Log Σ exp of each group."""
        top = self.maximum(values)
        return top + self.sum((values - self.spread(top)).exp()).log()

    def softmax(self, values: Tensor) -> Tensor:  # [n] -> [n]
        """Softmax of each row within its group."""
        return (values - self.spread(self.logsumexp(values))).exp()

    def rank(self, values: Tensor, descending: bool = True) -> Tensor:  # [n] -> [n]
        """Each row's place in its group, 0 first, int64: highest first unless not `descending`; ties as rows stand."""
        order = values.sort(stable=True, descending=descending).indices
        # Group by group, each in its order; 32 bits sort twice as fast as 64.
        order = order[self.index[order].int().sort(stable=True).indices]
        starts = self.sizes.cumsum(0) - self.sizes
        rank = torch.empty_like(self.index)
        rank[order] = torch.arange(len(order), device=order.device) - starts[self.index[order]]
        return rank

    def _extreme(self, values: Tensor, how: str) -> Tensor:
        empty = values.new_full((self.count,), torch.nan)
        return empty.scatter_reduce(0, self._of(values), values, how, include_self=False)

    def _of(self, values: Tensor) -> Tensor:
        if values.shape != self.index.shape:
            raise ValueError(f"expected a value for each of {len(self)} rows [n], got {tuple(values.shape)}")
        return self.index
