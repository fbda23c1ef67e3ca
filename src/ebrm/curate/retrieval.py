"""Which pairs to label next, and density-ratio weights of examples from other prompts."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ebrm.errors import ConfigError, DataError
from ebrm.groups import Groups
from ebrm.utils.validation import ArrayLike, check_finite, check_range, check_setting, match_dtype, unit_vectors

# Cosines are held in tables of so many cells.
_CHUNK_CELLS = 4_000_000
# Equal embeddings must have equal cosines, and 10 · (1 - 0.7) must be 3, which rounding would keep them from.
_DECIMALS = 9


def retrieval_budget(probability: ArrayLike, most: int = 8) -> Tensor:  # [v] -> [v]
    """Neighbors that each held-out pair is given, int64: all where the model is wrong, fewer the surer it is.

        k = most where p ≤ 1/2, else ⌈most · (1 - p)⌉,  p = σ(r(chosen) - r(rejected))

    Skywork-Reward-V2 (arXiv 2507.01352), `most` being its k_max, at least 1. A pair with p = 1 is given none.
    """
    check_setting("most", most, at_least=1)
    p = check_range(probability, 0, 1, "probability [v]")
    return torch.where(p <= 0.5, float(most), (most * (1 - p)).round(decimals=_DECIMALS).ceil()).long()


def error_driven_retrieval(
    probability: ArrayLike, embedding: ArrayLike, pool: ArrayLike, most: int = 8
) -> Tensor:  # [v], [v, d], [m, d] -> [q]
    """Error-driven retrieval: rows of the pool to label next, nearest to the held-out pairs that the model gets wrong.

    Stage one of Skywork-Reward-V2 (arXiv 2507.01352), with `retrieval_budget`; there embeddings are of the conversation
    and its attributes. Nearest by cosine is ours; of equally near rows the earlier come first. Takes v · m · d
    multiplications, in parts of at most 4 million cosines.

    `probability` is the model's P(chosen is better) of v held-out pairs, `embedding` theirs, `pool` of m unlabeled
    pairs, which may be fewer than the budget, `most` the most neighbors of one pair. Rows of the pool are in ascending
    order, each once, int64.
    """
    budget = retrieval_budget(probability, most)
    here = unit_vectors(embedding, "embedding", budget.device)
    there = unit_vectors(pool, "pool", budget.device)
    budget = budget.clamp_max(len(there))
    if len(here) != len(budget) or here.shape[1:] != there.shape[1:]:
        raise ValueError(
            f"expected {len(budget)} embeddings [v, d] and a pool [m, d], got {tuple(here.shape)} and "
            f"{tuple(there.shape)}"
        )
    found = torch.zeros_like(there[:, 0], dtype=torch.bool)
    for part in (budget > 0).nonzero().flatten().split(max(1, _CHUNK_CELLS // max(1, len(there)))):
        if not len(part):
            continue
        cosine = (here[part] @ there.T).round(decimals=_DECIMALS)
        k = budget[part, None]
        last = cosine.topk(int(k.max()), 1).values.gather(1, k - 1)
        above, level = cosine > last, cosine == last
        found |= (above | (level & (level.cumsum(1) <= k - above.sum(1, keepdim=True)))).any(0)
    return found.nonzero().flatten()


def ucb_pairs(reward: ArrayLike, prompt: Groups, bonus: float = 1.0) -> Tensor:  # [k, n] -> [q, 2]
    """Pairs to label next: the two responses of each prompt with the highest upper confidence bounds (ours).

        u = mean_m r_m + c · std_m r_m

    SELM (arXiv 2405.19332) is optimistic when it fits: it favors responses whose reward may be high. For an ensemble's
    or a posterior's k rewards this is the same thought at the choice of what to label. Take the prompts where the two
    bounds are closest, or the members differ most, if not all can be labeled.

    Args:
        reward: of k members, at least 1, and n responses, on one scale (`ebrm.aggregate.member_units`).
        prompt: the prompt of each response.
        bonus: c, 0 (the highest mean rewards) or more; deviations have the divisor k.

    Returns:
        rows, the higher bound first (of equal ones the earlier row), int64; in the order of prompts, those with one
        response left out.
    """
    check_setting("bonus", bonus, at_least=0)
    known = check_finite(reward, "reward [k, n]", n=len(prompt))
    if not len(known):
        raise DataError("Upper confidence bounds of no members; expected the rewards of at least 1.")
    mean = torch.where((known == known[0]).all(0), known[0], known.mean(0))
    bound = mean + bonus * (known - mean).square().mean(0).sqrt()
    prompt = prompt.to(bound.device)
    rank = prompt.rank(bound)
    places = torch.full((prompt.count, 2), -1, device=bound.device)
    for place in (0, 1):
        rows = (rank == place).nonzero().flatten()
        places[prompt.index[rows], place] = rows
    return places[prompt.sizes >= 2]


def density_ratio_weights(
    positive: ArrayLike, negative: ArrayLike, low: float = 0.5, high: float = 10.0, penalty: float = 1.0
) -> Tensor:  # [n, d], [m, d] -> [m]
    """Density-ratio weights of negative examples, as if they came from the prompts of the positive ones.

        w = clamp(f / (1 - f), low, high),  f = P(positive | embedding) with both classes weighing the same

    Binary classifier optimization (arXiv 2404.04656): people who give a thumbs up and a thumbs down ask different
    things, and the binary loss assumes that they do not; weigh the negatives by this, the positives by 1. Embeddings
    are of the prompts of both kinds. Classifier and defaults are those of the public code (TRL): logistic regression
    with `class_weight="balanced"`. The ridge, of strength `penalty` (scikit-learn's 1 / C), acts on the embeddings as
    they are, so their scale matters. Bounds of a weight: 0 < low ≤ 1 ≤ high.
    """
    from sklearn.linear_model import LogisticRegression

    good = check_finite(positive, "positive embedding [n, d]")
    bad = check_finite(negative, "negative embedding [m, d]", d=good.shape[1])
    check_setting("penalty", penalty, above=0)
    if not len(bad):
        return match_dtype(odds_weights(bad.sum(1), low, high), negative)
    if not len(good):
        raise DataError(f"There are {len(bad)} negative examples and no positive one to weigh them by.")
    classifier = LogisticRegression(class_weight="balanced", C=1 / penalty, max_iter=10_000)
    rows = torch.cat([good.to(bad.device), bad]).cpu().numpy()
    classifier.fit(rows, [1] * len(good) + [0] * len(bad))
    logit = torch.from_numpy(classifier.decision_function(rows[len(good) :])).to(bad.device)
    return match_dtype(odds_weights(logit, low, high), negative)


def odds_weights(logit: ArrayLike, low: float = 0.5, high: float = 10.0) -> Tensor:  # [m] -> [m]
    """Clamped odds clamp(f / (1 - f), low, high) of a classifier's logit of f, float64."""
    if not 0 < low <= 1 <= high < math.inf:
        raise ConfigError(f"`low` and `high` are {low} and {high}; expected 0 < low <= 1 <= high.")
    return check_finite(logit, "logit [m]").clamp(math.log(low), math.log(high)).exp()
