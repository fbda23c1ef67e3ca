"""Two heads that choose each other's pairs, so that neither learns from the labels that it got wrong itself.

"Two Minds Better Than One: Collaborative Reward Modeling for LLM Alignment" (arXiv 2505.10597). We know the paper from
reviews and summaries; the exchange is that of co-teaching (Han et al., arXiv 1804.06872).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ebrm.curate.cross_fitting import Fit, Head, head_difference
from ebrm.errors import ConfigError, DataError
from ebrm.pairs import CurationReport, PreferencePairs
from ebrm.utils.validation import check_finite, check_same_shape


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


def exchange(first: Tensor, second: Tensor, keep_rate: float) -> tuple[Tensor, Tensor]:  # [b], [b] -> [b], [b]
    """Which pairs each head is to be fitted to: the ⌈keep_rate · b⌉ that the other is surest of.

    Args:
        first, second: r(chosen) - r(rejected) of each head; the highest have the lowest loss. Each one's own positive
            scale and offset do not matter. Of equal ones the earlier are taken.
        keep_rate: above 0 and at most 1.

    Returns:
        For the first head (by `second` alone), and for the second (by `first` alone), bool.
    """
    if not 0 < keep_rate <= 1:
        raise ConfigError(f"The share of pairs to keep is {keep_rate}; expected a number above 0, at most 1.")
    one, two = (
        check_finite(first, "difference by the first head"),
        check_finite(second, "difference by the second head"),
    )
    check_same_shape(first=one, second=two)
    count = math.ceil(keep_rate * len(one) - 1e-9)  # 0.55 · 100 is 55.00000000000001
    chosen = []
    for other in (two, one):
        mask = torch.zeros(len(other), dtype=torch.bool)
        mask[other.sort(stable=True, descending=True).indices[:count]] = True
        chosen.append(mask)
    return chosen[0], chosen[1]


def peer_review(
    pairs: PreferencePairs,
    embedding: Tensor,  # [n, d]
    fit: Fit,
    noise: float,
    generator: torch.Generator,
    rounds: int = 5,
    ramp: int = 3,
) -> tuple[PreferencePairs, Peers, CurationReport]:
    """Co-teach two heads, and keep the pairs that both trust in the end.

    Round t: both heads rate all pairs, hand the other those they are surest of, and are fitted anew to what they got;

        keep_rate_t = 1 - η · min(t / ramp, 1),  t = 1 … rounds

    The paper exchanges within batches during one training; with heads that are cheap to fit on frozen embeddings a
    round is a fit. The schedule is co-teaching's and the start is ours: each head is first fitted to one random half of
    the pairs, so that they differ even if `fit` does not draw. With η = 0 both are ordinarily fitted to all pairs.
    Compare with `independent_heads`: the gain may be that of averaging two heads. Labels that are wrong at random
    shrink a linear head but do not turn it; then leaving them out makes its probabilities sharper, not its ranking
    better.

    Args:
        pairs: p of them, at least 2.
        embedding: of n responses.
        fit: fits a head to some of the pairs; called 2 · (rounds + 1) times.
        noise: η, the share of wrong labels, from 0 to below 0.5; it has to be known (the paper tries 0.2 to 0.4).
            `estimated_noise` of cross-fitted differences is an estimate, which tends to be high.
        generator: draws the halves.
        rounds: exchanges, 1 or more.
        ramp: rounds until η of the pairs are left out, 1 or more.

    Returns:
        The pairs both heads were last fitted to, at most ⌈(1 - η) p⌉; the heads; and the report.

    Raises:
        ConfigError: a setting out of range.
        DataError: fewer than 2 pairs, or a number that is not finite.
    """
    if not 0 <= noise < 0.5:
        raise ConfigError(f"The share of wrong labels is {noise}; expected a number from 0 to below 0.5.")
    if rounds < 1 or ramp < 1:
        raise ConfigError(f"Peer review was asked for {rounds} rounds, with a ramp of {ramp}; expected at least 1.")
    _enough(pairs, embedding)
    half = torch.zeros(len(pairs), dtype=torch.bool)
    half[torch.randperm(len(pairs), generator=generator)[: len(pairs) // 2]] = True
    masks, kept = (half, ~half), []
    heads = [fit(embedding, pairs.select(mask)) for mask in masks]
    for t in range(1, rounds + 1):
        kept.append(1 - noise * min(t / ramp, 1))
        one, two = (head_difference(head, embedding, pairs) for head in heads)
        masks = exchange(one, two, kept[-1])
        heads = [fit(embedding, pairs.select(mask)) for mask in masks]
    peers = _peers(heads, torch.stack(masks), embedding, pairs, tuple(kept))
    trusted, report = pairs.after("peer review", keep=masks[0] & masks[1], numbers={"noise": noise, "rounds": rounds})
    return trusted, peers, report


def independent_heads(pairs: PreferencePairs, embedding: Tensor, fit: Fit, generator: torch.Generator) -> Peers:
    """The control of `peer_review`: two heads that know nothing of each other, averaged.

    Each is fitted to p pairs drawn with replacement (ours: so that they differ even if `fit` does not draw). Whatever
    co-teaching gains beyond these two is due to the exchange; the paper has no such control.
    """
    _enough(pairs, embedding)
    draws = torch.randint(len(pairs), (2, len(pairs)), generator=generator)
    heads = [fit(embedding, pairs.select(draw)) for draw in draws]
    fitted = torch.zeros(2, len(pairs), dtype=torch.bool).scatter_(1, draws, True)
    return _peers(heads, fitted, embedding, pairs, ())


def _peers(
    heads: list[Head], fitted: Tensor, embedding: Tensor, pairs: PreferencePairs, kept: tuple[float, ...]
) -> Peers:
    one, two = (head_difference(head, embedding, pairs) for head in heads)
    return Peers(heads[0], heads[1], fitted, (one + two) / 2, kept)


def _enough(pairs: PreferencePairs, embedding: Tensor) -> None:
    check_finite(embedding, "embedding [n, d]", 2)
    pairs.check_rows(len(embedding))
    if len(pairs) < 2:
        raise DataError(f"Two heads were to be fitted to {len(pairs)} pairs; expected at least 2.")
