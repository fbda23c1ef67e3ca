"""Pairs for a reward that is told how good an answer to aim for."""

from __future__ import annotations

import torch
from torch import Tensor

from ebrm.pairs import CurationReport, PreferencePairs
from ebrm.utils.validation import check_finite


def goal_conditioned_pairs(
    pairs: PreferencePairs, score: Tensor
) -> tuple[PreferencePairs, Tensor, CurationReport]:  # of [2q], [2q]
    """Two pairs of each: aimed at the better response's score it is preferred, aimed at the worse one's, the other is.

        R(y, g) = -(g - score(y))²:  R(chosen, g) = 0 > R(rejected, g) in every pair, with g = score(chosen)

    "Reward-Augmented Data Enhances Direct Preference Alignment of LLMs" (arXiv 2410.08067), which puts the goal g into
    the system prompt ("… overall score: g") and asks for the highest score when it is used; writing the goal into
    texts is left to the caller. Its published variant without a system prompt does not exchange the responses of the
    second copy; here both variants do. As there, pairs whose scores contradict their order are left out; so are
    pairs of equal scores, which would say two opposite things of one goal. With more than two responses to a prompt,
    give all of its pairs.

    Args:
        pairs: p of them; q have score(chosen) > score(rejected).
        score: of the n responses, in the judge's unit.

    Returns:
        The pairs, first all at the goal of the better response, then all at that of the worse; the goal of each; and
        the report. Weight, label and margin are those of the pair that each comes from.
    """
    known = check_finite(score, "score")
    better = (pairs.difference(known) > 0).nonzero().flatten()
    high, low = pairs.chosen[better], pairs.rejected[better]
    made = pairs.derived("goal-conditioned", better.repeat(2), torch.cat([high, low]), torch.cat([low, high]))
    return made, known[made.chosen], made.report(len(pairs), {"left out": len(pairs) - len(better)})
