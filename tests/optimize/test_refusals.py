"""What cannot be optimized is refused in a sentence that names it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from ebrm.errors import ConfigError, DataError
from ebrm.groups import Groups
from ebrm.optimize import (
    attribute_advantage,
    best_of_n_gold,
    best_of_n_kl,
    contrastive_subsample,
    group_advantage,
    leave_one_out_advantage,
    pool_tables,
    reward_ranked_local,
    reward_ranked_top,
    soft_plackett_luce,
    tilt,
    tilt_to_kl,
)

NAN, INF = math.nan, math.inf
GROUPS, TWO, THREE, TABLE = Groups.of([0, 0, 1]), torch.zeros(2), torch.zeros(3), torch.zeros(3, 2)
SELECT = (reward_ranked_top, reward_ranked_local, lambda r, g: contrastive_subsample(r, g, 2))
ADVANTAGES = (group_advantage, leave_one_out_advantage)
CASES = [
    *((lambda f=f: f(TWO, GROUPS), ValueError, "each of 3 rows") for f in ADVANTAGES),
    (lambda: attribute_advantage(TABLE, GROUPS, "sum", THREE), ValueError,
     r"weights of attributes \[a\]: expected a = 2"),
    (lambda: attribute_advantage(TABLE[:, :0], GROUPS, "sum"), ValueError, "at least one"),
    (lambda: attribute_advantage(TABLE, GROUPS, "both"), ConfigError, "'both'; expected one of 'sum', 'per_attribute'"),
    (lambda: group_advantage(THREE, GROUPS, ddof=2), ConfigError, "`ddof` is 2"),
    *((lambda e=e: attribute_advantage(TABLE, GROUPS, "sum", eps=e), ConfigError, "`eps`") for e in (-1.0, NAN)),
    *((lambda s=s, r=r: soft_plackett_luce(s, r, GROUPS), ValueError, "n = 3")
      for s, r in ((TWO, THREE), (THREE, TWO))),
    *((lambda t=t: soft_plackett_luce(THREE, THREE, GROUPS, t), ConfigError, "`temperature`")
      for t in (0.0, -1.0, NAN, INF)),
    (lambda: reward_ranked_top(THREE, GROUPS), DataError, "A share of 0.2 of 3 responses is none"),
    *((lambda s=s: reward_ranked_top(THREE, GROUPS, s), ConfigError, "`share`") for s in (0.0, 1.1, NAN)),
    (lambda: reward_ranked_local(THREE, GROUPS, 0), ConfigError, "`keep` is 0"),
    (lambda: contrastive_subsample(THREE, GROUPS, 1), ConfigError, "`keep` is 1"),
    *((lambda r=r, g=g: pool_tables([[0, 0], r, [0, 0]], [[0, 0], g, [0, 0]]), DataError, "1 of 3 prompts .* in row 1")
      for r, g in (([1, NAN], [1, 2]), ([1, 2], [NAN, 1]), ([1, INF], [1, 2]), ([1, 2], [-INF, 2]))),
    *((lambda r=r, g=g: pool_tables(r, g), ValueError, r"\[q, m\]")
      for r, g in ((np.ones(3), np.ones(3)), (np.ones((2, 3)), np.ones((3, 2))))),
    *((lambda n=n: best_of_n_kl([3, n]), ConfigError, f"n is {float(n)}") for n in (0, 0.5, -1, NAN, INF)),
    (lambda: best_of_n_gold([[1.0, NAN]], [[1.0, 2.0]]), DataError, "row 0"),
    *((lambda f=f: f([[1.0, NAN]], [[1.0, 2.0]], [0.1]), DataError, "row 0") for f in (tilt, tilt_to_kl)),
    *((lambda f=f, b=b: f([[1.0]], [[1.0]], [0.5, b]), ConfigError, f"is {b} at place 1")
      for f in (tilt, tilt_to_kl) for b in (-0.1, NAN)),
    *((lambda f=f: f([[1.0]], [[1.0]], 0.5), ValueError, r"expected \[b\]") for f in (tilt, tilt_to_kl)),
]  # fmt: skip


@pytest.mark.parametrize(("call", "error", "message"), CASES)
def test_what_cannot_be_optimized_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()
