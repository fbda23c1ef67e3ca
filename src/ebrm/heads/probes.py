"""Frozen embeddings: linear probes, distances to centroids, and directions that a reward should not use."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from ebrm.errors import ConfigError, DataError
from ebrm.heads.minimize import lowest
from ebrm.utils.validation import check_finite


@dataclass(frozen=True)
class LinearProbe:
    """Logits (e - center) / spread · W + b of c classes [c], ascending; W = weight [d, c] and b = bias [c], float64."""

    weight: Tensor
    bias: Tensor
    center: Tensor
    spread: Tensor
    classes: Tensor

    def logits(self, embedding: Tensor) -> Tensor:  # [n, d] -> [n, c]
        """Log-probabilities of the classes, up to a constant a row; float64."""
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

    The probe of MRMBench (arXiv 2511.12464), here fitted to the end on standardized embeddings.

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


@dataclass(frozen=True)
class Centroids:
    """Centroids `points` [m, d] (float64) of groups `group` [m]; an embedding within `limit` of one is familiar."""

    points: Tensor
    group: Tensor
    limit: float

    def distance(self, embedding: Tensor) -> Tensor:  # [n, d] -> [n, m]
        """Euclidean distance to every centroid, float64."""
        e = check_finite(embedding, "embedding", 2)
        if e.shape[1] != self.points.shape[1]:
            raise ValueError(f"expected embeddings [n, {self.points.shape[1]}], got {tuple(e.shape)}")
        # Not by the product of the two, whose rounding would be the distance of an embedding to itself.
        return torch.cdist(e, self.points, compute_mode="donot_use_mm_for_euclid_dist")

    def nearest(self, embedding: Tensor) -> tuple[Tensor, Tensor]:  # [n, d] -> [n], [n]
        """(distance to the nearest centroid, its group); ties go to the first centroid."""
        distance = self.distance(embedding)
        place = distance.argmin(1)
        return distance.gather(1, place[:, None]).squeeze(1), self.group[place]

    def keep(self, embedding: Tensor) -> Tensor:  # [n, d] -> [n], bool
        """Which embeddings are familiar: no further from the nearest centroid than the limit."""
        return self.nearest(embedding)[0] <= self.limit


def fit_centroids(
    embedding: Tensor, group: Tensor, each: int = 1, quantile: float = 0.95, limit: float | None = None, seed: int = 0
) -> Centroids:  # [n, d], [n]
    """Centroids of each group by k-means, for inference-time probing (MRMBench, arXiv 2511.12464).

    The paper leaves out responses further than 140 from all; here the limit is a quantile of these distances (ours).

    Args:
        embedding: a validation set's embeddings [n, d].
        group: which group each belongs to, int64 [n].
        each: centroids a group; 1 is the group's mean. Not more than its smallest group has different rows.
        quantile: share of these embeddings that are familiar, if no limit is given.
        limit: the distance itself; infinity keeps all.
        seed: of k-means' starts.

    Raises:
        ConfigError: `each` below 1, or a quantile outside 0 to 1.
        DataError: no rows, a number that is not finite, or a group with fewer rows than centroids.
    """
    if each < 1 or not 0 <= quantile <= 1:
        raise ConfigError(f"each is {each} and quantile {quantile}; expected 1 or more, and a share from 0 to 1.")
    if limit is not None and not limit >= 0:
        raise ConfigError(f"The limit is {limit}; it must be a distance of 0 or more.")
    e = check_finite(embedding, "embedding", 2)
    if group.shape != e.shape[:1]:
        raise ValueError(f"expected one group for each of {len(e)} embeddings, got {tuple(group.shape)}")
    if not len(e):
        raise DataError("There are no embeddings to take centroids of.")
    names, sizes = torch.unique(group, return_counts=True)
    if int(sizes.amin()) < each:
        small = int(sizes.argmin())
        raise DataError(f"Group {int(names[small])} has {int(sizes[small])} rows, fewer than its {each} centroids.")
    parts = [_means(e[group == name], each, seed) for name in names]
    found = Centroids(torch.cat(parts), names.repeat_interleave(each), float("inf"))
    if limit is None:
        limit = float(torch.quantile(found.nearest(e)[0], quantile))
    return Centroids(found.points, found.group, limit)


def _means(embedding: Tensor, count: int, seed: int) -> Tensor:  # [n, d] -> [count, d]
    if count == 1:
        return embedding.mean(0, keepdim=True)
    from sklearn.cluster import KMeans  # not before: it takes as long to load as torch

    means = KMeans(count, n_init=4, random_state=seed).fit(embedding.cpu().numpy()).cluster_centers_
    return torch.from_numpy(means).to(embedding)


def directional_similarity(
    response: Tensor, prompt: Tensor, direction: Tensor, extrapolation: float = 1.5
) -> Tensor:  # [n, d], [n, d], [d] -> [n]
    """⟨e_response, e⁻ + w (e⁺ - e⁻)⟩, e± = (e_prompt ± b) / |e_prompt ± b|: D²-Align's reward (arXiv 2512.24146).

    Args:
        response, prompt: embeddings; finite.
        direction: b.
        extrapolation: w, above 1 in the paper (1.5).

    Raises:
        DataError: a number that is not finite. ValueError: shapes that do not fit.
    """
    if response.shape != prompt.shape or direction.shape != response.shape[1:]:
        shapes = [tuple(t.shape) for t in (response, prompt, direction)]
        raise ValueError(f"expected response and prompt [n, d] and a direction [d], got {shapes}")
    e, q, b = (
        check_finite(response, "response", 2),
        check_finite(prompt, "prompt", 2),
        check_finite(direction, "direction"),
    )
    plus, minus = normalize(q + b, dim=1), normalize(q - b, dim=1)
    return (e * (minus + extrapolation * (plus - minus))).sum(1).to(response.dtype)


def directional_correction(
    reward: Callable[[Tensor], Tensor],  # [n, d] -> [n]
    embedding: Tensor,  # [n, d]
    direction: Tensor,  # [d]
    extrapolation: float = 1.5,
) -> Tensor:  # [n]
    """h(e - b) + w (h(e + b) - h(e - b)) for a reward h that is not linear: D²-Align's idea on one embedding (ours).

    Raises:
        ConfigError: a reward that is linear in the embedding, whose ranking this cannot change.
    """
    plus, minus, plain = reward(embedding + direction), reward(embedding - direction), reward(embedding)
    corrected = minus + extrapolation * (plus - minus)
    linear = isinstance(reward, torch.nn.Linear)
    if not linear and len(plain) > 1 and bool(direction.any()):
        spread, moved = _range(plain), _range(corrected - plain)
        # What rounding can make of the same move for all rows.
        linear = spread > 0 and moved <= 1e-5 * (spread + float((corrected - plain).abs().amax()))
    if linear:
        raise ConfigError(
            "A linear head's rewards all move by the same amount along a direction, so that the correction changes no "
            "ranking. Use a head with a hidden layer, or remove a nuisance direction instead."
        )
    return corrected


def _range(values: Tensor) -> float:
    return float(values.double().amax() - values.double().amin())


def nuisance_direction(embedding: Tensor, nuisance: Tensor, l2: float = 1e-3) -> Tensor:  # [n, d], [n] -> [d]
    """Unit vector along which the embedding tells a nuisance such as length, by ridge regression (ours).

    u = w / |w|, w = argmin ½ mean (w·(e - ē) - (z - z̄))² + l2/2 s² |w|², s² the mean variance of the embedding's
    numbers.

    Raises:
        DataError: numbers that are not finite, or a nuisance that the embedding has nothing to do with (all equal).
        ConfigError: a penalty of 0 or less. ValueError: shapes that do not fit.
    """
    if not l2 > 0:
        raise ConfigError(f"The penalty l2 is {l2}; it must be above 0.")
    e, z = check_finite(embedding, "embedding", 2), check_finite(nuisance, "nuisance")
    if len(e) != len(z):
        raise ValueError(f"expected a nuisance for each of {len(e)} embeddings, got {len(z)}")
    if len(z) == 0 or bool(z.amax() == z.amin()):
        raise DataError(f"The nuisance is the same for all {len(z)} rows, so that no direction can tell it.")
    e, z = e - e.mean(0), z - z.mean()
    covariance = e.T @ e / len(e)
    scale = covariance.diagonal().mean()
    if not bool(scale > 0):
        raise DataError(f"All {len(z)} embeddings are equal, so that no direction can tell the nuisance.")
    covariance.diagonal().add_(l2 * scale)
    return normalize(torch.linalg.solve(covariance, e.T @ (z / z.abs().amax()) / len(e)), dim=0).to(embedding.dtype)


def remove_direction(embedding: Tensor, direction: Tensor) -> Tensor:  # [n, d], [d] -> [n, d]
    """Removal of a direction: e - ⟨e, u⟩ u, u = direction / |direction|.

    Raises:
        DataError: a direction of length 0, or numbers that are not finite. ValueError: shapes that do not fit.
    """
    e, u = check_finite(embedding, "embedding", 2), check_finite(direction, "direction")
    if e.shape[1:] != u.shape:
        raise ValueError(f"expected embeddings [n, d] and a direction [d], got {tuple(e.shape)} and {tuple(u.shape)}")
    if not bool(u.norm() > 0):
        raise DataError("The direction has length 0, so that nothing lies along it.")
    u = u / u.norm()
    return (e - (e @ u)[:, None] * u).to(embedding.dtype)
