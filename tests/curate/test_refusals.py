"""What cannot be curated is refused in a sentence that names it."""

from __future__ import annotations

import math

import pytest
import torch
from tests.curate.made_pairs import a_pair_each, fit_linear, generator, separable

from ebrm.curate import (
    Strength,
    best_worst_pairs,
    consensus,
    consistency_labels,
    convex_hull_augmentation,
    corruption_pairs,
    cross_fitted_difference,
    cross_prompt_pairs,
    density_ratio_weights,
    dual_consistency,
    dynamic_labels,
    error_driven_retrieval,
    exchange,
    filter_conflicts,
    flip_weakest,
    goal_conditioned_pairs,
    hard_subset,
    head_difference,
    independent_heads,
    judge_agreement,
    peer_review,
    preference_strength,
    rank_consistency,
    retrieval_budget,
    soften_labels,
)
from ebrm.errors import ConfigError, DataError
from ebrm.groups import Groups

NAN, INF = math.nan, math.inf
NONE, ONE, TWO = (a_pair_each(n) for n in range(3))
HALF, ZEROS, TABLE, TRIPLE = torch.full((2,), 0.5), torch.zeros(2), torch.ones(2, 2), Groups.of([0, 0, 0])
FOUR = Groups.of([0, 0, 0, 0])
RESPONSE = Groups.of([0, 1, 1, 2, 3, 4, 4])
EMBEDDING, PAIRS, _ = separable(4, 0.0)


def strength(*mean):
    return Strength(torch.tensor(mean, dtype=torch.float64), torch.zeros(len(mean)))


def cross(pairs=PAIRS, embedding=EMBEDDING, **options):
    return cross_fitted_difference(pairs, embedding, fit_linear, generator(), **options)


def review(noise=0.2, pairs=PAIRS, embedding=EMBEDDING, **options):
    return peer_review(pairs, embedding, fit_linear, noise, generator(), **options)


def broken(row, column, value=NAN):
    embedding = EMBEDDING.clone()
    embedding[row, column] = value
    return embedding


CASES = [
    # filters
    *((lambda b=b: filter_conflicts(TWO, [0, b, b, 0]), DataError, r"2 of 4 .*\(reward\) are not finite.* index 1")
      for b in (NAN, INF, -INF)),
    (lambda: filter_conflicts(TWO, [0, 1, 2]), DataError, "rows beyond the 3"),
    *((lambda t=t: dual_consistency(TWO, HALF, HALF, t), ConfigError, f"`threshold` is {t}") for t in (0.4, 1.0)),
    (lambda: dual_consistency(TWO, HALF, [0.5, 1.5]), DataError, "gold model.* first at index 1"),
    (lambda: consensus(TWO, HALF[None], confidence=0.3), ConfigError, "`confidence` is 0.3"),
    (lambda: consensus(TWO, torch.zeros(0, 2)), ConfigError, "no voters"),
    *((lambda n=n: judge_agreement(TWO, torch.zeros(2, 2, 2), n), ConfigError, f"`least` is {n} for 2 judges")
      for n in (1, 3)),
    (lambda: hard_subset(ZEROS, -1), ConfigError, "`count` is -1"),
    # relabeling
    (lambda: preference_strength(torch.zeros(0, 3)), DataError, "no models"),
    (lambda: preference_strength(ZEROS), ValueError, "2 dimensions"),
    (lambda: flip_weakest(ONE, strength(0), 1.5), ConfigError, "`fraction` is 1.5"),
    (lambda: soften_labels(ONE, strength(0), 0.6), ConfigError, "`smoothing` is 0.6"),
    (lambda: soften_labels(ONE, strength(0), 0.1, strongest=-0.1), ConfigError, "`strongest` is -0.1"),
    *((lambda r=r: dynamic_labels(ONE, [0.0], r), ConfigError, "`rate`") for r in (-0.1, 1.1, NAN)),
    (lambda: rank_consistency([0.0] * 4, [0.0] * 4, FOUR, "pearson"), ConfigError, "`measure` is 'pearson'"),
    (lambda: consistency_labels(TWO, [1.0, 1.0], Groups.of([0, 1, 0, 0])), DataError,
     "1 of 2 pairs are of responses to different prompts, the first at index 0"),
    (lambda: consistency_labels(TWO, [1.0] * 3, Groups.of([0, 0, 1, 1])), ValueError,
     r"2 consistencies \[count\], got \(3,\)"),
    (lambda: consistency_labels(TWO, [NAN], FOUR), DataError, "not finite"),
    (lambda: consistency_labels(a_pair_each(3), [1.0], FOUR), DataError, "rows beyond the 4"),
    # new pairs
    *((lambda g=g: best_worst_pairs([0.0] * 3, TRIPLE, least_gap=g), ConfigError, "`least_gap`") for g in (-1.0, NAN)),
    (lambda: best_worst_pairs([0.0] * 3, TRIPLE, weight=[1.0]), ValueError, "no `evidence`"),
    (lambda: cross_prompt_pairs([1, 0], generator()), TypeError, "passed .*: expected bool"),
    (lambda: cross_prompt_pairs([True], generator(), ties=-1), ConfigError, "`ties` is -1"),
    (lambda: goal_conditioned_pairs(ONE, [1.0]), DataError, "rows beyond the 1"),
    (lambda: corruption_pairs(RESPONSE, "shuffle", generator()), ConfigError, "`kind` is 'shuffle'"),
    (lambda: corruption_pairs(RESPONSE, "splice", generator(), Groups.of([0, 1])), ValueError,
     "2 responses have a prompt, and 5"),
    (lambda: convex_hull_augmentation(ONE, TABLE[:1], [-1]), DataError, "rows beyond the 1"),
    *((lambda b=b: convex_hull_augmentation(ONE, torch.zeros(3, 2), b), ValueError, "copy_of: expected")
      for b in ([0, 0], [0.0] * 3, [-2, 0, 0], [3, 0, 0])),
    # heads
    *((lambda o=o: cross(**o), ConfigError, "`(folds|repeats)`") for o in ({"folds": 1}, {"repeats": 0})),
    (lambda: cross(NONE), DataError, "0 pairs fall into 0 sets"),
    (lambda: cross(folds=5), DataError, "4 pairs fall into 4 sets .* 5 folds"),
    (lambda: cross(embedding=EMBEDDING[:7], folds=2), DataError, "rows beyond the 7"),
    (lambda: cross(folds=2, prompt=TRIPLE), ValueError, "3 rows have a prompt, and 8 an embedding"),
    (lambda: cross(embedding=broken(3, 1), folds=2), DataError, r"index \(3, 1\)"),
    (lambda: head_difference(lambda rows: rows[:2, 0], EMBEDDING, TWO), ValueError, "gave 2 rewards for 4 embeddings"),
    (lambda: head_difference(lambda rows: rows[:, 0] * INF, EMBEDDING, TWO), DataError, "reward by a fitted head"),
    *((lambda n=n: review(n), ConfigError, "`noise`") for n in (-0.1, 0.5, NAN)),
    *((lambda o=o: review(**o), ConfigError, "`(rounds|ramp)` is 0") for o in ({"rounds": 0}, {"ramp": 0})),
    *((lambda r=r: exchange(ZEROS, ZEROS, r), ConfigError, "`keep_rate`") for r in (0.0, 1.1)),
    (lambda: review(pairs=ONE), DataError, "1 pairs; expected at least 2"),
    (lambda: independent_heads(NONE, EMBEDDING, fit_linear, generator()), DataError, "0 pairs; expected at least 2"),
    (lambda: independent_heads(PAIRS, EMBEDDING[:7], fit_linear, generator()), DataError, "rows beyond the 7"),
    # retrieval
    (lambda: retrieval_budget([0.0], 0), ConfigError, "`most` is 0"),
    (lambda: retrieval_budget([0.5, -2.0]), DataError, "out of range, the first at index 1: .*from 0 to 1"),
    (lambda: error_driven_retrieval([0.0], TABLE[:1], [[1.0, 0], [0, 0]]), DataError,
     r"\(pool\) are 0, the first at index 1"),
    *((lambda s=s: error_driven_retrieval([0.0], torch.ones(s), TABLE), ValueError, r"expected 1 embeddings \[v, d\]")
      for s in ((2, 2), (1, 3))),
    (lambda: density_ratio_weights(torch.ones(0, 2), TABLE), DataError, "2 negative examples and no positive one"),
    *((lambda b=b: density_ratio_weights(TABLE, TABLE, *b), ConfigError, "`low` and `high`")
      for b in ((0.0, 10.0), (2.0, 10.0), (0.5, 0.9), (0.5, INF))),
    (lambda: density_ratio_weights(TABLE, TABLE, penalty=0), ConfigError, "`penalty` is 0"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "error", "message"), CASES)
def test_what_cannot_be_curated_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()
