"""What cannot be combined is refused in a sentence that names it."""

from __future__ import annotations

import math

import pytest
import torch

from ebrm.aggregate import (
    Lagrangian,
    attribute_sum,
    base_and_bonus,
    bilevel_weights,
    centered,
    disagreement,
    gate,
    gated,
    log_sigmoid_sum,
    majority_vote,
    mean_minus_std,
    member_units,
    min_norm_weights,
    mixed_granularity,
    most_confident_head,
    neighbor_fusion,
    nominal_worst_case,
    pessimistic,
    standardized,
    step_reward,
    uncertainty_weighted,
    verifiable_or_model,
    weighted_mean,
    weighted_sum,
    worst_case,
)
from ebrm.errors import ConfigError, DataError
from ebrm.groups import Groups

NAN, INF = math.nan, math.inf
TWO = Groups.of([0, 1, 0])
THREE = torch.ones(3)
TABLE = torch.rand(3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
ONES = torch.ones(2)
STATE = Lagrangian.start([0.0, 0.0])
ALL = torch.tensor([True, False, True])
FUSION = (torch.ones(3, 2), torch.ones(3), torch.ones(4, 2), torch.ones(4))


def with_(value, row, column=None, of=TABLE):
    changed = of.clone().double()
    changed[(row,) if column is None else (row, column)] = value
    return changed


CASES = [
    # ensembles
    *((lambda s=s: worst_case(torch.ones(s)), ValueError, r"\[k, n\]") for s in ((3,), (0, 3), (3, 0), (1, 2, 3))),
    (lambda: member_units([[1.0, 2.0], [3.0, 3.0]]), DataError, "Member 1 .* all 2 rows the same reward"),
    *((lambda m=m, s=s: standardized(TABLE, m, s), DataError, "Member 1 ")
      for m, s in (([0, NAN, 0], [1, 1, 1]), ([0, 0, 0], [1, 0, 1]), ([0, 0, 0], [1, INF, 1]))),
    (lambda: standardized(TABLE, [0.0, 0], [1.0, 1, 1]), ValueError, "3 members"),
    *((lambda f=f, w=w: f(TABLE, weight=w), ConfigError, "`weight` is") for w in (-0.1, NAN, INF)
      for f in (uncertainty_weighted, mean_minus_std)),
    (lambda: pessimistic(ONES, ONES, -1), ConfigError, "`weight` is -1"),
    *((lambda f=f, d=d: f(TABLE, ddof=d), ConfigError, f"`ddof` is {d} for 3 members") for d in (-1, 3, 4)
      for f in (disagreement, mean_minus_std)),
    *((lambda b=b: pessimistic(ONES, [1.0, b]), DataError, r"\(standard deviation \[n\]\) .* index 1")
      for b in (-1, NAN)),
    (lambda: pessimistic(ONES, THREE), ValueError, r"n = 2, got the shape \(3,\)"),
    (lambda: pessimistic(ONES, TABLE), ValueError, "1 dimensions"),
    (lambda: centered(TABLE, Groups.of([0, 0, 1])), ValueError, "each of 3 rows"),
    *((lambda f=f: f(TABLE, TABLE[:, :1]), ValueError, r"n = 2, got the shape \(3, 1\)")
      for f in (most_confident_head, nominal_worst_case)),
    (lambda: most_confident_head(torch.ones(0, 3), torch.ones(0, 3)), ValueError, r"\[k, n\].*\(0, 3\)"),
    (lambda: nominal_worst_case(TABLE, with_(-1.0, 2, 0)), DataError, r"index \(2, 0\)"),
    *((lambda w=w: nominal_worst_case(TABLE, TABLE, w), ConfigError, "`nominal_weight`") for w in (-0.1, 1.1, NAN)),
    (lambda: nominal_worst_case(TABLE, TABLE, worst_case="per_token"), ConfigError, "'per_token'.*'per_sample'"),
    # neighbors
    *((lambda t=t: neighbor_fusion(*FUSION, threshold=t), ConfigError, "`threshold`") for t in (0.0, 1.1, NAN)),
    (lambda: neighbor_fusion(*FUSION, neighbors=0), ConfigError, "`neighbors` is 0"),
    (lambda: neighbor_fusion(FUSION[0], THREE, torch.ones(4, 3), FUSION[3]), ValueError, r"\(3, 2\) and \(4, 3\)"),
    (lambda: neighbor_fusion(FUSION[0], ONES, *FUSION[2:]), ValueError, "n = 3"),
    *((lambda own=own: neighbor_fusion(*FUSION, own), ValueError, "3 rows of the bank .* from -1 to 3")
      for own in ([0, 1], [0.0, 1.0, 2.0], [-2, 0, 0], [4, 0, 0])),
    *((lambda i=i: neighbor_fusion(*(x * NAN if i == j else x for j, x in enumerate(FUSION))), DataError,
       "not finite, the first at index") for i in range(4)),
    (lambda: neighbor_fusion(*FUSION[:2], torch.tensor([[1.0, 0], [0, 0]]), ONES), DataError,
     r"1 of 2 embeddings \(bank\) are 0, the first at index 1"),
    # sums, gates and constraints
    (lambda: weighted_sum(torch.ones(3, 0), []), ValueError, r"\(3, 0\)"),
    *((lambda w=w: weighted_mean(TABLE, w), DataError, "at least 0, not all 0") for w in ([1.0, -1], [0.0, 0])),
    *((lambda w=w: attribute_sum({"a": ONES, "b": ONES}, w), ConfigError, m) for w, m in
      (({}, "no attribute"), ({"c": 1.0}, "'c', and attributes 'a', 'b'"), ({"a": NAN}, "expected finite"))),
    (lambda: attribute_sum({"a": ONES, "b": THREE}, {"a": 1, "b": 1}), ValueError, "one length"),
    (lambda: attribute_sum({"a": [1.0, NAN]}, {"a": 1}), DataError, "attribute 'a'"),
    (lambda: log_sigmoid_sum(TABLE, THREE), ValueError, r"\(3, 2\) and \(3,\)"),
    *((lambda b=b, c=c: c(with_(b, 1, 1)), DataError, r"index \(1, 1\)") for b in (-0.1, 1.1, NAN)
      for c in (gate, lambda x: gated(x, TABLE), lambda x: gated(TABLE, x))),
    *((lambda b=b: base_and_bonus([b, 0.0], ONES), DataError, "base score.* index 0") for b in (-0.1, 1.1, NAN)),
    *((lambda b=b: base_and_bonus(ONES, [b, 0.0]), DataError, "bonus.* index 0") for b in (-0.1, 1.1, NAN)),
    *((lambda w=w: base_and_bonus(ONES, ONES, w), ConfigError, "`weights`")
      for w in ((0.0, 1), (1, -1), (NAN, 1), (1, INF))),
    (lambda: gated(TABLE, TABLE[1:]), ValueError, "3 rows of requirements and 2"),
    (lambda: gate(torch.ones(3, 0)), ValueError, "at least one"),
    *((lambda s=s: gate(TABLE, smoothing=s), ConfigError, "`smoothing`") for s in (0.0, -1, NAN, INF)),
    (lambda: gate(TABLE, "mean"), ConfigError, "'mean'; expected one of 'smooth'"),
    (lambda: verifiable_or_model(THREE, [0.0, NAN, 0.0], ALL), DataError,
     "1 of the 1 rows whose model's .* index 1: nan"),
    (lambda: verifiable_or_model([0.0, NAN, INF], THREE, ALL), DataError,
     "1 of the 2 rows whose check .* index 2: inf"),
    (lambda: verifiable_or_model(THREE, THREE, THREE), TypeError, "verifiable .*: expected bool, got torch.float32"),
    (lambda: verifiable_or_model(THREE, ONES, ALL), ValueError, r"three \[n\], got .*\(2,\)"),
    *((lambda a=a: Lagrangian.start(ONES, *a), ConfigError, "`(rate|limit)`")
      for a in ((0.0,), (NAN,), (1, -1), (1, INF))),
    (lambda: STATE.combine(ONES, TABLE), ValueError, "2 rewards, and 3 rows"),
    # learned weights
    (lambda: min_norm_weights([[1.0, 0], [0, 0]]), DataError, "objective 1 is 0"),
    (lambda: min_norm_weights(THREE), ValueError, "2 dimensions"),
    (lambda: min_norm_weights(torch.zeros(0, 3)), ValueError, r"\[t, d\].*\(0, 3\)"),
    *((lambda b=b: bilevel_weights(THREE, TABLE, TWO, b), ConfigError, "`beta`") for b in (0.0, -1, NAN, INF)),
    *((lambda a=a: bilevel_weights(THREE, TABLE, TWO, 1.0, *a), ConfigError, "`(decay|steps)`")
      for a in ((-1.0,), (NAN,), (0.1, 0))),
    (lambda: bilevel_weights(THREE, TABLE, Groups(TWO.index, 3)), DataError,
     "1 of 3 prompts have no responses.* index 2"),
    (lambda: bilevel_weights([], TABLE[:0], Groups.of([])), DataError, "There are 0 prompts; expected at least one"),
    # parts
    *((lambda h=h: step_reward(THREE, Groups(TWO.index + 1, 4), h), DataError,
       "2 of 4 responses are without steps, the first at index 0") for h in ("min", "product", "last")),
    (lambda: step_reward(THREE, Groups(TWO.index, 3), "min", empty=NAN), ConfigError, "`empty` is nan"),
    *((lambda h=h: step_reward([0.5, 1.5, 0.5], TWO, h), DataError, "step scores.* index 1: 1.5.* from 0 to 1")
      for h in ("product", "geometric_mean", "mean_logit", "mean_odds")),
    *((lambda c=c: step_reward(THREE, TWO, "mean_odds", c), ConfigError, "`clip`") for c in (0.0, 0.5, NAN)),
    (lambda: step_reward(THREE, TWO, "median"), ConfigError, "'median'; expected one of 'min', 'max'"),
    *((lambda i=i: mixed_granularity(THREE, THREE, Groups(TWO.index + 1, 3), items=i), DataError,
       "1 of 3 responses are without items, the first at index 0") for i in ("mean", "discounted_sum")),
    *((lambda w=w: mixed_granularity(ONES, THREE, TWO, w), ConfigError, "`whole_weight`") for w in (-0.1, 1.1, NAN)),
    (lambda: mixed_granularity(ONES, THREE, TWO, items="sum"), ConfigError, "'sum'"),
    (lambda: majority_vote(THREE, TWO), ValueError, r"3 votes \[n\], whole numbers, got \(3,\) of torch.float32"),
    (lambda: majority_vote([0, 1], TWO), ValueError, r"got \(2,\)"),
    (lambda: majority_vote([0, -1, 2], TWO), DataError,
     r"1 of 3 numbers \(votes \[n\].*\) are out of range, the first at index 1: -1\. Expected .*of at least 0"),
    (lambda: majority_vote([0, 1, 2], TWO, [1, -1, NAN]), DataError, "weights of the votes"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "error", "message"), CASES)
def test_what_cannot_be_combined_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()
