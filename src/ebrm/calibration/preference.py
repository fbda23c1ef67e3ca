"""PreferenceCalibration: from a head's P(a > b) to one that held-out labels bear out, by one temperature."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from scipy.special import expit
from torch import Tensor

from ebrm.errors import ConfigError, DataError
from ebrm.utils.validation import ArrayLike, check_range, check_setting

#: Standard deviation of the prior of log(temperature) around 0: a factor of e either way. Chosen on simulated heads and
#: on those of the demonstration, 10 to 300 pairs: narrower leaves overconfident heads so, wider chases noise.
PRIOR_STD = 1.0
#: Largest confidence told from certainty: float32 has no number closer to 1 whose complement has its sign.
_MOST = 1 - 2.0**-24
#: Bounds of log(1 / temperature), wide enough that the prior decides.
_LOW, _HIGH = -8.0, 4.0
_GRID = 241


def confidence(probability: ArrayLike) -> Tensor:
    """Confidence of comparisons, max(P, 1 - P), from 0.5 to 1; their uncertainty is 1 - this. Any shape, float64."""
    p = _probability(probability)
    return torch.maximum(p, 1 - p)


@dataclass(frozen=True)
class PreferenceCalibration:
    """Temperature scaling of P(a > b): logit P' = logit P / temperature (Guo et al., arXiv 1706.04599).

    One number without an offset, so P'(a > b) + P'(b > a) = 1, and the order of confidences stays as it is: calibration
    changes no AUROC and no decision, only what is said of it. Isotonic regression, which can bend the curve, was worse
    on fewer than about 1,000 pairs and better by 0.005 nats at most on 8,000, so there is none.

    P is the probability that a is better. A label is wrong with probability `label_noise`, so the label says a with
    probability Q = ε + (1 - 2ε) P; Q, not P, is what labels can bear out.

    Attributes:
        temperature: above 0; more than 1 takes confidence back.
        label_noise: ε, the share of wrong labels that was assumed, from 0 to below 0.5.
        pairs: number of pairs it was fitted on; 0 where nothing was fitted.
        evidence: share of what is known of log(temperature) that comes from these pairs, 0 to 1; the rest is the prior.
        raw_log_loss, log_loss: mean of -log Q(label) over those pairs before and after, in nats; 0 without pairs.
    """

    temperature: float = 1.0
    label_noise: float = 0.0
    pairs: int = 0
    evidence: float = 0.0
    raw_log_loss: float = 0.0
    log_loss: float = 0.0

    def __post_init__(self) -> None:
        check_setting("temperature", self.temperature, above=0)
        check_setting("label_noise", self.label_noise, at_least=0, below=0.5)

    @classmethod
    def fit(
        cls,
        probability: ArrayLike,
        label: ArrayLike | None = None,
        weight: ArrayLike | None = None,
        label_noise: float = 0.0,
    ) -> PreferenceCalibration:
        """The temperature that held-out labels make most probable, with a prior at 1.

            Σ w [-y log Q - (1 - y) log(1 - Q)] + log(temperature)² / 2,  Q = ε + (1 - 2ε) σ(logit P / temperature)

        over the pairs, weights scaled to sum to their effective number (Σ w)² / Σ w². The prior (standard deviation 1)
        decides where pairs are few: without any the temperature is 1. The log loss on these pairs is never above that
        of the P given. The pairs must be like those to come: neither fitted on, nor known to the reward model from its
        own training.

        Args:
            probability: P(chosen > rejected) as the head has it [p].
            label: probability that the chosen side is better, 0 to 1 [p]; None: 1.
            weight: factor of each pair, at least 0 [p]; None: 1.
            label_noise: share of wrong labels that is assumed, from 0 to below 0.5.

        Raises:
            DataError: a probability, label or weight that is not finite or out of range.
            ConfigError: `label_noise` out of range.
        """
        check_setting("label_noise", label_noise, at_least=0, below=0.5)
        p = check_range(probability, 0, 1, "P(chosen > rejected) [p]").cpu()
        y, w = _columns(label, weight, len(p))
        if not bool((w > 0).any()):
            return cls(label_noise=label_noise)
        w = w / w.max()
        logit, labels, weights = _logit(p).numpy(), y.numpy(), (w * (w.sum() / w.square().sum())).numpy()

        def losses(slope: float) -> np.ndarray:
            a, b = (label_noise + (1 - 2 * label_noise) * expit(side * slope * logit) for side in (1, -1))
            tiny = np.finfo(np.float64).tiny
            return weights * -(labels * np.log(np.maximum(a, tiny)) + (1 - labels) * np.log(np.maximum(b, tiny)))

        def objective(log_slope: float) -> float:
            return float(losses(math.exp(log_slope)).sum()) + log_slope**2 / (2 * PRIOR_STD**2)

        grid = np.linspace(_LOW, _HIGH, _GRID)
        at = int(np.argmin([objective(place) for place in grid]))
        bounds = (grid[max(at - 1, 0)], grid[min(at + 1, _GRID - 1)])
        found = float(minimize_scalar(objective, bounds=bounds, method="bounded", options={"xatol": 1e-10}).x)
        best = min((found, float(grid[at]), 0.0), key=objective)
        step = 1e-3
        bend = (objective(best + step) - 2 * objective(best) + objective(best - step)) / step**2
        evidence = 1 - 1 / (PRIOR_STD**2 * bend) if bend * PRIOR_STD**2 > 1 else 0.0
        before, after = (float(losses(slope).sum() / weights.sum()) for slope in (1.0, math.exp(best)))
        return cls(math.exp(-best), label_noise, int((w > 0).sum()), evidence, before, after)

    def __call__(self, probability: ArrayLike) -> Tensor:
        """Calibrated P(a > b), float32 of the same shape; of 1 - P it is exactly 1 minus this."""
        p = _probability(probability)
        high = torch.sigmoid(_logit(torch.maximum(p, 1 - p)) / self.temperature).float()
        return torch.where(p >= 0.5, high, 1 - high)

    def label_probability(self, probability: ArrayLike) -> Tensor:
        """Q = ε + (1 - 2ε) P', the probability that a label says a > b, from the head's P; float32, any shape."""
        noise = self.label_noise
        return (noise + (1 - 2 * noise) * self(probability).double()).float()

    def best(self, probability: ArrayLike) -> Tensor:
        """Calibrated P(each of n is the best) [n], float32, from the head's; of two as P(a > b).

        Of more, P' ∝ P^(1 / temperature): exact where P(best) is a softmax of rewards, as under Bradley-Terry.
        """
        p = _probability(probability)
        if p.shape == (2,):
            first = self(p[:1])
            return torch.cat([first, 1 - first])
        return torch.softmax(p.log() / self.temperature, 0).float()

    def sentence(self) -> str:
        """What was done, for people."""
        if not self.pairs:
            return "Probabilities are as the head has them: there were no pairs to calibrate them on."
        noise = f", {self.label_noise:.0%} wrong labels assumed" if self.label_noise else ""
        little = "" if self.evidence >= 0.9 else f" (too few to be sure: {1 - self.evidence:.0%} of it is a prior at 1)"
        return (
            f"Probabilities are calibrated with temperature {self.temperature:.3g}, fitted on {self.pairs:,} held-out "
            f"pairs{little}{noise}: log loss {self.raw_log_loss:.3f} to {self.log_loss:.3f}."
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> PreferenceCalibration:
        """Build it back from :meth:`to_dict`'s values; ConfigError where they are something else."""
        try:
            return cls(**values)
        except TypeError as error:
            raise ConfigError(f"A calibration cannot be put together from {values!r:.200}: {error}.") from error


def cross_calibrated(
    probability: ArrayLike,
    label: ArrayLike | None = None,
    weight: ArrayLike | None = None,
    prompt_id: ArrayLike | np.ndarray | None = None,
    label_noise: float = 0.0,
    folds: int = 5,
) -> Tensor:
    """P(chosen > rejected) [p], each calibrated on the pairs of other prompts: to measure what calibration gives.

    Calibrated and measured on the same pairs, numbers flatter. The prompts, in order of their names, go to the folds in
    turn. Arguments as of :meth:`PreferenceCalibration.fit`; `prompt_id` None: each pair its own.

    Raises:
        ConfigError: fewer than 2 folds.
        DataError: fewer prompts than folds, or as of `fit`.
    """
    check_setting("folds", folds, at_least=2)
    p = check_range(probability, 0, 1, "P(chosen > rejected) [p]").cpu()
    y, w = _columns(label, weight, len(p))
    prompt = prompt_numbers(prompt_id, len(p))
    if int(prompt.max(initial=-1)) + 1 < folds:
        raise DataError(
            f"{int(prompt.max(initial=-1)) + 1} prompts cannot be divided into {folds} folds. Give more pairs, or "
            "fewer `folds`."
        )
    out = torch.empty(len(p))
    fold = torch.from_numpy(prompt % folds)
    for number in range(folds):
        rest = fold != number
        out[~rest] = PreferenceCalibration.fit(p[rest], y[rest], w[rest], label_noise)(p[~rest])
    return out


def prompt_numbers(prompt_id: ArrayLike | np.ndarray | None, count: int) -> np.ndarray:
    """Number of each pair's prompt [p] by the order of names, 0 up; None: each pair its own."""
    if prompt_id is None:
        return np.arange(count)
    names = np.asarray(prompt_id)
    if names.shape != (count,):
        raise ValueError(f"prompt_id: expected one for each of {count} pairs, got the shape {names.shape}")
    return np.unique(names, return_inverse=True)[1].astype(np.int64)


def _columns(label: ArrayLike | None, weight: ArrayLike | None, count: int) -> tuple[Tensor, Tensor]:
    """Labels and weights [p], float64 on the CPU."""
    one = torch.ones(count, dtype=torch.float64)
    y = one if label is None else check_range(label, 0, 1, "label [p]", p=count).cpu()
    w = one if weight is None else check_range(weight, 0, math.inf, "weight [p]", p=count).cpu()
    return y, w


def _probability(values: ArrayLike) -> Tensor:
    """Probabilities of any shape, float64."""
    dims = values.dim() if isinstance(values, Tensor) else np.ndim(values)
    return check_range(values, 0, 1, "P(a > b)", dims)


def _logit(p: Tensor) -> Tensor:
    """Log odds, odd around 0.5 and finite."""
    high = torch.maximum(p, 1 - p).clamp_max(_MOST)
    odds = high.log() - (1 - high).log()
    return torch.where(p >= 0.5, odds, -odds)
