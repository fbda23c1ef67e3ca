"""Regression of rated attributes, whose weighted sum is the reward."""

from __future__ import annotations

import torch
from torch import Tensor

from ebrm.errors import ConfigError, DataError
from ebrm.heads.base import RewardHead
from ebrm.heads.data import HeadData
from ebrm.heads.head_config import HeadConfig
from ebrm.heads.minimize import PENALTIES, UNMEASURED_PENALTY


class AttributeHead(RewardHead):
    """u(e) = Σ_j c_j (w_j·x + b_j): one linear regression an attribute, summed with the weights c.

    The masked squared error of HelpSteer2 (arXiv 2406.08673), Σ (p - t)² over the ratings t there are, with l2/2 |w|²
    for each attribute beside half its mean squared error; in closed form, with the intercept free of penalty. c is the
    settings' `attribute_weights` (:mod:`ebrm.aggregate.weights` names published ones), or 1/a each. A negative weight
    for verbosity, as in the published ones, is what very short responses profit from.

    The deviation is that of Σ c_j (t_j - p_j) over the held-out rows that have all ratings (training rows where there
    are none): one number, the same for every row.
    """

    noise = "normal"

    weight: Tensor  # [a, d]
    bias: Tensor  # [a]
    residual: Tensor

    def __init__(self, embedding_size: int, settings: HeadConfig, groups: int = 1) -> None:
        super().__init__(embedding_size, settings, groups)
        self.register_buffer("weight", torch.zeros(groups, embedding_size))
        self.register_buffer("bias", torch.zeros(groups))
        self.register_buffer("residual", torch.ones((), dtype=torch.float64))
        mix = settings.attribute_weights or (1 / groups,) * groups
        if len(mix) != groups:
            raise ConfigError(f"There are {len(mix)} attribute_weights for {groups} attributes; give one each.")
        self._mix = torch.tensor(mix, dtype=torch.float64)

    @classmethod
    def groups_in(cls, data: HeadData) -> int:
        """How many attributes are rated.

        Raises:
            DataError: none.
        """
        if data.ratings is None or not data.ratings.shape[1]:
            raise DataError("The head for attributes is fitted on ratings of responses, and there are none. Give them.")
        return data.ratings.shape[1]

    def attributes(self, x: Tensor) -> Tensor:  # [n, d] -> [n, a]
        """Predicted ratings of standardized embeddings, in the ratings' units."""
        return x @ self.weight.T + self.bias

    def scores(self, x: Tensor) -> Tensor:  # [n, d] -> [n]
        """The weighted sum of the predicted ratings."""
        return self.attributes(x).double() @ self._mix.to(x.device)

    def spread(self, x: Tensor) -> Tensor:  # [n, d] -> [n]
        """The residual's standard deviation, head units."""
        return self.residual.expand(len(x))

    def learn(self, data: HeadData, generator: torch.Generator) -> None:
        """Fit every attribute's regression; draws nothing."""
        assert data.ratings is not None
        x, ratings = data.embedding.double(), data.ratings.to(data.embedding.device)
        held = ~data.training_rows
        for j, rating in enumerate(ratings.unbind(1)):
            known = ~rating.isnan()
            fitted_on, measured_on = data.training_rows & known, held & known
            if not bool(fitted_on.any()):
                raise DataError(f"No training row has a rating of attribute {j}. Leave it out, or give some.")
            ridge = _Ridge(x[fitted_on], rating[fitted_on])
            penalty = UNMEASURED_PENALTY if self.settings.l2 is None else self.settings.l2
            if self.settings.l2 is None and bool(measured_on.any()):
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
    """argmin ½ mean (w·x + b - t)² + l2/2 |w|², for any l2 from one decomposition."""

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
