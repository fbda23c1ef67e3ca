"""Closed-form ridge Bradley-Terry on embedding differences: fits along a path of penalties, each left out by prompt.

Float64 NumPy. A fit minimizes Σ log(1 + exp(-z)) + λ p |c|² / 2 with z = offset + F c over p pairs; its leave-one-
prompt-out logits come from one Newton step (approximate leave-one-out), so a penalty is chosen without refitting.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_solve, cholesky, solve_triangular

Floats = NDArray[np.float64]

#: Penalties per pair, from strong to weak.
PENALTIES = 10.0 ** np.arange(1.0, -5.01, -0.5)


def sigmoid(x: Floats) -> Floats:
    """1 / (1 + exp(-x)), without overflow."""
    return 0.5 * (1 + np.tanh(0.5 * x))


def loss(z: Floats) -> Floats:
    """-log σ(z)."""
    return np.logaddexp(0, -z)


def reduced(difference: Floats) -> tuple[Floats, Floats]:
    """(F [p, r], V [d, r]) with F Fᵀ = D Dᵀ and D V = F: r is at most the number of pairs, and w = V c."""
    if len(difference) >= difference.shape[1]:
        return difference, np.eye(difference.shape[1])
    values, vectors = np.linalg.eigh(difference @ difference.T)
    kept = values > values.max() * 1e-10
    root = np.sqrt(values[kept])
    return vectors[:, kept] * root, difference.T @ vectors[:, kept] / root


def newton(features: Floats, offset: Floats, ridge: float, start: Floats) -> Floats:
    """The minimizer c [r] of Σ loss + ridge |c|² / 2."""
    c = start.copy()
    for _ in range(30):
        p = sigmoid(offset + features @ c)
        factor = cholesky(_curvature(features, p, ridge), lower=True, overwrite_a=True, check_finite=False)
        step = cho_solve((factor, True), features.T @ (1 - p) - ridge * c, check_finite=False)
        moved = np.abs(features @ step).max(initial=0)
        c += step * min(1, 4 / max(moved, 1e-9))
        if moved < 1e-3:
            break
    return c


def left_out(features: Floats, offset: Floats, c: Floats, ridge: float, prompt: NDArray[np.int64]) -> Floats:
    """Logits [p], each without the pairs of its own prompt."""
    z = offset + features @ c
    p = sigmoid(z)
    factor = cholesky(_curvature(features, p, ridge), lower=True, overwrite_a=True, check_finite=False)
    root = solve_triangular(factor, features.T, lower=True, check_finite=False)  # the hat matrix is rootᵀ root
    weight, out = p * (1 - p) + 1e-12, np.empty_like(z)
    order = np.argsort(prompt, kind="stable")
    ends = np.flatnonzero(np.r_[True, np.diff(prompt[order]) != 0, True])
    for first, last in zip(ends[:-1], ends[1:], strict=True):
        rows = order[first:last]
        hat = root[:, rows].T @ root[:, rows]
        out[rows] = z[rows] - np.linalg.solve(np.eye(len(rows)) - hat * weight[rows], hat @ (1 - p[rows]))
    return out


def _curvature(features: Floats, p: Floats, ridge: float) -> Floats:
    scaled = features * np.sqrt(p * (1 - p) + 1e-12)[:, None]
    matrix = scaled.T @ scaled
    matrix[np.diag_indices(len(matrix))] += ridge
    return matrix


@dataclass(frozen=True)
class Fit:
    """Coefficients [r], the penalty per pair they were fitted with, and left-out losses [p]."""

    coefficients: Floats
    penalty: float
    losses: Floats


def cross_validated(features: Floats, offset: Floats, prompt: NDArray[np.int64], penalties: Floats = PENALTIES) -> Fit:
    """The fit with the lowest left-out loss, no coefficients at all among the candidates."""
    c = np.zeros(features.shape[1])
    best = Fit(c, np.inf, loss(offset))
    for penalty in penalties:
        c = newton(features, offset, penalty * len(features), c)
        found = Fit(c, penalty, loss(left_out(features, offset, c, penalty * len(features), prompt)))
        if found.losses.mean() < best.losses.mean():
            best = found
    return best


def anchored(difference: Floats, anchors: Floats, rho: float) -> tuple[Floats, Floats]:
    """(F, V) as `reduced` under the norm |w|² + ρ mean (aᵀw)² over anchors [m, d] with mean zero."""
    scaled = anchors * np.sqrt(rho / len(anchors))
    cross = difference @ scaled.T
    solved = np.linalg.solve(np.eye(len(anchors)) + scaled @ scaled.T, cross.T)
    values, vectors = np.linalg.eigh(difference @ difference.T - cross @ solved)
    kept = values > values.max() * 1e-10
    root = np.sqrt(values[kept])
    return vectors[:, kept] * root, (difference.T - scaled.T @ solved) @ vectors[:, kept] / root
