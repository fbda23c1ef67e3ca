from __future__ import annotations

import numpy as np
import pytest

from ebrm.evaluation import Scores

REWARD = np.array([[1.0, 0.0, np.nan], [2.0, 2.0, -1.0], [0.0, 3.0, np.nan]])


def places(*values: int) -> np.ndarray:
    return np.array(values)


def test_without_a_density_the_probability_is_bradley_terrys():
    scores = Scores("rm", REWARD)
    found = scores.probability(places(0, 1, 1), places(0, 0, 0), places(1, 1, 2))
    np.testing.assert_allclose(found, [1 / (1 + np.exp(-1)), 0.5, 1 / (1 + np.exp(-3))])


def test_taking_items_takes_everything_that_belongs_to_them():
    asked = []

    def prefer(item, a, b):
        asked.append(item.tolist())
        return np.full(len(item), 0.25)

    ends = np.stack([REWARD - 1, REWARD + 1], axis=-1)
    scores = Scores("m", REWARD, "rm", REWARD * 0 + 0.5, ends, 0.8, prefer, {1: "too long", 2: "refused"})
    some = scores.take(places(2, 0))
    np.testing.assert_array_equal(some.reward, REWARD[[2, 0]])
    np.testing.assert_array_equal(some.interval, ends[[2, 0]])
    assert some.std is not None and some.std.shape == (2, 3)
    assert (some.name, some.base, some.interval_level, some.unscored) == ("m", "rm", 0.8, {0: "refused"})
    assert some.probability(places(0, 1), places(0, 0), places(1, 1)) == pytest.approx([0.25, 0.25])
    assert asked == [[2, 0]]  # the density is asked for the items' places in the whole benchmark
    assert Scores("rm", REWARD).take(places(1)).prefer is None
