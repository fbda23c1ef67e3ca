"""Thumbs up and down without pairs: a shifted binary cross-entropy, which bounds the pairs' loss from above."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from ebrm.errors import DataError
from ebrm.heads.bradley_terry import LinearHead, held_out_loss
from ebrm.heads.data import HeadData
from ebrm.heads.minimize import best_penalty
from ebrm.utils.validation import check_finite, check_same_shape


def class_mean_shift(reward: Tensor, up: Tensor) -> Tensor:  # [n], [n] -> []
    """δ = (mean reward of thumbs up + mean reward of thumbs down) / 2, float64.

    BCO's reward shift ("Binary Classifier Optimization", arXiv 2404.04656), which makes the bound of
    :func:`binary_feedback_loss` tight. The paper keeps a moving average of it; TRL takes the mean of all rewards
    pooled, which is another number as soon as there are more of one kind.

    Raises:
        DataError: a reward that is not finite, or no thumbs of one kind.
    """
    check_same_shape(reward=reward, up=up)
    values = check_finite(reward, "reward")
    for which, name in ((up, "up"), (~up, "down")):
        if not bool(which.any()):
            raise DataError(f"None of {len(up)} responses has a thumb {name}, so there is no mean reward of those.")
    return 0.5 * (values[up].mean() + values[~up].mean())


def binary_feedback_loss(
    reward: Tensor,  # [n]
    up: Tensor,  # [n], bool
    shift: Tensor | float = 0.0,
    weight: Tensor | None = None,  # [n]
) -> Tensor:  # [n]
    """-w log σ(±(r - δ)) of each response, + for a thumb up and - for one down (BCO, arXiv 2404.04656).

    For any δ, -log σ(r_w - δ) - log σ(-(r_l - δ)) > -log σ(r_w - r_l): what lowers it lowers a bound of the pairs'
    loss, closest at δ = (r_w + r_l) / 2. Adding a constant to rewards and shift changes nothing.

    Args:
        reward: r [n]; gradients go through.
        up: which responses have a thumb up, bool [n].
        shift: δ, see :func:`class_mean_shift`.
        weight: w [n], 0 or more; the paper's density ratios for thumbs down, 1 for thumbs up.

    Raises:
        DataError: a reward or weight that is not finite, or a weight below 0.
    """
    check_same_shape(reward=reward, up=up)
    z = check_finite(reward, "reward") - shift
    value = -logsigmoid(torch.where(up, z, -z))
    if weight is not None:
        check_same_shape(reward=reward, weight=weight)
        factor = check_finite(weight, "weight")
        if bool((factor < 0).any()):
            place = int((factor < 0).nonzero()[0, 0])
            raise DataError(f"The weight of response {place} is {float(factor[place])}; it must be 0 or more.")
        value = factor * value
    return value.to(reward.dtype)


class BinaryFeedbackHead(LinearHead):
    """u(e) = w·x fitted on thumbs by BCO's loss, with the shift δ(w) that goes with w.

    The loss is the mean over thumbs up plus the mean over thumbs down. u - δ(w) is linear in w, so with the whole
    data at hand this is logistic regression without intercept on embeddings centered halfway between the two classes'
    means: convex, and solved by L-BFGS. (The paper's δ is a running average that no gradient goes through.) Thumbs
    are the first column of the ratings, 1 up and 0 down; without ratings a pair's chosen response has a thumb up and
    its rejected one a thumb down, with the pair's weight, and which belong together is forgotten.

    Uncertainty and P(a above b) are those of the Bradley-Terry likelihood that the loss bounds.
    """

    def learn(self, data: HeadData, generator: torch.Generator) -> None:
        """Fit the weights; draws nothing."""
        x = data.embedding.double()
        if data.ratings is None:
            rows = torch.cat([data.train.chosen, data.train.rejected])
            up = torch.arange(len(rows)) < len(data.train)
            weight = torch.cat([data.weight, data.weight])
        else:
            thumbs = data.ratings[:, 0]
            rows = (data.training_rows & ~thumbs.isnan()).nonzero().squeeze(1)
            up, weight = thumbs[rows] == 1, torch.ones(len(rows), dtype=torch.float64)
            if not bool((up | (thumbs[rows] == 0)).all()):
                raise DataError("Ratings for the kind binary must be 1 (thumb up), 0 (down) or NaN (none).")
        x_rows = x[rows]
        class_mean_shift(x_rows[:, 0], up)  # refuses one kind of thumbs alone
        share = torch.where(up, 1 / up.sum(), 1 / (~up).sum())  # of its class

        def loss(w: Tensor) -> Tensor:
            u = x_rows @ w
            shift = 0.5 * (u[up].mean() + u[~up].mean())
            return (share * binary_feedback_loss(u, up, shift, weight)).sum()

        held_out = (lambda w: held_out_loss(x @ w, data)) if len(data.validation) else None
        found, _ = best_penalty(loss, held_out, torch.zeros(x.shape[1]).to(x), self.settings.l2)
        self.weight.copy_(found)
