from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from tests.evaluation.suites import benchmark, best_of, item, pairwise, plain_scores, refined_scores

from ebrm.evaluation import ScoredBenchmark, Scores
from ebrm.evaluation.measures import Flips, count_flips, reward_unit, right_wrong_pairs, worst_regressions
from ebrm.evaluation.results import Common, common_items


def both(common: Common) -> tuple[Scores, Scores]:
    return common.scorers[0], common.scorers[1]


def flips(item_of: list[int], weight: list[float], base: list[float], refined: list[float]) -> tuple[int, int]:
    found = count_flips(np.array(item_of), np.array(weight), np.array(base), np.array(refined))
    return found.fixed, found.broken


def test_flips_of_right_or_wrong_items() -> None:
    assert flips([0, 1, 2, 3, 4], [0.2] * 5, [0, 0, 1, 1, 0], [1, 1, 0, 1, 0]) == (2, 1)
    assert count_flips(np.array([0]), np.ones(1), np.zeros(1), np.ones(1)) == Flips(1, 0)


def test_values_that_differ_by_rounding_are_no_flip() -> None:
    assert flips([0, 1], [1, 1], [0.1 + 0.2, 0.5], [0.3, 0.5 + 1e-8]) == (1, 0)
    assert flips([0, 1], [1, 1], [0.3, 0.5 + 1e-8], [0.1 + 0.2, 0.5]) == (0, 1)


def test_items_with_several_values_count_once_by_their_weights() -> None:
    # The second value weighs more, so the item is worse although the first rose by as much.
    assert flips([0, 0], [0.1, 0.3], [0, 1], [1, 0]) == (0, 1)
    assert flips([0, 0], [0.3, 0.1], [0, 1], [1, 0]) == (1, 0)
    assert flips([0, 0], [0.5, 0.5], [0, 1], [1, 0]) == (0, 0)
    # A value in no overall score does not matter beside one that is, and is all there is where none is.
    assert flips([0, 0, 1, 1], [0.0, 0.5, 0.0, 0.0], [0, 1, 0, 1], [1, 0.9, 1, 0.5]) == (1, 1)


def test_small_weights_do_not_hide_flips() -> None:
    assert flips([0, 1], [1e-12, 1e-12], [0, 1], [1, 0]) == (1, 1)


def test_the_unit_is_the_spread_of_all_rewards() -> None:
    reward = np.array([[1.0, 3.0, np.nan], [5.0, 7.0, 2.0]])
    assert reward_unit(reward) == pytest.approx(np.std([1, 3, 5, 7, 2]))
    assert reward_unit(np.full((3, 2), 4.0)) == 1.0


def test_the_worst_regressions_first_one_a_prompt() -> None:
    made = benchmark(
        [
            item("kept", (1, 0), "a", "safety"),
            item("small", (1, 0), "b", "safety"),
            item("large", (0, 1), "c", "maths", lengths=(3, 4)),
            item("larger, same prompt", (1, 0), "b", "safety"),
            item("tied", (1, 0), "d"),
            item("never right", (1, 0), "e"),
            item("fixed", (1, 0), "f"),
            item("tied before", (1, 0), "g"),
        ]
    )
    base = np.array([[2.0, 0], [1, 0], [0, 2.5], [1.5, 0], [1, 0], [0, 1], [0, 1], [1, 1]])
    refined = np.array([[1.0, 0], [0, 0.1], [2.5, 0], [0, 0.2], [0.5, 0.5], [0, 3], [3, 0], [0, 9]])
    common = common_items(ScoredBenchmark(made, (Scores("rm", base), Scores("new", refined, "rm"))))
    pairs = right_wrong_pairs(common.gold)
    found = worst_regressions(common, pairs, *both(common))
    assert [one.item for one in found] == ["large", "larger, same prompt", "tied"]
    large = found[0]
    assert (large.prompt, large.group, large.scorer) == ("c", "maths", "new")
    assert (large.right, large.wrong) == ("xxxx", "xxx")
    assert (large.base, large.refined) == ((2.5, 0.0), (0.0, 2.5))
    assert [one.item for one in worst_regressions(common, pairs, *both(common), most=1)] == ["large"]


def test_equal_drops_come_in_the_order_of_ids() -> None:
    generator = np.random.default_rng(0)
    names = [f"{row:03}" for row in generator.permutation(300)]
    made = benchmark([item(name, (1, 0)) for name in names])
    large = generator.random(300) < 0.5
    base = np.where(large[:, None], [[2.0, 0.0]], [[1.0, 0.0]])
    scorers = (Scores("rm", base), Scores("new", base[:, ::-1], "rm"))
    common = common_items(ScoredBenchmark(made, scorers))
    found = worst_regressions(common, right_wrong_pairs(common.gold), *both(common), most=300)
    expected = sorted(np.array(names)[large]) + sorted(np.array(names)[~large])
    assert [one.item for one in found] == expected


def test_drops_are_measured_in_each_scorers_own_unit() -> None:
    made = pairwise(count=400, prompts=400)
    rm, refined = plain_scores(made, "rm"), refined_scores(made, "new", "rm", 0.6, 2)
    common = common_items(ScoredBenchmark(made, (rm, refined)))
    pairs = right_wrong_pairs(common.gold)
    found = worst_regressions(common, pairs, *both(common))
    assert len(found) == 6
    larger = (rm, replace(refined, reward=1000 * refined.reward + 5))
    again = worst_regressions(common, pairs, *larger)
    assert [one.item for one in again] == [one.item for one in found]
    unit = [reward_unit(one.reward) for one in (rm, refined)]
    drops = [(one.base[0] - one.base[1]) / unit[0] - (one.refined[0] - one.refined[1]) / unit[1] for one in found]
    assert drops == sorted(drops, reverse=True)
    first, second = (one.reward[:, 0] - one.reward[:, 1] for one in (rm, refined))
    lost = (first > 0) & (second <= 0)
    assert drops == pytest.approx(np.sort((first / unit[0] - second / unit[1])[lost])[::-1][:6])


def test_the_order_of_items_does_not_matter() -> None:
    made = best_of(count=80)
    scorers = (plain_scores(made, "rm", digits=1), replace(refined_scores(made, "new", "rm", 0.3), prefer=None))
    order = np.random.default_rng(0).permutation(len(made))
    found = []
    for which in (np.arange(len(made)), order):
        common = common_items(ScoredBenchmark(made.take(which), [one.take(which) for one in scorers]))
        pairs = right_wrong_pairs(common.gold, ids=[one.id for one in common.benchmark.items])
        found.append(worst_regressions(common, pairs, *both(common)))
    assert found[0] == found[1] and len(found[0]) == 6


def test_turns_are_told_apart() -> None:
    made = benchmark([item("a", (1, 0))])
    turns = ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello."})
    made = replace(made, items=(replace(made.items[0], prompt=turns),))
    scorers = (Scores("rm", np.array([[1.0, 0.0]])), Scores("new", np.array([[0.0, 1.0]]), "rm"))
    common = common_items(ScoredBenchmark(made, scorers))
    found = worst_regressions(common, right_wrong_pairs(common.gold), *scorers)
    assert found[0].prompt == "system: Be brief.\n\nuser: Hello."
