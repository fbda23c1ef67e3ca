"""Frozen embeddings: linear probes, rewards of demonstrations, centroids, directions, and gradients of rewards."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from ebrm.errors import ConfigError, DataError
from ebrm.groups import Groups
from ebrm.heads.minimize import lowest
from ebrm.utils.validation import check_finite, check_setting, refuse


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


def demonstration_reward(
    demonstration: Tensor,  # [m, d]
    sample: Tensor,  # [n, d]
    of_demonstration: Groups,
    of_sample: Groups,
    beta: float = 1.0,
    l2: float = 0.01,
) -> Tensor:  # [d]
    """Reward w·e of demonstrations against a policy's own samples, by inverse reinforcement learning (DR-IRL).

        max_w min_π E[r(demonstration) - r(π)] + β KL(π ‖ π_ref) - l2/2 |w|²,  r = w·e

    DR-IRL (arXiv 2503.18991) alternates between both; on samples of π_ref the inner policy is the exponential tilt of
    the samples in closed form (ours), which leaves a concave problem: the mean over prompts of w·(mean demonstration) -
    β log mean_j exp(w·e_j / β). At its end the demonstrations' mean embedding is that of the tilted samples, plus l2 w.
    Without the penalty demonstrations outside the samples' hull have no finite w. The paper fits one reward a category
    of harm: call it once for each. With β → ∞ it is the difference of both mean embeddings over l2.

    Args:
        demonstration: embeddings of responses that are known to be good.
        sample: of responses of the reference policy to the same prompts.
        of_demonstration, of_sample: the prompt of each; both number the same prompts, and each has both kinds.
        beta: β, in the reward's unit, above 0.
        l2: the penalty, above 0.

    Returns:
        w, float64; e @ w is the reward.

    Raises:
        DataError: a number that is not finite, no prompt, or a prompt without one kind of response.
    """
    check_setting("beta", beta, above=0)
    check_setting("l2", l2, above=0)
    good = check_finite(demonstration, "demonstration [m, d]", m=len(of_demonstration))
    drawn = check_finite(sample, "sample [n, d]", device=good.device, n=len(of_sample), d=good.shape[1])
    first, second = of_demonstration.to(good.device), of_sample.to(good.device)
    if first.count != second.count:
        raise ValueError(f"{first.count} prompts of demonstrations and {second.count} of samples; expected the same")
    refuse((first.sizes == 0) | (second.sizes == 0), "prompts are without demonstration or sample")
    if not first.count:
        raise DataError("There are no demonstrations to learn from.")
    share = first.spread(1 / first.sizes.to(good))
    mean = (share[:, None] * good).sum(0) / first.count
    log_size = second.sizes.to(good).log()

    def loss(w: Tensor) -> Tensor:
        return beta * (second.logsumexp(drawn @ w / beta) - log_size).mean() - mean @ w

    return lowest(loss, torch.zeros_like(mean), l2)


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


@dataclass(frozen=True, eq=False)
class GradientProbe:
    """What `reward_gradient_probe` found of each row.

    Attributes:
        norm: length of the reward's gradient |∇r(e)|, reward a unit of the embedding [n].
        distance: how far the embedding was moved; infinite where the gradient is 0 [n].
        gained: by how much the reward rose on the way [n].
    """

    norm: Tensor
    distance: Tensor
    gained: Tensor


def reward_gradient_probe(
    reward: Callable[[Tensor], Tensor],  # [n, d] -> [n]
    embedding: Tensor,  # [n, d]
    gain: float = 1.0,
    steps: int = 10,
) -> GradientProbe:
    """How far embeddings have to move along the reward's gradient for the reward to rise by `gain` (after AlignProp).

    AlignProp (arXiv 2310.03739) follows this gradient into an image's generator, which texts do not have; what is left
    is a probe of the reward (ours): a distance that is small beside those between responses is a direction that a
    policy can exploit. `steps` times e ← e + (gain / steps) ∇r / |∇r|²; for a linear reward w·e the distance is gain /
    |w|, in any number of steps. Where the reward bends, `gained` says how much of the gain was had.

    Args:
        reward: differentiable, each row by itself, such as a fitted head (`model.head`).
        embedding: where to begin.
        gain: in the reward's unit, above 0.
        steps: 1 or more.
    """
    check_setting("gain", gain, above=0)
    check_setting("steps", steps, at_least=1)
    check_finite(embedding, "embedding [n, d]")
    start = at = embedding.detach()
    first: Tensor | None = None
    values = []
    for _ in range(steps):
        with torch.enable_grad():
            leaf = at.clone().requires_grad_()
            value = reward(leaf)
            (slope,) = torch.autograd.grad(value.sum(), leaf)
        values.append(value.detach())
        square = slope.square().sum(1)
        first = square.sqrt() if first is None else first
        at = at + torch.where(square > 0, gain / steps / square, 0.0)[:, None] * slope
    with torch.no_grad():
        gained = reward(at) - values[0]
    assert first is not None
    distance = torch.where(first > 0, (at - start).square().sum(1).sqrt(), torch.inf)
    return GradientProbe(first, distance, gained)


def spsa_gradient(
    reward: Callable[[Tensor], Tensor],  # [n, d] -> [n]
    embedding: Tensor,  # [n, d]
    generator: torch.Generator,
    draws: int = 100,
    size: float = 0.01,
) -> Tensor:  # [n, d]
    """Gradient of a reward without derivatives: SPSA (Spall, 1992), as Euphonium (arXiv 2602.04928) for black boxes.

        ĝ = mean over draws of (r(e + c Δ) - r(e - c Δ)) / (2c) · Δ,  Δ uniform on {-1, 1}^d

    Unbiased where the reward is linear (in general up to c²), with the variance Σ_{j≠i} g_j² / draws in place i: for
    checks, and for rewards that cannot be differentiated, in few dimensions.

    Args:
        reward: each row by itself; called 2 · draws times.
        embedding: where.
        generator: draws the signs.
        draws: 1 or more.
        size: c, in the embedding's unit, above 0; differences of rewards have to stand out of their rounding.
    """
    check_setting("draws", draws, at_least=1)
    check_setting("size", size, above=0)
    check_finite(embedding, "embedding [n, d]")
    total = torch.zeros_like(embedding, dtype=torch.float64)
    with torch.no_grad():
        for _ in range(draws):
            bits = torch.randint(2, embedding.shape, generator=generator, device=generator.device)
            sign = (2 * bits - 1).to(embedding)
            rise = reward(embedding + size * sign).double() - reward(embedding - size * sign).double()
            total += (rise / (2 * size))[:, None] * sign
    return (total / draws).to(embedding.dtype)
