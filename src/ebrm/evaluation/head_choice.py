"""Choice of a head by cross-validation over prompts on the user's own pairs, with a one-standard-error rule."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ebrm.data import split_by_prompt
from ebrm.errors import ModelError
from ebrm.heads import (
    Anchors,
    EmbeddingSource,
    EnergyConfig,
    FitConfig,
    HeadConfig,
    LinearConfig,
    ResidualConfig,
    SiLUConfig,
    fit_head,
)
from ebrm.metrics import correct_pairs
from ebrm.pairs import PreferencePairs

logger = logging.getLogger(__name__)

#: What is compared, the simplest first.
CANDIDATES: tuple[HeadConfig, ...] = (ResidualConfig(), LinearConfig(), SiLUConfig(), EnergyConfig())
#: What the base reward is called among the heads.
BASE = "base"


@dataclass(frozen=True)
class HeadChoice:
    """A head chosen on the user's pairs.

    Attributes:
        chosen: its kind, "base" for the base reward as it is.
        accuracy: of every candidate on prompts left out, by kind, the simplest first; ties count one half.
        margin: accuracy minus the best candidate's, by kind.
        error: standard error of that margin over prompts, by kind.
        pairs, prompts: that this goes by.
    """

    chosen: str
    accuracy: dict[str, float]
    margin: dict[str, float]
    error: dict[str, float]
    pairs: int
    prompts: int

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return dict(vars(self))

    def __str__(self) -> str:
        others = ", ".join(
            f"{kind} {100 * value:.1f}% ({100 * self.margin[kind]:+.1f} ± {100 * self.error[kind]:.1f})"
            for kind, value in self.accuracy.items()
        )
        return (
            f"Head {self.chosen}, the simplest within one standard error of the best on {self.pairs:,} pairs of "
            f"{self.prompts:,} prompts, each prompt left out: {others}."
        )


def choose_head(
    embeddings: EmbeddingSource,  # [n, d]
    reward: torch.Tensor,  # [n]
    pairs: PreferencePairs,
    config: FitConfig,
    *,
    folds: int = 5,
    anchors: Anchors | None = None,
    device: torch.device | str = "cpu",
    candidates: Sequence[HeadConfig] = CANDIDATES,
) -> HeadChoice:
    """Choose the simplest head within one standard error of the best accuracy, cross-validated by prompt.

    Args:
        embeddings, reward: of the pairs' rows.
        pairs: to fit on; those of label 0.5 are not counted.
        config: of the fit. With `pairs_seen` other than "no" the base reward is no candidate: it may know these labels.
        folds: parts that the prompts are divided into.
        anchors: with these, only heads that keep to them are candidates.
        device: where heads are fitted.
        candidates: heads, the simplest first.

    Raises:
        ModelError: fewer prompts than folds.
    """
    parts = split_by_prompt(pairs.prompt_id.tolist(), {str(k): 1 / folds for k in range(folds)}, config.seed)
    if any(len(part) == 0 for part in parts.values()):
        raise ModelError(
            f"A head cannot be chosen by {folds} folds of {len(set(pairs.prompt_id.tolist()))} prompts: one is empty. "
            "Give more pairs, fewer `folds`, or name a head."
        )
    heads = [one for one in candidates if anchors is None or isinstance(one, ResidualConfig)]
    right: dict[str, np.ndarray] = {one.kind: np.zeros(len(pairs)) for one in heads}
    base = reward.double()
    if config.pairs_seen == "no":
        right = {BASE: correct_pairs(base[pairs.chosen], base[pairs.rejected], 0.5)} | right
    everything = np.arange(len(pairs))
    for part in parts.values():
        train, held = pairs.select(np.setdiff1d(everything, part)), pairs.select(part)
        rows, place = torch.unique(torch.cat([held.chosen, held.rejected]), return_inverse=True)
        for one in heads:
            head = fit_head(
                one, embeddings, reward, train, train.select(slice(0)), device=device, strength=config.strength,
                pairs_seen=config.pairs_seen, anchors=anchors, seed=config.seed,
            ).head  # fmt: skip
            refined = head.refine(embeddings[rows], reward[rows]).reward.double()
            chosen, rejected = refined[place[: len(held)]], refined[place[len(held) :]]
            right[one.kind][part] = correct_pairs(chosen, rejected, 0.5)
    decided = pairs.label.numpy() != 0.5
    prompts = np.unique(pairs.prompt_id[decided], return_inverse=True)[1]
    table = np.stack([np.where(pairs.label.numpy() < 0.5, 1 - value, value)[decided] for value in right.values()])
    accuracy = table.mean(1)
    best = int(accuracy.argmax())
    difference = table - table[best]
    sums = np.zeros((len(table), prompts.max() + 1))
    for row, values in enumerate(difference - difference.mean(1, keepdims=True)):
        sums[row] = np.bincount(prompts, values, sums.shape[1])
    error = np.sqrt((sums**2).sum(1)) / table.shape[1]
    kinds = list(right)
    near = [k for k in range(len(kinds)) if difference[k].mean() >= -error[k]]
    choice = HeadChoice(
        kinds[near[0]],
        dict(zip(kinds, accuracy.tolist(), strict=True)),
        dict(zip(kinds, difference.mean(1).tolist(), strict=True)),
        dict(zip(kinds, error.tolist(), strict=True)),
        int(decided.sum()),
        sums.shape[1],
    )
    logger.info("%s", choice)
    return choice
