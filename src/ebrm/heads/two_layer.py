"""Heads with a hidden SiLU layer, trained by AdamW: Bradley-Terry, corrected along a direction, users' prototypes."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, linear, logsigmoid, relu, silu

from ebrm.errors import DataError, ModelError
from ebrm.heads.base import ClosedFormHead, RewardHead
from ebrm.heads.config import DirectionalConfig, HeadConfig, PrototypesConfig, SiLUConfig
from ebrm.heads.data import HeadData
from ebrm.heads.losses import held_out_loss, pair_loss, weighted_mean
from ebrm.heads.minimize import early_stopping, lowest
from ebrm.heads.network import skip_init
from ebrm.utils.stored import parse_json, shown

#: Length of the direction in lengths of the average standardized embedding, and the steps that look for it.
_REACH, _STEPS = 0.5, 200
#: Users' weights are learned this much faster than the rest: each has few pairs.
_FASTER = 10.0
#: PAL-B's scale of the cosine: where it starts, and the most it may be.
_START_SCALE, _MOST_SCALE = 1 / 0.07, 100.0
#: Under a root, so that a distance of 0 has a gradient.
_TINY = 1e-12


class TwoLayers(nn.Module):
    """v·SiLU(W x + b): two layers, with no bias at the end, which no pair could tell."""

    def __init__(self, inputs: int, hidden: int, outputs: int = 1, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.first = skip_init(inputs, hidden)
        self.last = nn.Parameter(torch.empty(outputs, hidden))
        with torch.no_grad():
            for tensor, size in ((self.first.weight, inputs), (self.first.bias, inputs), (self.last, hidden)):
                tensor.uniform_(-1 / math.sqrt(size), 1 / math.sqrt(size), generator=generator)

    def forward(self, x: Tensor) -> Tensor:  # [n, d] -> [n, outputs]
        """Outputs of rows."""
        return linear(silu(self.first(x)), self.last)


def train_two_layers(
    network: nn.Module,
    config: SiLUConfig | PrototypesConfig,
    data: HeadData,
    loss: Callable[[Tensor], Tensor],
    held_out: Callable[[], float] | None,
    generator: torch.Generator,
) -> None:
    """AdamW with early stopping over shuffled batches of training pairs, as the config says."""
    device = data.embedding.device

    def batches(draws: torch.Generator) -> Iterable[Tensor]:  # drawn on the CPU, so that a seed is one on all devices
        return torch.randperm(len(data.train), generator=draws).to(device).split(config.batch_pairs)

    early_stopping(
        network, batches, loss, held_out,
        learning_rate=config.learning_rate, weight_decay=config.weight_decay, epochs=config.epochs,
        patience=config.patience, generator=generator,
    )  # fmt: skip


class SiLUHead(ClosedFormHead):
    """u(e) = v·SiLU(W x + b): the two-layer Bradley-Terry head of BaseReward (arXiv 2509.16127), by AdamW."""

    config: SiLUConfig

    def _build(self, size: int, groups: int, generator: torch.Generator | None) -> None:
        self.network = TwoLayers(size, self.config.hidden, 1, generator)

    def scores(self, x: Tensor) -> Tensor:  # [n, d] -> [n]
        return self.network(x).squeeze(1)

    def learn(self, data: HeadData, generator: torch.Generator) -> None:
        s, x, pairs = self.config, data.embedding, data.train

        def loss(batch: Tensor) -> Tensor:
            u = self.scores(x[torch.cat([pairs.chosen[batch], pairs.rejected[batch]])])
            return pair_loss(
                u[: len(batch)], u[len(batch) :], label=pairs.label[batch], weight=pairs.weight[batch],
                margin=pairs.margin[batch], label_smoothing=s.label_smoothing, centering=s.centering,
            ).mean()  # fmt: skip

        held_out = held_out_loss(data, self.scores)
        train_two_layers(self.network, s, data, loss, None if held_out is None else lambda: held_out(x), generator)


class DirectionalHead(SiLUHead):
    """The two-layer SiLU head, corrected along the direction b that raises its rewards most (ours, after D²-Align).

    b = argmax of the mean over training rows of h(e - b) + w (h(e + b) - h(e - b)), |b| at most half the length of an
    average standardized embedding (projected gradient ascent); rewards are read off that sum.
    """

    config: DirectionalConfig
    direction: Tensor  # [d]

    def _build(self, size: int, groups: int, generator: torch.Generator | None) -> None:
        super()._build(size, groups, generator)
        self.register_buffer("direction", torch.zeros(size))

    def scores(self, x: Tensor) -> Tensor:  # [n, d] -> [n]
        return self._guided(x, self.direction)

    def _guided(self, x: Tensor, direction: Tensor) -> Tensor:
        minus = self.network(x - direction).squeeze(1)
        plus = self.network(x + direction).squeeze(1)
        return minus + self.config.extrapolation * (plus - minus)

    def learn(self, data: HeadData, generator: torch.Generator) -> None:
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


def ideal_point_difference(chosen: Tensor, rejected: Tensor, ideal: Tensor) -> Tensor:  # [p, q] each -> [p]
    """|f(rejected) - a| - |f(chosen) - a|: above 0 where the chosen is nearer to the ideal point a."""
    return _distance(rejected, ideal) - _distance(chosen, ideal)


def hinge(difference: Tensor) -> Tensor:  # [p] -> [p]
    """max(0, 1 - d): PAL's loss of a difference of distances, 0 from a lead of one unit on."""
    return relu(1 - difference)


class PrototypesHead(ClosedFormHead):
    """r(e, u) = -|f(e) - a_u|, a_u = Σ_k w_uk P_k: PAL, "Pluralistic Alignment Framework" (arXiv 2406.08469), PAL-A.

    f is two layers with SiLU into `dimension` numbers, P_k are `prototypes` ideal points there, w_u = softmax(ω_u) the
    user's weights on them; the user of a pair is its source. AdamW with PAL's hinge on differences of distances.
    Rewards are those of the average user, weighted by pairs (ours); `user_reward` gives one user's. The hinge is no
    likelihood: the deviation reads a lead of one unit as Bradley and Terry would.

    With similarity angle it is PAL-B: r(e, u) = s cos(f(e), a_u), s fitted, 100 at most, by cross-entropy of the pairs.
    PAL-B's prototypes are functions of the prompt; here they are fixed (ours), as the embedding has read the prompt.
    """

    takes = ("label", "weight")
    grouped = True
    not_negative = ("share",)

    config: PrototypesConfig
    share: Tensor  # [users], each user's part of the pairs
    names: Tensor  # [m], uint8: the users' names, as JSON

    def _build(self, size: int, groups: int, generator: torch.Generator | None) -> None:
        s = self.config
        self.place_items = TwoLayers(size, s.hidden, s.dimension, generator)
        start = torch.randn(s.prototypes, s.dimension, generator=generator)
        self.prototypes = nn.Parameter(start / s.dimension**0.5)
        # Small and different: equal weights for all would let no user find its own prototype.
        self.preference = nn.Parameter(0.1 / _FASTER * torch.randn(groups, s.prototypes, generator=generator))
        self.register_buffer("share", torch.full((groups,), 1 / groups))
        self.register_buffer("names", _json([""] * groups))
        if s.similarity == "angle":
            self.log_scale = nn.Parameter(torch.tensor(_START_SCALE).log())

    @classmethod
    def empty(cls, config: HeadConfig, tensors: dict[str, Tensor]) -> RewardHead:
        head = super().empty(config, tensors)
        if "names" in tensors:
            head.names = torch.empty(tensors["names"].shape, dtype=torch.uint8)
        return head

    def check_numbers(self) -> None:
        super().check_numbers()
        try:
            names = parse_json(bytes(self.names.tolist()))
        except (ValueError, TypeError) as error:
            raise ModelError(f"names is no list of the users' names: {error}") from None
        count = int(self.groups)
        if not isinstance(names, list) or len(names) != count or not all(isinstance(one, str) for one in names):
            raise ModelError(f"names is {shown(names)}; expected the names of {count} users")

    @classmethod
    def groups_in(cls, data: HeadData) -> int:
        return len(data.names)

    @property
    def users(self) -> tuple[str, ...]:
        """Names of the users fitted on (sources of the training pairs, sorted), in the order of their numbers."""
        return tuple(json.loads(bytes(self.names.tolist()).decode()))

    @property
    def weights(self) -> Tensor:  # [users, k]
        """Each user's weights on the prototypes; they add up to one."""
        return torch.softmax(_FASTER * self.preference, 1)

    def scores(self, x: Tensor) -> Tensor:  # [n, d] -> [n]
        return self._scores_by(x, self.weights.T.mv(self.share))

    def _scores_by(self, x: Tensor, weights: Tensor) -> Tensor:  # [n, d], [k] -> [n]
        return self._nearness(self.place_items(x), self.prototypes.T.mv(weights))

    def _nearness(self, points: Tensor, ideal: Tensor) -> Tensor:  # [n, q], [q] or [n, q] -> [n]
        """Reward of places of items by an ideal point."""
        if self.config.similarity == "distance":
            return -_distance(points, ideal)
        return self.log_scale.exp().clamp_max(_MOST_SCALE) * cosine_similarity(points, ideal.expand_as(points), 1)

    def _loss(self, lead: Tensor) -> Tensor:  # [p] -> [p]
        """Of the lead of the chosen over the rejected."""
        return hinge(lead) if self.config.similarity == "distance" else -logsigmoid(lead)

    @torch.no_grad()
    def user_reward(self, embedding: Tensor, user: str | int | Tensor) -> Tensor:  # [n, d] -> [n]
        """Rewards by one user's ideal point, in the units of the average user's rewards, float32.

        Args:
            embedding: as the base RM gives them [n, d].
            user: a training user's name or number (:attr:`users`), or weights [k] (:meth:`place`); else a DataError.
        """
        if isinstance(user, str):
            if user not in self.users:
                raise DataError(f"There is no user {user!r}; the head was fitted with {', '.join(self.users)}.")
            user = self.users.index(user)
        if isinstance(user, int) and not 0 <= user < int(self.groups):
            raise DataError(f"There is no user {user}: the head was fitted with users 0 to {int(self.groups) - 1}.")
        weights = self.weights[user] if isinstance(user, int) else user.to(self.prototypes)
        scores = self._scores_by(self.standardizer.embed(embedding.to(self.device)), weights)
        return self.standardizer.to_base(self.offset + self.gain * scores.double()).cpu()

    def place(self, chosen: Tensor, rejected: Tensor, ridge: float = 0.01) -> Tensor:  # [p, d], [p, d] -> [k]
        """Weights on the prototypes of a new user from p pairs: mean loss + ridge/2 |ω|² (ours), all else frozen."""
        with torch.no_grad():
            sides = [
                self.place_items(self.standardizer.embed(side.to(self.device))).double() for side in (chosen, rejected)
            ]
        points = self.prototypes.detach().double()
        if len(chosen) == 0:
            return torch.full((len(points),), 1 / len(points))

        def loss(omega: Tensor) -> Tensor:
            ideal = torch.softmax(omega, 0) @ points
            return self._loss(self._nearness(sides[0], ideal) - self._nearness(sides[1], ideal)).mean()

        return torch.softmax(lowest(loss, torch.zeros(len(points)).to(points), ridge), 0).float().cpu()

    def learn(self, data: HeadData, generator: torch.Generator) -> None:
        x, pairs, held = data.embedding, data.train, data.validation
        self.names = _json(list(data.names)).to(x.device)
        users = torch.bincount(data.group, weights=pairs.weight, minlength=int(self.groups))
        self.share.copy_(users / pairs.weight.sum())

        def difference(chosen: Tensor, rejected: Tensor, user: Tensor) -> Tensor:
            points = self.place_items(x[torch.cat([chosen, rejected])])
            ideal = (self.weights @ self.prototypes)[user]
            return self._nearness(points[: len(chosen)], ideal) - self._nearness(points[len(chosen) :], ideal)

        def losses(lead: Tensor, label: Tensor) -> Tensor:
            return label * self._loss(lead) + (1 - label) * self._loss(-lead)

        def loss(batch: Tensor) -> Tensor:
            lead = difference(pairs.chosen[batch], pairs.rejected[batch], data.group[batch])
            return (pairs.weight[batch] * losses(lead, pairs.label[batch])).mean()

        def held_out() -> float:
            lead = difference(held.chosen, held.rejected, data.validation_group)
            return weighted_mean(losses(lead, held.label), held.weight)

        train_two_layers(self, self.config, data, loss, held_out if len(held) else None, generator)


def _json(names: list[str]) -> Tensor:
    return torch.tensor(list(json.dumps(names).encode()), dtype=torch.uint8)


def _distance(points: Tensor, ideal: Tensor) -> Tensor:  # [n, q], [q] or [n, q] -> [n]
    return ((points - ideal).square().sum(1) + _TINY).sqrt()
