"""Learning curves: exact numbers of made-up fits, and what they allow to say."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import Tensor

from ebrm.errors import DataError
from ebrm.evaluation import LearningCurve, learning_curve
from ebrm.metrics import Bootstrap, Estimate
from ebrm.pairs import PreferencePairs

PAIRS = 200
TEST = PreferencePairs.of(range(0, 2 * PAIRS, 2), range(1, 2 * PAIRS, 2))
TRAIN = PreferencePairs.of([0] * 80, [1] * 80, prompt_id=[f"p{k // 2}" for k in range(80)])
BASE = torch.zeros(2 * PAIRS)


def rewards(right: int) -> Tensor:
    """Rewards that rank so many of the test pairs rightly and the others wrongly."""
    reward = torch.zeros(2 * PAIRS)
    reward[0 : 2 * right : 2], reward[2 * right + 1 :: 2] = 1.0, 1.0
    return reward


def test_gains_are_means_over_the_parts_by_number_of_pairs() -> None:
    fitted: list[PreferencePairs] = []

    def refit(pairs: PreferencePairs) -> Tensor:
        fitted.append(pairs)
        return rewards(len(pairs) + 10 * (len(fitted) % 2))

    found = learning_curve(refit, TRAIN, TEST, rewards(50), bootstrap=Bootstrap(200))
    assert found.pairs == (20, 40, 80) and [len(pairs) for pairs in fitted] == [20] * 4 + [40] * 2 + [80]
    assert [one.value for one in found.gain] == pytest.approx([(25 - 50) / 200, (45 - 50) / 200, (90 - 50) / 200])
    assert found.doubling.value == pytest.approx(45 / 200)
    assert found.doubling.low < found.doubling.value < found.doubling.high
    assert json.loads(json.dumps(found.to_dict()))["doubling"] == vars(found.doubling)


def test_parts_hold_whole_prompts_and_each_pair_once() -> None:
    fitted: list[PreferencePairs] = []
    learning_curve(lambda pairs: fitted.append(pairs) or BASE, TRAIN, TEST, BASE, seed=3)
    for parts in (fitted[:4], fitted[4:6]):
        prompts = [set(part.prompt_id) for part in parts]
        assert sum(len(one) for one in prompts) == len(set.union(*prompts)) == 40
        assert sorted(torch.cat([part.origin for part in parts]).tolist()) == list(range(80))
    other: list[PreferencePairs] = []
    learning_curve(lambda pairs: other.append(pairs) or BASE, TRAIN, TEST, BASE, seed=4)
    assert fitted[0].origin.tolist() != other[0].origin.tolist()


def test_pairs_of_label_one_half_are_left_out_and_those_below_turned_around() -> None:
    test = PreferencePairs.of([0, 2, 4], [1, 3, 5], label=[1.0, 0.0, 0.5])
    reward = torch.tensor([1.0, 0.0, 0.0, 1.0, 1.0, 0.0])
    found = learning_curve(lambda pairs: reward, TRAIN, test, torch.zeros(6))
    assert found.gain[-1].value == 1  # a tie of the base is wrong


@pytest.mark.parametrize(
    ("ends", "said"),
    [
        ((0.01, 0.03), "would add at most about that"),
        ((0.0, 0.04), "cannot be told"),
        ((-0.02, 0.06), "cannot be told"),
        ((-0.03, -0.01), "did not help"),
        ((np.nan, np.nan), "cannot be told"),
    ],
)
def test_nothing_is_promised_unless_the_last_doubling_clearly_helped(ends: tuple[float, float], said: str) -> None:
    doubling = Estimate(float(np.mean(ends)), *ends)
    text = str(LearningCurve((25, 50, 100), (doubling,) * 3, doubling))
    assert text.startswith("From 50 to 100 training pairs") and said in text


def test_too_few_prompts_or_no_labels_are_refused() -> None:
    with pytest.raises(DataError, match="needs 4 training prompts or more; there are 3"):
        learning_curve(lambda pairs: BASE, TRAIN.select(slice(0, 6)), TEST, BASE)
    with pytest.raises(DataError, match="held-out pairs with labels"):
        learning_curve(lambda pairs: BASE, TRAIN, TEST.select([]), BASE)
