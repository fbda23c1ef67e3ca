"""Linear heads for other feedback: rated attributes, unpaired thumbs, several objectives at once."""

from __future__ import annotations

import logging

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from ebrm.errors import ConfigError, DataError
from ebrm.heads.base import ClosedFormHead
from ebrm.heads.config import AttributesConfig, BinaryConfig, MinNormConfig
from ebrm.heads.data import HeadData
from ebrm.heads.linear import LinearScores
from ebrm.heads.losses import held_out_loss, pair_loss
from ebrm.heads.minimize import PENALTIES, UNMEASURED_PENALTY
from ebrm.utils.validation import check_finite, check_same_shape

logger = logging.getLogger(__name__)

_STEPS = 300
#: Below this share of its first length, an objective's gradient has come to its end.
_DONE = 1e-4


class AttributesHead(ClosedFormHead):
    """u(e) = Σ_j c_j (w_j·x + b_j): one ridge regression an attribute, weighted (HelpSteer2, arXiv 2406.08673).

    c is the config's `weights` (`ebrm.aggregate` names published ones), or 1/a each. The deviation, the same for every
    row, is that of Σ c_j (t_j - p_j) over held-out rows that have all ratings (training rows where there are none).
    """

    noise = "normal"
    takes = ()
    rated = True
    not_negative = ("residual",)

    config: AttributesConfig
    weight: Tensor  # [a, d]
    bias: Tensor  # [a]
    residual: Tensor

    def _build(self, size: int, groups: int, generator: torch.Generator | None) -> None:
        self.register_buffer("weight", torch.zeros(groups, size))
        self.register_buffer("bias", torch.zeros(groups))
        self.register_buffer("residual", torch.ones((), dtype=torch.float64))
        mix = self.config.weights or (1 / groups,) * groups
        if len(mix) != groups:
            raise ConfigError(f"There are {len(mix)} weights for {groups} attributes; give one each.")
        self._mix = torch.tensor(mix, dtype=torch.float64, device="cpu")

    @classmethod
    def groups_in(cls, data: HeadData) -> int:
        if data.ratings is None or not data.ratings.shape[1]:
            raise DataError("The head for attributes is fitted on ratings of responses, and there are none. Give them.")
        return data.ratings.shape[1]

    def attributes(self, x: Tensor) -> Tensor:  # [n, d] -> [n, a]
        """Predicted ratings of standardized embeddings, in the ratings' units."""
        return x @ self.weight.T + self.bias

    def scores(self, x: Tensor) -> Tensor:  # [n, d] -> [n]
        return self.attributes(x).double() @ self._mix.to(x.device)

    def spread(self, x: Tensor) -> Tensor:  # [n, d] -> [n]
        return self.residual.expand(len(x))

    def learn(self, data: HeadData, generator: torch.Generator) -> None:
        assert data.ratings is not None
        x, ratings = data.embedding.double(), data.ratings.to(data.embedding.device)
        held = ~data.training_rows
        for j, rating in enumerate(ratings.unbind(1)):
            known = ~rating.isnan()
            fitted_on, measured_on = data.training_rows & known, held & known
            if not bool(fitted_on.any()):
                raise DataError(f"No training row has a rating of attribute {j}. Leave it out, or give some.")
            ridge = _Ridge(x[fitted_on], rating[fitted_on])
            penalty = UNMEASURED_PENALTY if self.config.ridge is None else self.config.ridge
            if self.config.ridge is None and bool(measured_on.any()):
                errors = [ridge.error(l2, x[measured_on], rating[measured_on]) for l2 in PENALTIES]
                penalty = PENALTIES[errors.index(min(errors))]
            weight, bias = ridge.at(penalty)
            self.weight[j], self.bias[j] = weight, bias
        whole = ~ratings.isnan().any(1)
        rows = held & whole if int((held & whole).sum()) > 1 else whole
        if int(rows.sum()) < 2:
            raise DataError("Fewer than two rows have ratings of all attributes, so that no error can be measured.")
        error = (ratings[rows] @ self._mix.to(ratings)) - self.scores(data.embedding[rows])
        self.residual.copy_(error.std(correction=1))


class _Ridge:
    """argmin ½ mean (w·x + b - t)² + ridge/2 |w|², for any l2 from one decomposition."""

    def __init__(self, x: Tensor, target: Tensor) -> None:  # [n, d], [n]
        self.center, self.mean = x.mean(0), target.mean()
        left, self.values, self.right = torch.linalg.svd((x - self.center) / len(x) ** 0.5, full_matrices=False)
        self.along = left.T @ (target - self.mean) / len(x) ** 0.5

    def at(self, l2: float) -> tuple[Tensor, Tensor]:  # -> [d], []
        weight = self.right.T @ (self.values / (self.values.square() + l2) * self.along)
        return weight, self.mean - weight @ self.center

    def error(self, l2: float, x: Tensor, target: Tensor) -> float:
        weight, bias = self.at(l2)
        return float((x @ weight + bias - target).square().mean())


def class_mean_shift(reward: Tensor, up: Tensor) -> Tensor:  # [n], [n] -> []
    """δ = (mean reward of thumbs up + mean reward of thumbs down) / 2, float64: BCO's reward shift (arXiv 2404.04656).

    Makes the bound of :func:`binary_feedback_loss` tight. (TRL pools all rewards, another number for unequal classes.)

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

    A bound of the pairs' loss for any δ, closest at δ = (r_w + r_l) / 2.

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


class BinaryHead(LinearScores):
    """u(e) = w·x fitted on thumbs by BCO's loss (arXiv 2404.04656), with the shift δ(w) that goes with w: convex.

    Thumbs are the first column of the ratings, 1 up and 0 down (a share between: of several people's); without ratings
    a pair's chosen response has a thumb up and its rejected one a thumb down, with the pair's weight. The loss is the
    sum of both classes' means.
    """

    takes = ("label", "weight")
    rated = True

    config: BinaryConfig

    def learn(self, data: HeadData, generator: torch.Generator) -> None:
        rows, up, weight = self._thumbs(data)
        x_rows = data.embedding.double()[rows]
        class_mean_shift(x_rows[:, 0], up)  # refuses one kind of thumbs alone
        # In float32, which keeps the fits of earlier versions to the bit.
        total = torch.stack([weight[~up].sum(), weight[up].sum()]).float()
        share = (1 / total)[up.long()]

        def loss(w: Tensor) -> Tensor:
            u = x_rows @ w
            means = [(weight[side] * u[side]).sum() / weight[side].sum() for side in (up, ~up)]
            return (share * binary_feedback_loss(u, up, 0.5 * (means[0] + means[1]), weight)).sum()

        self._fit(data, loss, self.config.ridge)

    def _thumbs(self, data: HeadData) -> tuple[Tensor, Tensor, Tensor]:
        """(rows, up, weight) of all thumbs [m]; a pair of label μ gives each side both, by μ and 1 - μ."""
        pairs = data.train
        if data.ratings is not None:
            thumbs = data.ratings[:, 0]
            rows = (data.training_rows & ~thumbs.isnan()).nonzero().squeeze(1)
            share = thumbs[rows].double()
            if bool(((share < 0) | (share > 1)).any()):
                raise DataError("Ratings for the head binary must be from 0 (thumb down) to 1 (up), or NaN (none).")
            up, weight = share == 1, torch.ones_like(share)
            if not bool((up | (share == 0)).all()):
                rows, up = torch.cat([rows, rows]), torch.cat([torch.ones_like(up), torch.zeros_like(up)])
                weight = torch.cat([share, 1 - share])
            return rows[weight > 0], up[weight > 0], weight[weight > 0]
        rows = torch.cat([pairs.chosen, pairs.rejected])
        up = torch.arange(len(rows), device=rows.device) < len(pairs)
        weight = torch.cat([pairs.weight, pairs.weight])
        if not bool((pairs.label != 1).any()):
            return rows, up, weight
        label = torch.cat([pairs.label, pairs.label])
        rows, up = torch.cat([rows, rows]), torch.cat([up, ~up])
        weight = torch.cat([weight * label, weight * (1 - label)])
        return rows[weight > 0], up[weight > 0], weight[weight > 0]


class MinNormHead(LinearScores):
    """u(e) = w·x, every step of which improves every objective (a source of pairs): MORE (arXiv 2312.07401).

    Full-batch gradient descent from 0 along Σ λ_t ĝ_t, λ = argmin |Σ λ_t ĝ_t|² over the simplex and ĝ_t the unit
    gradient of objective t's mean loss, with steps min_t |g_t| / L (ours), so that no objective's loss ever rises. Ends
    where an objective is at its best point, or after 300 steps; the step with the lowest held-out loss is kept.
    `mixture`: last λ.
    """

    grouped = True
    not_negative = ("mixture",)

    config: MinNormConfig
    mixture: Tensor

    def _build(self, size: int, groups: int, generator: torch.Generator | None) -> None:
        super()._build(size, groups, generator)
        self.register_buffer("mixture", torch.full((groups,), 1 / groups))

    @classmethod
    def groups_in(cls, data: HeadData) -> int:
        if len(data.names) == 1:
            logger.warning("All training pairs have one source, so the min-norm head has one objective.")
        return len(data.names)

    def learn(self, data: HeadData, generator: torch.Generator) -> None:
        from ebrm.aggregate import min_norm_weights  # not before: it loads SciPy's optimizers

        x, ridge = data.embedding.double(), self.config.ridge
        difference = x[data.train.chosen] - x[data.train.rejected]
        weight, held_out = data.train.weight, held_out_loss(data, lambda w: x @ w)
        members = torch.nn.functional.one_hot(data.group, int(self.groups)).to(x)  # [p, t]
        share = members / (weight[:, None] * members).sum(0)
        bound = max(
            0.25 * float(torch.linalg.matrix_norm(difference * (weight * part).sqrt()[:, None], 2)) ** 2
            for part in share.unbind(1)
        )
        w = torch.zeros(x.shape[1]).to(x)
        best, best_value, first = w, float("inf"), None
        for _ in range(_STEPS):
            gradients = self._gradients(w, difference, share, data) + ridge * w
            length = gradients.norm(dim=1)
            first = length if first is None else first
            if bool((length <= _DONE * first).any()):
                break
            mixture = min_norm_weights(gradients, normalize=True)
            self.mixture.copy_(mixture)
            step = length.amin() * mixture @ (gradients / length[:, None])
            w = w - step / (bound + ridge)
            value = -1.0 if held_out is None else held_out(w)
            if value < best_value or held_out is None:
                best, best_value = w, value
        self.weight.copy_(best)

    def _gradients(self, w: Tensor, difference: Tensor, share: Tensor, data: HeadData) -> Tensor:  # -> [t, d]
        """Gradient of each objective's mean loss."""
        d = (difference @ w).requires_grad_()
        with torch.enable_grad():
            loss = pair_loss(
                d, torch.zeros_like(d), label=data.train.label, weight=data.train.weight, margin=data.train.margin,
                label_smoothing=self.config.label_smoothing,
            ).sum()  # fmt: skip
            (slope,) = torch.autograd.grad(loss, d)
        return (share * slope[:, None]).T @ difference
