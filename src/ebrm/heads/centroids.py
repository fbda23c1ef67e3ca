"""How familiar a response is: the distance of its embedding to centroids of ones that are known."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ebrm.errors import ConfigError, DataError
from ebrm.utils.validation import check_finite


@dataclass(frozen=True)
class Centroids:
    """Centroids of groups of embeddings, and how far a familiar embedding is from the nearest.

    Attributes:
        points: [m, d], float64.
        group: the group (a preference dimension, say) of each centroid [m].
        limit: the distance above which an embedding is not familiar.
    """

    points: Tensor
    group: Tensor
    limit: float

    def distance(self, embedding: Tensor) -> Tensor:  # [n, d] -> [n, m]
        """Euclidean distance to every centroid, float64. A common rotation or translation changes nothing.

        Raises:
            DataError: a number that is not finite. ValueError: not [n, d].
        """
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
    embedding: Tensor,  # [n, d]
    group: Tensor,  # [n]
    each: int = 1,
    quantile: float = 0.95,
    limit: float | None = None,
    seed: int = 0,
) -> Centroids:
    """Centroids of each group by k-means, for inference-time probing (MRMBench, arXiv 2511.12464).

    The paper takes the nearest centroid's preference dimension as the one "used", and leaves responses out of training
    that are further than 140 from all, a number that means nothing for another model. Here the limit is a quantile
    of the distances of these embeddings (ours).

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
