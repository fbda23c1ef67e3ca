"""How far two reward functions agree on the order of each prompt's responses, as a soft label."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ebrm.errors import ConfigError, DataError
from ebrm.groups import Groups
from ebrm.pairs import CurationReport, PreferencePairs
from ebrm.utils.validation import check_finite, check_range, check_same_shape

Measure = Literal["kendall", "spearman", "top order"]


def rank_consistency(
    reward: Tensor,  # [n]
    other: Tensor,  # [n]
    prompt: Groups,
    measure: Measure = "kendall",
) -> Tensor:  # [count]
    """Agreement C of two rankings of each prompt's responses: 1 for the same order, 0 for the reversed one.

        kendall, spearman: C = (τ + 1) / 2, with Kendall's τ-b or Spearman's ρ;  top order: 1 where the best responses
        and the worst ones are the same, else 0

    "CREAM: Consistency Regularized Self-Rewarding Language Models" (arXiv 2410.12735), which compares a model's rewards
    with those of its previous round; any two will do, such as a base reward and its refinement. Only the order within a
    prompt counts: offsets and positive scales of each prompt do not matter, negating one reward turns C into 1 - C
    (top order: no).

    Where the public code deviates: it breaks ties by position, so that two constant rewards agree perfectly; here ties
    count as ties (τ-b, mean ranks), and C is 1/2 where either is constant over a prompt, or has one response. It
    compares the ranks of the first and last response for the top order. A prompt without responses has NaN.

    Kendall's takes s² / 2 comparisons for a prompt with s responses; the others sort.

    Args:
        reward, other: of the same n responses, each in its own unit.
        prompt: the prompt of each response.
        measure: one of the three; the paper's is Kendall's.

    Raises:
        ConfigError: another measure.
        DataError: a reward that is not finite.
        ValueError: shapes other than [n].
    """
    one, two = check_finite(reward, "reward"), check_finite(other, "other reward")
    check_same_shape(reward=one, other=two, prompt=prompt.index)
    if measure == "kendall":
        tau = _kendall(one, two, prompt)
    elif measure == "spearman":
        tau = _correlation(_mean_rank(one, prompt), _mean_rank(two, prompt), prompt)
    elif measure == "top order":
        same = torch.ones(prompt.count, dtype=torch.bool)
        for extreme in (prompt.maximum, prompt.minimum):
            differ = (one == prompt.spread(extreme(one))) != (two == prompt.spread(extreme(two)))
            same &= prompt.sum(differ.double()) == 0
        tau = 2 * same.double() - 1
    else:
        raise ConfigError(f"The measure is {measure!r}; expected 'kendall', 'spearman' or 'top order'.")
    constant = (prompt.minimum(one) == prompt.maximum(one)) | (prompt.minimum(two) == prompt.maximum(two))
    tau = torch.where(constant, 0.0, tau)
    return torch.where(prompt.sizes > 0, (tau.clamp(-1, 1) + 1) / 2, torch.nan)


def consistency_labels(
    pairs: PreferencePairs,
    consistency: Tensor,  # [count]
    prompt: Groups,  # of [n]
    average: bool = False,
) -> tuple[PreferencePairs, CurationReport]:
    """Fusion each label as far as two rankings of its prompt agree.

        label' = C · label + (1 - C) · (1 - label)

    so that the loss of a pair labeled 1 is -C log σ(d) - (1 - C) log σ(-d): plain where the rankings are the same,
    flipped where they are reversed, with its minimum at d = logit(C). CREAM (arXiv 2410.12735), with pairs of each
    prompt's best and worst response (`best_worst_pairs`). Each prompt's C stays with that prompt; the public code
    shifts them to others when it skips one.

    Args:
        pairs: p of them, each of two responses to one prompt.
        consistency: C of each prompt, from `rank_consistency`; NaN for prompts without a pair does no harm.
        prompt: the prompt of each row.
        average: whether every pair gets the mean C over the pairs (the paper's "avg"); else its prompt's ("dyn").

    Raises:
        DataError: a pair across prompts, or one whose C is not from 0 to 1.
    """
    if consistency.shape != (prompt.count,):
        raise ValueError(f"expected {prompt.count} consistencies [count], got {tuple(consistency.shape)}")
    pairs.check_rows(len(prompt))
    of = prompt.index[pairs.chosen]
    across = of != prompt.index[pairs.rejected]
    if bool(across.any()):
        raise DataError(
            f"{int(across.sum())} of {len(pairs)} pairs are of responses to different prompts, the first at index "
            f"{int(across.nonzero()[0, 0])}. Rankings are of one prompt; leave those pairs out."
        )
    c = check_range(consistency[of], 0, 1, "consistency of the pairs' prompts")
    mean = float(c.mean()) if len(c) else 0.0
    if average:
        c = torch.full_like(c, mean)
    label = (c * pairs.label + (1 - c) * (1 - pairs.label)).clamp(0, 1)
    return pairs.after("rank consistency", label=label, numbers={"mean consistency": mean})


def _kendall(one: Tensor, two: Tensor, prompt: Groups) -> Tensor:
    """τ-b of each prompt [count]."""
    order = prompt.index.sort(stable=True).indices
    starts = prompt.sizes.cumsum(0) - prompt.sizes
    tau = one.new_full((prompt.count,), torch.nan)
    for size in prompt.sizes[prompt.sizes > 1].unique().tolist():
        prompts = (prompt.sizes == size).nonzero().flatten()
        rows = order[starts[prompts][:, None] + torch.arange(size)]
        a, b = one[rows], two[rows]
        agree, first, second = (one.new_zeros(len(prompts)) for _ in range(3))
        for apart in range(1, size):
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
