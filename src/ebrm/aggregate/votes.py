"""The answer that most votes are for."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ebrm.errors import DataError
from ebrm.groups import Groups
from ebrm.utils.validation import check_range


@dataclass(frozen=True, eq=False)
class Majority:
    """What was voted for in each group.

    Attributes:
        label: the answer with the most votes, the lowest where several have them; -1 without votes [count], int64.
        share: its votes over all votes of the group, float64; NaN without votes, or if all weights are 0 [count].
        tied: whether another answer has as many votes [count], bool.
    """

    label: Tensor
    share: Tensor
    tied: Tensor


def majority_vote(vote: Tensor, groups: Groups, weight: Tensor | None = None) -> Majority:  # [n] -> of [count]
    """Count the votes of each group: of several judges on one pair, or of several responses' answers to one prompt.

    Voting over samples is the self-consistency of Wang et al. (arXiv 2203.11171), and the five-fold vote of
    "OpenRubrics" (arXiv 2510.07743). An odd number of votes for two answers never ties; for others a rule is needed.
    Here the lowest label wins and `tied` says so: leave such items out, or use `share` as a soft label, where the
    lowest is not a fair choice. With rewards as weights it is best-of-n by the summed reward of each answer.

    Args:
        vote: the answers as whole numbers from 0, or bool [n]. (`Groups.of(answers).index` numbers texts.) Who
            abstains has no row.
        groups: the item that each vote is on.
        weight: what each vote counts, 0 or more [n]; None: 1 each.

    Returns:
        A `Majority`. The order of votes does not matter (but for the last bits of a sum of weights), nor a common
        positive scale of the weights of a group.

    Raises:
        DataError: a vote below 0, or a weight that is below 0 or not finite.
        ValueError: votes that are not whole numbers, or shapes other than [n].
    """
    if vote.is_floating_point() or vote.is_complex() or vote.shape != groups.index.shape:
        raise ValueError(f"expected {len(groups)} votes [n], whole numbers, got {tuple(vote.shape)} of {vote.dtype}")
    label = vote.long()
    if bool((label < 0).any()):
        row = int((label < 0).nonzero()[0, 0])
        raise DataError(
            f"{int((label < 0).sum())} of {len(label)} votes are below 0, the first at index {row}: {int(label[row])}. "
            "Expected answers as numbers from 0; leave out the rows of those who abstain."
        )
    if weight is None:
        counts = torch.ones(len(label), dtype=torch.float64, device=label.device)
    else:
        counts = check_range(weight, 0, math.inf, "weights of the votes")
        if len(counts) != len(label):
            raise ValueError(f"{len(label)} votes and {len(counts)} weights")
    labels, number = torch.unique(label, return_inverse=True)
    options, option = torch.unique(groups.index * max(len(labels), 1) + number, return_inverse=True)
    votes = counts.new_zeros(len(options)).index_add_(0, option, counts)
    of_options = Groups(options // max(len(labels), 1), groups.count)
    top = votes == of_options.spread(of_options.maximum(votes))
    number_of = torch.where(top, options % max(len(labels), 1), len(labels))
    lowest = number_of.new_full((groups.count,), len(labels)).scatter_reduce_(0, of_options.index, number_of, "amin")
    return Majority(
        torch.cat([labels, labels.new_full((1,), -1)])[lowest],
        of_options.maximum(votes) / of_options.sum(votes),
        of_options.sum(top.double()) > 1,
    )
