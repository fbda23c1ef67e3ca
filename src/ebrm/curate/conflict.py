"""The conflict-aware filter: keep a pair only if the frozen RM agrees with its label."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ebrm.utils.validation import check_finite


@dataclass(frozen=True)
class ConflictCount:
    """What the filter did to a group of pairs; margins are |r0(chosen) - r0(rejected)|, None where none are."""

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
    """Which pairs are kept, and how many by source and category.

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


def filter_conflicts(
    chosen_reward: Tensor,  # [p]
    rejected_reward: Tensor,  # [p]
    source: Sequence[str | None] | None = None,
    category: Sequence[str | None] | None = None,
) -> ConflictReport:
    """Keep the pairs with r0(chosen) > r0(rejected) (arXiv 2504.13134, section 3.1).

    Args:
        chosen_reward, rejected_reward: the frozen RM's rewards [p], finite.
        source, category: group names [p], for the report only.

    Raises:
        DataError: a reward that is not finite (its index is named).
        ValueError: sides or labels of different length.
    """
    if chosen_reward.shape != rejected_reward.shape or chosen_reward.dim() != 1:
        raise ValueError(f"expected two [p] tensors, got {chosen_reward.shape} and {rejected_reward.shape}")
    margin = check_finite(chosen_reward, "rewards of chosen responses") - check_finite(
        rejected_reward, "rewards of rejected ones"
    )
    groups = {}
    for name, labels in (("source", source), ("category", category)):
        if labels is not None and len(labels) != len(margin):
            raise ValueError(f"{len(labels)} {name} labels were given for {len(margin)} pairs")
        members: dict[str, list[int]] = {}
        for i, label in enumerate(labels if labels is not None else ()):
            members.setdefault(label or "-", []).append(i)
        groups[name] = {label: _count(margin[torch.tensor(members[label])]) for label in sorted(members)}
    return ConflictReport(margin > 0, _count(margin), groups["source"], groups["category"])


def _count(margin: Tensor) -> ConflictCount:
    kept, dropped = margin[margin > 0], margin[margin < 0]
    return ConflictCount(
        kept=len(kept),
        dropped=len(dropped),
        tied=len(margin) - len(kept) - len(dropped),
        kept_margin=float(kept.mean()) if len(kept) else None,
        dropped_margin=float(-dropped.mean()) if len(dropped) else None,
    )
