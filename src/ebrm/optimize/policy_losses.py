"""Losses of policies that are trained on preferences, of log-probabilities and logits: no trainer, no model.

A log-ratio is log π(y | x) - log π_ref(y | x), summed over the response's tokens. The pair losses proper are cases of
`ebrm.heads.pair_loss`, with β times log-ratios as rewards: DPO as it is, with a consistency as `label` CREAM, with
`margin_scaled_beta` as `scale` MM-RLHF. Losses are one a pair or response, not averaged; numbers that are not finite
are a DataError, other shapes a ValueError; results have the float type of the first argument.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from ebrm.utils.validation import (
    ArrayLike,
    as_tensor,
    check_finite,
    check_mask,
    check_range,
    check_same_shape,
    check_setting,
    match_dtype,
)

#: exp of this is still a float64.
_EXPONENT = 700.0


def margin_scaled_beta(
    difference: ArrayLike, beta: float = 0.1, weight: float = 0.5, rate: float = 0.5, least: float = 1e-3
) -> Tensor:  # [p] -> [p]
    """Margin-scaled β of DPO: β (1 + w (1 - exp(-k Δ))), at least `least` (MM-RLHF, arXiv 2502.10391).

    Δ = r(chosen) - r(rejected) of a reward model that is not trained along: pairs it is sure of are to move the policy
    further. From β at Δ = 0 the result rises to below (1 + w) β; where the reward model contradicts the pair it falls,
    without the bound to below 0. Give it as `scale` of `ebrm.heads.pair_loss`, with log-ratios as rewards. The released
    trainer puts one β a batch in its place (that of β-DPO) unless told otherwise; its script has w = 0.1. The
    defaults of w and k are ours.

    Args:
        difference: Δ of each pair, in the reward's unit. No gradient goes through it.
        beta: β, above 0.
        weight: w, 0 or more.
        rate: k, 0 or more, in 1 / the reward's unit.
        least: the bound, above 0 and at most β (the code's 1e-3).
    """
    check_setting("beta", beta, above=0)
    check_setting("weight", weight, at_least=0)
    check_setting("rate", rate, at_least=0)
    check_setting("least", least, above=0, at_most=beta)
    off = check_finite(difference, "difference of rewards [p]").detach()
    grown = -torch.expm1((-rate * off).clamp_max(_EXPONENT))
    return match_dtype((beta * (1 + weight * grown)).clamp_min(least), difference)


def optimistic_dpo_loss(
    chosen: ArrayLike, rejected: ArrayLike, sampled: ArrayLike, beta: float = 0.01, alpha: float = 0.001
) -> Tensor:  # [p] each -> [p]
    """Optimistic DPO: -log σ(β (D_c - D_r)) + α β D_s, D log-ratios (SELM, arXiv 2405.19332).

    An optimistic fit of the reward adds α max_y r(y) to the likelihood of the preferences; in terms of the policy that
    makes responses of the reference policy less likely. α = 0 is DPO. The paper takes β 0.01, and α 0.001 (Zephyr) or
    0.0001 (Llama 3).

    Args:
        chosen, rejected: log-ratios D_c and D_r of the pairs.
        sampled: log-ratio D_s of a response to the same prompt that was sampled from the reference policy.
        beta: β, above 0.
        alpha: α, 0 or more.
    """
    check_setting("beta", beta, above=0)
    check_setting("alpha", alpha, at_least=0)
    first = check_finite(chosen, "log-ratio of the chosen [p]")
    second = check_finite(rejected, "log-ratio of the rejected [p]", device=first.device, p=len(first))
    third = check_finite(sampled, "log-ratio of the sampled [p]", device=first.device, p=len(first))
    return match_dtype(alpha * beta * third - logsigmoid(beta * (first - second)), chosen)


def power_margin(
    chosen: ArrayLike, rejected: ArrayLike, chosen_length: ArrayLike, rejected_length: ArrayLike, beta: float
) -> Tensor:  # [p] each -> [p]
    """POWER's margin: β (log π_c / |c| - log π_r / |r| + 1 / |c| - 1 / |r|) (arXiv 2412.09544).

    The difference of rewards under which a policy is optimal for E[r] + β H_w, H_w = -Σ w π log π its weighted entropy,
    with w(y) = 1 / |y|: r(y) = β w(y) (log π(y) + 1) + const. For responses of one length it is SimPO's margin.

    Args:
        chosen, rejected: log π of the responses, summed over tokens; no reference policy is needed.
        chosen_length, rejected_length: their tokens, 1 or more.
        beta: β, above 0. The paper tunes it for each model; there is no default.
    """
    check_setting("beta", beta, above=0)
    first = check_finite(chosen, "log-probability of the chosen [p]")
    second = check_finite(rejected, "log-probability of the rejected [p]", device=first.device, p=len(first))
    one, two = (
        1 / check_range(length, 1, math.inf, f"tokens of the {name} [p]", device=first.device, p=len(first))
        for length, name in ((chosen_length, "chosen"), (rejected_length, "rejected"))
    )
    return match_dtype(beta * (one * first - two * second + one - two), chosen)


def power_loss(
    chosen: ArrayLike,  # [p]
    rejected: ArrayLike,  # [p]
    chosen_length: ArrayLike,  # [p]
    rejected_length: ArrayLike,  # [p]
    beta: float,
    eta: float,
    label: ArrayLike | float = 1.0,  # [p] or one number
) -> Tensor:  # [p]
    """POWER's loss: -l log σ(m) - (1 - l) log σ(-m) - η β log π_c / |c| (arXiv 2412.09544).

    m is `power_margin`; the last term keeps the chosen responses likely. The margin follows from the paper's problem;
    how the terms are put together, and η, are ours. POWER-DL is the same loss with labels that move to the policy's own
    belief between passes: `ebrm.curate.dynamic_labels` with m as the difference.

    Args:
        chosen, rejected: log π of the responses, summed over tokens.
        chosen_length, rejected_length: their tokens, 1 or more.
        beta: β, above 0.
        eta: η, 0 or more.
        label: l = P(the chosen is better), 0 to 1; no gradient goes through it.
    """
    check_setting("eta", eta, at_least=0)
    first = check_finite(chosen, "log-probability of the chosen [p]")
    m = power_margin(first, rejected, chosen_length, rejected_length, beta)
    given = torch.full_like(m, label) if isinstance(label, int | float) else label
    belief = check_range(given, 0, 1, "label [p]", device=m.device, p=len(m)).detach()
    per_token = first / as_tensor(chosen_length, "length", m.device).double()
    loss = -belief * logsigmoid(m) - (1 - belief) * logsigmoid(-m) - eta * beta * per_token
    return match_dtype(loss, chosen)


def distillation_loss(
    student: ArrayLike,  # [n, t, v]
    teacher: ArrayLike,  # [n, t, v]
    mask: ArrayLike,  # [n, t]
    weight: ArrayLike | float = 1.0,  # [n, t] or one number
    length_average: bool = True,
) -> Tensor:  # [n]
    """Distillation loss of each response: the mean over its tokens of weight · KL(student ‖ teacher).

    AlignDistil (arXiv 2503.02832): RLHF with the reward of a DPO model is distillation of a teacher whose logits are
    `ebrm.logprobs.logit_extrapolation` of the DPO model's. The weight of a token is β / w_t, w_t that of the
    extrapolation there (`ebrm.logprobs.adaptive_weight`). Its released scripts average over tokens; without that the
    code's loss is their sum. Off-policy, the code trains on the chosen responses alone. Logits of a shorter vocabulary:
    cut the longer.

    Args:
        student, teacher: logits at the position that predicts each token; constants added to a position change
            nothing. No gradient goes through the teacher.
        mask: bool, which tokens are the response's. A response without tokens has loss 0.
        weight: weight of each token, 0 or more; no gradient goes through it.
        length_average: whether the tokens' losses are averaged, or added.

    Returns:
        losses in the student's float type, computed in float64 (in float32 for narrower logits).
    """
    logits, wanted = as_tensor(student, "student"), as_tensor(teacher, "teacher")
    given = logits
    wanted = wanted.to(logits.device).detach()
    check_same_shape(student=logits, teacher=wanted)
    exact = torch.float32 if logits.is_floating_point() and logits.element_size() <= 4 else torch.float64
    logits = check_finite(logits, "logits of the student [n, t, v]").to(exact)
    wanted = check_finite(wanted, "logits of the teacher [n, t, v]").to(exact)
    n, t = logits.shape[:2]
    inside = check_mask(mask, "mask [n, t]", device=logits.device, n=n, t=t)
    each = torch.full_like(inside, weight, dtype=exact) if isinstance(weight, int | float) else weight
    scale = check_range(each, 0, math.inf, "weight [n, t]", device=logits.device, n=n, t=t).to(exact).detach()
    log_p, log_q = logits.log_softmax(2), wanted.log_softmax(2)
    divergence = (log_p.exp() * (log_p - log_q)).sum(2)
    total = torch.where(inside, scale * divergence, 0.0).sum(1)
    tokens = inside.sum(1).clamp_min(1) if length_average else 1
    return match_dtype(total / tokens, given)
