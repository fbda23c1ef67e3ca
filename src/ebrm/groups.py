"""Groups of rows (the responses to one prompt) and reductions of each group, without a loop over rows."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ebrm.utils.validation import ArrayLike, as_tensor


@dataclass(frozen=True, eq=False)
class Groups:
    """Groups of rows (responses by prompt): the group of each row, of `count`; rows of a group may stand anywhere.

    Reductions take values [n] (tensor, array or list, on any device; float64 is best: a sum's last bits depend on the
    order of rows) and give one float a group [count], on the values' device; whole numbers are taken in float64.
    `spread` gives each row its group's number. A group without rows has sum 0, and NaN for the rest. Gradients are
    finite, also where values tie.

    Attributes:
        index: the group of each row [n], int64 in 0 … count - 1.
        count: number of groups.
    """

    index: Tensor
    count: int

    @classmethod
    def of(cls, ids: Sequence[Any] | np.ndarray | Tensor) -> Groups:
        """The groups of rows with equal `ids` [n], numbered in the order of first appearance.

        Ids are strings, numbers or prompts as lists of messages (`{"role": …, "content": …}`), in a list, array or
        tensor; a tensor's groups are on its device. One string, or the messages of one prompt, is a TypeError.
        """
        if isinstance(ids, str | bytes | dict) or (
            isinstance(ids, list | tuple) and any(isinstance(id, dict) for id in ids)
        ):
            raise TypeError(f"ids: expected one id for each row, got a single prompt: {ids!r:.60}")
        if isinstance(ids, Tensor | np.ndarray) and ids.ndim != 1:
            raise ValueError(f"ids: expected one id for each row [n], got the shape {tuple(ids.shape)}")
        if isinstance(ids, Tensor) or (isinstance(ids, np.ndarray) and ids.dtype.kind in "biu"):
            tensor = as_tensor(ids, "ids")
            known, index = torch.unique(tensor, return_inverse=True)
            places = torch.arange(len(tensor), device=tensor.device)
            first = torch.full_like(known, len(tensor), dtype=torch.int64).scatter_reduce_(0, index, places, "amin")
            return cls(first.argsort().argsort()[index], len(known))
        numbers: dict[Hashable, int] = {}
        index = [numbers.setdefault(_hashable(id), len(numbers)) for id in ids]
        return cls(torch.tensor(index, dtype=torch.int64), len(numbers))

    def to(self, device: torch.device | str) -> Groups:
        """The same groups with their index on `device`."""
        return self if self.index.device == torch.device(device) else Groups(self.index.to(device), self.count)

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.index)

    @cached_property
    def sizes(self) -> Tensor:
        """Rows in each group [count], int64."""
        return torch.bincount(self.index, minlength=self.count)

    @cached_property
    def place(self) -> Tensor:
        """Each row's place among the rows of its group, as they stand, 0 first, int64 [n]."""
        place = torch.empty_like(self.index)
        place[self.order] = torch.arange(len(self), device=self.index.device) - self.spread(self.starts)[self.order]
        return place

    @cached_property
    def order(self) -> Tensor:
        """Rows group by group, those of a group as they stand, int64 [n]."""
        return self.index.int().sort(stable=True).indices  # 32 bits sort twice as fast as 64

    @property
    def starts(self) -> Tensor:
        """Where each group starts in `order` [count], int64."""
        return self.sizes.cumsum(0) - self.sizes

    def by_size(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Groups of one size s > 0 together: their numbers [g], and their rows as they stand [g, s]."""
        for size in self.sizes[self.sizes > 0].unique().tolist():
            groups = (self.sizes == size).nonzero()[:, 0]
            yield groups, self.order[self.starts[groups][:, None] + torch.arange(size, device=groups.device)]

    def spread(self, of_groups: ArrayLike) -> Tensor:  # [count] -> [n]
        """Each row's group's value."""
        values = as_tensor(of_groups, "of_groups")
        return values[self.index.to(values.device)]

    def sum(self, values: ArrayLike) -> Tensor:  # [n] -> [count]
        """Sum of each group."""
        numbers, here = self._with(values)
        return numbers.new_zeros(self.count).index_add_(0, here.index, numbers)

    def mean(self, values: ArrayLike) -> Tensor:  # [n] -> [count]
        """Mean of each group."""
        total = self.sum(values)
        return total / self.sizes.to(total.device)

    def std(self, values: ArrayLike, ddof: int = 0) -> Tensor:  # [n] -> [count]
        """Standard deviation of each group, divisor size - ddof; NaN for groups of `ddof` rows or fewer.

        Exactly 0 where all values of a group are equal.
        """
        numbers, here = self._with(values)
        off = numbers - here.spread(here.mean(numbers))
        left = (here.sizes - ddof).to(numbers)
        square = here.sum(off.square()) / left.clamp_min(1)
        same = here.minimum(numbers) == here.maximum(numbers)
        return torch.where(left > 0, safe_sqrt(torch.where(same, 0.0, square)), torch.nan)

    def minimum(self, values: ArrayLike) -> Tensor:  # [n] -> [count]
        """Lowest value of each group."""
        return self._extreme(values, "amin")

    def maximum(self, values: ArrayLike) -> Tensor:  # [n] -> [count]
        """Highest value of each group."""
        return self._extreme(values, "amax")

    def logsumexp(self, values: ArrayLike) -> Tensor:  # [n] -> [count]
        """Log Σ exp of each group."""
        numbers, here = self._with(values)
        top = here.maximum(numbers)
        return top + here.sum((numbers - here.spread(top)).exp()).log()

    def softmax(self, values: ArrayLike) -> Tensor:  # [n] -> [n]
        """Softmax of each row within its group."""
        numbers, here = self._with(values)
        return (numbers - here.spread(here.logsumexp(numbers))).exp()

    def centered(self, values: ArrayLike) -> Tensor:  # [n] -> [n]
        """Each value minus its group's mean; exactly 0 where all values of a group are equal."""
        numbers, here = self._with(values)
        off = numbers - here.spread(here.minimum(numbers))
        return off - here.spread(here.mean(off))

    def rank(self, values: ArrayLike, descending: bool = True) -> Tensor:  # [n] -> [n]
        """Each row's place in its group, 0 first, int64: highest first unless not `descending`; ties as rows stand."""
        numbers, here = self._with(values)
        order = numbers.sort(stable=True, descending=descending).indices
        rank = torch.empty_like(here.index)
        rank[order] = Groups(here.index[order], here.count).place
        return rank

    def _extreme(self, values: ArrayLike, how: str) -> Tensor:
        numbers, here = self._with(values)
        empty = numbers.new_full((self.count,), torch.nan)
        return empty.scatter_reduce(0, here.index, numbers, how, include_self=False)

    def _with(self, values: ArrayLike) -> tuple[Tensor, Groups]:
        """The values as floats, and these groups on their device."""
        numbers = as_tensor(values, "values")
        if numbers.shape != self.index.shape:
            raise ValueError(f"expected a value for each of {len(self)} rows [n], got {tuple(numbers.shape)}")
        return numbers if numbers.is_floating_point() else numbers.double(), self.to(numbers.device)


def safe_sqrt(square: Tensor) -> Tensor:
    """Square root with gradient 0, not infinity, at 0."""
    zero = square == 0
    return torch.where(zero, 0.0, torch.where(zero, 1.0, square).sqrt())


def _hashable(id: Any) -> Hashable:
    if isinstance(id, list | tuple):
        return tuple(map(_hashable, id))
    if isinstance(id, dict):
        return tuple(sorted((str(key), _hashable(value)) for key, value in id.items()))
    return id if isinstance(id, Hashable) else str(id)
