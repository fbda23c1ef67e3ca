"""Objectives of the energy: label-noise-aware NCE+, exact likelihood, joint likelihood of labels and rewards."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ebrm.heads.network import EnergyNetwork


@dataclass(frozen=True)
class MixtureNoise:
    """p_N(y | r) = (1/K) Σ_k N(y; r, σ_k²), widths in internal units (Gustafsson et al., BMVC 2020, eq. 8)."""

    sigmas: tuple[float, ...]

    def log_prob(self, y: Tensor, center: Tensor) -> Tensor:
        """Log p_N(y | center), broadcast over both shapes."""
        offset = (y - center).unsqueeze(-1)
        sigma = torch.tensor(self.sigmas, dtype=offset.dtype, device=offset.device)
        terms = -0.5 * (offset / sigma) ** 2 - sigma.log()
        return torch.logsumexp(terms, -1) - 0.5 * math.log(2 * math.pi) - math.log(len(self.sigmas))

    def offsets(self, shape: tuple[int, ...], generator: torch.Generator, beta: float = 1.0) -> Tensor:
        """Draws of y - center with every width multiplied by `beta`, float32, on the generator's device."""
        device = generator.device
        sigma = torch.tensor(self.sigmas, device=device)
        component = torch.randint(len(self.sigmas), shape, generator=generator, device=device)
        return beta * sigma[component] * torch.randn(shape, generator=generator, device=device)


def nce_loss(
    positive: Tensor, positive_log_noise: Tensor, negative: Tensor, negative_log_noise: Tensor
) -> Tensor:  # [n], [n], [n, m], [n, m] -> [n]
    """NCE+ loss a row, logsumexp_{m=0..M} aᵐ - a⁰ with a = f - log p_N (BMVC 2020, eq. 9; arXiv 2504.13134, eq. 5)."""
    a0 = positive - positive_log_noise
    a = torch.cat([a0.unsqueeze(1), negative - negative_log_noise], dim=1)
    return torch.logsumexp(a, 1) - a0


def likelihood_loss(positive: Tensor, on_nodes: Tensor, log_weight: Tensor) -> Tensor:  # [n], [n, g], [] or [g] -> [n]
    """Exact negative log-likelihood a row, -f(e, y⁰) + log Z(e), with log Z by quadrature on g nodes."""
    return torch.logsumexp(on_nodes + log_weight, 1) - positive


def shifted_nodes(low: float, high: float, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """`count` equally spaced nodes with one random offset, and the log of their weight: unbiased for Z."""
    step = (high - low) / count
    offset = torch.rand((), generator=generator, device=generator.device)
    nodes = low + (torch.arange(count, device=generator.device) + offset) * step
    return nodes, torch.log(torch.tensor(step, device=generator.device))


def _parts(rows: int, rows_at_once: int) -> Iterator[slice]:
    return (slice(first, min(first + rows_at_once, rows)) for first in range(0, rows, rows_at_once))


def nce_step_losses(
    network: EnergyNetwork,
    embedding: Tensor,  # [n, d]
    reward: Tensor,  # [n]
    noise: MixtureNoise,
    *,
    beta: float,
    negatives: int,
    regularization: float,
    generator: torch.Generator,
    rows_at_once: int,
) -> Iterator[Tensor]:
    """Mean NCE+ loss plus λ·mean f², as a sum over parts of the rows; all draws are made for the whole batch first."""
    n, device = len(reward), embedding.device
    center = reward.unsqueeze(1)
    positive = center + noise.offsets((n, 1), generator, beta).to(device)
    negative = center + noise.offsets((n, negatives), generator).to(device)
    y = torch.cat([positive, negative], dim=1)
    log_noise = noise.log_prob(y, center)
    masks = network.dropout_masks(n, generator)
    for part in _parts(n, rows_at_once):
        embedded = network.embed(embedding[part]).unsqueeze(1)
        f = network.join(embedded, network.reward_part(y[part]), [mask[part] for mask in masks])
        loss = nce_loss(f[:, 0], log_noise[part, 0], f[:, 1:], log_noise[part, 1:])
        yield (loss + regularization * f.square().mean(1)).sum() / n


def likelihood_step_losses(
    network: EnergyNetwork,
    embedding: Tensor,  # [n, d]
    reward: Tensor,  # [n]
    noise: MixtureNoise,
    *,
    beta: float,
    support: tuple[float, float],
    nodes: int,
    regularization: float,
    generator: torch.Generator,
    rows_at_once: int,
) -> Iterator[Tensor]:
    """Mean exact negative log-likelihood of the noisy positives plus λ·mean f², split like :func:`nce_step_losses`."""
    n, device = len(reward), embedding.device
    positive = reward + noise.offsets((n,), generator, beta).to(device)
    positive = positive.clamp(*support)
    grid, log_weight = (drawn.to(device) for drawn in shifted_nodes(*support, nodes, generator))
    masks = network.dropout_masks(n, generator)
    for part in _parts(n, rows_at_once):
        embedded, kept = network.embed(embedding[part]).unsqueeze(1), [mask[part] for mask in masks]
        f_positive = network.join(embedded, network.reward_part(positive[part].unsqueeze(1)), kept).squeeze(1)
        f_nodes = network.join(embedded, network.reward_part(grid).unsqueeze(0), kept)
        loss = likelihood_loss(f_positive, f_nodes, log_weight)
        square = (f_positive.square() + f_nodes.square().sum(1)) / (nodes + 1)
        yield (loss + regularization * square).sum() / n


def measurement_loss(
    log_mass: Tensor, nodes: Tensor, reward: Tensor, noise: float
) -> Tensor:  # [n, g], [g], [n] -> [n]
    """-log ∫ p(r | e) N(reward; r, noise²) dr: the base reward as a noisy measurement of the true one, r."""
    distance = (reward.unsqueeze(1) - nodes) / noise
    constant = math.log(noise) + 0.5 * math.log(2 * math.pi)
    return constant - torch.logsumexp(log_mass - 0.5 * distance.square(), 1)


def noisy_preference_nll(
    chosen: Tensor, rejected: Tensor, flips: float, label: Tensor | None = None
) -> Tensor:  # [p, g], [p, g], [p] -> [p]
    """-μ log Q - (1 - μ) log(1 - Q), Q = ε + (1 - 2ε) P(r_c > r_r), from log-masses of cells; ε = `flips`."""
    won, other = chosen.exp(), rejected.exp()
    win = (won * (other.cumsum(1) - 0.5 * other)).sum(1)
    tiny = torch.finfo(win.dtype).tiny
    right = -(flips + (1 - 2 * flips) * win).clamp_min(tiny).log()
    if label is None or not bool((label != 1).any()):
        return right
    wrong = -(flips + (1 - 2 * flips) * (1 - win)).clamp_min(tiny).log()
    mu = label.to(win)
    return mu * right + (1 - mu) * wrong


def joint_step_losses(
    network: EnergyNetwork,
    embedding: Tensor,  # [2p, d], the chosen first, then the rejected in the same order
    reward: Tensor,  # [2p]
    *,
    flips: float,
    reward_weight: float,
    reward_noise: float,
    support: tuple[float, float],
    nodes: int,
    regularization: float,
    generator: torch.Generator,
    rows_at_once: int,
    label: Tensor | None = None,  # [p]
    weight: Tensor | None = None,  # [p]
) -> Iterator[Tensor]:
    """Weighted mean preference NLL + `reward_weight` · measurement NLL + λ·mean f², in parts."""
    p, device = len(reward) // 2, embedding.device
    grid, _ = (drawn.to(device) for drawn in shifted_nodes(*support, nodes, generator))
    masks = network.dropout_masks(p, generator)
    for part in _parts(p, max(1, rows_at_once // 2)):
        both = torch.cat([torch.arange(p)[part], p + torch.arange(p)[part]]).to(device)
        kept = [torch.cat([mask[part], mask[part]]) for mask in masks]
        f = network.join(network.embed(embedding[both]).unsqueeze(1), network.reward_part(grid).unsqueeze(0), kept)
        log_mass = torch.log_softmax(f, 1)
        chosen, rejected = log_mass.chunk(2)
        w = torch.ones_like(reward[:p][part]) if weight is None else weight[part].to(reward)
        loss = (w * noisy_preference_nll(chosen, rejected, flips, None if label is None else label[part])).sum()
        w = torch.cat([w, w])
        if reward_weight > 0:
            measured = measurement_loss(log_mass, grid, reward[both], reward_noise)
            loss = loss + 0.5 * reward_weight * (w * measured).sum()
        yield (loss + 0.5 * regularization * (w * f.square().mean(1)).sum()) / p
