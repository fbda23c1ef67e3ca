"""Small things that several tests of the energy share: a plainly written network, and rewards of known density."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, TypeVar

import torch
from torch import Tensor

from ebrm.heads import (
    OBJECTIVES,
    EnergyConfig,
    EnergyNetwork,
    FittedHead,
    InferenceConfig,
    NetworkConfig,
    RewardHead,
    TrainingConfig,
    fit_head,
)
from ebrm.pairs import PreferencePairs

Head = TypeVar("Head", bound=RewardHead)


def energy(
    network: NetworkConfig = NetworkConfig(),  # noqa: B008
    inference: InferenceConfig = InferenceConfig(),  # noqa: B008
    objective: str = "joint",
    **options: Any,
) -> EnergyConfig:
    """The energy's config from settings of its stages; those of another objective are left out."""
    kind = OBJECTIVES[objective]
    own, training = ({f.name for f in fields(config)} for config in (kind, TrainingConfig))
    known = training.union(*({f.name for f in fields(config)} for config in OBJECTIVES.values()))
    assert options.keys() <= known, options
    return EnergyConfig(
        network=network,
        objective=kind(**{name: value for name, value in options.items() if name in own}),
        training=TrainingConfig(**{name: value for name, value in options.items() if name in training}),
        inference=inference,
    )


def fit_energy(
    embedding: Any,
    reward: Tensor,
    train: PreferencePairs,
    validation: PreferencePairs,
    *,
    network: NetworkConfig = NetworkConfig(),  # noqa: B008
    training: dict[str, Any] | None = None,
    inference: InferenceConfig = InferenceConfig(),  # noqa: B008
    **options: Any,
) -> FittedHead:
    """The energy fitted with settings as :func:`energy` takes them, and perhaps `seed`."""
    settings = dict(training or {})
    options = {"seed": settings.pop("seed", 0)} | options
    return fit_head(energy(network, inference, **settings), embedding, reward, train, validation, **options)


def reading(head: Head, inference: InferenceConfig) -> Head:
    """The head with another inference config."""
    return head.with_inference(**vars(inference))


def small_network(
    embedding_size: int = 5,
    reward_widths: tuple[int, ...] = (6, 4),
    joint_widths: tuple[int, ...] = (8, 7),
    dropout: float = 0.0,
    seed: int = 0,
    gain: float = 3.0,
) -> EnergyNetwork:
    """A network with weights `gain` times PyTorch's, so that f is far from flat."""
    settings = NetworkConfig(reward_widths=reward_widths, joint_widths=joint_widths, dropout=dropout)
    network = EnergyNetwork(embedding_size, settings, torch.Generator().manual_seed(seed))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(gain)
    return network


def plain_energy(network: EnergyNetwork, embedding: Tensor, reward: Tensor) -> Tensor:  # [n, d], [n, m] -> [n, m]
    """f(e, r) the obvious way: g(r) beside a copy of e for every reward, one matrix [W_e W_r], then tanh layers."""
    g = reward.unsqueeze(-1)
    for layer in network.reward_layers:
        g = torch.tanh(g @ layer.weight.T + layer.bias)
    e = embedding.unsqueeze(1).expand(-1, reward.shape[1], -1)
    matrix = torch.cat([network.from_embedding.weight, network.from_reward.weight], dim=1)
    x = torch.tanh(torch.cat([e, g], dim=-1) @ matrix.T + network.from_embedding.bias)
    for layer in network.joint_layers:
        x = torch.tanh(x @ layer.weight.T + layer.bias)
    return (x @ network.output.weight.T + network.output.bias).squeeze(-1)


@dataclass(frozen=True)
class KnownDensity:
    """p(r | e) = Σ_k weight_k(e) N(r; mean_k(e), std_k(e)²), for e uniform in [-1, 1]."""

    components: Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]  # e [n] -> weight, mean, std, each [n, k]

    def log_density(self, e: Tensor, reward: Tensor) -> Tensor:  # [n], [g] -> [n, g]
        weight, mean, std = (part.unsqueeze(1).double() for part in self.components(e))
        z = (reward.double().view(1, -1, 1) - mean) / std
        return torch.logsumexp(weight.log() - 0.5 * z**2 - std.log(), -1) - 0.5 * math.log(2 * math.pi)

    def sample(self, n: int, seed: int) -> tuple[Tensor, Tensor]:  # -> embeddings [n, 1], rewards [n]
        generator = torch.Generator().manual_seed(seed)
        e = 2 * torch.rand(n, generator=generator) - 1
        weight, mean, std = self.components(e)
        k = torch.multinomial(weight, 1, generator=generator)
        noise = torch.randn(n, generator=generator)
        return e.unsqueeze(1), mean.gather(1, k).squeeze(1) + std.gather(1, k).squeeze(1) * noise


def _heteroscedastic(e: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    one = torch.ones(len(e), 1)
    return one, torch.sin(2 * e).unsqueeze(1), (0.4 + 0.2 * e).unsqueeze(1)


def _two_components(e: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    right = torch.sigmoid(2 * e)
    return (
        torch.stack([right, 1 - right], 1),
        torch.stack([1 + 0.5 * e, -1 + 0.5 * e], 1),
        torch.tensor([[0.3, 0.45]]).expand(len(e), 2),
    )


KNOWN = {
    "heteroscedastic": KnownDensity(_heteroscedastic),
    "two components": KnownDensity(_two_components),
}


def pairs_of(rows: int, first: int = 0) -> PreferencePairs:
    """Rows `first` .. `first + rows` in pairs of neighbors."""
    index = torch.arange(first, first + rows)
    return PreferencePairs.of(index[0::2], index[1::2])
