"""How well a response's token embeddings lie on those of a reference: optimal transport and maximal similarity."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ebrm.errors import ConfigError, DataError
from ebrm.utils.extras import install_hint
from ebrm.utils.validation import (
    ArrayLike,
    as_tensor,
    check_choice,
    check_finite,
    check_mask,
    check_setting,
    refuse,
    unit_vectors,
)

#: Kernels exp(-cost / regularization) below exp(-600) are zero to the solver.
_LARGEST_RATIO = 600.0


@dataclass(frozen=True, eq=False)
class OTAlignment:
    """An optimal-transport plan between the tokens of a reference and of a response, and the reward of it.

    Attributes:
        reward: minus the cost of a unit of transported mass, -<P, C> / sum(P); 0 is the best.
        plan: P [s, t], float64.
        mass: sum(P). The unbalanced plan does not keep it below 1: it is
            (s t)^((1 - mass) / (1 + mass)) where all costs are 0.
    """

    reward: float
    plan: Tensor
    mass: float


def ot_alignment(
    reference: ArrayLike, response: ArrayLike, *, regularization: float = 0.05, mass: float = 0.9
) -> OTAlignment:
    """Partial entropic optimal transport between token embeddings, as a reward (after PISCES, arXiv 2602.01624).

    The cost is C = 1 - cosine. The plan is the paper's Algorithm 3: unbalanced Sinkhorn with uniform marginals,
    entropic regularization, and rho = regularization * mass / (1 - mass) for the marginals (`mass` of 0.999 and above:
    balanced), solved by POT (`reg_type="entropy"`; its default is another problem). The paper aligns videos with texts
    and reads the reward off a matching head; minus the mean cost as the reward of a text is ours.

    Args:
        reference: token embeddings of the reference or the prompt [s, d].
        response: those of the response [t, d].
        regularization: epsilon, above 0, in units of cost (0 … 2).
        mass: share of mass that the marginals ask for, above 0 and at most 1.

    Raises:
        ConfigError: regularization, mass, or the extra `references` is not installed.
        DataError: no tokens, a number that is not finite, an embedding of zeros, or other widths.
    """
    check_setting("mass", mass, above=0, at_most=1)
    check_setting("regularization", regularization, above=0)
    u, v = _units(reference, "reference"), _units(response, "response")
    if u.shape[1] != v.shape[1]:
        raise DataError(f"The reference's embeddings have {u.shape[1]} numbers and the response's {v.shape[1]}.")
    cost = (1 - u @ v.T).clamp_min(0).numpy()
    if cost.max() > _LARGEST_RATIO * regularization:
        least = cost.max() / _LARGEST_RATIO
        raise ConfigError(
            f"regularization is {regularization:g}, too small for costs of up to {cost.max():.3g}; give at least "
            f"{least:.1g}."
        )
    ot = _pot()
    uniform = [np.full(size, 1 / size) for size in cost.shape]
    options: dict[str, Any] = {"numItermax": 10_000, "stopThr": 1e-12}
    with warnings.catch_warnings():
        # Of a matrix that the entropic problem has no use for.
        warnings.filterwarnings("ignore", message="If reg_type = entropy", category=UserWarning)
        if mass >= 0.999:
            plan = ot.sinkhorn(*uniform, cost, regularization, method="sinkhorn_log", **options)
        else:
            marginals = regularization * mass / (1 - mass)
            plan = ot.unbalanced.sinkhorn_unbalanced(
                *uniform, cost, reg=regularization, reg_m=marginals, reg_type="entropy", **options
            )
    moved = float(plan.sum())
    return OTAlignment(float(-(plan * cost).sum() / moved), torch.from_numpy(plan), moved)


def max_similarity(
    response: ArrayLike,
    reference: ArrayLike,
    response_mask: ArrayLike | None = None,
    reference_mask: ArrayLike | None = None,
    combine: Literal["mean", "f1"] = "mean",
) -> Tensor:  # [n]
    """Bidirectional maximal similarity of token embeddings, in -1 … 1: ours, after BMAS of Mixed-R1 (arXiv 2505.24164).

        P = mean_i max_j cos(u_i, v_j),  R = mean_j max_i cos(u_i, v_j);  (P + R) / 2, or BERTScore's 2PR / (P + R)

    The paper's name and abstract say no more, so how it combines the two is not verified. The order of tokens does not
    count: a bag of the right words has the highest reward, so do not use it alone.

    Args:
        response: token embeddings u [n, s, d], padded.
        reference: token embeddings v [n, t, d], padded.
        response_mask: True for tokens [n, s]; None: all.
        reference_mask: True for tokens [n, t]; None: all.
        combine: "mean", or "f1" (0 where P + R is not above 0).

    Raises:
        DataError: a text without tokens, a number that is not finite, or other shapes. ConfigError: combine.
    """
    check_choice("combine", combine, ("mean", "f1"))
    u, here = _padded(response, response_mask, "response")
    v, there = _padded(reference, reference_mask, "reference")
    if len(u) != len(v) or u.shape[2] != v.shape[2]:
        raise DataError(f"The responses' embeddings are {tuple(u.shape)} and the references' {tuple(v.shape)}.")
    similarity = u @ v.transpose(1, 2)
    lowest = -torch.inf
    by_response = similarity.masked_fill(~there[:, None, :], lowest).amax(2).masked_fill(~here, 0).sum(1) / here.sum(1)
    by_reference = similarity.masked_fill(~here[:, :, None], lowest).amax(1).masked_fill(~there, 0).sum(1)
    by_reference = by_reference / there.sum(1)
    total = by_response + by_reference
    if combine == "mean":
        return (total / 2).float()
    return torch.where(total > 0, 2 * by_response * by_reference / total.where(total > 0, 1), 0).float()


@dataclass(frozen=True, eq=False)
class GaussianMap:
    """Optimal-transport map between two Gaussians, x -> A x + b: where a good response to this prompt would lie.

    The closed form in place of PISCES' network (ours): A = S^(-1/2) (S^(1/2) T S^(1/2))^(1/2) S^(-1/2) of the two
    covariances, by POT. The reward of a response is :meth:`similarity`.

    Attributes:
        matrix: A [d, d], float64.
        shift: b [d], float64.
    """

    matrix: Tensor
    shift: Tensor

    @classmethod
    def fit(cls, source: ArrayLike, target: ArrayLike, ridge: float = 1e-6) -> GaussianMap:
        """The map of the Gaussian of `source` [n, d] (prompts) to that of `target` [m, d] (good responses to prompts).

        Args:
            source: embeddings.
            target: embeddings of the same width.
            ridge: added to the diagonals of both covariances, relative to their mean variance; 0 or more.

        Raises:
            DataError: fewer than two rows, or numbers that are not finite. ConfigError: ridge.
        """
        check_setting("ridge", ridge, at_least=0)
        x, y = (
            check_finite(rows, f"{name} embedding", dims=2) for rows, name in ((source, "source"), (target, "target"))
        )
        if min(len(x), len(y)) < 2 or x.shape[1] != y.shape[1]:
            raise DataError(
                f"The source is {tuple(x.shape)} and the target {tuple(y.shape)}; give at least two rows each, of the "
                "same width."
            )
        moments = []
        for rows in (x, y):
            covariance = torch.atleast_2d(torch.cov(rows.T))
            covariance.diagonal().add_(ridge * covariance.diagonal().mean())
            moments.append((rows.mean(0).cpu().numpy(), covariance.cpu().numpy()))
        (source_mean, source_covariance), (target_mean, target_covariance) = moments
        ot = _pot()
        try:
            matrix, _ = ot.gaussian.bures_wasserstein_mapping(
                source_mean, target_mean, source_covariance, target_covariance
            )
        except np.linalg.LinAlgError:
            matrix = np.array(np.nan)
        made = torch.from_numpy(np.atleast_2d(matrix))
        if not bool(torch.isfinite(made).all()):
            raise DataError(
                "The source's covariance cannot be inverted: give more rows than numbers in a row, or a larger ridge."
            )
        return cls(made, torch.from_numpy(target_mean) - made @ torch.from_numpy(source_mean))

    def __call__(self, embedding: ArrayLike) -> Tensor:
        """The mapped embeddings [n, d], float64."""
        rows = check_finite(embedding, "embedding", dims=2).cpu()
        return rows @ self.matrix.T + self.shift

    def similarity(self, prompt: ArrayLike, response: ArrayLike) -> Tensor:  # [n]
        """Cosine of each mapped prompt [n, d] with its response [n, d], float32."""
        rows = check_finite(response, "response embedding", dims=2).cpu()
        return torch.nn.functional.cosine_similarity(self(prompt), rows).float()


def _units(embedding: ArrayLike, name: str) -> Tensor:
    rows = unit_vectors(embedding, f"of the {name}").cpu()
    if not len(rows):
        raise DataError(f"The {name} has no tokens; leave that row out.")
    return rows


def _padded(embedding: ArrayLike, mask: ArrayLike | None, name: str) -> tuple[Tensor, Tensor]:
    """Unit vectors [n, t, d] and the mask [n, t]; what is masked is not looked at."""
    rows = as_tensor(embedding, f"{name} embedding")
    if rows.dim() != 3:
        raise ValueError(f"{name} embedding: expected [n, tokens, d], got the shape {tuple(rows.shape)}")
    n, t, _ = rows.shape
    if mask is None:
        where = torch.ones(n, t, dtype=torch.bool, device=rows.device)
    else:
        where = check_mask(mask, f"{name} mask [n, tokens]", rows.device, n=n, tokens=t)
    refuse(~where.any(1), f"{name}s have no tokens", "Leave those rows out.")
    units = torch.zeros(rows.shape, dtype=torch.float64, device=rows.device)
    units[where] = unit_vectors(rows[where], f"of the {name}s' tokens")
    return units, where


def _pot() -> Any:
    try:
        import ot
    except ImportError as error:
        raise ConfigError(f"Optimal transport needs POT ({install_hint('references')}).") from error
    return ot
