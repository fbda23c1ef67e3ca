"""What cannot be shaped is refused in a sentence that names it."""

from __future__ import annotations

import math

import pytest
import torch

from ebrm.errors import ConfigError, DataError
from ebrm.groups import Groups
from ebrm.shape import (
    RunningStatistics,
    centered_on_references,
    correct_length_penalty,
    difficulty_weighted_checks,
    length_penalty,
    log_sigmoid_centered,
    preference_as_reward,
    process_clip,
    process_return,
    reference_level,
    relative_length_penalty,
    running_clipped,
    running_min_max,
    running_standardized,
    separability,
)

NAN, INF = math.nan, math.inf
ONES, THREE, PASSED = torch.ones(2), torch.ones(3), torch.tensor([[True, False], [True, True], [False, True]])
ONE, TWO, APART = Groups.of([0, 0]), Groups.of([0, 0, 1]), Groups(torch.tensor([0, 0, 2]), 3)
TEXT = torch.rand(2, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
REFERENCE = torch.zeros(3, 2)
SEEN = RunningStatistics().updated([0.0, 1.0])
LENGTHS = (length_penalty, lambda x: relative_length_penalty(x, ONE), lambda x: correct_length_penalty(x, ONES, ONE))
REFERENCED, RUNNING = (
    (preference_as_reward, centered_on_references),
    (running_standardized, running_min_max, running_clipped),
)


def with_(of, value, *place):
    changed = of.clone().double()
    changed[place] = value
    return changed


CASES = [
    # checks
    (lambda: difficulty_weighted_checks(PASSED, APART, present=[[True, True], [True, True], [False, False]]), DataError,
     "1 of 3 prompts have responses and no checks, the first at index 2"),
    (lambda: difficulty_weighted_checks(PASSED[:, :0], APART), DataError, "2 of 3 prompts have responses and no"),
    (lambda: difficulty_weighted_checks(PASSED, APART, lambda s: s * NAN), DataError,
     r"weights of checks.*\(0, 0\): nan"),
    (lambda: difficulty_weighted_checks(PASSED, APART, lambda s: s - torch.tensor([[0.0, 1.0]])), DataError,
     r"weights of checks.*index \(0, 1\): -0.5\. Expected .*of at least 0"),
    (lambda: difficulty_weighted_checks(PASSED, APART, torch.zeros_like), DataError,
     "All checks of prompt 0 have weight 0"),
    (lambda: difficulty_weighted_checks(PASSED.float(), APART), TypeError, "expected bool"),
    *((lambda b=b: difficulty_weighted_checks(b, APART), ValueError, "passed") for b in (PASSED[:2], PASSED[:, 0])),
    (lambda: difficulty_weighted_checks(PASSED, APART, present=torch.ones(3, 2)), TypeError, "present"),
    (lambda: difficulty_weighted_checks(PASSED, APART, present=PASSED[:2]), ValueError, "q = 3"),
    (lambda: difficulty_weighted_checks(PASSED, APART, lambda s: s[0]), ValueError, "expected weights"),
    *((lambda s=s: difficulty_weighted_checks(PASSED, APART, smoothing=s), ConfigError, "`smoothing`")
      for s in (-0.1, NAN, INF)),
    # hardness
    (lambda: separability(TEXT, with_(TEXT, 0.0, 0, 1)), DataError,
     r"1 of 6 embeddings of responses are 0 .* index \(0, 1\)"),
    (lambda: separability(TEXT, TEXT, None, [[True] * 3, [False] * 3]), DataError,
     "1 of 2 responses are without sentences.* 1"),
    (lambda: separability(TEXT[:, :0], TEXT), DataError, "2 of 2 demonstrations are without sentences"),
    *((lambda o=o: separability(TEXT, o), ValueError, "expected embeddings|q, t, d")
      for o in (TEXT[:1], TEXT[0], TEXT[..., :2])),
    (lambda: separability(TEXT, TEXT, [[True] * 3]), ValueError, "sentences of demonstrations"),
    (lambda: separability(TEXT, TEXT, torch.ones(2, 3)), TypeError, "sentences of demonstrations"),
    # lengths
    *((lambda f=f: f([-1.0, 1.0]), DataError, r"1 of 2 numbers \(lengths \[n\]\) are out of range.* index 0: -1")
      for f in LENGTHS),
    (lambda: relative_length_penalty([1.0, 0.0], ONE), DataError, "lengths are 0, the first at index 1"),
    *((lambda c=c: correct_length_penalty(ONES, [1, c], ONE), DataError, "correctness.* index 1")
      for c in (NAN, 1.5, -0.5)),
    *((lambda b=b: length_penalty(ONES, free=b), ConfigError, "`free`") for b in (-1.0, NAN, INF)),
    *((lambda b=b: length_penalty(ONES, rate=b), ConfigError, "`rate`") for b in (-1.0, NAN, INF)),
    # references
    *((lambda f=f: f(THREE, REFERENCE, present=[[True, True], [False, False], [True, False]]), DataError,
       "1 of 3 rows are without references, the first at index 1") for f in REFERENCED),
    *((lambda f=f: f(THREE, torch.zeros(3, 0)), DataError, "3 of 3 rows are without references") for f in REFERENCED),
    *((lambda f=f, b=b: f(THREE, b), ValueError, "expected references")
      for f in REFERENCED for b in (THREE, REFERENCE[:2])),
    *((lambda f=f: f(THREE, REFERENCE, present=torch.ones(3, 2)), TypeError, "float32") for f in REFERENCED),
    *((lambda s=s: preference_as_reward(THREE, REFERENCE, s), ConfigError, "`slope`") for s in (0.0, -1.0, NAN, INF)),
    (lambda: preference_as_reward(THREE, REFERENCE, squash="relu"), ConfigError, "'relu'; expected one of 'sigmoid'"),
    (lambda: log_sigmoid_centered(THREE, ONES), ValueError, r"levels \[n\]"),
    *((lambda q=q: reference_level(REFERENCE, q), ConfigError, "`quantile`") for q in (0.0, 1.0, NAN)),
    (lambda: reference_level(REFERENCE, ddof=2), ConfigError, "`ddof` is 2"),
    (lambda: reference_level(REFERENCE, how="mean"), ConfigError, "'mean'; expected one of 'empirical'"),
    # running statistics
    (lambda: RunningStatistics().updated(REFERENCE), ValueError, "1 dimensions"),
    *((lambda f=f: f(ONES, RunningStatistics()), DataError, "seen no reward") for f in RUNNING),
    (lambda: running_standardized(ONES, SEEN, 2), ConfigError, "`ddof` is 2"),
    *((lambda w=w: running_clipped(ONES, SEEN, w), ConfigError, "`width`") for w in (0.0, -1.0, NAN, INF)),
    # process rewards
    *((lambda b=b: process_clip(ONES, b), ConfigError, "`threshold`") for b in (NAN, INF)),
    *((lambda b=b: process_return(ONES, ONE, [1.0], b), ConfigError, "`weight`") for b in (-1.0, NAN)),
]  # fmt: skip


@pytest.mark.parametrize(("call", "error", "message"), CASES)
def test_what_cannot_be_shaped_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_a_length_of_0_is_refused_only_where_it_divides():
    for penalty in LENGTHS[::2]:
        assert bool(penalty([1.0, 0.0]).isfinite().all())
