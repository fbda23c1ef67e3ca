"""Weights that make negative examples count as if they came from the prompts of the positive ones."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ebrm.errors import ConfigError, DataError
from ebrm.utils.validation import check_finite


def density_ratio_weights(
    positive: Tensor,  # [n, d]
    negative: Tensor,  # [m, d]
    low: float = 0.5,
    high: float = 10.0,
    penalty: float = 1.0,
) -> Tensor:  # [m]
    """How much more likely each negative example's prompt is among the positive ones, by a classifier.

        w = clamp(f / (1 - f), low, high),  f = P(positive | embedding) with both classes weighing the same

    "Binary Classifier Optimization for Large Language Model Alignment" (arXiv 2404.04656): people who give a thumbs up
    and a thumbs down ask different things, and the binary loss assumes that they do not; weigh the negatives by this,
    the positives by 1. Defaults as in the public code (TRL), which fits scikit-learn's logistic regression with
    `class_weight="balanced"`. The ridge acts on the embeddings as they are, so their scale does matter; an offset and a
    rotation of all do not, nor does the order of rows, but for the classifier's last digits.

    Args:
        positive, negative: embeddings of the prompts of both kinds.
        low, high: bounds of a weight, 0 < low ≤ 1 ≤ high.
        penalty: strength of the ridge, above 0 (scikit-learn's 1 / C).

    Returns:
        Weights of the negatives, in the embeddings' type.

    Raises:
        ConfigError: a setting out of range.
        DataError: a number that is not finite, or no positive example beside negatives.
        ValueError: shapes other than said.
    """
    from sklearn.linear_model import LogisticRegression

    good, bad = (
        check_finite(positive, "positive embedding [n, d]", 2),
        check_finite(negative, "negative embedding [m, d]", 2),
    )
    if good.shape[1:] != bad.shape[1:]:
        raise ValueError(
            f"expected embeddings [n, d] and [m, d], got {tuple(positive.shape)} and {tuple(negative.shape)}"
        )
    if not 0 < penalty < math.inf:
        raise ConfigError(f"The penalty is {penalty}; expected a number above 0.")
    if not len(bad):
        return odds_weights(bad.sum(1), low, high).to(torch.result_type(negative, 1.0))
    if not len(good):
        raise DataError(f"There are {len(bad)} negative examples and no positive one to weigh them by.")
    classifier = LogisticRegression(class_weight="balanced", C=1 / penalty, max_iter=10_000)
    classifier.fit(torch.cat([good, bad]).numpy(), [1] * len(good) + [0] * len(bad))
    logit = torch.from_numpy(classifier.decision_function(bad.numpy()))
    return odds_weights(logit, low, high).to(torch.result_type(negative, 1.0))


def odds_weights(logit: Tensor, low: float = 0.5, high: float = 10.0) -> Tensor:  # [m] -> [m]
    """clamp(f / (1 - f), low, high) for a classifier's logit of f, float64: exp of the logit, between the bounds."""
    if not 0 < low <= 1 <= high < math.inf:
        raise ConfigError(f"The bounds of a weight are {low} and {high}; expected 0 < low <= 1 <= high.")
    return check_finite(logit, "logit").clamp(math.log(low), math.log(high)).exp()
