"""Drift on anchors: how far a refined reward moves on texts whose reward should stay as it was."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.stats import rankdata
from torch import Tensor

from ebrm.errors import DataError
from ebrm.features import Features
from ebrm.metrics import (
    Bootstrap,
    Estimate,
    PairedAccuracy,
    cluster_sums,
    clustered_mean,
    paired_accuracy,
    resample_sums,
    share_interval,
)
from ebrm.model import EnergyRewardModel
from ebrm.pairs import PreferencePairs
from ebrm.utils.outliers import outlying

Floats = NDArray[np.float64]

_ROWS = 4096


@dataclass(frozen=True)
class AnchorDrift:
    """Drift of the refined reward from the base reward on anchors held out, with intervals over prompts.

    Attributes:
        rows: anchor responses measured on.
        pairs: labeled pairs among them, 0 where there are none.
        prompts: prompts that the responses are of, each response by itself where that is not known.
        std: standard deviation of the base rewards of the responses, in the base RM's units.
        mean_abs: mean |refined - base|, in units of `std`; NaN where that is 0.
        max_abs: the largest, in the same unit.
        rank_correlation: Spearman's ρ of the two rewards over the responses; NaN where one is constant.
        flipped: share of two responses to one prompt whose order by the base reward is reversed, or lost to a tie;
            None where no prompt has two responses of different base rewards.
        compared: how many such twos there are.
        accuracy: of both rewards on the labeled pairs; None without any.
        bootstrap: of the intervals.
    """

    rows: int
    pairs: int
    prompts: int
    std: float
    mean_abs: Estimate
    max_abs: float
    rank_correlation: Estimate
    flipped: Estimate | None
    compared: int
    accuracy: PairedAccuracy | None
    bootstrap: Bootstrap

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; None for what was not measured."""
        accuracy = self.accuracy
        estimates = {
            "mean_abs": self.mean_abs,
            "rank_correlation": self.rank_correlation,
            "flipped": self.flipped,
            "base_accuracy": accuracy and accuracy.base,
            "refined_accuracy": accuracy and accuracy.refined,
            "accuracy_difference": accuracy and accuracy.difference,
        }
        return {
            **{name: getattr(self, name) for name in ("rows", "pairs", "prompts", "compared", "std")},
            "max_abs": self.max_abs if math.isfinite(self.max_abs) else None,
            **{name: one and one.to_dict() for name, one in estimates.items()},
        }


def measure_anchors(
    model: EnergyRewardModel,
    features: Features,
    rows: Tensor,  # [m]
    pairs: PreferencePairs,
    *,
    prompt_id: ArrayLike | None = None,  # [m]
    bootstrap: Bootstrap = Bootstrap(),
) -> AnchorDrift:
    """Measure how far the refined reward drifts from the base reward on anchors that were not fitted on.

    Args:
        model: the refined model.
        features: embeddings and base rewards of the anchors.
        rows: anchor responses, as rows of the features, in any order; repeats count once.
        pairs: pairs of them, there may be none; those of label 0.5 are unlabeled, and have no accuracy. Their
            responses are added to `rows`.
        prompt_id: the prompt of each of `rows`, named as in the pairs; None: that of its pair, and a response in none
            is a prompt of its own.
        bootstrap: of the intervals, over prompts.

    Raises:
        DataError: no anchors, rows beyond the features, or a response with two prompts. ModelError: as
            `EnergyRewardModel.refine`.
    """
    pairs.check_rows(len(features))
    given = rows.detach().cpu().long()
    if len(given) and not 0 <= int(given.min()) <= int(given.max()) < len(features):
        raise DataError(f"Anchor rows are from {int(given.min())} to {int(given.max())} of {len(features)} features.")
    sides = torch.cat([pairs.chosen, pairs.rejected]).cpu()
    items, where = torch.unique(torch.cat([given, sides]), return_inverse=True)
    if not len(items):
        raise DataError("There are no anchors to measure on: neither rows nor pairs were given.")
    chosen, rejected = where[len(given) :].view(2, -1)
    labels = None if prompt_id is None else np.asarray(prompt_id).astype(str)
    prompt = _prompts(items, where, labels, np.concatenate([pairs.prompt_id] * 2))
    parts = [model.refine(features.embedding(some), features.reward[some]) for some in items.split(_ROWS)]
    base = torch.cat([part.base_reward for part in parts]).double().numpy()
    refined = torch.cat([part.reward for part in parts]).double().numpy()
    std = float(base[~outlying(torch.from_numpy(base)).numpy()].std())  # one that overflowed would be all of it
    moved = np.abs(refined - base) / std if std > 0 else np.full(len(base), math.nan)
    flips, flip_prompt = _flips(base, refined, prompt)
    label = pairs.label.cpu()
    better, worse = torch.where(label < 0.5, torch.stack([rejected, chosen]), torch.stack([chosen, rejected])).numpy()
    keep = (label != 0.5).numpy()
    better, worse = better[keep], worse[keep]
    accuracy = None
    if len(better):
        columns = (base[better], base[worse], refined[better], refined[worse])
        accuracy = paired_accuracy(*columns, pairs.prompt_id[keep], bootstrap=bootstrap)
    nothing = Estimate(math.nan, math.nan, math.nan)
    flipped = clustered_mean(flips, flip_prompt, bootstrap=bootstrap) if len(flips) else None
    if flipped is not None and flipped.low == flipped.high and not np.array_equal(rankdata(base), rankdata(refined)):
        # None of these comparisons, or each: the bootstrap has no spread.
        flipped = share_interval(flipped.value, np.array([flipped.value]), len(np.unique(flip_prompt)), bootstrap)
    return AnchorDrift(
        rows=len(items), pairs=len(better), prompts=len(np.unique(prompt)), std=std,
        mean_abs=clustered_mean(moved, prompt, bootstrap=bootstrap) if std > 0 else nothing,
        max_abs=float(moved.max()), rank_correlation=_spearman(base, refined, prompt, bootstrap),
        flipped=flipped,
        compared=len(flips), accuracy=accuracy, bootstrap=bootstrap,
    )  # fmt: skip


def _prompts(
    items: Tensor, where: Tensor, given: NDArray[np.str_] | None, of_pairs: NDArray[np.str_]
) -> NDArray[np.int64]:
    """A number for the prompt of each item [n]: of rows (`given`, where known) and of the sides of pairs."""
    rows = len(where) - len(of_pairs)
    if given is not None and given.shape != (rows,):
        raise ValueError(f"prompt_id has shape {given.shape}, expected one for each of {rows} rows")
    names = of_pairs if given is None else np.concatenate([given, of_pairs])
    places = where.numpy()[rows if given is None else 0 :]
    number = np.unique(names, return_inverse=True)[1]
    found = np.full(len(items), -1)
    found[places] = number
    two = np.flatnonzero(found[places] != number)
    if len(two):
        raise DataError(
            f"Row {int(items[places[two[0]]])} of the anchors is a response to two prompts, {str(names[two[0]])!r:.60} "
            "and another. Give each response its own row."
        )
    alone = found < 0
    found[alone] = len(names) + np.arange(int(alone.sum()))
    return found


def _flips(base: Floats, refined: Floats, prompt: NDArray[np.int64]) -> tuple[Floats, NDArray[np.int64]]:
    """1 where the order of two responses to one prompt is not the base's, and their prompts; base ties have none."""
    order = np.argsort(prompt, kind="stable")
    flips, prompts = [], []
    for group in np.split(order, np.flatnonzero(np.diff(prompt[order])) + 1):
        first, second = np.triu_indices(len(group), 1)
        b, r = (np.sign(x[group][first] - x[group][second]) for x in (base, refined))
        flips.append((b != r)[b != 0].astype(np.float64))
        prompts.append(np.full(len(flips[-1]), prompt[group[0]]))
    return np.concatenate(flips), np.concatenate(prompts)


def _spearman(first: Floats, second: Floats, prompt: NDArray[np.int64], bootstrap: Bootstrap) -> Estimate:
    """Spearman's ρ; in resamples the ranks are those among all rows."""
    x, y = (rankdata(side) - (len(side) + 1) / 2 for side in (first, second))
    sums = cluster_sums([np.ones(len(x)), x, y, x * x, y * y, x * y], prompt)

    def correlation(total: Floats) -> Floats:
        n, sx, sy, sxx, syy, sxy = np.moveaxis(total, -1, 0)
        with np.errstate(invalid="ignore", divide="ignore"):
            size = np.sqrt((sxx - sx * sx / n).clip(0) * (syy - sy * sy / n).clip(0))
            return np.where(size > 0, (sxy - sx * sy / n) / size, np.nan).clip(-1, 1)

    draws = correlation(resample_sums(sums, bootstrap=bootstrap))
    return bootstrap.estimate(float(correlation(sums.sum(axis=0))), draws)
