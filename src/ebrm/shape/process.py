"""Rewards of the steps of a response, of its checks, and advantages scaled by how hard a prompt is.

Numbers that are not finite are a DataError, other shapes a ValueError; results have the first argument's float type.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from ebrm.errors import DataError
from ebrm.groups import Groups
from ebrm.utils.validation import (
    ArrayLike,
    as_tensor,
    check_finite,
    check_mask,
    check_range,
    check_setting,
    match_dtype,
    refuse,
)


def process_clip(score: ArrayLike, threshold: float) -> Tensor:  # [n] -> [n]
    """Clip: shortfall of a step's score below a threshold, r_k = min(q_k - η, 0) (arXiv 2410.15115).

    Never above 0, so that no added step raises a response's return. η, in the score's unit, has no default: it is
    chosen for each process reward model.
    """
    check_setting("threshold", threshold)
    return match_dtype((check_finite(score, "step scores [n]") - threshold).clamp_max(0), score)


def process_delta(score: ArrayLike, groups: Groups) -> Tensor:  # [n] -> [n]
    """Delta: excess of a step's score over the next one's (arXiv 2410.15115).

    Of the K steps of a response

        r_k = q_k - q_{k+1} for k < K - 1,  r_{K-1} = q_{K-1},  r_K = 0.

    The last step is left to the reward for success. A response gets its first score in all, however many steps follow,
    and one step repeated adds nothing. The paper combines both: `process_delta(process_clip(score, η), groups)`. Steps
    of a response are in their order; other rows may stand between.
    """
    scores = check_finite(score, "step scores [n]", n=len(groups))
    groups = groups.to(scores.device)
    order = groups.order
    ordered, response = scores[order], groups.index[order]
    none = torch.zeros_like(response[:1], dtype=torch.bool)
    follows = torch.cat([response[1:] == response[:-1], none])  # whether the step k + 1 is of the same response
    later = torch.cat([torch.where(follows[1:], ordered[1:], 0.0), ordered.new_zeros(len(none))])
    result = torch.where(follows, ordered - later, 0.0)
    return match_dtype(torch.zeros_like(result).index_put((order,), result), score)


def process_return(
    reward: ArrayLike, groups: Groups, success: ArrayLike, weight: float = 1.0
) -> Tensor:  # [n], [count] -> [count]
    """Return of a response: R = success + α Σ_k r_k, less the KL penalty, if any (arXiv 2410.15115).

    `reward` is of steps, such as of `process_clip` or `process_delta`, `success` of each response, such as 0 or 1, and
    `weight` α, 0 or more (the default is ours).
    """
    check_setting("weight", weight, at_least=0)
    rewards = check_finite(reward, "rewards of steps [n]", n=len(groups))
    succeeded = check_finite(success, "rewards for success [count]", device=rewards.device, count=groups.count)
    return match_dtype(succeeded + weight * groups.sum(rewards), reward)


def difficulty_weighted_checks(
    passed: ArrayLike,  # bool [n, t]
    groups: Groups,  # of n rows, q prompts
    weight: Callable[[Tensor], Tensor] | None = None,  # [q, t] -> [q, t]
    smoothing: float = 0.01,
    present: ArrayLike | None = None,  # bool [q, t]
) -> Tensor:  # [n]
    """Share of the checks (unit tests, rubric items) that a response passes, hard checks weighing more.

        ρ_j = share of the prompt's responses that pass check j
        w_j = (1 - ρ_j + δ) / Σ_j' (1 - ρ_j' + δ)
        R_i = 1 if response i passes all checks, and Σ_j w_j P_ij otherwise

    Weights by the pass rates of the group at hand are the idea of VeRPO (arXiv 2601.03525); the map from ρ to w, its
    scale and the last line are ours. Weights depend on the other responses; with weights held fixed R rises with every
    check that is passed.

    Args:
        passed: P, which checks each response passes.
        groups: the prompt of each response. Its checks are its own: column j need not be the same for two prompts.
        weight: another map from pass rates to weights, 0 or more (rates are NaN for prompts without responses, which
            are not looked at); they are scaled to sum 1.
        smoothing: δ of the weights above, 0 or more: a check that all pass keeps a little weight.
        present: which checks each prompt has, where they differ; the others are not looked at. None: all.

    Raises:
        DataError: a prompt that has responses but no checks, or weights that are negative, not finite, or all 0 where a
            response of the prompt fails a check.
    """
    check_setting("smoothing", smoothing, at_least=0)
    counts = check_mask(passed, "passed [n, t]", n=len(groups))
    groups = groups.to(counts.device)
    q, t = groups.count, counts.shape[1]
    there = torch.ones(q, t, dtype=torch.bool, device=counts.device)
    if present is not None:
        there = check_mask(present, "present [q, t]", counts.device, q=q, t=t)
        counts = counts & there[groups.index]
    responses = groups.sizes > 0
    without = responses & ~there.any(1)
    refuse(without, "prompts have responses and no checks", "Leave them out.")
    share = torch.zeros(q, t, dtype=torch.float64, device=counts.device)
    share = share.index_add_(0, groups.index, counts.double()) / groups.sizes[:, None]
    raw = 1 - share + smoothing if weight is None else weight(share)
    if raw.shape != share.shape:
        raise ValueError(f"expected weights {tuple(share.shape)}, got {tuple(raw.shape)}")
    weights = check_range(torch.where(there & responses[:, None], raw, 0.0), 0, math.inf, "weights of checks [q, t]")
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


def separability(
    demonstration: ArrayLike,  # [q, s, d]
    response: ArrayLike,  # [q, t, d]
    demonstration_present: ArrayLike | None = None,  # bool [q, s]
    response_present: ArrayLike | None = None,  # bool [q, t]
) -> Tensor:  # [q]
    """Unlikeness of a demonstration and a response: δ = 1 - mean_k max_l cos(demonstration_k, response_l).

    The hardness of the data of DR-IRL (arXiv 2503.18991); called separability here, as unlike texts are easy to tell
    apart. For each sentence k of the demonstration the most similar sentence l of the response counts: δ is from 0
    (every sentence is in the response as well) to 2. Embeddings are of the sentences of q demonstrations, and of as
    many responses of the policy, by any encoder; `…_present` says which sentences there are (None: all). DataError: an
    embedding of length 0, or a text without sentences.
    """
    first, there = _sentences(demonstration, demonstration_present, "demonstrations")
    second, present = _sentences(response, response_present, "responses", first.device)
    if len(first) != len(second) or first.shape[2] != second.shape[2]:
        raise ValueError(f"expected [q, s, d] and [q, t, d], got {tuple(first.shape)} and {tuple(second.shape)}")
    if not len(first):
        return match_dtype(first.new_empty(0), demonstration)
    cosine = (first @ second.transpose(1, 2)).masked_fill(~present[:, None, :], -torch.inf)
    nearest = torch.where(there, cosine.amax(2), 0.0).sum(1) / there.sum(1)
    return match_dtype((1 - nearest).clamp(0, 2), demonstration)


def hardness_scale(separability: ArrayLike, responsiveness: ArrayLike | None = None) -> Tensor:  # [q], [q] -> [q]
    """Dynamic scale of a prompt's advantages: α_i = σ(δ_i) / σ(mean δ) · σ(g_i) / σ(mean g) (arXiv 2503.18991).

    A prompt at both means has α = 1. The means are over the prompts given, so α depends on which come together. The
    paper leaves outliers out of the mean of g; here nothing is left out: clamp g before. `responsiveness` is g,
    r(demonstration) - the prompt's mean reward; None: the first factor alone.
    """
    result = _against_mean(check_finite(separability, "separability [q]"))
    if responsiveness is not None:
        known = check_finite(responsiveness, "responsiveness [q]", device=result.device, q=len(result))
        result = result + _against_mean(known)
    return match_dtype(result.exp(), separability)


def hardness_scaled_advantage(advantage: ArrayLike, scale: ArrayLike, groups: Groups) -> Tensor:  # [n], [q] -> [n]
    """Advantages of each prompt times its scale, A'_i = α_q A_i: with `group_advantage` those of DR-IRL (GRPO-S).

    `scale` is α of each of q prompts, see `hardness_scale`.
    """
    values = check_finite(advantage, "advantages [n]", n=len(groups))
    scales = check_finite(scale, "scales [q]", device=values.device, q=groups.count)
    return match_dtype(values * groups.spread(scales), advantage)


def _against_mean(values: Tensor) -> Tensor:
    """Log of σ(x) / σ(mean x)."""
    if not len(values):
        return values
    off = values - values[0]  # so that equal ones are their own mean, exactly
    return logsigmoid(values) - logsigmoid(values[0] + off.mean())


def _sentences(
    embedding: ArrayLike, present: ArrayLike | None, what: str, device: torch.device | None = None
) -> tuple[Tensor, Tensor]:
    """Embeddings of length 1, 0 where there are none [q, s, d], and which there are [q, s]."""
    known = as_tensor(embedding, f"embeddings of {what}", device)
    if known.dim() != 3:
        raise ValueError(f"expected embeddings of {what} [q, s, d], got {tuple(known.shape)}")
    q, s, _ = known.shape
    there = torch.ones(q, s, dtype=torch.bool, device=known.device)
    if present is not None:
        there = check_mask(present, f"sentences of {what} [q, s]", known.device, q=q, s=s)
    without = ~there.any(1)
    refuse(without, f"{what} are without sentences", "Leave those prompts out.")
    values = check_finite(torch.where(there[..., None], known, 0), f"embeddings of {what} [q, s, d]")
    length = torch.linalg.vector_norm(values, dim=2, keepdim=True)
    none = there & (length[..., 0] == 0)
    refuse(none, f"embeddings of {what} are 0 and have no direction", "Leave those sentences out.")
    return values / torch.where(there[..., None], length, 1.0), there
