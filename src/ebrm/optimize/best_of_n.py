"""Best-of-n: draw n responses, keep the one with the highest reward. What is it worth?"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import gammaln

from ebrm.errors import ConfigError
from ebrm.optimize.pools import Floats, Integers, pool_tables, pools_by_size, tie_groups

_CHUNK_CELLS = 1_000_000


def best_of_n_gold(reward: ArrayLike, gold: ArrayLike) -> Floats:
    """Expected gold of the best-rewarded of n responses, exactly, for every n from 1 to the size of each pool.

    The n are drawn without replacement from the prompt's s responses, all sets of n being equally likely. Without
    ties, the response of rank i (1 lowest) is the best of C(i-1, n-1) of the C(s, n) sets: the others in such a set
    are any n-1 of the i-1 below it. Ties are broken by lot. If all ties are broken once, in a random order, each of c
    equal responses is equally likely to have each of their c ranks; so each of them gets the mean weight of those
    ranks, which is the same as giving each of these ranks the mean gold of the c.

    For responses that are themselves independent draws from a policy this is the unbiased estimate of the policy's
    best-of-n (a U-statistic), with less variance than that of drawing n once. It is worth little near n = s, where it
    rests on one set. With `gold=reward` it is the expected reward itself.

    Args:
        reward: rewards of the responses [q, m], NaN where a prompt has fewer than m.
        gold: their worth, in any unit, NaN in the same places [q, m].

    Returns:
        Expected gold [q, m], in gold's unit; column j is n = j + 1. NaN for n above the number of a prompt's
        responses, so that a mean over prompts at such an n is one over fewer prompts (which
        `ebrm.metrics.mean_curve` refuses). At n = 1 it is the mean gold, whatever the reward.

    Raises:
        DataError: a response with a reward but no gold or the reverse, or an infinite number.
        ValueError: not two tables of the same shape.
    """
    reward, gold = pool_tables(reward, gold)
    expected = np.full(reward.shape, np.nan)
    for rows, rewards, golds in pools_by_size(reward, gold):
        size = rewards.shape[1]
        weight = _rank_weights(size)
        shared = _shared(tie_groups(rewards), golds)
        step = max(1, _CHUNK_CELLS // size**2)
        for start in range(0, len(rows), step):
            part = slice(start, start + step)
            # Not a matrix product: its last bits depend on how many prompts there are.
            expected[rows[part], :size] = (shared[part, None, :] * weight).sum(axis=2)
    return expected


def best_of_n_kl(n: ArrayLike) -> Floats:
    """How far best-of-n is from the policy it draws from: log n - (n - 1) / n, in nats.

    An upper bound on KL(best-of-n ‖ policy) for independent draws, reached where no two responses have the same
    reward and none comes twice, as Beirami et al. show (arXiv 2401.01879, theorem 3.1); it was taken for the exact
    value before. It speaks of the policy, not of a finite pool: the best of all s responses of a pool is at log s from
    a uniform choice among them.

    Args:
        n: how many responses are drawn, 1 or more, any shape.

    Raises:
        ConfigError: an n below 1 or not finite.
    """
    number = np.asarray(n, dtype=np.float64)
    bad = number[~(np.isfinite(number) & (number >= 1))]
    if len(bad):
        raise ConfigError(f"Best-of-n draws a finite number of responses, at least one; n is {bad[0]}.")
    return np.log(number) - (number - 1) / number


def _rank_weights(size: int) -> Floats:
    """C(i-1, n-1) / C(s, n) at [n - 1, i - 1]: how likely the response of rank i is the best of n."""
    n, rank = np.arange(1, size + 1)[:, None], np.arange(1, size + 1)
    below = np.maximum(rank - n, 0)
    log_weight = gammaln(rank) - gammaln(n) - gammaln(below + 1)
    log_weight -= gammaln(size + 1) - gammaln(n + 1) - gammaln(size - n + 1)
    weight = np.where(rank >= n, np.exp(log_weight), 0.0)
    # Rounding of the logarithms grows with the pool; a reward that is worth nothing must stay at the mean.
    return weight / weight.sum(axis=1, keepdims=True)


def _shared(group: Integers, gold: Floats) -> Floats:
    """Each response's gold replaced by the mean of those with equal reward [p, s]."""
    prompts, size = gold.shape
    label = (group + size * np.arange(prompts)[:, None]).ravel()
    count = np.bincount(label, minlength=prompts * size)
    total = np.bincount(label, weights=gold.ravel(), minlength=prompts * size)
    return (total[label] / count[label]).reshape(gold.shape)
