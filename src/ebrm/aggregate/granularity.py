"""A reward of the whole mixed with rewards of its parts."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ebrm.aggregate.steps import filled
from ebrm.errors import ConfigError
from ebrm.groups import Groups
from ebrm.utils.validation import check_finite


def mixed_granularity(
    whole: Tensor,  # [n]
    item: Tensor,  # [m]
    groups: Groups,  # of m rows, n in number
    whole_weight: float = 0.5,
    items: Literal["mean", "discounted_sum"] = "mean",
    empty: float | None = None,
) -> Tensor:  # [n]
    """The reward of a response mixed with those of its items: R = w · r + (1 - w) · items.

        mean: the items' mean; discounted_sum: Σ_j r_j / log2(j + 1), j = 1 for the first

    After "PageLLM: A Multi-Grained Reward Framework for Whole-Page Optimization with Large Language Models" (arXiv
    2506.09084), which mixes the reward of a page with those of what stands on it. Its weights could not be verified:
    the form, the default of 0.5 and the discount (that of the discounted cumulative gain) are ours. Whole and items
    must be of one scale. The discounted sum grows with the number of items, and is not on the scale of one.

    Args:
        whole: rewards of n responses [n].
        item: rewards of all their items, those of a response in their order (others may stand between) [m].
        groups: the response that each item belongs to: m rows, of n responses.
        whole_weight: w, from 0 to 1.
        items: how a response's items are made one number.
        empty: that number for a response without items; None refuses it.

    Returns:
        Rewards [n], in the type of `whole`. A weight of 1 gives `whole`. The order of items matters to the discounted
        sum alone.

    Raises:
        ConfigError: a weight outside 0 to 1, another `items`, or an `empty` that is not finite.
        DataError: a reward that is not finite, or a response without items.
        ValueError: not [n] and [m], or groups that do not fit them.
    """
    if not 0 <= whole_weight <= 1:
        raise ConfigError(f"The weight of the whole is {whole_weight}; expected a number from 0 to 1.")
    of_whole, of_items = check_finite(whole, "rewards of the whole"), check_finite(item, "rewards of the items")
    if len(groups) != len(of_items) or groups.count != len(of_whole):
        raise ValueError(
            f"{len(of_whole)} responses and {len(of_items)} items, and groups of {len(groups)} rows in {groups.count}"
        )
    if items == "mean":
        parts = groups.mean(of_items)
    elif items == "discounted_sum":
        parts = groups.sum(of_items / (_place(groups) + 2).log2())
    else:
        raise ConfigError(f"items is {items!r}; expected 'mean' or 'discounted_sum'.")
    parts = filled(parts, groups.sizes == 0, empty, "responses", "items")
    return (whole_weight * of_whole + (1 - whole_weight) * parts).to(torch.result_type(whole, 1.0))


def _place(groups: Groups) -> Tensor:
    """Each row's place among the rows of its group, as they stand, 0 first, float64 [m]."""
    order = groups.index.argsort(stable=True)
    starts = groups.sizes.cumsum(0) - groups.sizes
    place = torch.empty(len(groups), dtype=torch.float64, device=order.device)
    place[order] = (torch.arange(len(order), device=order.device) - starts[groups.index[order]]).double()
    return place
