"""What length costs: a penalty to be added to a reward, for tokens beyond a limit, or against other responses.

Taken alone a penalty is best for the shortest response: add it to a reward for being right. Lengths are in tokens, or
in any other unit.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ebrm.errors import ConfigError, DataError
from ebrm.groups import Groups
from ebrm.utils.validation import check_range, check_same_shape

# Of the deviation of lengths, in tokens, as in the public code.
_EPS = 1e-5


def length_penalty(length: Tensor, free: float = 300.0, rate: float = 0.01) -> Tensor:  # [n] -> [n]
    """A price for every token beyond a limit: -rate · max(0, L - free).

    The penalty that the public code of "Reward Shaping to Mitigate Reward Hacking in RLHF" (PAR, arXiv 2502.18770)
    takes off every reward, before any other shaping. It does not depend on the other responses.

    Args:
        length: lengths, 0 or more [n].
        free: the length up to which there is no penalty, 0 or more. 300 is that code's.
        rate: what a token beyond costs, in the reward's unit, 0 or more. 0.01 is that code's.

    Returns:
        Penalties [n], 0 at most, in the type of `length` (the default type for whole numbers).

    Raises:
        ConfigError: `free` or `rate` below 0 or not finite.
        DataError: a length that is not finite, or below 0.
        ValueError: not [n].
    """
    for name, value in (("length without penalty", free), ("rate", rate)):
        if not (math.isfinite(value) and value >= 0):
            raise ConfigError(f"The {name} is {value}; expected a finite number of at least 0.")
    beyond = (check_range(length, 0, math.inf, "lengths") - free).clamp_min(0)
    return (0.0 - rate * beyond).to(torch.result_type(length, 1.0))


def relative_length_penalty(length: Tensor, groups: Groups) -> Tensor:  # [n] -> [n]
    """How much longer a response is than its group's mean, of its own length: -clip( (L_i - mean L) / L_i, -1, 1 ).

    In the style of O1-Pruner, as in the public code of "Self-Aligned Reward: Towards Effective and Efficient Reasoners"
    (arXiv 2509.05489), where it is a baseline. The upper clip never acts, as L_i - mean L < L_i; a response shorter
    than half the mean gets the most, 1. Penalties of a group do not add up to 0.

    Multiplying a group's lengths changes nothing; adding to them does. The order of rows does not matter.

    Args:
        length: lengths, above 0 [n].
        groups: the prompt of each row, of n rows.

    Returns:
        Penalties [n], from -1 (longer) to 1 (shorter), in the type of `length` (the default type for whole numbers).
        0 for a response alone in its group, and where all are equally long.

    Raises:
        DataError: a length that is not finite, or not above 0.
        ValueError: not one length for each row of the groups.
    """
    lengths = check_range(length, 0, math.inf, "lengths")
    if bool((lengths == 0).any()):
        none = (lengths == 0).nonzero()
        raise DataError(
            f"{len(none)} of {len(lengths)} lengths are 0, the first at index {int(none[0, 0])}, and the penalty is "
            "relative to the length. Leave such rows out."
        )
    off = _off(lengths, groups)
    return (0.0 - (off / lengths).clamp(-1, 1)).to(torch.result_type(length, 1.0))


def correct_length_penalty(length: Tensor, correct: Tensor, groups: Groups) -> Tensor:  # [n], [n] -> [n]
    """How long a correct response is among the correct ones of its group, squashed; the others pay nothing.

        -c_i · ( 2 σ( (L_i - mean L) / (std L + 0.00001) ) - 1 ),  mean and std over the group's rows with c > 0

    "ER" of the public code of "Self-Aligned Reward: Towards Effective and Efficient Reasoners" (arXiv 2509.05489),
    where it is a baseline; the deviation's divisor is their number. In a group with fewer than two correct responses
    nobody pays. Computed as a tanh of half the argument, which is the same.

    Adding a number to a group's lengths changes nothing; multiplying them hardly does (for the 0.00001).

    Args:
        length: lengths, 0 or more [n].
        correct: c: 1 for a correct response, 0 for a wrong one, or anything between [n]. (The code takes less than
            0.00001 for 0.)
        groups: the prompt of each row, of n rows.

    Returns:
        Penalties [n], from -1 (long) to 1 (short), in the type of `length` (the default type for whole numbers).

    Raises:
        DataError: a length or `correct` that is not finite, a length below 0, or `correct` outside 0 to 1.
        ValueError: not one length and one `correct` for each row of the groups.
    """
    check_same_shape(length=length, correct=correct)
    lengths, worth = check_range(length, 0, math.inf, "lengths"), check_range(correct, 0, 1, "correctness")
    if len(groups) != len(lengths):
        raise ValueError(f"{len(lengths)} lengths, and {len(groups)} rows in groups")
    rows = (worth > 0).nonzero()[:, 0]
    among = Groups(groups.index[rows], groups.count)
    off, std = _off(lengths[rows], among), among.spread(among.std(lengths[rows]))
    result = torch.zeros_like(lengths)
    result[rows] = 0.0 - worth[rows] * (off / (std + _EPS) / 2).tanh()
    return result.to(torch.result_type(length, 1.0))


def _off(lengths: Tensor, groups: Groups) -> Tensor:
    """From the group's mean; exactly 0 where all are equal."""
    off = lengths - groups.spread(groups.minimum(lengths))
    return off - groups.spread(groups.mean(off))
