from __future__ import annotations

import numpy as np

from ebrm.benchmarks import Benchmark, Item, Score, padded
from ebrm.benchmarks.benchmark import Terms
from ebrm.data import prompt_id


def item(name: str, prompt: str, gold: tuple[float, ...], cluster: str = "") -> Item:
    message = ({"role": "user", "content": prompt},)
    return Item(name, message, tuple("abc"[: len(gold)]), gold, "", f"made:{name}", cluster)


def no_terms(items, rewards, ties):
    return Terms((), np.empty(0, int), np.empty(0, int), np.empty(0))


ITEMS = (item("1", "p", (1.0, 0.0)), item("2", "q", (1.0, 0.0, 0.5)), item("3", "p", (0.0, 1.0), "family"))
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
