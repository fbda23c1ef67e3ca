"""Users as mixtures of a few prototypes: rewards by the distance to a user's ideal point."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import relu

from ebrm.errors import DataError
from ebrm.heads.base import RewardHead
from ebrm.heads.bradley_terry import TwoLayers, shuffled
from ebrm.heads.data import HeadData
from ebrm.heads.head_config import HeadConfig
from ebrm.heads.minimize import early_stopping, lowest

#: Users' weights are learned this much faster than the rest: each has few pairs.
_FASTER = 10.0
#: Under a root, so that a distance of 0 has a gradient.
_TINY = 1e-12


def ideal_point_difference(chosen: Tensor, rejected: Tensor, ideal: Tensor) -> Tensor:  # [p, q] each -> [p]
    """|f(rejected) - a| - |f(chosen) - a|: above 0 where the chosen is nearer to the ideal point a.

    A rotation or translation of all points alike changes nothing.
    """
    return _distance(rejected, ideal) - _distance(chosen, ideal)


def hinge(difference: Tensor) -> Tensor:  # [p] -> [p]
    """max(0, 1 - d): PAL's loss of a difference of distances, 0 from a lead of one unit on."""
    return relu(1 - difference)


class PrototypeHead(RewardHead):
    """r(e, u) = -|f(e) - a_u|, a_u = Σ_k w_uk P_k: PAL, "Pluralistic Alignment Framework" (arXiv 2406.08469), PAL-A.

    f is two layers with SiLU into a space of `dimension` numbers, P_k are `prototypes` ideal points in it, w_u =
    softmax(ω_u) the user's weights on them. Fitted by AdamW with PAL's hinge on differences of distances
    (:func:`hinge`); every training pair has a user (its group; all one user where none is given). Held-out pairs choose
    the pass where their users are known. A new user is placed by a few pairs, with everything else frozen
    (:meth:`place`).

    The rewards that an EnergyRewardModel reads are those of the average user: w is the mean of the users' weights, each
    by its pairs (ours). `user_reward` gives one user's. The hinge is no likelihood: the deviation that is reported
    reads a lead of one unit as Bradley and Terry would.

    PAL's P lies before f ("f(Pw)", its default) or behind it ("Pw", as here); its f has a residual layer with ReLU. Its
    option `dist_logistic` has the sign of the distances the wrong way round; the formula is followed here.
    """

    share: Tensor  # [users], each user's part of the pairs

    def __init__(self, embedding_size: int, settings: HeadConfig, groups: int = 1) -> None:
        super().__init__(embedding_size, settings, groups)
        draws = torch.Generator().manual_seed(settings.seed)
        self.place_items = TwoLayers(embedding_size, settings.hidden, settings.dimension, draws)
        start = torch.randn(settings.prototypes, settings.dimension, generator=draws)
        self.prototypes = nn.Parameter(start / settings.dimension**0.5)
        # Small and different: equal weights for all would let no user find its own prototype.
        self.preference = nn.Parameter(0.1 / _FASTER * torch.randn(groups, settings.prototypes, generator=draws))
        self.register_buffer("share", torch.full((groups,), 1 / groups))

    @classmethod
    def groups_in(cls, data: HeadData) -> int:
        """How many users there are."""
        return 1 if data.group is None else int(data.group.max()) + 1

    @property
    def weights(self) -> Tensor:  # [users, k]
        """Each user's weights on the prototypes; they add up to one."""
        return torch.softmax(_FASTER * self.preference, 1)

    def scores(self, x: Tensor) -> Tensor:  # [n, d] -> [n]
        """The average user's reward, head units."""
        return self._scores_by(x, self.share @ self.weights)

    def _scores_by(self, x: Tensor, weights: Tensor) -> Tensor:  # [n, d], [k] -> [n]
        return -_distance(self.place_items(x), weights @ self.prototypes)

    @torch.no_grad()
    def user_reward(self, embedding: Tensor, user: int | Tensor) -> Tensor:  # [n, d], a number or [k] -> [n]
        """Rewards by one user's ideal point, in the units of the average user's rewards, float32.

        Args:
            embedding: as the base RM gives them [n, d].
            user: a training user's number, or weights on the prototypes [k] as :meth:`place` gives them.

        Raises:
            DataError: no such user.
        """
        if isinstance(user, int) and not 0 <= user < int(self.groups):
            raise DataError(f"There is no user {user}: the head was fitted with users 0 to {int(self.groups) - 1}.")
        weights = self.weights[user] if isinstance(user, int) else user.to(self.prototypes)
        scores = self._scores_by(self.standardizer.embed(embedding.to(self.device)), weights)
        return self.standardizer.to_base(self.offset + self.gain * scores.double()).cpu()

    def place(self, chosen: Tensor, rejected: Tensor, l2: float = 0.01) -> Tensor:  # [p, d], [p, d] -> [k]
        """Weights on the prototypes of a new user, from embeddings of the responses of p pairs of theirs.

        Minimizes the mean hinge with everything else frozen, plus l2/2 |ω|² (ours): no pairs give equal weights.
        """
        with torch.no_grad():
            sides = [
                self.place_items(self.standardizer.embed(side.to(self.device))).double() for side in (chosen, rejected)
            ]
        points = self.prototypes.detach().double()
        if len(chosen) == 0:
            return torch.full((len(points),), 1 / len(points))

        def loss(omega: Tensor) -> Tensor:
            return hinge(ideal_point_difference(sides[0], sides[1], torch.softmax(omega, 0) @ points)).mean()

        return torch.softmax(lowest(loss, torch.zeros(len(points)), l2), 0).float()

    def learn(self, data: HeadData, generator: torch.Generator) -> None:
        """Fit projection, prototypes and users; shuffles with `generator`."""
        s, x, train = self.settings, data.embedding, data.train
        user = torch.zeros(len(train), dtype=torch.int64) if data.group is None else data.group
        held_user = torch.zeros(len(data.validation), dtype=torch.int64)
        if data.group is not None and data.validation_group is not None:
            held_user = data.validation_group
            if bool((held_user >= int(self.groups)).any()):
                raise DataError(f"Held-out pairs have a user above {int(self.groups) - 1}, the last in training pairs.")
        self.share.copy_(torch.bincount(user, minlength=int(self.groups)) / len(user))

        def difference(chosen: Tensor, rejected: Tensor, user: Tensor) -> Tensor:
            points = self.place_items(x[torch.cat([chosen, rejected])])
            ideal = (self.weights @ self.prototypes)[user]
            return ideal_point_difference(points[: len(chosen)], points[len(chosen) :], ideal)

        def loss(batch: Tensor) -> Tensor:
            lead = difference(train.chosen[batch], train.rejected[batch], user[batch])
            label = data.label[batch]
            return (data.weight[batch] * (label * hinge(lead) + (1 - label) * hinge(-lead))).mean()

        def held_out() -> float:
            return float(hinge(difference(data.validation.chosen, data.validation.rejected, held_user)).mean())

        known = len(data.validation) and (data.group is None or data.validation_group is not None)
        early_stopping(
            self, lambda g: shuffled(len(train), s.batch_pairs, g), loss, held_out if known else None,
            learning_rate=s.learning_rate, weight_decay=s.weight_decay, epochs=s.epochs, patience=s.patience,
            generator=generator,
        )  # fmt: skip


def _distance(points: Tensor, ideal: Tensor) -> Tensor:  # [n, q], [q] or [n, q] -> [n]
    return ((points - ideal).square().sum(1) + _TINY).sqrt()
