"""What heads say of pairs they were not fitted to: the frozen embeddings make fitting them anew cheap."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from ebrm.errors import ConfigError, DataError
from ebrm.groups import Groups
from ebrm.pairs import PreferencePairs
from ebrm.utils.validation import check_finite

#: A head's reward of embeddings [m, d] -> [m].
Head = Callable[[Tensor], Tensor]
#: Fits a head on pairs of the rows of embeddings [n, d].
Fit = Callable[[Tensor, PreferencePairs], Head]


def head_difference(head: Head, embedding: Tensor, pairs: PreferencePairs) -> Tensor:  # [n, d] -> [p]
    """A head's r(chosen) - r(rejected), float64, without gradient; it reads only the rows that pairs are of."""
    pairs.check_rows(len(embedding))
    rows, place = torch.unique(torch.cat([pairs.chosen, pairs.rejected]), return_inverse=True)
    with torch.no_grad():
        reward = check_finite(head(embedding[rows]), "reward by a fitted head")
    if len(reward) != len(rows):
        raise ValueError(f"a fitted head gave {len(reward)} rewards for {len(rows)} embeddings")
    return reward[place[: len(pairs)]] - reward[place[len(pairs) :]]


def cross_fitted_difference(
    pairs: PreferencePairs,
    embedding: Tensor,  # [n, d]
    fit: Fit,
    generator: torch.Generator,
    folds: int = 5,
    repeats: int = 1,
    prompt: Groups | None = None,  # of [n]
) -> Tensor:  # [repeats, p]
    """r(chosen) - r(rejected) of each pair, by a head fitted to the pairs of the other folds.

    A model that has seen a wrong label tends to agree with it, so a vote on the labels (`preference_strength`), or an
    estimate of how many are wrong, has to come from models that have not. Not from a paper on reward models:
    cross-fitting is the general remedy. Pairs with a row in common, or of the same prompt where `prompt` says so, and
    pairs that are linked by others in this way, are in one fold.

    Args:
        pairs: p of them, of the rows of `embedding`.
        embedding: of n responses [n, d].
        fit: fits a head to some of the pairs; called folds · repeats times.
        generator: deals the folds.
        folds: number of folds, 2 or more.
        repeats: how often the folds are dealt, 1 or more: a model of the vote each.
        prompt: the prompt of each row; None: only equal rows link pairs.

    Returns:
        Differences in the reward's unit, float64 [repeats, p].

    Raises:
        ConfigError: fewer than 2 folds, or no repeat.
        DataError: fewer unlinked sets of pairs than folds, or a number that is not finite.
        ValueError: shapes other than said.
    """
    if folds < 2 or repeats < 1:
        raise ConfigError(f"Cross-fitting was asked for {folds} folds, {repeats} times; expected at least 2, and 1.")
    check_finite(embedding, "embedding [n, d]", 2)
    pairs.check_rows(len(embedding))
    if prompt is not None and len(prompt) != len(embedding):
        raise ValueError(f"{len(prompt)} rows have a prompt, and {len(embedding)} an embedding")
    of = Groups(torch.arange(len(embedding)), len(embedding)) if prompt is None else prompt
    part = _linked(of.index[pairs.chosen], of.index[pairs.rejected], of.count)
    if part.count < folds:
        raise DataError(
            f"{len(pairs)} pairs fall into {part.count} sets that share no response or prompt; {folds} folds need at "
            "least as many. Ask for fewer folds, or give more prompts."
        )
    difference = torch.empty(repeats, len(pairs), dtype=torch.float64)
    for repeat in range(repeats):
        place = torch.empty(part.count, dtype=torch.int64)
        place[torch.randperm(part.count, generator=generator)] = torch.arange(part.count)
        fold = part.spread(place % folds)
        for held_out in range(folds):
            inside = fold == held_out
            head = fit(embedding, pairs.select(~inside))
            difference[repeat, inside] = head_difference(head, embedding, pairs.select(inside))
    return difference


def estimated_noise(difference: Tensor) -> float:  # [k, p] ->
    """The share of pairs whose label the mean of cross-fitted differences contradicts, ties counting half.

    An estimate of the rate of wrong labels, not from a paper, and one that errs: a head that cannot rank clean
    pairs counts its own mistakes as the labels', so it tends to be too high. NaN without pairs.
    """
    mean = check_finite(difference, "difference of rewards [k, p]", 2).mean(0)
    return float(((mean < 0).double() + 0.5 * (mean == 0).double()).mean())


def _linked(first: Tensor, second: Tensor, count: int) -> Groups:
    """Pairs by what they are linked to, over their sides' nodes [p], [p]."""
    ends = np.stack([first.numpy(), second.numpy()])
    graph = coo_matrix((np.ones(ends.shape[1], dtype=np.int8), (ends[0], ends[1])), shape=(count, count))
    _, component = connected_components(graph, directed=False)
    return Groups.of(torch.from_numpy(component.astype(np.int64))[first])
