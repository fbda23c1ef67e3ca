"""Cross-fitting and co-teaching: curation by heads that are fitted to the pairs, cheap on frozen embeddings.

`fit` is any function `(embedding [n, d], pairs) -> head`, where a head gives rewards of embeddings, [m, d] -> [m]; for
the heads of this package `ebrm.heads.head_fitter(config)`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ebrm.errors import DataError
from ebrm.groups import Groups
from ebrm.pairs import CurationReport, PreferencePairs
from ebrm.utils.validation import ArrayLike, as_tensor, check_finite, check_setting

#: A head's reward of embeddings [m, d] -> [m].
Head = Callable[[Tensor], Tensor]
#: Fits a head on pairs of the rows of embeddings [n, d].
Fit = Callable[[Tensor, PreferencePairs], Head]


def head_difference(head: Head, embedding: ArrayLike, pairs: PreferencePairs) -> Tensor:  # [n, d] -> [p]
    """A head's r(chosen) - r(rejected), float64, without gradient; it reads only the rows that pairs are of."""
    known = as_tensor(embedding, "embedding", pairs.device)
    pairs.check_rows(len(known))
    rows, place = torch.unique(torch.cat([pairs.chosen, pairs.rejected]), return_inverse=True)
    with torch.no_grad():
        reward = check_finite(head(known[rows]), "reward by a fitted head", device=pairs.device)
    if len(reward) != len(rows):
        raise ValueError(f"a fitted head gave {len(reward)} rewards for {len(rows)} embeddings")
    return reward[place[: len(pairs)]] - reward[place[len(pairs) :]]


def cross_fitted_difference(
    pairs: PreferencePairs,
    embedding: ArrayLike,  # [n, d]
    fit: Fit,
    generator: torch.Generator,
    folds: int = 5,
    repeats: int = 1,
    prompt: Groups | None = None,  # of [n]
) -> Tensor:  # [repeats, p]
    """Cross-fitted r(chosen) - r(rejected) of each pair, by a head fitted to the pairs of the other folds.

    A model that has seen a wrong label tends to agree with it, so a vote on the labels (`preference_strength`), or an
    estimate of how many are wrong, has to come from models that have not (the general remedy; ours for reward models).
    Pairs that share a row or a prompt, and pairs that are linked by others in this way, are in one fold.

    Args:
        pairs: p of them, of the rows of `embedding`.
        embedding: of n responses.
        fit: fits a head to some of the pairs; called folds · repeats times.
        generator: deals the folds.
        folds: number of folds, 2 or more; a DataError if there are fewer unlinked sets of pairs.
        repeats: how often the folds are dealt, 1 or more: a model of the vote each.
        prompt: the prompt of each row; None: only equal rows link pairs.
    """
    check_setting("folds", folds, at_least=2)
    check_setting("repeats", repeats, at_least=1)
    known = _embedding(embedding, pairs)
    if prompt is not None and len(prompt) != len(known):
        raise ValueError(f"{len(prompt)} rows have a prompt, and {len(known)} an embedding")
    device = pairs.device
    index = torch.arange(len(known), device=device) if prompt is None else prompt.index.to(device)
    part = _linked(index[pairs.chosen], index[pairs.rejected], len(known) if prompt is None else prompt.count)
    if part.count < folds:
        raise DataError(
            f"{len(pairs)} pairs fall into {part.count} sets that share no response or prompt; {folds} folds need at "
            "least as many. Ask for fewer folds, or give more prompts."
        )
    rounds = []
    for _ in range(repeats):
        place = torch.argsort(torch.randperm(part.count, generator=generator, device=generator.device).to(device))
        fold = part.spread(place % folds)
        difference = torch.empty(len(pairs), dtype=torch.float64, device=device)
        for held_out in range(folds):
            inside = fold == held_out
            head = fit(known, pairs.select(~inside))
            difference[inside] = head_difference(head, known, pairs.select(inside))
        rounds.append(difference)
    return torch.stack(rounds)


def estimated_noise(difference: ArrayLike) -> float:  # [k, p] ->
    """Estimated label noise: the share of pairs that the mean of cross-fitted differences contradicts (ours).

    Ties count half. It tends to be too high, as a head that cannot rank clean pairs counts its own mistakes as the
    labels'. NaN without pairs.
    """
    mean = check_finite(difference, "difference of rewards [k, p]").mean(0)
    return float(((mean < 0).double() + 0.5 * (mean == 0).double()).mean())


@dataclass(frozen=True, eq=False)
class Peers:
    """Two heads and the pairs that each was fitted to.

    Attributes:
        first, second: the heads.
        fitted: the pairs that each was last fitted to, bool [2, p]; with `independent_heads` those that were drawn.
        difference: mean of both heads' r(chosen) - r(rejected), float64 [p]. Its descending order is the paper's
            curriculum, easy pairs first.
        kept: the share of pairs that were exchanged in each round.
    """

    first: Head
    second: Head
    fitted: Tensor
    difference: Tensor
    kept: tuple[float, ...]

    def reward(self, embedding: Tensor) -> Tensor:  # [m, d] -> [m]
        """Mean of both heads' rewards, float64."""
        return (self.first(embedding).double() + self.second(embedding).double()) / 2


def exchange(first: ArrayLike, second: ArrayLike, keep_rate: float) -> tuple[Tensor, Tensor]:  # [b], [b] -> [b], [b]
    """Exchange of co-teaching: each head is to be fitted to the ⌈keep_rate · b⌉ pairs that the other is surest of.

    From r(chosen) - r(rejected) of each head, of which the highest have the lowest loss (of equal ones the earlier are
    taken): bool for the first head (by `second` alone), and for the second (by `first` alone).
    """
    check_setting("keep_rate", keep_rate, above=0, at_most=1)
    one = check_finite(first, "difference by the first head [b]")
    two = check_finite(second, "difference by the second head [b]", device=one.device, b=len(one))
    count = math.ceil(keep_rate * len(one) - 1e-9)  # 0.55 · 100 is 55.00000000000001
    return _highest(two, count), _highest(one, count)


def peer_review(
    pairs: PreferencePairs,
    embedding: ArrayLike,  # [n, d]
    fit: Fit,
    noise: float,
    generator: torch.Generator,
    rounds: int = 5,
    ramp: int = 3,
) -> tuple[PreferencePairs, Peers, CurationReport]:
    """Peer review: co-teach two heads, and keep the pairs that both trust in the end (CRM, arXiv 2505.10597).

    Round t: both heads rate all pairs, hand the other those they are surest of, and are fitted anew to what they got;

        keep_rate_t = 1 - η · min(t / ramp, 1),  t = 1 … rounds

    The paper exchanges within the batches of one training; rounds of whole fits, and the start (each head is first
    fitted to one random half of the pairs) are ours, the schedule is that of co-teaching (Han et al., arXiv
    1804.06872). Compare with `independent_heads`: the gain may be that of averaging two heads. Labels that are wrong at
    random shrink a linear head but do not turn it; then leaving them out sharpens its probabilities, not its ranking.

    Args:
        pairs: p of them, at least 2.
        embedding: of n responses.
        fit: fits a head to some of the pairs; called 2 · (rounds + 1) times.
        noise: η, the share of wrong labels, from 0 to below 0.5; it has to be known. `estimated_noise` of cross-fitted
            differences is an estimate, which tends to be high.
        generator: draws the halves.
        rounds: exchanges, 1 or more.
        ramp: rounds until η of the pairs are left out, 1 or more.

    Returns:
        The pairs both heads were last fitted to, at most ⌈(1 - η) p⌉; the heads; and the report.
    """
    check_setting("noise", noise, at_least=0, below=0.5)
    check_setting("rounds", rounds, at_least=1)
    check_setting("ramp", ramp, at_least=1)
    known = _embedding(embedding, pairs, at_least=2)
    order = torch.randperm(len(pairs), generator=generator, device=generator.device).to(pairs.device)
    half = torch.zeros_like(order, dtype=torch.bool).index_fill(0, order[: len(pairs) // 2], True)
    masks, kept = (half, ~half), []
    heads = [fit(known, pairs.select(mask)) for mask in masks]
    for t in range(1, rounds + 1):
        kept.append(1 - noise * min(t / ramp, 1))
        one, two = (head_difference(head, known, pairs) for head in heads)
        masks = exchange(one, two, kept[-1])
        heads = [fit(known, pairs.select(mask)) for mask in masks]
    peers = _peers(heads, torch.stack(masks), known, pairs, tuple(kept))
    trusted, report = pairs.after("peer review", keep=masks[0] & masks[1], numbers={"noise": noise, "rounds": rounds})
    return trusted, peers, report


def independent_heads(pairs: PreferencePairs, embedding: ArrayLike, fit: Fit, generator: torch.Generator) -> Peers:
    """Control of `peer_review` (ours): the mean of two heads, each fitted to p pairs drawn with replacement.

    Any gain of co-teaching beyond these two is due to the exchange.
    """
    known = _embedding(embedding, pairs, at_least=2)
    draws = torch.randint(len(pairs), (2, len(pairs)), generator=generator, device=generator.device).to(pairs.device)
    heads = [fit(known, pairs.select(draw)) for draw in draws]
    fitted = torch.zeros_like(draws, dtype=torch.bool).scatter_(1, draws, True)
    return _peers(heads, fitted, known, pairs, ())


def _peers(
    heads: list[Head], fitted: Tensor, embedding: Tensor, pairs: PreferencePairs, kept: tuple[float, ...]
) -> Peers:
    one, two = (head_difference(head, embedding, pairs) for head in heads)
    return Peers(heads[0], heads[1], fitted, (one + two) / 2, kept)


def _highest(values: Tensor, count: int) -> Tensor:
    best = values.sort(stable=True, descending=True).indices[:count]
    return torch.zeros_like(values, dtype=torch.bool).index_fill(0, best, True)


def _embedding(embedding: ArrayLike, pairs: PreferencePairs, at_least: int = 0) -> Tensor:
    """The embeddings on the device of the pairs, in their own type, checked."""
    known = as_tensor(embedding, "embedding [n, d]", pairs.device)
    check_finite(known, "embedding [n, d]")
    pairs.check_rows(len(known))
    if len(pairs) < at_least:
        raise DataError(f"Two heads were to be fitted to {len(pairs)} pairs; expected at least {at_least}.")
    return known


def _linked(first: Tensor, second: Tensor, count: int) -> Groups:
    """Pairs by what they are linked to, over their sides' nodes [p], [p]."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    ends = np.stack([first.cpu().numpy(), second.cpu().numpy()])
    graph = coo_matrix((np.ones(ends.shape[1], dtype=np.int8), (ends[0], ends[1])), shape=(count, count))
    _, component = connected_components(graph, directed=False)
    return Groups.of(torch.from_numpy(component.astype(np.int64)).to(first.device)[first])
