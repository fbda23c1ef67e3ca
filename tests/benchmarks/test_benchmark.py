"""Benchmarks as data, and the rules by which rewards become the items' success and scores."""

from __future__ import annotations

import itertools
import math
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kendalltau

from ebrm.benchmarks import Benchmark, Item, Score, Terms, item_success, padded, pair_agreement
from ebrm.benchmarks.benchmark import (
    check_rewards,
    gold_table,
    group_terms,
    mean_of_groups,
    mean_of_items,
    terms_by_group,
)
from ebrm.data import prompt_id


def asked(name: str, prompt: str, gold: tuple[float, ...], cluster: str = "") -> Item:
    message = ({"role": "user", "content": prompt},)
    return Item(name, message, tuple("abc"[: len(gold)]), gold, "", f"made:{name}", cluster)


def no_terms(items, rewards, ties):
    return Terms((), np.empty(0, int), np.empty(0, int), np.empty(0))


ITEMS = (asked("1", "p", (1.0, 0.0)), asked("2", "q", (1.0, 0.0, 0.5)), asked("3", "p", (0.0, 1.0), "family"))
MADE = Benchmark("made", "Made", "in code", ITEMS, (Score("overall", "overall", {}),), no_terms, ("a note",))


def test_gold_is_padded():
    np.testing.assert_array_equal(MADE.gold(), [[1, 0, np.nan], [1, 0, 0.5], [0, 1, np.nan]])
    assert padded([]).shape == (0, 0)


def test_items_of_one_prompt_are_resampled_together_unless_they_name_a_cluster():
    first, second, third = MADE.clusters()
    assert first == prompt_id(ITEMS[0].prompt) != second
    assert third == "family"


def test_taking_items_keeps_everything_else():
    some = MADE.take([2, 0])
    assert [one.id for one in some.items] == ["3", "1"] and len(some) == 2
    assert (some.name, some.scores, some.notes) == (MADE.name, MADE.scores, MADE.notes)


PROMPT = ({"role": "user", "content": "q"},)


def item(group: str, gold: tuple[float, ...] = (1.0, 0.0), name: str = "x") -> Item:
    return Item(name, PROMPT, tuple("r" * len(gold)), gold, group, "f:1")


def at_random(rewards: list[float], gold: list[float]) -> float:
    """Share of the orders that respect the rewards in which all right responses come first."""
    wins = total = 0
    for order in itertools.permutations(range(len(gold))):
        if all(rewards[a] >= rewards[b] for a, b in itertools.pairwise(order)):
            total += 1
            right = int(sum(gold))
            wins += all(gold[place] == 1.0 for place in order[:right])
    return wins / total


@st.composite
def one_item(draw: st.DrawFn) -> tuple[list[float], list[float]]:
    right, wrong = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    gold = draw(st.permutations([1.0] * right + [0.0] * wrong))
    rewards = draw(st.lists(st.integers(0, 3).map(float), min_size=len(gold), max_size=len(gold)))
    return rewards, list(gold)


@given(st.lists(one_item(), min_size=1, max_size=4))
def test_success_is_what_all_orders_say(items: list[tuple[list[float], list[float]]]) -> None:
    rewards, gold = padded([r for r, _ in items]), padded([g for _, g in items])
    shared = item_success(rewards, gold, "shared")
    strict = item_success(rewards, gold, "wrong")
    np.testing.assert_allclose(shared, [at_random(r, g) for r, g in items], atol=1e-12)
    for (r, g), value in zip(items, strict, strict=True):
        right = [x for x, y in zip(r, g, strict=True) if y == 1.0]
        wrong = [x for x, y in zip(r, g, strict=True) if y == 0.0]
        assert value == float(all(x > y for x in right for y in wrong))
    assert (strict <= shared).all()


def test_success_of_known_ties() -> None:
    rewards = np.array([[1.0, 1.0, np.nan, np.nan], [2.0, 2.0, 2.0, 2.0], [5.0, 5.0, 5.0, 1.0], [3.0, 2.0, 2.0, 9.0]])
    gold = np.array([[1.0, 0.0, np.nan, np.nan], [1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0]])
    np.testing.assert_allclose(item_success(rewards, gold, "shared"), [1 / 2, 1 / 4, 1 / 3, 0])
    np.testing.assert_array_equal(item_success(rewards, gold), [0, 0, 0, 0])


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=6), st.integers(0, 2**32 - 1))
def test_agreement_is_kendall_over_pairs_that_differ_in_gold(rewards: list[float], seed: int) -> None:
    gold = np.random.default_rng(seed).integers(0, 3, size=len(rewards)).astype(float)
    if len(set(gold)) == 1:
        gold[0] += 1
    pairs = [(a, b) for a in range(len(gold)) for b in range(len(gold)) if gold[a] > gold[b]]
    won = sum(rewards[a] > rewards[b] for a, b in pairs)
    even = sum(rewards[a] == rewards[b] for a, b in pairs)
    table = np.array([rewards, [*rewards[::-1]]])
    golds = np.array([gold, gold[::-1]])
    np.testing.assert_allclose(pair_agreement(table, golds), won / len(pairs))
    np.testing.assert_allclose(pair_agreement(table, golds, "shared"), (won + even / 2) / len(pairs))


def test_agreement_without_ties_is_half_of_kendall_plus_one() -> None:
    generator = np.random.default_rng(3)
    rewards, gold = generator.normal(size=(2, 9, 7))
    tau = [kendalltau(r, g).statistic for r, g in zip(rewards, gold, strict=True)]
    np.testing.assert_allclose(pair_agreement(rewards, gold), (np.array(tau) + 1) / 2, atol=1e-12)


def test_agreement_takes_items_of_any_number_in_parts() -> None:
    generator = np.random.default_rng(4)
    rewards, gold = generator.normal(size=(2, 7, 1100))
    rewards[:, 1050:] = np.nan
    gold[:, 1050:] = np.nan
    whole = pair_agreement(rewards, gold)
    np.testing.assert_array_equal(whole, [pair_agreement(rewards[[i]], gold[[i]])[0] for i in range(7)])
    assert (np.abs(whole - 0.5) < 0.1).all()


def test_rewards_must_be_where_the_responses_are() -> None:
    gold = np.array([[1.0, 0.0, np.nan]])
    check_rewards(np.array([[0.0, 0.0, np.nan]]), gold)
    for rewards in ([[0.0, np.nan, np.nan]], [[0.0, 0.0, 0.0]], [[0.0, np.inf, np.nan]], [[0.0, 0.0]]):
        with pytest.raises(ValueError, match="must be finite"):
            check_rewards(np.array(rewards), gold)
        for rule in (item_success, pair_agreement):
            with pytest.raises(ValueError, match="must be finite"):
                rule(np.array(rewards), gold)


@pytest.mark.parametrize("gold", [[1.0, 0.5], [1.0, 1.0], [0.0, 0.0], [2.0, 0.0]])
def test_success_needs_right_and_wrong(gold: list[float]) -> None:
    with pytest.raises(ValueError, match="one of each"):
        item_success(np.array([[1.0, 2.0]]), np.array([gold]))


def test_agreement_needs_different_gold() -> None:
    with pytest.raises(ValueError, match="different gold"):
        pair_agreement(np.array([[1.0, 2.0]]), np.array([[0.5, 0.5]]))


def test_gold_is_as_wide_as_the_rewards() -> None:
    items = [item("a"), item("a", (0.0, 1.0, 0.0))]
    expected = [[1, 0, np.nan, np.nan, np.nan], [0, 1, 0, np.nan, np.nan]]
    np.testing.assert_array_equal(gold_table(items, np.zeros((2, 5))), expected)
    np.testing.assert_array_equal(gold_table(items, np.zeros((2, 3))), np.array(expected)[:, :3])


def test_an_item_counts_for_every_term_of_its_group() -> None:
    of = {"b": ("all", "late"), "a": ("all", "early", "late"), "nothing": ("rare",)}
    terms = group_terms([item("a"), item("b"), item("a")], np.array([0.25, 0.5, 1.0]), of)
    assert terms.names == ("all", "late", "early", "rare")
    found = sorted(
        (terms.names[t], int(i), float(v)) for t, i, v in zip(terms.term, terms.item, terms.value, strict=True)
    )
    assert found == sorted(
        [("all", 0, 0.25), ("early", 0, 0.25), ("late", 0, 0.25), ("all", 1, 0.5), ("late", 1, 0.5)]
        + [("all", 2, 1.0), ("early", 2, 1.0), ("late", 2, 1.0)]
    )
    assert terms.term.dtype == terms.item.dtype == np.int64 and terms.value.dtype == np.float64


def test_no_items_give_no_values() -> None:
    terms = group_terms([], np.empty(0), {"a": ("a",)})
    assert terms.names == ("a",) and len(terms.term) == len(terms.item) == len(terms.value) == 0


def test_a_group_that_is_not_named_is_a_mistake() -> None:
    with pytest.raises(KeyError):
        group_terms([item("z")], np.ones(1), {"a": ("a",)})


def test_terms_by_group_uses_the_official_rule_unless_told() -> None:
    items, rewards = [item("a"), item("a")], np.array([[1.0, 1.0, np.nan], [2.0, 1.0, np.nan]])
    of = {"a": ("a",)}
    assert terms_by_group(of)(items, rewards, None).value.tolist() == [0, 1]
    assert terms_by_group(of)(items, rewards, "shared").value.tolist() == [0.5, 1]
    assert terms_by_group(of, official="shared")(items, rewards, None).value.tolist() == [0.5, 1]
    assert terms_by_group(of, official="shared")(items, rewards, "wrong").value.tolist() == [0, 1]
    graded = [item("a", (0.2, 0.9, 0.5))]
    assert math.isclose(terms_by_group(of, pair_agreement)(graded, np.array([[1.0, 2.0, 3.0]]), None).value[0], 2 / 3)
    assert pickle.loads(pickle.dumps(terms_by_group(of)))(items, rewards, None).value.tolist() == [0, 1]


def test_scores() -> None:
    assert mean_of_items("overall", "overall", "all").weights == {"all": 1.0}
    score = mean_of_groups("s", "section", ["a", "b", "c", "d"])
    assert (score.name, score.kind, score.weights) == ("s", "section", dict.fromkeys("abcd", 0.25))
