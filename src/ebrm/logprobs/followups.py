"""Follow-up likelihood: a good answer makes pleased follow-ups of the user likelier than displeased ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ebrm.errors import ConfigError
from ebrm.utils.validation import ArrayLike, check_finite, match_dtype


@dataclass(frozen=True)
class Followups:
    """What a pleased and a displeased user may say next, about one side of a response."""

    positive: tuple[str, ...]
    negative: tuple[str, ...]


#: Follow-ups by dimension, written for this library (the paper's repository has ten of each kind, of its own).
FOLLOWUPS: Mapping[str, Followups] = {
    "understanding": Followups(
        ("Yes, that is what I meant.", "You understood my question."),
        ("I meant something else.", "You misread it."),
    ),
    "relevance": Followups(
        ("That answers exactly what I asked.", "Right to the point."), ("That has nothing to do with it.", "Off topic.")
    ),
    "correctness": Followups(
        ("That is correct, thanks.", "I checked, and you are right."), ("That is wrong.", "I checked, and it is false.")
    ),
    "engagingness": Followups(
        ("Interesting, tell me more!", "I enjoyed reading that."), ("This is boring.", "I stopped reading halfway.")
    ),
    "informativeness": Followups(
        ("Great, that is all I needed to know.", "I learned a lot."), ("That tells me nothing.", "Too little detail.")
    ),
    "following": Followups(
        ("You did exactly as I said.", "Perfect, all as requested."), ("You did not do as I said.", "You ignored half.")
    ),
}
#: Dimensions of the paper's repository, and those that a review of the paper names.
SIX_DIMENSIONS = tuple(FOLLOWUPS)
THREE_DIMENSIONS = ("understanding", "engagingness", "following")


def followup_likelihood(
    positive: ArrayLike,  # [n, p]
    negative: ArrayLike,  # [n, q]
    positive_dimension: Sequence[str] | None = None,  # p names
    negative_dimension: Sequence[str] | None = None,  # q names
    dimensions: Sequence[str] | None = None,
) -> Tensor:  # [n]
    """Follow-up likelihood as reward: R = mean_{f in F+} s(f) - mean_{f in F-} s(f) (FLR, arXiv 2409.13948).

    s(f) is the length-normalized log-probability of a follow-up f after the prompt and the response. 0 for equal sets,
    minus itself when both are swapped. (The public code takes raw logits of one position, without softmax and shift,
    which is no likelihood.)

    Args:
        positive, negative: s of p pleased and q displeased follow-ups, at least one each (`CausalLogprobs.followup`,
            then `.mean()`).
        positive_dimension, negative_dimension: the dimension that each column is about; then R is computed for each
            dimension and averaged over them, all weighing the same (ours). Unset: all columns are one set.
        dimensions: those to take, by default all: `SIX_DIMENSIONS` are the repository's, `THREE_DIMENSIONS` those that
            a review of the paper names.

    Raises:
        ConfigError: a dimension that has no column of one kind, or names of one side only.
        DataError: a number that is not finite. ValueError: shapes, or other numbers of names than columns.
    """
    good = check_finite(positive, "pleased follow-ups [n, p]")
    bad = check_finite(negative, "displeased follow-ups [n, q]", n=len(good), device=good.device)
    for name, table in (("positive", good), ("negative", bad)):
        if not table.shape[1]:
            raise ValueError(f"{name}: expected at least one follow-up, got the shape {tuple(table.shape)}")
    if positive_dimension is None or negative_dimension is None:
        if positive_dimension is not None or negative_dimension is not None or dimensions is not None:
            raise ConfigError(
                "Dimensions of follow-ups are named on one side only. Give `positive_dimension` and "
                "`negative_dimension`, one name a column, or neither."
            )
        return match_dtype(good.mean(1) - bad.mean(1), positive, negative)
    sides = []
    for name, names, table in (
        ("positive_dimension", positive_dimension, good), ("negative_dimension", negative_dimension, bad),
    ):  # fmt: skip
        if len(names) != table.shape[1]:
            raise ValueError(f"{name}: expected one name for each of {table.shape[1]} columns, got {len(names)}")
        columns = {known: [i for i, one in enumerate(names) if one == known] for known in dict.fromkeys(names)}
        sides.append({known: table[:, where].mean(1) for known, where in columns.items()})
    wanted = list(dict.fromkeys([*sides[0], *sides[1]] if dimensions is None else dimensions))
    lacking = [name for name in wanted if name not in sides[0] or name not in sides[1]]
    if lacking or not wanted:
        raise ConfigError(
            f"The dimension {lacking[0]!r} has no follow-up of one kind; each needs a pleased and a displeased one "
            f"(pleased: {', '.join(sides[0])}; displeased: {', '.join(sides[1])})."
            if lacking
            else "`dimensions` is empty; name at least one."
        )
    each = torch.stack([sides[0][name] - sides[1][name] for name in wanted], 1)
    return match_dtype(each.mean(1), positive, negative)
