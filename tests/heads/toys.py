"""Things that tests of heads share: a plainly written network, rewards of known density, pairs to fit heads on."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from ebrm.heads import (
    OBJECTIVES,
    EnergyConfig,
    EnergyHead,
    EnergyNetwork,
    Epoch,
    FittedHead,
    HeadConfig,
    InferenceConfig,
    NetworkConfig,
    Refinement,
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


KNOWN = {"heteroscedastic": KnownDensity(_heteroscedastic), "two components": KnownDensity(_two_components)}


def pairs_of(rows: int, first: int = 0) -> PreferencePairs:
    """Rows `first` .. `first + rows` in pairs of neighbors."""
    index = torch.arange(first, first + rows)
    return PreferencePairs.of(index[0::2], index[1::2])


@dataclass(frozen=True)
class World:
    embedding: Tensor  # [n, d]
    reward: Tensor  # [n], base
    truth: Tensor  # [n]
    train: PreferencePairs
    validation: PreferencePairs
    test: PreferencePairs

    def fit(self, config: HeadConfig, validation: PreferencePairs | None = None, seed: int = 0, **columns: Any) -> Any:
        """The head fitted on the training pairs with these columns."""
        train = PreferencePairs.of(self.train.chosen, self.train.rejected, **columns)
        held = self.validation if validation is None else validation
        return fit_head(config, self.embedding, self.reward, train, held, seed=seed).head

    def refined(self, head: RewardHead, **inference: Any) -> Refinement:
        return head.with_inference(**inference).refine(self.embedding, self.reward)

    @property
    def rows(self) -> Tensor:
        """Rows of the training pairs, each once."""
        return torch.unique(torch.cat([self.train.chosen, self.train.rejected]))

    def accuracy(self, reward: Tensor) -> float:
        return float((reward[self.test.chosen] > reward[self.test.rejected]).float().mean())


def world(
    truth: Callable[[Tensor], Tensor],
    pairs: int = 600,
    size: int = 6,
    seed: int = 0,
    flips: float = 0.0,
    offset: float = 40.0,
    scale: float = 3.0,
) -> World:
    """Pairs of independent normal embeddings, labeled by Bradley and Terry under `truth`; `flips` labels wrong."""
    generator = torch.Generator().manual_seed(seed)
    embedding = torch.randn(2 * pairs, size, generator=generator)
    reward = truth(embedding)
    a, b = torch.arange(0, 2 * pairs, 2), torch.arange(1, 2 * pairs, 2)
    first = torch.rand(pairs, generator=generator) < torch.sigmoid(reward[a] - reward[b])
    wrong = torch.rand(pairs, generator=generator) < flips
    third = 2 * pairs // 3
    first[:third] ^= wrong[:third]
    first[third:] = reward[a[third:]] > reward[b[third:]]  # what is measured on has no noise
    chosen, rejected = torch.where(first, a, b), torch.where(first, b, a)
    base = offset + scale * (reward + torch.randn(2 * pairs, generator=generator))
    parts = (slice(0, third), slice(third, third + pairs // 6), slice(third + pairs // 6, pairs))
    train, validation, test = (PreferencePairs.of(chosen[part], rejected[part]) for part in parts)
    return World(embedding, base, reward, train, validation, test)


def linear_truth(x: Tensor) -> Tensor:
    return x @ torch.linspace(2.0, -1.0, x.shape[1])


def xor_truth(x: Tensor) -> Tensor:
    """No linear function of x agrees with it in more than half of all pairs."""
    return 3 * torch.sign(x[:, 0] * x[:, 1])


NONE = PreferencePairs.of([], [])


# The energy, fitted quickly.

TINY = NetworkConfig(reward_widths=(4,), joint_widths=(6, 5), dropout=0.5)
QUICK: dict[str, Any] = {
    "network": TINY, "epochs": 4, "batch_rows": 16, "nodes": 16, "negatives": 16, "learning_rate": 1e-2, "patience": 0,
}  # fmt: skip


def data(rows: int = 80, d: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    embedding = torch.randn(rows, d, generator=generator)
    return embedding, 3 + 2 * embedding[:, 0] + 0.5 * torch.randn(rows, generator=generator)


def fit(
    embedding: Any, reward: Tensor, train: PreferencePairs, validation: PreferencePairs, seed: int = 0, **settings
) -> FittedHead:
    """The energy fitted with QUICK settings, or these."""
    calls = {name: settings.pop(name, None) for name in ("checkpoint", "on_epoch")}
    return fit_head(energy(**QUICK | settings), embedding, reward, train, validation, seed=seed, **calls)


def quick_fit(rows: int = 80, held_out: int = 30, **settings) -> FittedHead:
    """A few seconds' worth of nothing: 50 training rows, 30 validation rows, four epochs."""
    return fit(*data(rows), pairs_of(rows - held_out), pairs_of(held_out, first=rows - held_out), **settings)


def same_weights(one: EnergyHead, other: EnergyHead) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return all(torch.equal(a[name], b[name]) for name in a)


def untimed(fitted: FittedHead) -> list[Epoch]:
    """Its epochs but for their seconds."""
    return [replace(epoch, seconds=0.0) for epoch in fitted.history]


def scripted(monkeypatch, scores: list[tuple[float, float, float]]) -> None:
    """Let validation return (accuracy, -log p, label loss) from a list."""
    left = iter(scores)
    monkeypatch.setattr("ebrm.heads.training.validate", lambda *_: next(left))
