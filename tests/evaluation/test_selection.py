from __future__ import annotations

import json
from itertools import combinations

import numpy as np
import pytest

from ebrm.errors import DataError
from ebrm.evaluation import gold_curves, longest_axis, select, selection_axes
from ebrm.evaluation.best_of_n import ResponsePools
from ebrm.metrics import Bootstrap, mean_curve


def pools(prompts: int = 40, size: int = 6, seed: int = 0) -> ResponsePools:
    draws = np.random.default_rng(seed)
    gold = draws.normal(size=(prompts, size))
    noisy = gold + draws.normal(size=gold.shape)
    return ResponsePools({"noisy": noisy, "wrong": -gold}, gold, {"why": 3})


def test_gold_of_the_best_of_n_by_counting_all_sets() -> None:
    given = pools(5)
    found = select(given, bootstrap=Bootstrap(100)).along["noisy"]["n"]
    for n in range(1, 7):
        best = [
            np.mean([gold[max(drawn, key=lambda k: reward[k])] for drawn in combinations(range(6), n)])
            for reward, gold in zip(given.reward["noisy"], given.gold, strict=True)
        ]
        assert found.gold.value[n - 1] == pytest.approx(np.mean(best))


def test_curves_start_at_any_response_and_end_at_the_best() -> None:
    given = pools()
    found = select(given, bootstrap=Bootstrap(200))
    for axis, end in (("n", 6.0), ("kl", np.log(6))):
        for name, along in found.along.items():
            curve = along[axis]  # type: ignore[index]
            assert curve.x[-1] == pytest.approx(end)
            assert curve.gold.value[0] == pytest.approx(found.random[0])
            assert curve.above_random.value[0] == curve.above_random.low[0] == curve.above_random.high[0] == 0
            best = given.gold[np.arange(40), given.reward[name].argmax(1)]
            assert curve.gold.value[-1] == pytest.approx(best.mean())
        np.testing.assert_allclose(found.oracle[axis].value[-1], given.gold.max(1).mean())  # type: ignore[index]
    assert found.prompts == 40 and found.responses == 240 and found.left_out == {"why": 3}


def test_differences_are_paired() -> None:
    given = pools()
    found = select(given, bootstrap=Bootstrap(300, seed=4))
    assert found.along["noisy"]["n"].gain is None
    axes = selection_axes(6)
    first, second = (gold_curves(table, given.gold, axes)["kl"] for table in given.reward.values())
    gain = found.along["wrong"]["kl"].gain
    assert gain is not None
    expected = mean_curve(second - first, bootstrap=Bootstrap(300, seed=4))
    np.testing.assert_array_equal(gain.low, expected.low)
    same = select(ResponsePools({"a": given.gold, "b": 2 * given.gold + 1}, given.gold, {}), bootstrap=Bootstrap(100))
    twin = same.along["b"]["n"].gain
    assert twin is not None
    np.testing.assert_allclose([twin.low, twin.high], 0, atol=1e-15)


def test_a_wrong_reward_peaks_at_the_start() -> None:
    found = select(pools(), bootstrap=Bootstrap(100))
    peak = found.along["wrong"]["n"].peak
    assert peak.x.value == 1 and peak.loss.value > 0.5
    assert found.along["noisy"]["n"].peak.x.value > 3


def test_small_pools_are_left_out_and_counted() -> None:
    given = pools(20)
    for table in (given.gold, *given.reward.values()):
        table[0, 3:] = np.nan
        table[1, 1:] = np.nan
    found = select(given, bootstrap=Bootstrap(100))
    assert len(found.along["noisy"]["n"].x) == 6 and found.prompts == 18
    assert found.left_out == {"why": 3, "fewer than 6 responses": 2}
    shorter = select(given, least=2, bootstrap=Bootstrap(100))
    assert len(shorter.along["noisy"]["n"].x) == 3 and shorter.prompts == 19
    with pytest.raises(DataError, match="No prompt has 7 responses or more; the most are 6"):
        select(given, least=7)


def test_how_far_curves_go() -> None:
    assert longest_axis(np.full(10, 7)) == 7
    assert longest_axis(np.array([2, 3, *[7] * 8])) == 3


def test_one_prompt_has_no_interval_but_plain_json() -> None:
    found = select(pools(1), bootstrap=Bootstrap(100)).to_dict()
    text = json.dumps(found, allow_nan=False)
    assert found["rewards"]["noisy"]["n"]["gold"]["low"] == [None] * 6 and "kl_bound" in text
    assert found["rewards"]["noisy"]["n"]["peak"]["x"]["low"] is None
