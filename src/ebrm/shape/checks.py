"""One reward of many checks that a response passes or fails: unit tests, or the items of a rubric."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ebrm.errors import ConfigError, DataError
from ebrm.groups import Groups
from ebrm.utils.validation import check_finite


def difficulty_weighted_checks(
    passed: Tensor,  # bool [n, t]
    groups: Groups,  # of n rows, q prompts
    weight: Callable[[Tensor], Tensor] | None = None,  # [q, t] -> [q, t]
    smoothing: float = 0.01,
    present: Tensor | None = None,  # bool [q, t]
) -> Tensor:  # [n]
    """Share of the checks that a response passes, each check weighted by how few responses to the prompt pass it.

        ρ_j = share of the prompt's responses that pass check j
        w_j = (1 - ρ_j + δ) / Σ_j' (1 - ρ_j' + δ)
        R_i = 1 if response i passes all checks, and Σ_j w_j P_ij otherwise

    The idea is that of VeRPO, "Verifiable Dense Reward Policy Optimization for Code Generation" (arXiv 2601.03525):
    weights from the pass rates ρ of the group at hand, a dense reward of the weights of what is passed, tied to the
    outcome of the whole suite. The map from ρ to w, its scale and the last line are ours, not from the paper, whose own
    could not be verified (and whose later version corrects for the number of checks of each difficulty). Give `weight`
    to use another map.

    Weights depend on the other responses: a response that passes one more check also makes that check lighter, for
    all. With weights held fixed R rises with every check that is passed. The order of checks or of responses does not
    matter.

    Args:
        passed: P, which checks each response passes, bool [n, t].
        groups: the prompt of each response. Its checks are its own: column j need not be the same for two prompts.
        weight: weights of the checks, 0 or more, of their pass rates [q, t] (NaN for prompts without responses, which
            are not looked at); they are scaled to sum 1. None: as above.
        smoothing: δ, of the weights above, 0 or more: a check that all pass keeps a little weight.
        present: which checks each prompt has, bool [q, t], where they differ; the others are not looked at. None: all.

    Returns:
        R [n], from 0 (nothing passed) to 1, in the default type. With the weights above 1 means that everything is
        passed; with other weights also that what fails has weight 0.

    Raises:
        ConfigError: a smoothing below 0 or not finite.
        DataError: a prompt that has responses but no checks, or weights that are negative, not finite, or all 0 where a
            response of the prompt fails a check.
        ValueError: `passed` not bool [n, t] for the n rows of groups, `present` not bool [q, t], or weights of another
            shape.
    """
    if not (math.isfinite(smoothing) and smoothing >= 0):
        raise ConfigError(f"The smoothing of weights is {smoothing}; expected a finite number of at least 0.")
    if passed.dim() != 2 or len(passed) != len(groups) or passed.dtype != torch.bool:
        raise ValueError(f"expected bool [n, t] for {len(groups)} rows, got {passed.dtype} {tuple(passed.shape)}")
    shape = (groups.count, passed.shape[1])
    there = torch.ones(shape, dtype=torch.bool, device=passed.device) if present is None else present
    if there.shape != shape or there.dtype != torch.bool:
        raise ValueError(f"expected the checks there are as bool {shape}, got {there.dtype} {tuple(there.shape)}")
    responses = groups.sizes > 0
    without = responses & ~there.any(1)
    if bool(without.any()):
        raise DataError(
            f"{int(without.sum())} of {int(responses.sum())} prompts with responses have no checks, the first prompt "
            f"{int(without.nonzero()[0, 0])}. Leave them out."
        )
    counts = passed if present is None else passed & there[groups.index]
    share = torch.zeros(shape, dtype=torch.float64, device=passed.device)
    share = share.index_add_(0, groups.index, counts.double()) / groups.sizes[:, None]
    raw = 1 - share + smoothing if weight is None else weight(share)
    if raw.shape != shape:
        raise ValueError(f"expected weights {shape}, got {tuple(raw.shape)}")
    weights = torch.where(there & responses[:, None], raw, torch.zeros_like(raw))
    weights = check_finite(weights, "weights of checks", 2)
    if bool((weights < 0).any()):
        row, column = (weights < 0).nonzero()[0].tolist()
        raise DataError(f"The weight of check {column} of prompt {row} is {float(weights[row, column]):g}, below 0.")
    total = weights.sum(1)
    everything = counts.sum(1) == groups.spread(there.sum(1))
    nothing = groups.spread(total == 0) & ~everything
    if bool(nothing.any()):
        raise DataError(
            f"All checks of prompt {int(groups.index[nothing][0])} have weight 0, though some are failed. Give every "
            "check that some response fails a weight above 0."
        )
    weights = weights / torch.where(total > 0, total, 1.0)[:, None]
    dense = torch.where(counts, weights[groups.index], 0.0).sum(1).clamp_max(1.0)
    return torch.where(everything, 1.0, dense).to(torch.get_default_dtype())
