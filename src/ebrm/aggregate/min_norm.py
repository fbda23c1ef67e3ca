"""Weights with which several objectives improve together: the shortest vector in the hull of their gradients."""

from __future__ import annotations

import numpy as np
import torch
from scipy.optimize import nnls
from torch import Tensor

from ebrm.errors import DataError
from ebrm.utils.validation import check_finite


def min_norm_weights(gradient: Tensor, normalize: bool = True) -> Tensor:  # [t, d] -> [t]
    """Weights λ of t objectives that make their common gradient v = Σ_t λ_t g_t as short as it can be.

        λ = argmin ‖Σ_t λ_t g_t‖²,  λ_t ≥ 0,  Σ_t λ_t = 1

    v satisfies v·g_t ≥ ‖v‖² for every t, so a step along it improves every objective, unless it is 0: then no step
    does (the point is Pareto stationary). This is the multiple-gradient descent that "On Diversified Preferences of
    Large Language Model Alignment" (MORE, arXiv 2312.07401) uses to train one reward model on several data sets, with
    the gradients of the linear reward head alone. With t gradients normalized, the objective with the smallest
    gradient no longer takes nearly all the weight.

    The solution is exact, by non-negative least squares: min ‖Gᵀμ‖² + (Σμ - 1)² over μ ≥ 0, and λ = μ / Σμ. MORE's
    public solver iterates and never gives 0 or 1 at a corner, but 0.001 and 0.999. Where several λ give the same v
    (identical gradients, say), one of them is returned; v is unique. MORE also averages gradients over steps: that is
    up to the caller, as is dividing by losses in place of lengths.

    Args:
        gradient: the gradient of each objective [t, d], t ≥ 1.
        normalize: divide each by its length first (MORE's default, "l2"). A gradient of 0 cannot be.

    Returns:
        λ [t], in the gradients' type (the default type for whole numbers); Σ λ = 1. All gradients 0 and not
        normalized: 1 / t each. Scaling all gradients by one number changes nothing, nor does rotating them; with
        `normalize` nor does scaling one of them.

    Raises:
        DataError: a number that is not finite, or a gradient of 0 that is to be normalized.
        ValueError: not [t, d] with at least one of each.
    """
    numbers = check_finite(gradient, "gradients [t, d]", 2).detach()
    if not numbers.numel():
        raise ValueError(f"expected the gradients of t objectives [t, d], got {tuple(gradient.shape)}")
    largest = numbers.abs().amax()
    if normalize:
        # By its largest number first, so that no square is too small or too large.
        height = numbers.abs().amax(1)
        if bool((height == 0).any()):
            raise DataError(
                f"The gradient of objective {int((height == 0).nonzero()[0, 0])} is 0, so that it has no direction. "
                "Leave that objective out of this step, or do not normalize."
            )
        numbers = numbers / height[:, None]
        numbers = numbers / numbers.square().sum(1).sqrt()[:, None]
    elif float(largest) == 0:
        return gradient.new_full((len(gradient),), 1 / len(gradient), dtype=torch.result_type(gradient, 1.0))
    else:
        numbers = numbers / largest
    triangle = torch.linalg.qr(numbers.T, mode="r").R.cpu().numpy()  # [min(t, d), t], of the same products
    table = np.concatenate([triangle, np.ones((1, len(numbers)))])
    weight, _ = nnls(table, np.eye(len(table))[-1])
    return torch.as_tensor(weight / weight.sum()).to(gradient.device, torch.result_type(gradient, 1.0))
