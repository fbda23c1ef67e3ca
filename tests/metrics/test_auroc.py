from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ebrm.errors import DataError
from ebrm.metrics import Bootstrap, Estimate, detection_auroc


def auroc(*args: object, **settings: object) -> Estimate:
    found = detection_auroc(*args, **settings)  # type: ignore[arg-type]
    assert found is not None
    return found


def test_known_answers() -> None:
    assert auroc([3, 4, 1, 2], [1, 1, 0, 0]).value == 1.0
    assert auroc([1, 2, 3, 4], [1, 1, 0, 0]).value == 0.0
    assert auroc([7, 7, 7], [True, False, False]).value == 0.5
    assert auroc([1, 2, 1, 2], [1, 1, 0, 0]).value == 0.5  # the same scores on both sides
    assert auroc([2, 1, 2], [1, 0, 0]).value == 0.75


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_it_is_the_share_of_all_pairs_and_rising_maps_do_not_matter(seed: int) -> None:
    generator = np.random.default_rng(seed)
    score, positive = generator.integers(0, 6, 20) / 3, generator.random(20) < 0.4
    positive[:2] = True, False
    pairs = itertools.product(score[positive], score[~positive])
    value = np.mean([(one > two) + 0.5 * (one == two) for one, two in pairs])
    assert auroc(score, positive, bootstrap=Bootstrap(2)).value == pytest.approx(value)
    assert auroc(-score, positive, bootstrap=Bootstrap(2)).value == pytest.approx(1 - value)
    prompt = generator.integers(0, 5, 20)
    order = generator.permutation(20)
    one = auroc(score, positive, prompt, bootstrap=Bootstrap(30))
    assert one == auroc(np.exp(score), positive, prompt, bootstrap=Bootstrap(30))
    assert one == auroc(score[order], positive[order], prompt[order], bootstrap=Bootstrap(30))


def test_turning_the_score_round_mirrors_the_interval() -> None:
    generator = np.random.default_rng(0)
    positive = generator.random(60) < 0.5
    score = generator.integers(0, 2, 60) + positive  # most pairs are ties or one apart
    one, other = auroc(score, positive), auroc(-score, positive)
    assert (other.low, other.value, other.high) == pytest.approx((1 - one.high, 1 - one.value, 1 - one.low))


def test_offsets_of_single_prompts_matter() -> None:
    assert auroc([1, 0, 1, 0], [1, 0, 1, 0]).value == 1.0
    assert auroc([1, 0, 9, 8], [1, 0, 1, 0]).value == 0.75


def test_nothing_to_tell_apart() -> None:
    assert detection_auroc([1, 2], [1, 1]) is None
    assert detection_auroc([1, 2], [0, 0]) is None
    one = auroc([1, 2], [0, 1], cluster=["a", "a"])
    assert one.value == 1 and np.isnan(one.low)


def test_bad_input_is_named() -> None:
    with pytest.raises(DataError, match="the score holds 1 of 2.* row 1"):
        detection_auroc([1, np.nan], [0, 1])
    with pytest.raises(DataError, match="whether rows are positive: 1 of 2 are neither 0 nor 1, .* row 0"):
        detection_auroc([1, 2], [0.5, 1])
    with pytest.raises(DataError, match=r"1 of 2 are neither 0 nor 1, the first \(2.0\) in row 1"):
        detection_auroc([1, 2], [0, 2])
    with pytest.raises(DataError, match="no rows"):
        detection_auroc([], [])
    with pytest.raises(ValueError, match="whether rows are positive has shape"):
        detection_auroc([1, 2], [1])
    with pytest.raises(ValueError, match="2 rows and cluster labels"):
        detection_auroc([1, 2], [0, 1], cluster=["a"])
