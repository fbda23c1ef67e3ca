"""Units: rewards and embeddings as the network sees them, and the way back."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from ebrm.errors import ModelError


class Standardizer(nn.Module):
    """Affine maps fitted on the training rows and saved with the model.

    Internal reward y = (r - mean) / std * scale; internal embedding (e - center) / spread, number by
    number. All are buffers: float32 for embeddings, float64 for rewards, so that any magnitude keeps its digits.
    """

    reward_mean: Tensor
    reward_std: Tensor
    reward_scale: Tensor
    embedding_center: Tensor  # [d]
    embedding_spread: Tensor  # [d]

    def __init__(self, embedding_size: int) -> None:
        super().__init__()
        self.register_buffer("reward_mean", torch.zeros((), dtype=torch.float64))
        self.register_buffer("reward_std", torch.ones((), dtype=torch.float64))
        self.register_buffer("reward_scale", torch.ones((), dtype=torch.float64))
        self.register_buffer("embedding_center", torch.zeros(embedding_size))
        self.register_buffer("embedding_spread", torch.ones(embedding_size))

    def fit_reward(self, reward: Tensor, scale: float) -> None:  # reward [n]
        """Fit mean and standard deviation (divisor n) on `reward` [n]; `scale` is the std of internal rewards.

        Raises:
            ModelError: fewer than two distinct rewards, so that there is no scale.
        """
        values = reward.double()
        std = values.std(correction=0) if len(values) else torch.zeros(())
        if not bool(std > 0):
            raise ModelError(
                f"The {len(values)} training rewards are all equal, so they have no scale and no density can be "
                "fitted. Check that the reward model's head is the trained one, or give more pairs."
            )
        self.reward_mean.copy_(values.mean())
        self.reward_std.copy_(std)
        self.reward_scale.fill_(scale)

    def fit_embedding(self, batches: Iterable[Tensor]) -> None:  # each [k, d]
        """Fit center and standard deviation [d] of each number of the embedding, streaming over `batches`.

        Number by number, because layers of a network differ in scale by orders of magnitude, and a few of their units
        stand out by more.
        """
        count, mean = 0, torch.zeros_like(self.embedding_center, dtype=torch.float64)
        square = torch.zeros_like(mean)  # sum of squared distances from the mean, joined batch by batch (Chan et al.)
        for batch in batches:
            if not len(batch):
                continue
            values = batch.to(mean)
            shift = values.mean(0) - mean
            total = count + len(values)
            square += (values - values.mean(0)).square().sum(0) + shift.square() * (count * len(values) / total)
            mean += shift * (len(values) / total)
            count = total
        spread = (square / max(count, 1)).sqrt()
        self.embedding_center.copy_(mean)
        # Below this, what is left after centering is rounding: a number that never changes stays as it is.
        self.embedding_spread.copy_(torch.where(spread > 1e-6 * mean.abs(), spread, torch.ones_like(spread)))

    def to_internal(self, reward: Tensor) -> Tensor:
        """Base units → internal units, float32, any shape."""
        return ((reward.double() - self.reward_mean) * (self.reward_scale / self.reward_std)).float()

    def to_base(self, internal: Tensor) -> Tensor:
        """Internal units → base units, float32, any shape."""
        return (internal.double() * (self.reward_std / self.reward_scale) + self.reward_mean).float()

    def to_score(self, reward: Tensor) -> Tensor:
        """Rewards in base units → numbers between 0 and 1, float32, any shape.

        The logistic of (reward - mean) / std, by the mean and standard deviation of the frozen RM's rewards of the
        training rows: 0.5 is an average response of theirs. For trainers that ask for such a score beside the reward
        (OpenRLHF's `scores`).
        """
        return torch.sigmoid((reward.double() - self.reward_mean.cpu()) / self.reward_std.cpu()).float()

    @property
    def unit(self) -> float:
        """Base units in one internal unit; lengths scale by it, densities by its inverse."""
        return float(self.reward_std / self.reward_scale)

    def embed(self, embedding: Tensor) -> Tensor:  # [n, d] -> [n, d]
        """Embeddings as the network sees them, float32."""
        return (embedding.float() - self.embedding_center) / self.embedding_spread
