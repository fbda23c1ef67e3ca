"""The algorithm as the paper states it, without any of ebrm's shortcuts: what ebrm's speed is measured against.

The network takes the concatenation [e; g(r)]; training copies the embedding beside each of the 1 + M noise samples
(NCE+, M = 768); inference climbs f by autograd in r, two forwards a step (one for the gradient, one for the candidate),
in batches of 1,024 rows. All in float32. Nothing is slower than it has to be: no gradients of the parameters at
inference, no loop over rows, and a batch ends when its last row has stopped.

Sources: Lochab and Zhang, arXiv 2504.13134, section 3 and algorithm 2; Gustafsson et al., BMVC 2020, eq. 8-10 (NCE+).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from ebrm.heads import EnergyConfig, EnergyHead, EnergyNetwork, InferenceConfig, NCEConfig

#: Rows refined at a time.
BATCH = 1024
#: Floats of the concatenated input of one part of a training batch: 512 MiB. Larger batches are split so that they fit
#: in memory (d = 4,096: 3.2 GB for 256 rows); the parts' gradients add up to the batch's.
CONCATENATED = 2**27


class SharedDropout(nn.Module):
    """Dropout with one mask a row, shared by all samples of the row: [n, m, w] -> [n, m, w]."""

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, x: Tensor) -> Tensor:
        """Mask and rescale in training; do nothing else."""
        if not self.training or self.probability == 0.0:
            return x
        return x * F.dropout(x.new_ones(x.shape[0], 1, x.shape[2]), self.probability)


class PlainEnergy(nn.Module):
    """f(e, r) = joint([e; reward(r)]), tanh layers, dropout after each joint layer."""

    def __init__(
        self, embedding_size: int, reward_widths: tuple[int, ...], joint_widths: tuple[int, ...], dropout: float
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, outputs in zip((1, *reward_widths[:-1]), reward_widths, strict=True):
            layers += [nn.Linear(inputs, outputs), nn.Tanh()]
        self.reward = nn.Sequential(*layers)
        layers = []
        for inputs, outputs in zip((embedding_size + reward_widths[-1], *joint_widths[:-1]), joint_widths, strict=True):
            layers += [nn.Linear(inputs, outputs), nn.Tanh(), SharedDropout(dropout)]
        self.joint = nn.Sequential(*layers, nn.Linear(joint_widths[-1], 1))

    def forward(self, embedding: Tensor, reward: Tensor) -> Tensor:  # [..., d], [...] -> [...]
        """Evaluate f at one reward for each copy of an embedding, internal units."""
        return self.joint(torch.cat([embedding, self.reward(reward.unsqueeze(-1))], dim=-1)).squeeze(-1)


def _linear(layers: nn.Sequential) -> list[nn.Linear]:
    return [layer for layer in layers if isinstance(layer, nn.Linear)]


@torch.no_grad()
def plain_network(network: EnergyNetwork) -> PlainEnergy:
    """The same f as `network`, with the two halves of its first joint layer put side by side."""
    joint = [network.from_embedding, *network.joint_layers]
    plain = PlainEnergy(
        network.from_embedding.in_features,
        tuple(layer.out_features for layer in network.reward_layers),
        tuple(layer.out_features for layer in joint),
        network.dropout,
    )
    for mine, theirs in zip(_linear(plain.reward), network.reward_layers, strict=True):
        mine.load_state_dict(theirs.state_dict())
    first, *rest = _linear(plain.joint)
    first.weight.copy_(torch.cat([network.from_embedding.weight, network.from_reward.weight], dim=1))
    first.bias.copy_(network.from_embedding.bias)
    for mine, theirs in zip(rest, (*network.joint_layers, network.output), strict=True):
        mine.load_state_dict(theirs.state_dict())
    return plain.to(network.output.weight.device).train(network.training)


@torch.no_grad()
def copy_back(plain: PlainEnergy, network: EnergyNetwork) -> None:
    """Give `network` the weights of `plain`: the inverse of :func:`plain_network`."""
    for theirs, mine in zip(network.reward_layers, _linear(plain.reward), strict=True):
        theirs.load_state_dict(mine.state_dict())
    first, *rest = _linear(plain.joint)
    d = network.from_embedding.in_features
    network.from_embedding.weight.copy_(first.weight[:, :d])
    network.from_embedding.bias.copy_(first.bias)
    network.from_reward.weight.copy_(first.weight[:, d:])
    for theirs, mine in zip((*network.joint_layers, network.output), rest, strict=True):
        theirs.load_state_dict(mine.state_dict())


@dataclass(frozen=True)
class PlainAscent:
    """Refined rewards [n], base units, and how many steps each batch took."""

    reward: Tensor
    steps: tuple[int, ...]


def plain_refine(
    network: PlainEnergy,
    density: EnergyHead,  # its units, support and training range
    embedding: Tensor,  # [n, d]
    reward: Tensor,  # [n], base units
    settings: InferenceConfig = InferenceConfig(estimate="ascent"),  # noqa: B008 - frozen
) -> PlainAscent:
    """Algorithm 2 from the base reward: r̃ = r + λ ∂f/∂r, taken if f rises inside the support, else λ ← η λ."""
    network.requires_grad_(False).eval()
    low, high = density.support_bounds()
    trusted = float(density.trusted[0]), float(density.trusted[1])
    kind = next(network.parameters())
    ends, taken = [], []
    for e, r0 in zip(embedding.split(BATCH), reward.split(BATCH), strict=True):
        e = density.standardizer.embed(e.to(kind.device)).to(kind.dtype)
        r = density.standardizer.to_internal(r0.to(kind.device)).clamp(*trusted).clamp(low, high).to(kind.dtype)
        size = torch.full_like(r, settings.step_size)
        step = 0
        while step < settings.steps and bool((size >= settings.step_stop).any()):
            r.requires_grad_()
            f = network(e, r)
            (slope,) = torch.autograd.grad(f.sum(), r)
            with torch.no_grad():
                candidate = r + size * slope
                rises = (network(e, candidate) > f) & (candidate >= low) & (candidate <= high)
                moving = size >= settings.step_stop
                r = torch.where(rises & moving, candidate, r)
                size = torch.where(rises, size, size * settings.step_decay)
            step += 1
        ends.append(density.standardizer.to_base(r.detach()).cpu())
        taken.append(step)
    return PlainAscent(torch.cat(ends) if ends else reward.new_zeros(0), tuple(taken))


def _log_noise(offset: Tensor, sigmas: tuple[float, ...]) -> Tensor:
    """Log of the equal-weight mixture of centered Gaussians of widths `sigmas`, at `offset`, any shape."""
    terms = [-0.5 * (offset / s) ** 2 - math.log(s * math.sqrt(2 * math.pi) * len(sigmas)) for s in sigmas]
    return torch.logsumexp(torch.stack(terms), 0)


def draw_samples(
    reward: Tensor,  # [n]
    sigmas: tuple[float, ...],
    beta: float,
    negatives: int,
    generator: torch.Generator,
) -> Tensor:  # [n, 1 + M]
    """The noisy positive y⁰ (widths times beta), then M draws of p_N(· | r)."""

    def offsets(count: int) -> Tensor:
        width = torch.tensor(sigmas)[torch.randint(len(sigmas), (len(reward), count), generator=generator)]
        return width * torch.randn(len(reward), count, generator=generator)

    return reward.unsqueeze(1) + torch.cat([beta * offsets(1), offsets(negatives)], dim=1).to(reward.device)


def nce_loss(
    network: PlainEnergy,
    embedding: Tensor,  # [n, d]
    reward: Tensor,  # [n]
    samples: Tensor,  # [n, 1 + M], the noisy positive first
    sigmas: tuple[float, ...],
    regularization: float,
) -> Tensor:  # []
    """Mean NCE+ loss plus λ·mean f², with the embedding copied beside every sample."""
    f = network(embedding.unsqueeze(1).expand(-1, samples.shape[1], -1), samples)
    a = f - _log_noise(samples - reward.unsqueeze(1), sigmas)
    return (torch.logsumexp(a, 1) - a[:, 0] + regularization * f.square().mean(1)).mean()


def plain_epoch(
    network: PlainEnergy,
    optimizer: torch.optim.Optimizer,
    density: EnergyHead,  # its units
    embedding: Tensor,  # [n, d]
    reward: Tensor,  # [n], base units
    config: EnergyConfig,  # objective NCE: noise, negatives, batch_rows, regularization
    generator: torch.Generator,
) -> float:
    """One shuffled pass of NCE+ over the rows; the mean loss. Dropout draws from torch's own generator."""
    network.requires_grad_().train()
    device = next(network.parameters()).device
    objective, training = config.objective, config.training
    assert isinstance(objective, NCEConfig)
    sigmas = tuple(s * training.reward_scale for s in objective.noise_scales)
    total = 0.0
    for batch in torch.randperm(len(reward), generator=generator).split(training.batch_rows):
        e = density.standardizer.embed(embedding[batch].to(device))
        r = density.standardizer.to_internal(reward[batch].to(device))
        y = draw_samples(r, sigmas, objective.beta, objective.negatives, generator)
        wide = network.joint[0].in_features
        rows = max(1, CONCATENATED // (y.shape[1] * wide))
        optimizer.zero_grad(set_to_none=True)
        for e_part, r_part, y_part in zip(e.split(rows), r.split(rows), y.split(rows), strict=True):
            loss = nce_loss(network, e_part, r_part, y_part, sigmas, training.regularization)
            loss = loss * (len(r_part) / len(r))
            loss.backward()
            total += float(loss.detach()) * len(r) / len(reward)
        optimizer.step()
    return total
