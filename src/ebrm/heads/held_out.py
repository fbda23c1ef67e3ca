"""What a density says of held-out pairs, computed a part at a time: memory does not grow with their number."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ebrm.heads.energy import RewardDensity
from ebrm.heads.fusion import HeldOut
from ebrm.heads.grid import Posterior
from ebrm.heads.objective import noisy_preference_nll
from ebrm.heads.old_config import InferenceConfig
from ebrm.heads.rows import EmbeddingSource, rows_at_once

if TYPE_CHECKING:
    from ebrm.heads.energy_training import PairRows


@dataclass(frozen=True)
class _Part:
    """Some pairs: the rows in them [n], each once, the pairs as places among these, and what is read of the rows."""

    rows: Tensor
    chosen: Tensor
    rejected: Tensor
    embedding: Tensor  # [n, d]
    reward: Tensor  # [n]
    posterior: Posterior


def _parts(
    density: RewardDensity, embeddings: EmbeddingSource, reward: Tensor, pairs: PairRows, nodes: int
) -> Iterator[_Part]:
    """Pairs in their order, a few at a time; pairs that share a response mostly stand together."""
    few = rows_at_once(embeddings) // 2
    for chosen, rejected in zip(pairs.chosen.split(few), pairs.rejected.split(few), strict=True):
        rows, place = torch.unique(torch.cat([chosen, rejected]), return_inverse=True)
        embedding, base = embeddings[rows], reward[rows]
        posterior = density.internal_posterior(embedding, base, nodes)
        yield _Part(rows, place[: len(chosen)], place[len(chosen) :], embedding, base, posterior)


def held_out_densities(
    density: RewardDensity, embeddings: EmbeddingSource, reward: Tensor, pairs: PairRows, nodes: int
) -> Iterator[HeldOut]:
    """The densities of held-out pairs on `nodes` nodes, a part at a time, float32 on the CPU."""
    for part in _parts(density, embeddings, reward, pairs, nodes):
        yield HeldOut(
            log_mass=part.posterior.log_cells().float().cpu(),
            nodes=part.posterior.nodes.float().cpu(),
            reward=density.standardizer.to_internal(part.reward.to(density.device)).cpu(),
            chosen=part.chosen,
            rejected=part.rejected,
        )


def validate(
    density: RewardDensity,
    embeddings: EmbeddingSource,
    reward: Tensor,  # [n]
    pairs: PairRows,
    inference: InferenceConfig,
    flips: float,
) -> tuple[float, float, float]:
    """(accuracy of the deployed inference, -log p(r0 | e) in base units, label loss) of held-out pairs, or NaN.

    Accuracy and label loss are means over pairs, -log p over the responses in them, each counted once.
    """
    if len(pairs) == 0:
        return float("nan"), float("nan"), float("nan")
    right, nll, loss, responses = 0, 0.0, 0.0, 0
    counted = torch.zeros(len(reward), dtype=torch.bool)
    draws = torch.Generator().manual_seed(inference.seed)
    for part in _parts(density, embeddings, reward, pairs, inference.nodes):
        refined = _refined(density, part, inference, draws)
        right += int((refined[part.chosen] > refined[part.rejected]).sum())
        fresh = ~counted[part.rows]
        counted[part.rows] = True
        responses += int(fresh.sum())
        nll -= float(log_density_of(density, part.posterior, part.reward)[fresh].double().sum())
        mass = part.posterior.log_cells().float().cpu()
        loss += float(noisy_preference_nll(mass[part.chosen], mass[part.rejected], flips).double().sum())
    return right / len(pairs), nll / responses, loss / len(pairs)


def _refined(density: RewardDensity, part: _Part, inference: InferenceConfig, draws: torch.Generator) -> Tensor:
    """Refined rewards of a part's rows [n], base units."""
    if inference.estimate == "ascent":
        return density.refine(part.embedding, part.reward, inference, draws).reward
    internal = part.posterior.mean() if inference.estimate == "mean" else part.posterior.mode()
    return density.standardizer.to_base(internal).cpu()


def log_density(density: RewardDensity, embedding: Tensor, reward: Tensor, nodes: int) -> Tensor:
    """Log p(r | e, r0) at the base rewards r0 [n], base units; rewards outside the support count as on its edge."""
    return log_density_of(density, density.internal_posterior(embedding, reward, nodes), reward)


def log_density_of(density: RewardDensity, at: Posterior, reward: Tensor) -> Tensor:
    """As :func:`log_density`, of a posterior that is known."""
    internal = density.standardizer.to_internal(reward.to(density.device)).clamp(*density.support_bounds())
    unit = torch.tensor(density.standardizer.unit, dtype=torch.float64).log()
    return (at.log_density_at(internal) - unit.to(at.nodes.device)).float().cpu()
