"""Keep pairs on which several voters agree, and turn those that all of them contradict."""

from __future__ import annotations

import torch
from torch import Tensor

from ebrm.errors import ConfigError
from ebrm.pairs import CurationReport, PreferencePairs
from ebrm.utils.validation import check_finite, check_range


def dual_consistency(
    pairs: PreferencePairs,
    best: Tensor,  # [p]
    gold: Tensor,  # [p]
    threshold: float = 0.5,
) -> tuple[PreferencePairs, PreferencePairs, CurationReport]:
    """Keep a pair that two reward models agree with, flip one that both reject, and hand back the others.

        keep where p_best > t and p_gold > t;  flip where p_best < 1 - t and p_gold < 1 - t

    with p = σ(r(chosen) - r(rejected)) by each model.

    Stage two of "Skywork-Reward-V2" (arXiv 2507.01352): `best` is the best model so far, `gold` one that was fitted to
    verified labels only. There a language model labels the disputed pairs anew; here they come back for the caller to
    do so. A second pass with the same models keeps all that a first one kept or flipped. Offsets of the rewards do not
    matter, and at the paper's threshold of 0.5 neither does a positive scale; the order of pairs never does. (The
    formulas are from an account of the paper: its code is not public.)

    Args:
        pairs: p of them.
        best, gold: each model's probability that the chosen side is better: sigmoid(pairs.difference(reward)).
        threshold: t, from 0.5 to below 1. Above 0.5 (not in the paper) a pair that both models are unsure of is
            disputed too. A probability of just 0.5 is no agreement.

    Returns:
        The pairs that are kept or flipped; the disputed ones, as they were; the report of the first, which counts the
        second as dropped.
    """
    if not 0.5 <= threshold < 1:
        raise ConfigError(f"The threshold of agreement is {threshold}; expected a number from 0.5 to below 1.")
    one, two = (
        check_range(best, 0, 1, "probability by the best model"),
        check_range(gold, 0, 1, "probability by the gold model"),
    )
    if len(one) != len(pairs) or len(two) != len(pairs):
        raise ValueError(f"expected probabilities of {len(pairs)} pairs [p], got {len(one)} and {len(two)}")
    keep = (one > threshold) & (two > threshold)
    flip = (one < 1 - threshold) & (two < 1 - threshold)
    disputed = ~(keep | flip)
    agreed, report = pairs.after(
        "dual consistency", keep=~disputed, flip=flip, numbers={"disputed": float(disputed.sum())}
    )
    return agreed, pairs.select(disputed), report


def consensus(
    pairs: PreferencePairs,
    probability: Tensor,  # [k, p]
    confidence: float = 0.5,
    soft: bool = False,
) -> tuple[PreferencePairs, CurationReport]:
    """Keep the pairs on which all k models prefer the same side, with that side as the chosen one.

        keep where all p_k > 1/2 or all p_k < 1/2, and min_k max(p_k, 1 - p_k) ≥ confidence

    The filter of "Self-Consistency of the Internal Reward Models Improves Self-Rewarding Language Models"
    (arXiv 2502.08922), for any models: several reward models, or a base reward beside its refinement. `confidence` and
    the soft label are ours; the paper trains the models to agree as well, which is no part of a filter. A model that is
    at just 1/2 prefers neither side, so the pair goes. The order of models, and exchanging all pairs' sides, make no
    difference.

    Args:
        pairs: p of them.
        probability: P(chosen is better) of each model, k of at least 1 [k, p].
        confidence: the least probability that each model has to give the preferred side, from 0.5 to 1.
        soft: whether the label becomes the mean probability of the preferred side; else it stays as it is.
    """
    if not 0.5 <= confidence <= 1:
        raise ConfigError(f"The least confidence is {confidence}; expected a number from 0.5 to 1.")
    known = check_range(probability, 0, 1, "probability [k, p]", 2)
    _voters(known, pairs)
    first, second = (known > 0.5).all(0), (known < 0.5).all(0)
    sure = (torch.maximum(known, 1 - known) >= confidence).all(0)
    mean = torch.where(second, 1 - known, known).mean(0).clamp(0, 1)
    return pairs.after(
        "consensus",
        keep=(first | second) & sure,
        flip=second,
        label=mean if soft else None,
        numbers={"models": len(known)},
    )


def judge_agreement(
    pairs: PreferencePairs,
    score: Tensor,  # [k, p, 2]
    least: int | None = None,
) -> tuple[PreferencePairs, CurationReport]:
    """Keep the pairs on which enough judges score the same side higher, with that side as the chosen one.

    With all judges the filter of "RAG-RewardBench" (arXiv 2412.13746), which keeps a pair of four commercial judges'
    labels only if they agree: +, +, +, - goes. Each judge's own scale and offset, even of each pair, do not matter, nor
    does their order. A judge that scores both sides alike agrees with neither.

    Args:
        pairs: p of them.
        score: each judge's scores of both sides, chosen first, in its own unit [k, p, 2].
        least: how many of the k judges have to agree, more than half; None: all of them.
    """
    known = check_finite(score, "score of a judge [k, p, 2]", 3)
    if known.shape[2] != 2:
        raise ValueError(f"expected scores of both sides [k, p, 2], got {tuple(score.shape)}")
    _voters(known, pairs)
    needed = len(known) if least is None else least
    if not len(known) < 2 * needed <= 2 * len(known):
        raise ConfigError(
            f"{needed} of {len(known)} judges have to agree; expected more than half of them, and at most all."
        )
    first = (known[:, :, 0] > known[:, :, 1]).sum(0) >= needed
    second = (known[:, :, 0] < known[:, :, 1]).sum(0) >= needed
    return pairs.after("judge agreement", keep=first | second, flip=second, numbers={"judges": len(known)})


def _voters(votes: Tensor, pairs: PreferencePairs) -> None:
    if not len(votes):
        raise ConfigError("Agreement was asked of no voters; expected at least 1.")
    if votes.shape[1] != len(pairs):
        raise ValueError(f"expected votes on {len(pairs)} pairs [k, p], got {tuple(votes.shape)}")
