"""Relabeling: soft labels, margins and flips by how strongly models prefer the chosen side, or how far they agree."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from ebrm.errors import DataError
from ebrm.groups import Groups
from ebrm.pairs import CurationReport, PreferencePairs
from ebrm.utils.validation import ArrayLike, as_tensor, check_choice, check_finite, check_range, check_setting, refuse

Measure = Literal["kendall", "spearman", "top order"]


@dataclass(frozen=True, eq=False)
class Strength:
    """Preference strength of p pairs, in the rewards' unit.

    Attributes:
        mean: μ, the mean over the models of r(chosen) - r(rejected), float64 [p].
        std: their standard deviation with the divisor k (`ddof` 0); 0 for one model and for equal ones [p].
    """

    mean: Tensor
    std: Tensor


def preference_strength(difference: ArrayLike) -> Strength:  # [k, p] -> of [p]
    """Preference strength of each pair, by a vote of k models trained alike (Secrets of RLHF II, arXiv 2401.06080).

        μ_i = mean_m d_im,  s_i = sqrt(mean_m (d_im - μ_i)²),  d_im = r_m(chosen_i) - r_m(rejected_i)

    A low μ marks pairs that are likely labeled wrongly. The models must not have been fitted to the labels they vote
    on, or they repeat them: use `cross_fitted_difference`. The paper votes with 10 models. `difference` is that of each
    model and pair: `pairs.difference(reward)` with rewards [k, n], k at least 1.
    """
    known = check_finite(difference, "difference of rewards [k, p]")
    if not len(known):
        raise DataError("Preference strength of no models; expected the differences of at least 1.")
    mean = known.mean(0)
    same = (known == known[0]).all(0)
    mean = torch.where(same, known[0], mean)
    return Strength(mean, (known - mean).square().mean(0).sqrt())


def flip_weakest(
    pairs: PreferencePairs, strength: Strength, fraction: float = 0.2, below: float = math.inf
) -> tuple[PreferencePairs, CurationReport]:
    """Flip the ⌊fraction · p⌋ pairs of the lowest strength μ: the 20% of arXiv 2401.06080.

    Pairs of equal μ are flipped together or, where not all of them fit, not at all. The paper flips that fraction
    whatever the sign of μ, and so flips good pairs of clean data; `below` (ours, in the rewards' unit) bounds what may
    be flipped, μ < below: 0 spares all pairs that the models agree with. Set margins after flipping.
    """
    check_setting("fraction", fraction, at_least=0, at_most=1)
    mean = _mean(pairs, strength)
    flip = _lowest(mean, fraction) & (mean < below)
    return pairs.after("flip the weakest", flip=flip, numbers={"mean strength": _average(mean)})


def soften_labels(
    pairs: PreferencePairs, strength: Strength, smoothing: float, weak: float = 0.0, strongest: float = 0.1
) -> tuple[PreferencePairs, CurationReport]:
    """Smooth the labels of weak pairs, which may be wrong, and of the strongest, which are overfitted (2401.06080).

        label' = (1 - a) · label + a · (1 - label),  where μ < weak or among the ⌊strongest · p⌋ highest μ

    Pairs of equal μ that do not all fit among the strongest are left out of them. `smoothing` is a, from 0 to 0.5,
    where a label is no information; `weak` the bound on μ of weak pairs, in the rewards' unit (the paper's 0);
    `strongest` a fraction of the pairs (the paper names the top 10% apart).
    """
    check_setting("smoothing", smoothing, at_least=0, at_most=0.5)
    check_setting("strongest", strongest, at_least=0, at_most=1)
    mean = _mean(pairs, strength)
    soft = (mean < weak) | _lowest(-mean, strongest)
    smooth = (1 - smoothing) * pairs.label + smoothing * (1 - pairs.label)
    return pairs.after("soften labels", label=torch.where(soft, smooth, pairs.label))


def adaptive_margin(pairs: PreferencePairs, strength: Strength) -> tuple[PreferencePairs, CurationReport]:
    """Adaptive margin: margin = μ, so that the loss of a pair is -log σ(d - μ) (arXiv 2401.06080).

    Negative for pairs that the models contradict. After `flip_weakest`, take the strength of the flipped pairs anew
    (`flipped.difference(reward)`): theirs has the other sign.
    """
    mean = _mean(pairs, strength)
    return pairs.after("adaptive margin", margin=mean, numbers={"mean margin": _average(mean)})


def dynamic_labels(
    pairs: PreferencePairs, difference: ArrayLike, rate: float = 0.1
) -> tuple[PreferencePairs, CurationReport]:  # [p]
    """Dynamic labels: a step of each label towards the belief of the model that is being fitted (POWER-DL, 2412.09544).

        label' = (1 - γ) · label + γ · σ(d),  d = r(chosen) - r(rejected), without gradient

    Applied between rounds of fitting: the gradient of the loss, σ(d) - label, vanishes once the label is where the
    model is, so that pairs it does not trust stop pulling. `difference` is `pairs.difference(reward)` by that model, in
    log odds; `rate` is γ, from 0 (labels stay) to 1 (they become the model's), its default ours.
    """
    check_setting("rate", rate, at_least=0, at_most=1)
    known = check_finite(difference, "difference of rewards [p]", device=pairs.device, p=len(pairs)).detach()
    label = ((1 - rate) * pairs.label + rate * torch.sigmoid(known)).clamp(0, 1)
    moved = float((label - pairs.label).abs().mean()) if len(pairs) else 0.0
    return pairs.after("dynamic labels", label=label, numbers={"mean move": moved})


def rank_consistency(
    reward: ArrayLike, other: ArrayLike, prompt: Groups, measure: Measure = "kendall"
) -> Tensor:  # [n], [n] -> [count]
    """Rank consistency C of two rewards of each prompt's responses: 1 for the same order, 0 for the reversed one.

        kendall, spearman: C = (τ + 1) / 2, with Kendall's τ-b or Spearman's ρ;  top order: 1 where the best responses
        and the worst ones are the same, else 0

    CREAM (arXiv 2410.12735), which compares a model's rewards with those of its previous round, by Kendall's. Its code
    breaks ties by position; here ties count as ties (τ-b, mean ranks), and C is 1/2 where either is constant over a
    prompt, or has one response. A prompt without responses has NaN. Kendall's takes s² / 2 comparisons for s responses.
    """
    check_choice("measure", measure, get_args(Measure))
    one = check_finite(reward, "reward [n]", n=len(prompt))
    two = check_finite(other, "other reward [n]", device=one.device, n=len(prompt))
    prompt = prompt.to(one.device)
    if measure == "kendall":
        tau = _kendall(one, two, prompt)
    elif measure == "spearman":
        tau = _correlation(_mean_rank(one, prompt), _mean_rank(two, prompt), prompt)
    else:
        same = torch.ones_like(prompt.sizes, dtype=torch.bool)
        for extreme in (prompt.maximum, prompt.minimum):
            differ = (one == prompt.spread(extreme(one))) != (two == prompt.spread(extreme(two)))
            same &= prompt.sum(differ) == 0
        tau = 2 * same.double() - 1
    constant = (prompt.minimum(one) == prompt.maximum(one)) | (prompt.minimum(two) == prompt.maximum(two))
    tau = torch.where(constant, 0.0, tau)
    return torch.where(prompt.sizes > 0, (tau.clamp(-1, 1) + 1) / 2, torch.nan)


def consistency_labels(
    pairs: PreferencePairs, consistency: ArrayLike, prompt: Groups, average: bool = False
) -> tuple[PreferencePairs, CurationReport]:  # [count], of [n]
    """Soft labels as far as two rankings of a prompt agree: label' = C · label + (1 - C) · (1 - label).

    CREAM (arXiv 2410.12735), with pairs of each prompt's best and worst response (`best_worst_pairs`). Each prompt's C
    stays with that prompt; the public code shifts them to others when it skips one.

    Args:
        pairs: p of them, each of two responses to one prompt (else a DataError).
        consistency: C of each prompt, from `rank_consistency`; NaN for prompts without a pair does no harm.
        prompt: the prompt of each row.
        average: whether every pair gets the mean C over the pairs (the paper's "avg"); else its prompt's ("dyn").
    """
    pairs.check_rows(len(prompt))
    index = prompt.index.to(pairs.device)
    of = index[pairs.chosen]
    do = "Rankings are of one prompt; leave those pairs out."
    refuse(of != index[pairs.rejected], "pairs are of responses to different prompts", do)
    known = as_tensor(consistency, "consistency", pairs.device)
    if known.shape != (prompt.count,):
        raise ValueError(f"expected {prompt.count} consistencies [count], got {tuple(known.shape)}")
    c = check_range(known[of], 0, 1, "consistency of the pairs' prompts")
    mean = _average(c)
    if average:
        c = torch.full_like(c, mean)
    label = (c * pairs.label + (1 - c) * (1 - pairs.label)).clamp(0, 1)
    return pairs.after("rank consistency", label=label, numbers={"mean consistency": mean})


def _mean(pairs: PreferencePairs, strength: Strength) -> Tensor:
    return check_finite(strength.mean, "preference strength [p]", device=pairs.device, p=len(pairs))


def _lowest(values: Tensor, fraction: float) -> Tensor:
    """Which are among the lowest ⌊fraction · p⌋, equal ones together or not at all, bool [p]."""
    count = math.floor(fraction * len(values) + 1e-9)  # 0.29 · 100 is 28.999999999999996
    if count >= len(values):
        return torch.ones_like(values, dtype=torch.bool)
    return values < values.sort().values[count]


def _average(values: Tensor) -> float:
    return float(values.mean()) if len(values) else 0.0


def _kendall(one: Tensor, two: Tensor, prompt: Groups) -> Tensor:
    """τ-b of each prompt [count]."""
    tau = one.new_full((prompt.count,), torch.nan)
    for prompts, rows in prompt.by_size():
        a, b = one[rows], two[rows]
        agree, first, second = (one.new_zeros(len(prompts)) for _ in range(3))
        for apart in range(1, rows.shape[1]):
            up, other_up = (a[:, apart:] - a[:, :-apart]).sign(), (b[:, apart:] - b[:, :-apart]).sign()
            agree += (up * other_up).sum(1)
            first += up.abs().sum(1)
            second += other_up.abs().sum(1)
        tau[prompts] = agree / (first.sqrt() * second.sqrt())
    return tau


def _mean_rank(values: Tensor, prompt: Groups) -> Tensor:
    """Each row's place in its prompt, equal values at their mean place [n]."""
    order = values.sort(stable=True).indices
    order = order[prompt.index[order].sort(stable=True).indices]  # prompt by prompt, each in its order
    index, value = prompt.index[order], values[order]
    new = torch.ones_like(index)
    new[1:] = (index[1:] != index[:-1]) | (value[1:] != value[:-1])
    ties = torch.unique_consecutive(new.cumsum(0), return_counts=True)[1]
    middle = (ties.cumsum(0) - ties).to(values) + (ties - 1).to(values) / 2
    place = torch.empty_like(values)
    place[order] = middle.repeat_interleave(ties)
    return place - prompt.spread(prompt.sizes.cumsum(0) - prompt.sizes)


def _correlation(one: Tensor, two: Tensor, prompt: Groups) -> Tensor:
    a, b = one - prompt.spread(prompt.mean(one)), two - prompt.spread(prompt.mean(two))
    return prompt.sum(a * b) / (prompt.sum(a * a).sqrt() * prompt.sum(b * b).sqrt())
