"""One linear head for several objectives, none of which it improves at another's cost."""

from __future__ import annotations

import torch
from torch import Tensor

from ebrm.errors import DataError
from ebrm.heads.bradley_terry import LinearHead, held_out_loss
from ebrm.heads.data import HeadData
from ebrm.heads.head_config import HeadConfig
from ebrm.heads.losses import pair_loss

_STEPS = 300
#: Below this share of its first length, an objective's gradient has come to its end.
_DONE = 1e-4


class MinNormHead(LinearHead):
    """u(e) = w·x, every step of which improves every objective: the multi-objective reward model of MORE.

    "On Diversified Preferences of Large Language Model Alignment" (MORE, arXiv 2312.07401) updates the linear reward
    head alone with λ = argmin |Σ λ_t ĝ_t|² over the simplex (:func:`ebrm.aggregate.min_norm.min_norm_weights`), g_t the
    gradient of objective t's mean Bradley-Terry loss and ĝ_t = g_t / |g_t|. The objectives are the pairs' groups:
    sources, annotators, attributes. Embeddings being frozen there as well, this is the method itself.

    Ours: full-batch gradient descent from w = 0, w ← w - (min_t |g_t| / L) Σ λ_t ĝ_t, L a bound of all objectives'
    curvature, so that no objective's loss ever rises; MORE weights the losses with λ, which is another direction,
    smooths gradients with a momentum that keeps 1% of the past, and takes small steps. It ends where an objective has
    reached its own best point or 300 steps are made, and keeps the step with the lowest held-out loss. Starting at 0
    matters: where the pooled pairs' loss is lowest, no step improves all. One objective is gradient descent on the
    linear head's loss.

    Attributes:
        mixture: λ of the last step [t].
    """

    mixture: Tensor

    def __init__(self, embedding_size: int, settings: HeadConfig, groups: int = 1) -> None:
        super().__init__(embedding_size, settings, groups)
        self.register_buffer("mixture", torch.full((groups,), 1 / groups))

    @classmethod
    def groups_in(cls, data: HeadData) -> int:
        """How many objectives there are.

        Raises:
            DataError: the pairs name none, or there is one without pairs.
        """
        if data.group is None:
            raise DataError("The min-norm head needs to know which objective each pair belongs to. Give their groups.")
        sizes = torch.bincount(data.group)
        if bool((sizes == 0).any()):
            raise DataError(f"Objective {int((sizes == 0).nonzero()[0, 0])} has no training pairs. Number them from 0.")
        return len(sizes)

    def learn(self, data: HeadData, generator: torch.Generator) -> None:
        """Fit the weights; draws nothing."""
        from ebrm.aggregate import min_norm_weights  # not before: it loads SciPy's optimizers

        assert data.group is not None
        x, l2 = data.embedding.double(), self.settings.l2 or 0.0
        difference = x[data.train.chosen] - x[data.train.rejected]
        members = torch.nn.functional.one_hot(data.group, int(self.groups)).to(x)  # [p, t]
        share = members / members.sum(0)
        bound = max(
            0.25 * float(torch.linalg.matrix_norm(difference * (data.weight * part).sqrt()[:, None], 2)) ** 2
            for part in share.unbind(1)
        )
        w = torch.zeros(x.shape[1]).to(x)
        best, best_value, first = w, float("inf"), None
        for _ in range(_STEPS):
            gradients = self._gradients(w, difference, share, data) + l2 * w
            length = gradients.norm(dim=1)
            first = length if first is None else first
            if bool((length <= _DONE * first).any()):
                break
            mixture = min_norm_weights(gradients, normalize=True)
            self.mixture.copy_(mixture)
            step = length.amin() * mixture @ (gradients / length[:, None])
            w = w - step / (bound + l2)
            value = held_out_loss(x @ w, data) if len(data.validation) else -1.0
            if value < best_value or not len(data.validation):
                best, best_value = w, value
        self.weight.copy_(best)

    def _gradients(self, w: Tensor, difference: Tensor, share: Tensor, data: HeadData) -> Tensor:  # -> [t, d]
        """Gradient of each objective's mean loss."""
        d = (difference @ w).requires_grad_()
        with torch.enable_grad():
            loss = pair_loss(
                d, torch.zeros_like(d), label=data.label, weight=data.weight, margin=data.margin,
                smoothing=self.settings.smoothing,
            ).sum()  # fmt: skip
            (slope,) = torch.autograd.grad(loss, d)
        return (share * slope[:, None]).T @ difference
