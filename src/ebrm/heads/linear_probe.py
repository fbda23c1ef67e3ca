"""Linear probes: what can be read off a frozen embedding."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from ebrm.errors import ConfigError, DataError
from ebrm.heads.minimize import lowest
from ebrm.utils.validation import check_finite


@dataclass(frozen=True)
class LinearProbe:
    """Logits (e - center) / spread · W + b of c classes.

    Attributes:
        weight: W [d, c], float64.
        bias: b [c].
        center, spread: of each number of the embeddings fitted on [d].
        classes: what the columns stand for, ascending [c].
    """

    weight: Tensor
    bias: Tensor
    center: Tensor
    spread: Tensor
    classes: Tensor

    def logits(self, embedding: Tensor) -> Tensor:  # [n, d] -> [n, c]
        """Log-probabilities of the classes, up to a constant a row; float64.

        Raises:
            DataError: a number that is not finite.
        """
        e = check_finite(embedding, "embedding", 2)
        return ((e - self.center) / self.spread) @ self.weight + self.bias

    def predict(self, embedding: Tensor) -> Tensor:  # [n, d] -> [n]
        """The likeliest class; ties go to the lowest."""
        return self.classes[self.logits(embedding).argmax(1)]

    def accuracy(self, embedding: Tensor, label: Tensor) -> float:
        """Share of rows whose class is found; NaN for none. MRMBench's score of a preference dimension."""
        return float((self.predict(embedding) == label).double().mean())


def fit_probe(embedding: Tensor, label: Tensor, l2: float = 0.01) -> LinearProbe:  # [n, d], [n]
    """Multinomial logistic regression on frozen embeddings: argmin mean cross-entropy + l2/2 |W|², intercepts free.

    "Probing Preference Representations" (MRMBench, arXiv 2511.12464) trains the same probe for one epoch of batches
    of 128; here it is fitted to the end, on standardized embeddings, with a small penalty. Numbers of the embedding
    that never change are left alone. Shifting or scaling the embedding changes nothing.

    Args:
        embedding: [n, d].
        label: whole numbers [n], any; one class alone is refused.
        l2: penalty, above 0 (separable classes have no finite solution without).

    Raises:
        ConfigError: a penalty of 0 or less.
        DataError: a number that is not finite, or fewer than two classes.
    """
    if not l2 > 0:
        raise ConfigError(f"The penalty l2 is {l2}; it must be above 0.")
    e = check_finite(embedding, "embedding", 2)
    if label.shape != e.shape[:1]:
        raise ValueError(f"expected one label for each of {len(e)} embeddings, got {tuple(label.shape)}")
    classes, place = torch.unique(label, return_inverse=True)
    if len(classes) < 2:
        raise DataError(f"All {len(label)} rows have the same label, so that there is nothing to tell apart.")
    center, spread = e.mean(0), e.std(0, correction=0)
    spread = torch.where(spread > 1e-12 * center.abs(), spread, torch.ones_like(spread))
    x = (e - center) / spread
    d, c = x.shape[1], len(classes)

    def loss(flat: Tensor) -> Tensor:
        weight, bias = flat[: d * c].view(d, c), flat[d * c :]
        # `lowest` penalizes the intercepts, too: what it adds for them is taken off.
        return cross_entropy(x @ weight + bias, place) - 0.5 * l2 * bias.square().sum()

    flat = lowest(loss, torch.zeros(d * c + c), l2)
    bias = flat[d * c :]
    return LinearProbe(flat[: d * c].view(d, c), bias - bias.mean(), center, spread, classes)
