"""Directions of the embedding that a reward likes too much: made unprofitable, or taken out."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ebrm.errors import ConfigError, DataError
from ebrm.heads.bradley_terry import SiluHead
from ebrm.heads.data import HeadData
from ebrm.heads.head_config import HeadConfig
from ebrm.utils.validation import check_finite

#: Length of the direction in lengths of the average standardized embedding, and the steps that look for it.
_REACH, _STEPS = 0.5, 200


def directional_similarity(
    response: Tensor,  # [n, d]
    prompt: Tensor,  # [n, d]
    direction: Tensor,  # [d]
    extrapolation: float = 1.5,
) -> Tensor:  # [n]
    """⟨e_response, e⁻ + w (e⁺ - e⁻)⟩ with e± = (e_prompt ± b) / |e_prompt ± b|: D²-Align's guided reward.

    "Directional Decoupling Alignment" (arXiv 2512.24146), where the response is an image. b = 0 gives the cosine-like
    ⟨e_response, e_prompt / |e_prompt|⟩ for every w; w = 1 is e⁺ alone, w = ½ the point midway between e⁺ and e⁻.

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

    With a linear h every reward moves by the same (2 w - 1) h·b, so that no ranking changes: such a head is refused,
    also where it is found out only by what it says of these rows (of two or more that differ).

    Raises:
        ConfigError: a reward that is linear in the embedding.
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


class DirectionalHead(SiluHead):
    """The two-layer SiLU head, corrected along the direction b that raises its rewards most (ours, after D²-Align).

    After the head h is fitted, b = argmax of the mean over training rows of h(e - b) + w (h(e + b) - h(e - b)), |b| at
    most half the length of an average standardized embedding (projected gradient ascent, 200 steps; the paper has unit
    vectors and needs no bound). Then b is frozen, and rewards are read off that sum: what profits from the direction
    already gains less from the next step along it. The paper trains a generator against it; here it scores.
    """

    direction: Tensor  # [d]

    def __init__(self, embedding_size: int, settings: HeadConfig, groups: int = 1) -> None:
        super().__init__(embedding_size, settings, groups)
        self.register_buffer("direction", torch.zeros(embedding_size))

    def scores(self, x: Tensor) -> Tensor:  # [n, d] -> [n]
        """Corrected reward of standardized embeddings, head units."""
        return self._guided(x, self.direction)

    def _guided(self, x: Tensor, direction: Tensor) -> Tensor:
        minus = self.network(x - direction).squeeze(1)
        plus = self.network(x + direction).squeeze(1)
        return minus + self.settings.extrapolation * (plus - minus)

    def learn(self, data: HeadData, generator: torch.Generator) -> None:
        """Fit the head (b is 0 then, so that its scores are the plain ones), then the direction."""
        super().learn(data, generator)
        x = data.embedding[data.training_rows]
        limit = _REACH * float(x.norm(dim=1).mean())
        b = torch.zeros_like(self.direction).requires_grad_()
        for _ in range(_STEPS):
            with torch.enable_grad():
                (gradient,) = torch.autograd.grad(self._guided(x, b).mean(), b)
            with torch.no_grad():
                moved = b + 0.05 * limit * gradient / gradient.norm().clamp_min(1e-12)
                b = (moved * (limit / moved.norm().clamp_min(limit))).requires_grad_()
        self.direction.copy_(b.detach())


def nuisance_direction(embedding: Tensor, nuisance: Tensor, l2: float = 1e-3) -> Tensor:  # [n, d], [n] -> [d]
    """Unit vector along which the embedding tells a nuisance such as length, by ridge regression.

    u = w / |w| with w = argmin ½ mean (w·(e - ē) - (z - z̄))² + l2/2 s² |w|², s² the mean variance of the embedding's
    numbers: the penalty does not depend on the embedding's scale. (Ours: the direct counterpart of a learned
    direction, where the unwanted quantity can be measured.) A positive factor or an offset on the nuisance changes
    nothing.

    Raises:
        DataError: numbers that are not finite, or a nuisance that the embedding has nothing to do with (all equal).
        ConfigError: a penalty of 0 or less.
        ValueError: shapes that do not fit.
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
    """The embedding without what lies along a direction: e - ⟨e, u⟩ u, u = direction / |direction|. Twice is once.

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
