"""Length penalties, to be added to a reward: for tokens beyond a limit, or against other responses.

Taken alone a penalty is best for the shortest response. Lengths are in tokens, or in any other unit; those that are
not finite or below 0 are a DataError. Results have the type of `length` (the default type for whole numbers).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ebrm.groups import Groups
from ebrm.utils.validation import ArrayLike, check_range, check_setting, match_dtype, refuse

# Of the deviation of lengths, in tokens, as in the public code.
_EPS = 1e-5


def length_penalty(length: ArrayLike, free: float = 300.0, rate: float = 0.01) -> Tensor:  # [n] -> [n]
    """Price of every token beyond a limit: -rate · max(0, L - free), the penalty of PAR's code (arXiv 2502.18770).

    Defaults are that code's; `rate` is in the reward's unit a token.
    """
    check_setting("free", free, at_least=0)
    check_setting("rate", rate, at_least=0)
    beyond = (check_range(length, 0, math.inf, "lengths [n]") - free).clamp_min(0)
    return match_dtype(0.0 - rate * beyond, length)


def relative_length_penalty(length: ArrayLike, groups: Groups) -> Tensor:  # [n] -> [n]
    """Length beyond the group's mean, of a response's own length: -clip( (L_i - mean L) / L_i, -1, 1 ).

    In the style of O1-Pruner: a baseline of Self-Aligned Reward's code (arXiv 2509.05489). A response shorter than half
    the mean gets the most, 1; penalties of a group do not add up to 0. DataError: a length of 0.
    """
    lengths = check_range(length, 0, math.inf, "lengths [n]", n=len(groups))
    refuse(lengths == 0, "lengths are 0", "The penalty is relative to the length: leave such rows out.")
    return match_dtype(0.0 - (groups.centered(lengths) / lengths).clamp(-1, 1), length)


def correct_length_penalty(length: ArrayLike, correct: ArrayLike, groups: Groups) -> Tensor:  # [n], [n] -> [n]
    """Squashed length of a correct response among the correct ones of its group; the others pay nothing.

        -c_i · ( 2 σ( (L_i - mean L) / (std L + 0.00001) ) - 1 ),  mean and std (divisor n) over the rows with c > 0

    "ER", a baseline of Self-Aligned Reward's code (arXiv 2509.05489), from -1 (long) to 1. `correct` is c: 1 for a
    correct response, 0 for a wrong one, or between. In a group with fewer than two correct responses nobody pays.
    """
    lengths = check_range(length, 0, math.inf, "lengths [n]", n=len(groups))
    worth = check_range(correct, 0, 1, "correctness [n]", device=lengths.device, n=len(groups))
    groups = groups.to(lengths.device)
    rows = (worth > 0).nonzero()[:, 0]
    some, among = lengths[rows], Groups(groups.index[rows], groups.count)
    off = among.centered(some) / (among.spread(among.std(some)) + _EPS)
    penalty = 0.0 - worth[rows] * (off / 2).tanh()
    return match_dtype(torch.zeros_like(lengths).index_put((rows,), penalty), length)
