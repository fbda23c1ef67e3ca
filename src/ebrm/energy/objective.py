"""What is minimised: label-noise-aware NCE+, and the exact likelihood."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ebrm.energy.network import EnergyNetwork
from ebrm.energy.noise import MixtureNoise


def nce_loss(
    positive: Tensor,  # [n]
    positive_log_noise: Tensor,  # [n]
    negative: Tensor,  # [n, m]
    negative_log_noise: Tensor,  # [n, m]
) -> Tensor:  # [n]
    """NCE+ loss a row: -[a⁰ - logsumexp_{m=0..M} aᵐ] with a = f - log p_N, the noisy positive first.

    Args:
        positive: f at the noisy positive y⁰ = r + ν.
        positive_log_noise: log p_N(y⁰ | r), under the *unscaled* mixture.
        negative: f at the M noise samples.
        negative_log_noise: log p_N(yᵐ | r).

    Source: Gustafsson et al., BMVC 2020, eq. 9-10; EBRM, arXiv 2504.13134, eq. 5.
    """
    a0 = positive - positive_log_noise
    a = torch.cat([a0.unsqueeze(1), negative - negative_log_noise], dim=1)
    return torch.logsumexp(a, 1) - a0


def likelihood_loss(positive: Tensor, on_nodes: Tensor, log_weight: Tensor) -> Tensor:  # [n], [n, g], [] or [g] -> [n]
    """Exact negative log-likelihood a row, -f(e, y⁰) + log Z(e), with log Z by quadrature on g nodes."""
    return torch.logsumexp(on_nodes + log_weight, 1) - positive


def shifted_nodes(low: float, high: float, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """`count` equally spaced nodes over [low, high] with one random offset, and the log of their common weight.

    The offset is uniform in a cell, so the quadrature is unbiased for Z at any count: a peak narrower than a cell
    is hit as often as it should be, and does not hide between fixed nodes for all of training.
    """
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
    """Mean NCE+ loss of a batch plus λ·mean f², as the terms of a sum over `rows_at_once` rows each.

    Fresh noise and dropout masks are drawn for the whole batch first, so that how it is split changes no result.
    Inputs in internal units.
    """
    n, device = len(reward), embedding.device
    centre = reward.unsqueeze(1)
    positive = centre + noise.offsets((n, 1), generator, beta).to(device)
    negative = centre + noise.offsets((n, negatives), generator).to(device)
    y = torch.cat([positive, negative], dim=1)
    log_noise = noise.log_prob(y, centre)
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
