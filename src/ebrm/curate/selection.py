"""Pairs from the extremes of each prompt's responses, and the prompts that are hard."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ebrm.errors import ConfigError
from ebrm.groups import Groups
from ebrm.pairs import CurationReport, PreferencePairs
from ebrm.utils.validation import check_finite


def best_worst_pairs(
    reward: Tensor,  # [n]
    prompt: Groups,
    evidence: Tensor | None = None,  # [t, n]
    weight: Tensor | None = None,  # [t]
    least_gap: float = 0.0,
    least_best: float = -math.inf,
) -> tuple[PreferencePairs, CurationReport]:
    """One pair a prompt: the response with the highest total over that with the lowest, if they lie apart.

        total = r + Σ_t λ_t evidence_t;  kept where total_best > total_worst, the gap is ≥ least_gap and
        r_best ≥ least_best

    After "Anyprefer: An Agentic Framework for Preference Data Synthesis" (arXiv 2504.19276), of which it is the part
    that needs no agent: there a judge ranks with evidence by tools, and a reward model's score of the pair decides
    whether to try again. The sum and both bounds are ours. Of equal totals the first response counts. An offset of each
    prompt and a positive scale of all totals do not matter to which pair it is, but both bounds are in the rewards'
    unit.

    Args:
        reward: of n responses.
        prompt: the prompt of each.
        evidence: t further scores of each response, such as checks by tools; None: none.
        weight: λ of each evidence; None: 1 each.
        least_gap: the least difference of totals, at least 0. A prompt whose totals are all equal never has a pair.
        least_best: the least r of the better side.

    Returns:
        The pairs, in the order of prompts, with label 1; and a report with the number of prompts that have responses.
    """
    total = check_finite(reward, "reward")
    if not least_gap >= 0 or math.isnan(least_best):
        raise ConfigError(
            f"The least gap is {least_gap} and the least best reward {least_best}; expected a gap of at least 0, and "
            "numbers."
        )
    known = total
    if evidence is not None:
        scores = check_finite(evidence, "evidence [t, n]", 2)
        weights = torch.ones(len(scores), dtype=torch.float64) if weight is None else check_finite(weight, "weight")
        if scores.shape[1] != len(total) or len(weights) != len(scores):
            raise ValueError(
                f"expected evidence [t, {len(total)}] and weights [t], got {tuple(scores.shape)} and {len(weights)}"
            )
        total = total + weights @ scores
    elif weight is not None:
        raise ValueError("weights of evidence were given, and no evidence")
    high, low = prompt.maximum(total), prompt.minimum(total)
    best = _first(total == prompt.spread(high), prompt)
    worst = _first(total == prompt.spread(low), prompt)
    apart = (high > low) & (high - low >= least_gap)
    apart[apart.clone()] &= known[best[apart]] >= least_best
    pairs = PreferencePairs.of(best[apart], worst[apart], step="best and worst")
    prompts = int((prompt.sizes > 0).sum())
    return pairs, pairs.report(0, {"prompts": prompts, "share with a pair": len(pairs) / max(prompts, 1)})


def hard_subset(reward: Tensor, count: int) -> Tensor:  # [n] -> [q]
    """The places of the `count` lowest rewards, in ascending order: the prompts worth training on.

    "BLEUBERI: BLEU is a surprisingly effective reward for instruction following" (arXiv 2505.11080) scores the base
    model's answers and keeps the 5,000 of 50,000 prompts with the lowest. Offset and positive scale of rewards do not
    matter. Of equal rewards the earlier come first; all places if there are fewer than `count`.

    Args:
        reward: of one answer to each of n prompts (or a prompt's mean, `Groups.mean`).
        count: how many, at least 0.
    """
    if count < 0:
        raise ConfigError(f"The size of the hard subset is {count}; expected at least 0.")
    return check_finite(reward, "reward").sort(stable=True).indices[:count].sort().values


def _first(which: Tensor, prompt: Groups) -> Tensor:
    """The first row of each prompt that `which` is true of; the number of rows where there is none [count]."""
    rows = which.nonzero().flatten()
    none = torch.full((prompt.count,), len(which))
    return none.scatter_reduce(0, prompt.index[rows], rows, "amin")
