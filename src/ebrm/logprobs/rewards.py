"""Rewards from log-probabilities of the same responses under one or two language models, or two contexts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from ebrm.errors import ConfigError, DataError
from ebrm.logprobs.tokens import TokenLogprobs, check_same_tokens
from ebrm.utils.validation import ArrayLike, as_tensor, check_choice, check_finite, check_setting, match_dtype

Reduction = Literal["sum", "mean"]


def self_aligned(conditional: TokenLogprobs, unconditional: TokenLogprobs, clip: float = 1.0) -> Tensor:  # [n]
    """Self-aligned reward: by how much knowing the prompt lowers a response's perplexity (arXiv 2509.05489).

        R = max(-clip, (ppl(y) - ppl(y|x)) / ppl(y)) = max(-clip, 1 - exp(-mean_t v_t))

    with ppl the exponential of minus the mean log-probability and v of :func:`self_aligned_attribution`. Below 1; 0
    where the prompt says nothing about the response. It favors short responses: alone, as the only reward of a policy,
    it ends in very short and wrong ones (the paper's ablation: 84 tokens, accuracy 21%). The paper adds 0.2 of it to
    the reward of a correct answer.

    Args:
        conditional: the responses after their prompts.
        unconditional: the same tokens without: after the system prompt and an empty user's turn, as in the paper's code
            (`unconditional` of the producers).
        clip: the lowest reward is -clip, above 0. (The paper also clips at +1, which nothing reaches; its code divides
            by ppl(y) + 1e-9.)

    Raises:
        ConfigError: clip. DataError: other tokens, or a response without any.
    """
    check_setting("clip", clip, above=0)
    gain = self_aligned_attribution(conditional, unconditional).double().sum(1) / conditional.counted()
    # Clipped before the exponential, which may overflow: its gradient would be NaN.
    return match_dtype(-torch.expm1(-gain.clamp_min(-math.log1p(clip))), conditional.logp, unconditional.logp)


def self_aligned_attribution(conditional: TokenLogprobs, unconditional: TokenLogprobs) -> Tensor:  # [n, T]
    """What the prompt says about each token, v_t = log p(y_t | x, y_<t) - log p(y_t | y_<t), in nats; 0 where masked.

    High for tokens that bring what the prompt asks for into the response for the first time. Arguments and errors as
    of :func:`self_aligned`, whose reward is 1 - exp(-mean v).
    """
    check_same_tokens(conditional, unconditional, ("conditional", "unconditional"))
    difference = conditional.logp.double() - unconditional.logp.double()
    return match_dtype(difference, conditional.logp, unconditional.logp)


def log_density_ratio(
    strong: TokenLogprobs, weak: TokenLogprobs, *, reduction: Reduction, beta: float = 1.0
) -> Tensor:  # [n]
    """Log density ratio of a better aligned language model over a less aligned one (Dr. SoW, arXiv 2411.02481).

        r = β (log p_strong(y|x) - log p_weak(y|x)), over tokens summed or averaged

    Strong is, for instance, a model after preference training, and weak the one it was trained from. The paper
    customizes it by instructions and examples in the context of a model: give that model's log-probabilities. Exactly 0
    for the same model twice, minus itself when both are swapped. For a model trained by DPO the sum is its implicit
    reward, up to a constant of the prompt.

    Args:
        strong, weak: the same responses under both.
        reduction: "sum", or "mean" over tokens, which takes the tokens' number out. There is no default: what the paper
            uses is not known to us.
        beta: β, a finite number.

    Raises:
        ConfigError: reduction or beta.
        DataError: other rows; with "mean", other tokens or a response without any. With "sum" tokens may differ: two
            tokenizers' totals over one string can be compared, their tokens cannot.
    """
    check_choice("reduction", reduction, ("sum", "mean"))
    check_setting("beta", beta)
    if reduction == "mean":
        check_same_tokens(strong, weak, ("strong", "weak"))
    elif len(strong) != len(weak):
        raise DataError(f"`strong` has {len(strong)} responses and `weak` {len(weak)}; give the same ones to both.")
    ratio = beta * (strong.logp.double().sum(1) - weak.logp.double().sum(1))
    ratio = ratio / strong.counted() if reduction == "mean" else ratio
    return match_dtype(ratio, strong.logp, weak.logp)


def implicit_reward(policy: ArrayLike, reference: ArrayLike, beta: float = 0.1) -> Tensor:  # [n], [n] -> [n]
    """Implicit reward of a policy trained by DPO, β (log π(y|x) - log π_ref(y|x)), up to a constant of the prompt.

    What DPO, BCO (arXiv 2404.04656) and CREAM (arXiv 2410.12735) take in place of a reward model's: given to
    `ebrm.heads.pair_loss` it is DPO's loss, to `binary_feedback_loss` BCO's; with CREAM's consistency as the `label`
    its soft DPO. (Without a reference CREAM ranks by the length-normalized likelihood, `TokenLogprobs.mean()`.)

    Args:
        policy, reference: log-likelihoods of the same responses, summed over tokens, as `TokenLogprobs.sum()`;
            gradients go through both.
        beta: β, above 0.

    Raises:
        ConfigError: beta. DataError: a number that is not finite. ValueError: shapes that differ.
    """
    check_setting("beta", beta, above=0)
    ours = check_finite(policy, "log-likelihoods under the policy [n]")
    theirs = check_finite(reference, "log-likelihoods under the reference [n]", n=len(ours), device=ours.device)
    return match_dtype(beta * (ours - theirs), policy, reference)


def implicit_margin(
    policy_chosen: ArrayLike,  # [p]
    policy_rejected: ArrayLike,  # [p]
    reference_chosen: ArrayLike,  # [p]
    reference_rejected: ArrayLike,  # [p]
    beta: float = 0.1,
) -> Tensor:  # [p]
    """Implicit reward of the chosen minus that of the rejected response of each pair: DPO's loss is -log σ of it.

    `pair_loss(margin, zeros)` takes it as a difference of rewards; with `beta=1.0` the loss's `scale` is β, which
    may then differ from pair to pair (MM-RLHF, arXiv 2502.10391). Arguments and errors as of :func:`implicit_reward`.
    """
    chosen = implicit_reward(policy_chosen, reference_chosen, beta)
    rejected = implicit_reward(policy_rejected, reference_rejected, beta)
    if chosen.shape != rejected.shape:
        raise ValueError(f"expected as many chosen as rejected responses, got {len(chosen)} and {len(rejected)}")
    return chosen - rejected.to(chosen.device)


def contrastive_implicit_reward(
    preferred: TokenLogprobs, reverse: TokenLogprobs, beta: float = 0.1
) -> Tensor:  # [n, T]
    """Reward of each token from a DPO model and one trained on swapped labels (AlignDistil, arXiv 2503.02832).

        r_t = β (log π_dpo(y_t | ·) - log π_reverse(y_t | ·)), 0 where masked

    Its sum over tokens is `log_density_ratio(preferred, reverse, reduction="sum", beta=beta)`.

    Args:
        preferred, reverse: the same tokens under both models.
        beta: β, above 0; 0.1 is the paper's.

    Raises:
        ConfigError: beta. DataError: other tokens.
    """
    check_setting("beta", beta, above=0)
    check_same_tokens(preferred, reverse, ("preferred", "reverse"))
    return match_dtype(beta * (preferred.logp.double() - reverse.logp.double()), preferred.logp, reverse.logp)


def endogenous_reward(tokens: TokenLogprobs, alpha: float = 1.0) -> Tensor:  # [n, T]
    """Endogenous reward of each token: a language model's logits as a soft Q-function (EndoRM, arXiv 2506.23235).

        r_t = f(y_t) - V_{t+1} = α log p(y_t) + V_t - V_{t+1},  V = α log Σ_a exp(f(a) / α),  0 after the last token

    the inverse of the soft Bellman operator; 0 where masked. The sum over a response is α log p(y|x) + V_1, and V_1 is
    the prompt's: within a prompt the sum ranks responses exactly as their log-likelihood does, favoring short ones.
    Only the rewards of single tokens say more. Logits are known up to a constant a state, which moves V from token to
    token.

    Args:
        tokens: with `log_z`: log p and log Z of the logits divided by α (`log_z=True, temperature=α` of
            `CausalLogprobs`).
        alpha: α, above 0; 1 is the model's own softmax.

    Raises:
        ConfigError: alpha. DataError: no `log_z` (servers and saved log-probabilities do not have it: the normalizer of
            log-probabilities is 0, and the reward would be α log p).
    """
    check_setting("alpha", alpha, above=0)
    if tokens.log_z is None:
        raise DataError(
            "The endogenous reward needs log Z of each token's logits (`log_z`), and these log-probabilities come "
            "without. Read them with CausalLogprobs and `log_z=True`; a server does not give it."
        )
    places = torch.arange(tokens.mask.shape[1], device=tokens.mask.device)
    here = torch.where(tokens.mask, places, len(places))
    # The next token's place: the smallest one after each, len(places) where there is none.
    after = here.flip(1).cummin(1).values.flip(1)[:, 1:]
    after = torch.cat([after, torch.full_like(here[:, :1], len(places))], 1)[:, : len(places)]
    log_z = tokens.log_z.double()
    value = torch.cat([log_z, log_z.new_zeros(len(log_z), 1)], 1)
    reward = alpha * (tokens.logp.double() + log_z - value.gather(1, after))
    return match_dtype(torch.where(tokens.mask, reward, 0.0), tokens.logp, tokens.log_z)


def yes_no_log_odds(logits: ArrayLike, yes_ids: Sequence[int], no_ids: Sequence[int]) -> Tensor:  # [n, V] -> [n]
    """Log odds of "yes" over "no" as the next token, of a judge that is asked a yes-no question (RLBFF, 2509.21319).

        r = log Σ_{a in yes} exp z_a - log Σ_{a in no} exp z_a = log p(yes) - log p(no)

    whatever the other logits are; σ(r) = p(yes | yes or no). The paper has one principle a question ("does the response
    …?") and one token each; probabilities of several spellings ("Yes", " yes") are added first.

    Args:
        logits: logits or log-probabilities of the next token (`CausalLogprobs.answer_logits`); those of other tokens
            are not looked at.
        yes_ids, no_ids: token ids, at least one each, none in both.

    Raises:
        ConfigError: ids that are missing, repeated, in both, or not of the vocabulary. DataError: a logit not finite.
    """
    rows = as_tensor(logits, "logits [n, V]")
    if rows.dim() != 2:
        raise ValueError(f"logits [n, V]: expected a tensor of 2 dimensions, got the shape {tuple(rows.shape)}")
    sides = []
    for name, ids in (("yes_ids", yes_ids), ("no_ids", no_ids)):
        known = [int(token) for token in ids]
        if not known or len(set(known)) < len(known) or min(known) < 0 or max(known) >= rows.shape[1]:
            raise ConfigError(
                f"`{name}` is {known}; expected at least one token id from 0 to {rows.shape[1] - 1}, each once."
            )
        sides.append(known)
    if both := sorted(set(sides[0]) & set(sides[1])):
        raise ConfigError(f"`yes_ids` and `no_ids` share {both}; a token means one of the two.")
    columns = [torch.stack([rows[:, token] for token in ids], 1) for ids in sides]
    yes, no = check_finite(columns[0], "logits of yes [n, ids]"), check_finite(columns[1], "logits of no [n, ids]")
    return match_dtype(yes.logsumexp(1) - no.logsumexp(1), logits)


def logit_extrapolation(
    logits: ArrayLike,  # [..., V]
    reference: ArrayLike,  # [..., V]
    weight: ArrayLike | float,  # [...] or one number
) -> Tensor:  # [..., V]
    """Logits moved on, away from a reference model's: z + w (z - z_ref) (AlignDistil, arXiv 2503.02832; ExPO's form).

    With the model before preference training as the reference and w = β / β₂ - 1 it is the teacher whose token-level
    distillation equals RLHF with DPO's reward at β₂: w = 0 for β₂ = β, and the reference itself as β₂ grows.
    AlignDistil takes the reverse DPO model as the reference and w of :func:`adaptive_weight`. Constants added to the
    logits of a place change no probability.

    Args:
        logits, reference: of the same places; two vocabularies are cut to their common beginning by the caller.
        weight: w, -1 (the reference) or more; one number, or one a place.

    Raises:
        DataError: a number that is not finite, or a weight below -1. ValueError: shapes.
    """
    given = as_tensor(logits, "logits")
    z = check_finite(given, "logits", given.dim())
    other = as_tensor(reference, "reference", z.device)
    if other.shape != z.shape or not z.dim():
        raise ValueError(f"expected logits [..., V] of one shape, got {tuple(z.shape)} and {tuple(other.shape)}")
    z_ref = check_finite(other, "reference logits", other.dim())
    w = torch.tensor(weight, device=z.device) if isinstance(weight, int | float) else as_tensor(weight, "weight")
    w = check_finite(w, "weight", w.dim(), device=z.device)
    if w.dim() and w.shape != z.shape[:-1]:
        raise ValueError(f"expected one weight a place {tuple(z.shape[:-1])} or one number, got {tuple(w.shape)}")
    if bool((w < -1).any()):
        raise DataError(f"A weight is {float(w.min()):g}; below -1 it goes beyond the reference, to the other side.")
    return match_dtype(z + w[..., None] * (z - z_ref), logits, reference)


def adaptive_weight(
    logits: ArrayLike, reverse: ArrayLike, scale: float = 10.0, least: float = 1e-3
) -> Tensor:  # [..., V], [..., V] -> [...]
    """AlignDistil's weight of each place: w = scale · ‖p - p_reverse‖₁ + least, p = softmax of the logits (2503.02832).

    L1 is twice the total variation. It grows where the DPO and the reverse DPO model disagree, as in the paper's code
    (a summary of the paper says the contrary; the coefficient β / w of its loss does fall).

    Args:
        logits, reverse: logits of both models.
        scale: β₂ of the code; 10 off-policy, 15 on-policy; above 0.
        least: above 0.

    Raises:
        ConfigError: scale, least. DataError: a number that is not finite. ValueError: shapes.
    """
    check_setting("scale", scale, above=0)
    check_setting("least", least, above=0)
    given = as_tensor(logits, "logits")
    z = check_finite(given, "logits", given.dim())
    other = as_tensor(reverse, "reverse", z.device)
    if other.shape != z.shape or not z.dim():
        raise ValueError(f"expected logits [..., V] of one shape, got {tuple(z.shape)} and {tuple(other.shape)}")
    z_rev = check_finite(other, "reverse logits", other.dim())
    distance = (z.softmax(-1) - z_rev.softmax(-1)).abs().sum(-1)
    return match_dtype(scale * distance + least, logits, reverse)
