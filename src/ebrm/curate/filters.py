"""Filters: which pairs to keep or flip, by the frozen RM, several models, or judges; and which prompts are hard."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ebrm.errors import ConfigError
from ebrm.groups import Groups
from ebrm.pairs import CurationReport, PreferencePairs
from ebrm.utils.validation import ArrayLike, check_finite, check_range, check_setting, refuse, unit_vectors


@dataclass(frozen=True)
class ConflictCount:
    """Counts of a group of pairs; margins are mean |r0(chosen) - r0(rejected)|, None where there are none."""

    kept: int
    dropped: int
    tied: int
    kept_margin: float | None
    dropped_margin: float | None

    @property
    def kept_fraction(self) -> float:
        """Kept pairs over all pairs of the group."""
        return self.kept / max(self.kept + self.dropped + self.tied, 1)

    @property
    def dropped_fraction(self) -> float:
        """Pairs whose label the RM contradicts over all pairs of the group."""
        return self.dropped / max(self.kept + self.dropped + self.tied, 1)

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, for JSON and the report."""
        return {**vars(self), "kept_fraction": self.kept_fraction}


@dataclass(frozen=True)
class ConflictReport:
    """Report of the conflict filter: the pairs kept, and counts by source and category.

    Attributes:
        keep: bool [p].
        overall: counts over all pairs. Dropped: the RM prefers the rejected side; tied: equal rewards (also not kept).
        by_source, by_category: counts a group, in alphabetical order; pairs without one are under "-".
    """

    keep: Tensor
    overall: ConflictCount
    by_source: dict[str, ConflictCount]
    by_category: dict[str, ConflictCount]

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, for JSON and the report; without the mask."""
        return {
            **self.overall.to_dict(),
            "by_source": {name: count.to_dict() for name, count in self.by_source.items()},
            "by_category": {name: count.to_dict() for name, count in self.by_category.items()},
        }

    def summary(self, filtered: bool = True) -> str:
        """One sentence for people; `filtered`: whether pairs are left out accordingly, or only counted."""
        o = self.overall
        total = o.kept + o.dropped + o.tied
        if not filtered:
            return (
                f"The base RM contradicts the labels of {o.dropped:,} of {total:,} pairs "
                f"({100 * o.dropped_fraction:.1f}%) and ties on {o.tied:,}; all are used."
            )
        margins = ""
        if o.kept_margin is not None and o.dropped_margin is not None:
            margins = f"; mean margin {o.kept_margin:.3g} where kept, {o.dropped_margin:.3g} where dropped"
        return (
            f"Conflict filter: kept {o.kept:,} of {total:,} pairs ({100 * o.kept_fraction:.1f}%), dropped "
            f"{o.dropped:,} whose label the base RM contradicts and {o.tied:,} ties{margins}."
        )


def filter_conflicts(pairs: PreferencePairs, reward: ArrayLike) -> tuple[PreferencePairs, ConflictReport]:  # [n]
    """Conflict-aware filter: keep the pairs with r0(chosen) > r0(rejected) (arXiv 2504.13134, section 3.1).

    `reward` is the frozen RM's, of the rows. The report has counts by `source` and `category`.
    """
    margin = pairs.difference(reward)
    kept, _ = pairs.after("conflict filter", keep=margin > 0)
    groups = {}
    for name in ("source", "category"):
        labels = np.array([label or "-" for label in getattr(pairs, name)], dtype=object)
        of = {label: torch.from_numpy(labels == label).to(margin.device) for label in sorted(set(labels))}
        groups[name] = {label: _count(margin[which]) for label, which in of.items()}
    return kept, ConflictReport(margin > 0, _count(margin), groups["source"], groups["category"])


def dual_consistency(
    pairs: PreferencePairs, best: ArrayLike, gold: ArrayLike, threshold: float = 0.5
) -> tuple[PreferencePairs, PreferencePairs, CurationReport]:  # [p], [p]
    """Keep a pair that two reward models agree with, flip one that both reject, and hand back the others.

        keep where p_best > t and p_gold > t;  flip where p_best < 1 - t and p_gold < 1 - t

    Stage two of Skywork-Reward-V2 (arXiv 2507.01352), with p = σ(r(chosen) - r(rejected)): `best` is the best model so
    far, `gold` one that was fitted to verified labels only. There a language model labels the disputed pairs anew;
    here they come back for the caller to do so.

    Args:
        pairs: p of them.
        best, gold: each model's probability that the chosen side is better: `pairs.difference(reward).sigmoid()`.
        threshold: t, from 0.5 (the paper's) to below 1. Above 0.5 (ours) a pair that both models are unsure of is
            disputed too. A probability of just 0.5 is no agreement.

    Returns:
        The pairs that are kept or flipped; the disputed ones; the report of the first, which counts these as dropped.
    """
    check_setting("threshold", threshold, at_least=0.5, below=1)
    one = check_range(best, 0, 1, "probability by the best model [p]", device=pairs.device, p=len(pairs))
    two = check_range(gold, 0, 1, "probability by the gold model [p]", device=pairs.device, p=len(pairs))
    keep = (one > threshold) & (two > threshold)
    flip = (one < 1 - threshold) & (two < 1 - threshold)
    disputed = ~(keep | flip)
    agreed, report = pairs.after(
        "dual consistency", keep=~disputed, flip=flip, numbers={"disputed": float(disputed.sum())}
    )
    return agreed, pairs.select(disputed), report


def consensus(
    pairs: PreferencePairs, probability: ArrayLike, confidence: float = 0.5, soft: bool = False
) -> tuple[PreferencePairs, CurationReport]:  # [k, p]
    """Keep the pairs on which all k models prefer the same side, with that side as the chosen one.

        keep where all p_k > 1/2 or all p_k < 1/2, and min_k max(p_k, 1 - p_k) ≥ confidence

    The filter of self-consistent internal rewards (arXiv 2502.08922), for any models; `confidence` and the soft label
    are ours. A model that is at just 1/2 prefers neither side, so the pair goes.

    Args:
        pairs: p of them.
        probability: P(chosen is better) of each model, k of at least 1.
        confidence: the least probability that each model has to give the preferred side, from 0.5 to 1.
        soft: whether the label becomes the mean probability of the preferred side; else it stays as it is.
    """
    check_setting("confidence", confidence, at_least=0.5, at_most=1)
    known = check_range(probability, 0, 1, "probability [k, p]", device=pairs.device, p=len(pairs))
    _some_voters(known)
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
    pairs: PreferencePairs, score: ArrayLike, least: int | None = None
) -> tuple[PreferencePairs, CurationReport]:  # [k, p, 2]
    """Keep the pairs on which enough judges score the same side higher, with that side as the chosen one.

    With all judges the filter of RAG-RewardBench (arXiv 2412.13746): +, +, +, - goes. `score` has each judge's scores
    of both sides, chosen first, in its own unit; one that scores both alike agrees with neither. `least` of the k
    judges have to agree, more than half; None: all of them.
    """
    known = check_finite(score, "score of a judge [k, p, sides]", device=pairs.device, p=len(pairs), sides=2)
    _some_voters(known)
    needed = len(known) if least is None else least
    if not len(known) < 2 * needed <= 2 * len(known):
        raise ConfigError(
            f"`least` is {needed} for {len(known)} judges; expected more than half of them, and at most all."
        )
    first = (known[:, :, 0] > known[:, :, 1]).sum(0) >= needed
    second = (known[:, :, 0] < known[:, :, 1]).sum(0) >= needed
    return pairs.after("judge agreement", keep=first | second, flip=second, numbers={"judges": len(known)})


def rubric_consistency(
    pairs: PreferencePairs, probability: ArrayLike, prompt: Groups, threshold: float = 0.5
) -> tuple[PreferencePairs, CurationReport]:  # [p], of [n]
    """Keep the pairs whose rubric reproduces the label, of prompts where it does so often enough (OpenRubrics).

        keep where p > 1/2 and Acc_x ≥ τ, Acc_x the share of the prompt's pairs with p > 1/2

    The filter of rubrics that were written from ranked responses (arXiv 2510.07743): one that a judge cannot tell the
    prompt's responses apart by as they were ranked is not used. For a prompt with one pair both conditions are one. The
    rubrics to keep are those of the pairs that are kept.

    Args:
        pairs: p of them, each of two responses to one prompt (else a DataError).
        probability: a judge's P(chosen is better) by the rubric, or its vote (bool); both orders averaged with
            `ebrm.aggregate.swap_average`. Just 1/2 is not right.
        prompt: the prompt of each row.
        threshold: τ, 0 to 1 (the paper: 0.5).
    """
    check_setting("threshold", threshold, at_least=0, at_most=1)
    right = check_range(probability, 0, 1, "probability [p]", device=pairs.device, p=len(pairs)) > 0.5
    pairs.check_rows(len(prompt))
    index = prompt.index.to(pairs.device)
    of = index[pairs.chosen]
    do = "A rubric is of one prompt; leave those pairs out."
    refuse(of != index[pairs.rejected], "pairs are of responses to different prompts", do)
    accuracy = Groups(of, prompt.count).mean(right.double())[of]
    keep = right & (accuracy >= threshold - 1e-9)  # 0.29 · 100 is 28.999999999999996
    numbers = {"right": float(right.double().mean()) if len(pairs) else 0.0}
    return pairs.after("rubric consistency", keep=keep, numbers=numbers)


def principle_consensus(embedding: Sequence[ArrayLike], threshold: float = 0.8) -> list[Tensor]:  # [k] of [n, d]
    """Which principles of each annotator every other annotator states, too (RLBFF, arXiv 2509.21319).

    A principle is kept where each other annotator has one whose embedding's cosine with it is above `threshold`: more
    annotators can only keep fewer. One annotator alone keeps all; an annotator without principles leaves none to the
    others. (The paper: 0.8; 0.7 and 0.9 were worse.)

    Args:
        embedding: one [n, d] for each annotator, n its number of principles.
        threshold: -1 to 1.

    Returns:
        A mask [n] for each annotator.

    Raises:
        ConfigError: threshold, or no annotators. DataError: an embedding of zeros, or numbers that are not finite.
    """
    check_setting("threshold", threshold, at_least=-1, at_most=1)
    if not embedding:
        raise ConfigError("Consensus of no annotators; expected at least 1.")
    sets = [unit_vectors(rows, f"principles of annotator {place}") for place, rows in enumerate(embedding)]
    masks = []
    for place, mine in enumerate(sets):
        keep = torch.ones(len(mine), dtype=torch.bool, device=mine.device)
        for theirs in (*sets[:place], *sets[place + 1 :]):
            keep &= (mine @ theirs.T > threshold).any(1)
        masks.append(keep)
    return masks


def hard_subset(reward: ArrayLike, count: int) -> Tensor:  # [n] -> [q]
    """Hard prompts (BLEUBERI, arXiv 2505.11080): places of the `count` (0 or more) lowest rewards, ascending.

    Of one answer to each of n prompts, or a prompt's mean (`Groups.mean`). Of equal rewards the earlier come first; all
    places if there are fewer than `count`. The paper keeps 5,000 of 50,000.
    """
    check_setting("count", count, at_least=0)
    return check_finite(reward, "reward [n]").sort(stable=True).indices[:count].sort().values


def _some_voters(votes: Tensor) -> None:
    if not len(votes):
        raise ConfigError("Agreement of no voters; expected at least 1.")


def _count(margin: Tensor) -> ConflictCount:
    kept, dropped = margin[margin > 0], margin[margin < 0]
    return ConflictCount(
        kept=len(kept),
        dropped=len(dropped),
        tied=len(margin) - len(kept) - len(dropped),
        kept_margin=float(kept.mean()) if len(kept) else None,
        dropped_margin=float(-dropped.mean()) if len(dropped) else None,
    )
