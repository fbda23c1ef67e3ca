"""Extrapolation of fitted heads: further along the way that a fit took, without fitting."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor

from ebrm.errors import ConfigError, ModelError
from ebrm.heads.base import RewardHead
from ebrm.heads.linear import AnchoredHead, LinearHead, LinearScores
from ebrm.heads.multi_objective import BinaryHead, MinNormHead
from ebrm.heads.residual import ResidualHead

#: Heads whose reward is an offset plus a product of weights and embedding, and whose spread does not depend on it.
_LINEAR = (LinearHead, AnchoredHead, MinNormHead, BinaryHead)


def extrapolate_head(head: RewardHead, start: RewardHead | None, alpha: float) -> RewardHead:
    """Head extrapolation (ExPO; HelpSteer2-Preference, arXiv 2410.01257): r = r_1 + α (r_1 - r_0), in base units.

    θ = θ_1 + α (θ_1 - θ_0) of the paper's weights, for heads that are linear in their parameters and so in their
    rewards: every difference of rewards is 1 + α times that of `head` minus α times that of `start`, whatever units
    either was fitted in. α = 0 is the head itself, -1 the start. Choose α by held-out pairs; it is no part of a fit.

    Args:
        head: r_1: a linear, anchored, min_norm or binary head; or a residual one.
        start: r_0, another of those, such as the head that the fit began from, or one of fewer pairs; None, for a
            residual head: the base reward, as the head weighs it, so that its correction counts 1 + α times.
        alpha: α, a finite number; -1 to 0 is between the two.

    Returns:
        a new head of the first one's kind, whose reward has these differences. Its `std` stays that of one comparison.

    Raises:
        ConfigError: a head that is not linear in its parameters, or a start that does not go with it.
        ModelError: heads of embeddings of different sizes.
    """
    if not math.isfinite(alpha):
        raise ConfigError(f"`alpha` is {alpha}; expected a finite number.")
    if isinstance(head, ResidualHead) and start is None:
        return _from_base(head, alpha)
    for one in (head, start):
        if type(one) not in _LINEAR:
            kind = "the base reward" if one is None else f"{one.config.kind}"
            raise ConfigError(
                "Heads that are linear in the embedding can be extrapolated (linear, anchored, min_norm, binary, or a "
                f"residual head from the base reward), and one of these is {kind}."
            )
    assert isinstance(head, LinearScores) and isinstance(start, LinearScores)
    center = head.standardizer.embedding_center
    if len(center) != len(start.standardizer.embedding_center):
        raise ModelError(
            f"The heads are of embeddings of {len(center)} and {len(start.standardizer.embedding_center)} numbers; "
            "heads of one reward model's embeddings were expected."
        )
    made = copy.deepcopy(head)
    unit, spread = head.standardizer.unit, head.standardizer.embedding_spread.double()
    ends: list[tuple[float, LinearScores]] = [(1 + alpha, head), (-alpha, start)]
    # As functions of e - center in base units: slope and level.
    slope = sum((share * _slope(one) for share, one in ends), start=torch.zeros_like(spread))
    level = sum(share * _level(one, center) for share, one in ends)
    made.weight.copy_(slope * spread / (unit * head.gain))
    made.offset.fill_((level - float(head.standardizer.reward_mean)) / unit)
    if isinstance(made, AnchoredHead):
        made.bias.zero_()
    made.support.copy_(torch.tensor([_reach(ends, head, low) for low in (True, False)]))
    return made


def _from_base(head: ResidualHead, alpha: float) -> ResidualHead:
    """The head with 1 + α times its correction: what it adds to the base reward, weighed as it weighs it."""
    made = copy.deepcopy(head)
    made.weight.mul_(1 + alpha)
    middle, half = head.support.mean(), (head.support[1] - head.support[0]) / 2
    made.support.copy_(torch.stack([middle - half * (1 + abs(alpha)), middle + half * (1 + abs(alpha))]))
    return made


def _slope(head: LinearScores) -> Tensor:  # [d]
    """Base units a unit of the embedding, float64."""
    unit = head.standardizer.unit * head.gain
    return unit * head.weight.double() / head.standardizer.embedding_spread.double()


def _level(head: LinearScores, center: Tensor) -> float:
    """The head's reward of the embedding `center`, base units."""
    own = head.standardizer
    at = ((center.double() - own.embedding_center.double()) / own.embedding_spread.double()) @ head.weight.double()
    at = at + (head.bias if isinstance(head, AnchoredHead) else 0.0)
    return float(own.reward_mean) + own.unit * float(head.offset + head.gain * at)


def _reach(ends: list[tuple[float, LinearScores]], head: LinearScores, low: bool) -> float:
    """The lowest or highest reward that the supports of both ends allow, in the units of `head`."""
    total = 0.0
    for share, one in ends:
        place = 0 if low == (share >= 0) else 1
        total += share * (float(one.standardizer.reward_mean) + one.standardizer.unit * float(one.support[place]))
    return (total - float(head.standardizer.reward_mean)) / head.standardizer.unit
