"""A reward averaged over texts that say nearly the same."""

from __future__ import annotations

import torch
from torch import Tensor

from ebrm.errors import ConfigError
from ebrm.utils.validation import check_finite, unit_vectors

# Cosines are held in tables of so many cells.
_CHUNK_CELLS = 4_000_000
# Equal embeddings must have equal cosines, which rounding would keep them from.
_DECIMALS = 12


def neighbor_fusion(
    embedding: Tensor,  # [n, d]
    reward: Tensor,  # [n]
    bank: Tensor,  # [m, d]
    bank_reward: Tensor,  # [m]
    own: Tensor | None = None,  # [n]
    threshold: float = 0.9,
    neighbors: int = 5,
) -> Tensor:  # [n]
    """Average each reward with those of its nearest texts, weighted by their cosines: RewardFusion.

        r' = (r + Σ_j c_j r_j) / (1 + Σ_j c_j),  j over the nearest `neighbors` rows with cosine c_j ≥ threshold

    "The Trickle-down Impact of Reward (In-)consistency on RLHF" (arXiv 2309.16155), which takes the cosines of
    sentence embeddings; here they are of any embeddings, such as the reward model's own. The result lies between the
    least and the highest of the rewards that are averaged, and is the reward itself without neighbors. It does not
    depend on the embeddings' lengths, nor on a rotation of all; an offset and positive scale of all rewards go through.

    The public code counts a text that is in the bank twice, for one of two sides of a pair (and does not drop repeated
    texts there, as it means to); here `own` leaves it out. Rows that tie for the last places share them (the paper does
    not say), so that the order of the bank does not matter. Cosines count as equal if they are to 12 decimals.

    Takes n · m · d multiplications, in parts of at most 4 million cosines.

    Args:
        embedding: of the n texts [n, d].
        reward: their rewards [n].
        bank, bank_reward: the same of the m texts that are looked at as neighbors [m, d], [m]. May be the n texts
            themselves.
        own: the row of the bank that is the text itself, -1 if none is, whole numbers [n]; None: none is.
        threshold: the least cosine of a neighbor, above 0 and at most 1. The paper's 0.9 is for its encoder: other
            embeddings lie closer or wider.
        neighbors: how many at most, 1 or more.

    Returns:
        Rewards [n], in the type of `reward`.

    Raises:
        ConfigError: a threshold or number outside its range.
        DataError: a number that is not finite, or an embedding of 0, which has no direction.
        ValueError: shapes other than said, or an `own` that is not a row of the bank.
    """
    if not 0 < threshold <= 1:
        raise ConfigError(f"The least cosine of a neighbor is {threshold}; expected a number above 0, at most 1.")
    if neighbors < 1:
        raise ConfigError(f"The number of neighbors is {neighbors}; expected at least 1.")
    here, there = unit_vectors(embedding, "embedding"), unit_vectors(bank, "bank")
    rewards, others = check_finite(reward, "reward"), check_finite(bank_reward, "reward in the bank")
    if here.shape[1:] != there.shape[1:] or len(here) != len(rewards) or len(there) != len(others):
        raise ValueError(
            f"expected embeddings [n, d] and [m, d] with rewards [n] and [m], got {tuple(embedding.shape)} and "
            f"{tuple(bank.shape)} with {tuple(reward.shape)} and {tuple(bank_reward.shape)}"
        )
    if own is not None and (
        own.shape != reward.shape or own.is_floating_point() or bool(((own < -1) | (own >= len(bank))).any())
    ):
        raise ValueError(f"own: expected {len(reward)} rows of the bank [n], from -1 to {len(bank) - 1}")
    if not len(bank):
        return rewards.to(torch.result_type(reward, 1.0))
    result = torch.empty_like(rewards)
    step = max(1, _CHUNK_CELLS // len(bank))
    for start in range(0, len(here), step):
        part = slice(start, start + step)
        cosine = (here[part] @ there.T).round(decimals=_DECIMALS).clamp_max(1)
        if own is not None:
            itself = own[part, None].long()
            cosine.scatter_(1, itself.clamp_min(0), cosine.gather(1, itself.clamp_min(0)).where(itself < 0, -2.0))
        last = cosine.topk(min(neighbors, len(bank)), 1).values[:, -1:]
        above, level = cosine > last, cosine == last
        share = (min(neighbors, len(bank)) - above.sum(1, keepdim=True)) / level.sum(1, keepdim=True)
        weight = torch.where(cosine >= threshold, cosine * (above + level * share), 0.0)
        result[part] = (rewards[part] + weight @ others) / (1 + weight.sum(1))
    return result.to(torch.result_type(reward, 1.0))
