"""A reward with requirements that are to hold on average: what is violated gains weight until it holds."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ebrm.errors import ConfigError
from ebrm.utils.validation import check_finite


@dataclass(frozen=True, eq=False)
class Lagrangian:
    """Multipliers of a reward and of k requirements, from one batch to the next.

        R = λ_0 r + Σ_k λ_k g_k,  λ = softmax(0, z_1 … z_k),  z_k ← z_k + rate · (threshold_k - mean g_k)

    As in Roy, "Effective Reward Specification in Deep Reinforcement Learning" (thesis, arXiv 2412.07177), where the
    multipliers are normalized together with the reward's, which keeps the scale of R: a reward is not drowned by a
    requirement that cannot be met, only outweighed. The formula is written from accounts of the thesis and could not be
    verified; keeping z within ±`limit` (so that a requirement long met or long violated does not take as long to come
    back) and all defaults are ours.

    Requirements are things wanted (g_k should be at least its threshold on average); give a cost with its sign turned.
    Reward and requirements must be of like scales, as no multiplier exceeds 1. The order of rows does not matter.

    Attributes:
        threshold: the least mean of each requirement, in its unit [k], float64. k may be 0: R is the reward.
        level: z [k], float64.
        rate: how fast z moves, per unit of violation and update, above 0.
        limit: the largest |z|, above 0. 10 lets a multiplier fall to 0.00005 of the reward's.
    """

    threshold: Tensor
    level: Tensor
    rate: float = 0.1
    limit: float = 10.0

    @classmethod
    def start(cls, threshold: Tensor, rate: float = 0.1, limit: float = 10.0) -> Lagrangian:  # [k]
        """Equal multipliers for the reward and each requirement.

        Raises:
            ConfigError: a rate or limit that is not above 0 and finite.
            DataError: a threshold that is not finite.
            ValueError: thresholds that are not [k].
        """
        for name, value in (("rate", rate), ("limit", limit)):
            if not (math.isfinite(value) and value > 0):
                raise ConfigError(f"The {name} of the multipliers is {value}; expected a finite number above 0.")
        least = check_finite(threshold, "threshold")
        return cls(least, torch.zeros_like(least), rate, limit)

    @property
    def multiplier(self) -> Tensor:
        """λ, the reward's first [1 + k], float64; their sum is 1."""
        return torch.cat([self.level.new_zeros(1), self.level]).softmax(0)

    def combine(self, reward: Tensor, requirement: Tensor) -> Tensor:  # [n], [n, k] -> [n]
        """R of each row, in the type of `reward`; multipliers stay as they are.

        Raises:
            DataError: a number that is not finite.
            ValueError: not [n] and [n, k].
        """
        rewards, met = check_finite(reward, "reward"), self._checked(requirement)
        if len(met) != len(rewards):
            raise ValueError(f"{len(rewards)} rewards, and {len(met)} rows of requirements")
        weight = self.multiplier
        return (weight[0] * rewards + (met * weight[1:]).sum(1)).to(torch.result_type(reward, 1.0))

    def updated(self, requirement: Tensor) -> Lagrangian:  # [n, k]
        """The multipliers after a batch: up where its mean is below the threshold, down where above. No rows: the same.

        Raises:
            DataError: a number that is not finite.
            ValueError: not [n, k].
        """
        met = self._checked(requirement)
        if not len(met):
            return self
        level = self.level + self.rate * (self.threshold - met.mean(0))
        return replace(self, level=level.clamp(-self.limit, self.limit))

    def _checked(self, requirement: Tensor) -> Tensor:
        met = check_finite(requirement, "requirements [n, k]", 2)
        if met.shape[1] != len(self.threshold):
            raise ValueError(f"{len(self.threshold)} thresholds, and requirements {tuple(requirement.shape)}")
        return met
