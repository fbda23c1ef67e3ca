"""Pairs across prompts, from answers that passed or failed."""

from __future__ import annotations

import torch
from torch import Tensor

from ebrm.errors import ConfigError
from ebrm.pairs import CurationReport, PreferencePairs


def cross_prompt_pairs(
    passed: Tensor,  # [n]
    generator: torch.Generator,
    wins: int | None = None,
    ties: int | None = None,
) -> tuple[PreferencePairs, CurationReport]:
    """Pass over fail, and pass beside pass as a tie, over all answers to all prompts.

        label 1 for (i, j) in W x L;  label 1/2 for {i, j} within W;  never two of L

    "SoliReward: Mitigating Susceptibility to Reward Hacking and Annotation Noise in Video Generation Reward Models"
    (arXiv 2512.22170): pass/fail labels are cheap and mean the same for every prompt, and ties keep the rewards of
    passing answers close together. Its public code weighs ties twice and gives them a margin; a loss of these pairs'
    label, with `margin` 0 as it is here, is the paper's: log 2 at equal rewards.

    There are |W| |L| wins and |W| (|W| - 1) / 2 ties; ask for fewer of many. They are then drawn without
    replacement, each as likely as any other.

    Args:
        passed: whether each of n answers passed, bool.
        generator: draws the pairs.
        wins, ties: how many of each; None, or more than there are: all.

    Returns:
        The pairs, wins first; and a report with the numbers of both.
    """
    if passed.dtype != torch.bool or passed.dim() != 1:
        raise ValueError(f"expected bool [n], got {tuple(passed.shape)} of {passed.dtype}")
    for name, number in (("wins", wins), ("ties", ties)):
        if number is not None and number < 0:
            raise ConfigError(f"The number of {name} is {number}; expected at least 0.")
    good, bad = passed.nonzero().flatten(), (~passed).nonzero().flatten()
    n, m = len(good), len(bad)
    win = _drawn(n * m, wins, generator)
    tie = _drawn(n * (n - 1) // 2, ties, generator)
    # On a ring of n, going 1, 2, … (n - 1) / 2 places on from each place meets every two just once; for even n, from
    # half of the places only at the last distance.
    start, apart = tie % max(n, 1), tie // max(n, 1) + 1
    chosen = torch.cat([good[win // max(m, 1)], good[start]])
    rejected = torch.cat([bad[win % max(m, 1)], good[(start + apart) % max(n, 1)]])
    label = torch.cat([torch.ones(len(win), dtype=torch.float64), torch.full((len(tie),), 0.5, dtype=torch.float64)])
    pairs = PreferencePairs.of(chosen, rejected, label=label, step="cross-prompt pairs")
    return pairs, pairs.report(0, {"wins": len(win), "ties": len(tie)})


def _drawn(total: int, count: int | None, generator: torch.Generator) -> Tensor:
    """`count` different numbers below `total`, in ascending order; all if None or too many."""
    if count is None or count >= total:
        return torch.arange(total)
    if 2 * count > total:
        return torch.randperm(total, generator=generator)[:count].sort().values
    found = torch.zeros(0, dtype=torch.int64)
    while len(found) < count:  # at least every second draw is new
        more = torch.randint(total, (2 * count + 10,), generator=generator)
        found = torch.cat([found, more]).unique()
    return found[torch.randperm(len(found), generator=generator)[:count]].sort().values
