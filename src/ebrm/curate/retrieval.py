"""Where to spend labels: near the held-out pairs that a reward model gets wrong."""

from __future__ import annotations

import torch
from torch import Tensor

from ebrm.errors import ConfigError
from ebrm.utils.validation import check_range, unit_vectors

# Cosines are held in tables of so many cells.
_CHUNK_CELLS = 4_000_000
# Equal embeddings must have equal cosines, and 10 · (1 - 0.7) must be 3, which rounding would keep them from.
_DECIMALS = 9


def retrieval_budget(probability: Tensor, most: int = 8) -> Tensor:  # [v] -> [v]
    """How many neighbors each held-out pair is given: all where the model is wrong, fewer the surer it is.

        k = most where p ≤ 1/2, else ⌈most · (1 - p)⌉,  p = σ(r(chosen) - r(rejected))

    "Skywork-Reward-V2" (arXiv 2507.01352). Positive scale of the reward matters; an offset does not. A pair with p = 1
    is given none.

    Args:
        probability: p of each held-out pair.
        most: k_max, at least 1.

    Returns:
        Whole numbers, int64 [v].
    """
    if most < 1:
        raise ConfigError(f"The most neighbors of a pair are {most}; expected at least 1.")
    p = check_range(probability, 0, 1, "probability")
    return torch.where(p <= 0.5, float(most), (most * (1 - p)).round(decimals=_DECIMALS).ceil()).long()


def error_driven_retrieval(
    probability: Tensor,  # [v]
    embedding: Tensor,  # [v, d]
    pool: Tensor,  # [m, d]
    most: int = 8,
) -> Tensor:  # [q]
    """Rows of the pool that are worth labelling next: the nearest to each held-out pair, within its budget.

    Stage one of "Skywork-Reward-V2" (arXiv 2507.01352), with `retrieval_budget`. There embeddings are of the
    conversation and its attributes; here of anything. Nearest is by cosine (the account of the paper that we read names
    no measure), so lengths and a common rotation do not matter; of equally near rows the earlier come first. Takes
    v · m · d multiplications, in parts of at most 4 million cosines.

    Args:
        probability: the model's P(chosen is better) of v held-out pairs.
        embedding: theirs.
        pool: embeddings of m unlabeled pairs; may be fewer than the budget.
        most: the most neighbors of one pair.

    Returns:
        Rows of the pool in ascending order, each once, int64 [q].

    Raises:
        ConfigError: `most` below 1.
        DataError: a number that is not finite, a probability out of range, or an embedding of 0.
        ValueError: shapes other than said.
    """
    budget = retrieval_budget(probability, most).clamp_max(len(pool))
    here, there = unit_vectors(embedding, "embedding"), unit_vectors(pool, "pool")
    if len(here) != len(budget) or here.shape[1:] != there.shape[1:]:
        raise ValueError(
            f"expected {len(budget)} embeddings [v, d] and a pool [m, d], got {tuple(embedding.shape)} and "
            f"{tuple(pool.shape)}"
        )
    found = torch.zeros(len(there), dtype=torch.bool)
    asking = (budget > 0).nonzero().flatten()
    step = max(1, _CHUNK_CELLS // max(1, len(there)))
    for start in range(0, len(asking), step):
        part = asking[start : start + step]
        cosine = (here[part] @ there.T).round(decimals=_DECIMALS)
        k = budget[part, None]
        last = cosine.topk(int(k.max()), 1).values.gather(1, k - 1)
        above, level = cosine > last, cosine == last
        found |= (above | (level & (level.cumsum(1) <= k - above.sum(1, keepdim=True)))).any(0)
    return found.nonzero().flatten()
