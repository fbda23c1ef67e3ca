"""Calibrate a fitted model's P(a > b) on held-out pairs, and find what it is sure enough to decide."""

from __future__ import annotations

import logging

import numpy as np
import torch
from torch import Tensor

from ebrm.calibration import Abstention, PreferenceCalibration, conformal_abstention, selective_abstention
from ebrm.errors import DataError
from ebrm.features import Features
from ebrm.model import EnergyRewardModel
from ebrm.pairs import PreferencePairs

logger = logging.getLogger(__name__)

#: Pairs compared at a time: two densities each are in memory.
_PAIRS = 4096


def pair_probability(
    model: EnergyRewardModel, features: Features, pairs: PreferencePairs, *, calibrated: bool = True
) -> Tensor:  # [p]
    """P(chosen is better) of pairs over the features' items, float32 [p]; `calibrated` as of `model.prefer_rows`."""
    found = [torch.empty(0)]
    for start in range(0, len(pairs), _PAIRS):
        some = pairs.select(slice(start, start + _PAIRS))
        a, b = some.chosen.cpu(), some.rejected.cpu()
        sides = (features.embedding(a), features.embedding(b)), (features.reward[a], features.reward[b])
        found.append(model.prefer_rows(*sides, calibrated=calibrated).clamp(0, 1))
    return torch.cat(found)


def calibrate(
    model: EnergyRewardModel, features: Features, pairs: PreferencePairs, *, label_noise: float | None = None
) -> EnergyRewardModel:
    """The same model with its P(a > b) calibrated on held-out pairs; an earlier calibration is replaced.

    Rewards, stds and rankings stay as they are. The pairs must be like those that will be compared. Left out, and
    counted in the log, are pairs with prompts that the model was fitted on (`model.fitted_on`) and those that the
    reward model itself was trained on (`rm_training`), which it knows too well. Soft labels and weights count.

    Args:
        model: fitted; its head gives the probabilities.
        features: embeddings and base rewards of the pairs' items.
        pairs: held-out pairs over those items.
        label_noise: share of wrong labels that is assumed; None: that of the head's objective, or 0.

    Raises:
        ConfigError: `label_noise` below 0, or 0.5 and more.
        DataError: the model was fitted on the pairs, and no other is there.
        ModelError: features that do not fit the model.
    """
    unseen = held_out(model, pairs)
    noise = assumed_label_noise(model) if label_noise is None else label_noise
    found = pair_probability(model, features, unseen, calibrated=False)
    calibration = PreferenceCalibration.fit(found, unseen.label, unseen.weight, noise)
    return model.with_calibration(calibration)


def abstain(
    model: EnergyRewardModel, features: Features, pairs: PreferencePairs, risk: float, *,
    generator: np.random.Generator, level: float = 0.9,
) -> tuple[EnergyRewardModel, Abstention, Abstention]:  # fmt: skip
    """The same model with thresholds of confidence for a stated risk in its record, and the two rules.

    First the rule for wrong decisions among all pairs (:func:`ebrm.calibration.conformal_abstention`), then for errors
    among decided pairs (:func:`ebrm.calibration.selective_abstention`); `sentence()` says each.

    Args:
        model: calibrated or not; thresholds are of the P that `model.prefer_rows` gives, so calibrate before.
        features: embeddings and base rewards of the pairs' items.
        pairs: held-out pairs by which nothing was chosen but the temperature; those that `calibrate` leaves out are
            left out.
        risk: share of wrong decisions that is allowed, above 0 and below 1.
        generator: draws one pair a prompt for the second rule.
        level: probability that the second rule holds.

    Raises:
        ConfigError: `risk` or `level` out of range.
        DataError: the model was fitted on the pairs, and no other is there.
        ModelError: features that do not fit the model.
    """
    unseen = held_out(model, pairs)
    p, label = pair_probability(model, features, unseen), unseen.label
    marginal = conformal_abstention(p, label, risk, unseen.prompt_id)
    selective = selective_abstention(p, generator, label, risk, unseen.prompt_id, level)
    return model.with_calibration(model.record.calibration, (marginal, selective)), marginal, selective


def held_out(model: EnergyRewardModel, pairs: PreferencePairs) -> PreferencePairs:
    """The pairs without those whose prompt the model was fitted on, and those its reward model was trained on.

    Raises:
        DataError: there are pairs that the model was fitted on, and no others.
    """
    known = model.fitted_on(pairs.prompt_id.tolist())  # None: the model does not say, or the ids are of another kind
    fitted = torch.zeros(len(pairs), dtype=torch.bool) if known is None else torch.from_numpy(known)
    trained = pairs.rm_training.cpu() & ~fitted
    counts = f"{int(fitted.sum()):,} with prompts that the model was fitted on, {int(trained.sum()):,} that its reward "
    counts += "model was trained on"
    kept = ~(fitted | trained)
    if bool(fitted.any()) and not bool(kept.any()):
        raise DataError(
            f"None of the {len(pairs):,} pairs can say how sure the model may be: there are {counts}. Give pairs that "
            "were held out, such as those of `result.splits.test`."
        )
    if not bool(kept.all()):
        logger.warning("Of %s pairs these are left out: %s.", f"{len(pairs):,}", counts)
    return pairs.select(kept)


def assumed_label_noise(model: EnergyRewardModel) -> float:
    """Share of wrong labels that the head's objective assumes (`label_noise`); 0 where it has no such setting."""
    return float(getattr(getattr(model.record.head, "objective", None), "label_noise", 0.0))
