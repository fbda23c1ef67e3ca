from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ebrm.data import hash_position, split_by_prompt
from ebrm.errors import ConfigError

FRACTIONS = {"train": 0.8, "validation": 0.1, "test": 0.1}
ids = st.lists(st.integers(0, 30).map(str), max_size=80)
seeds = st.integers(0, 2**32)


def part_of(prompt_ids: list[str], fractions: dict[str, float], seed: int) -> list[str]:
    parts = split_by_prompt(prompt_ids, fractions, seed)
    return [next(name for name, rows in parts.items() if i in rows) for i in range(len(prompt_ids))]


@given(ids, seeds)
def test_every_row_in_one_part_and_no_prompt_in_two(prompt_ids: list[str], seed: int) -> None:
    parts = split_by_prompt(prompt_ids, FRACTIONS, seed)
    assert list(parts) == list(FRACTIONS)
    assert sorted(np.concatenate(list(parts.values())).tolist()) == list(range(len(prompt_ids)))
    prompts = [{prompt_ids[i] for i in rows} for rows in parts.values()]
    assert sum(map(len, prompts)) == len(set(prompt_ids))
    for rows in parts.values():
        assert rows.dtype == np.int64
        assert (np.diff(rows) > 0).all()


@given(ids, ids, seeds)
def test_added_rows_move_nothing(old: list[str], new: list[str], seed: int) -> None:
    assert part_of(old + new, FRACTIONS, seed)[: len(old)] == part_of(old, FRACTIONS, seed)
    assert part_of(new + old, FRACTIONS, seed)[len(new) :] == part_of(old, FRACTIONS, seed)


@given(ids, seeds)
def test_growing_the_first_part_only_adds_to_it(prompt_ids: list[str], seed: int) -> None:
    small = split_by_prompt(prompt_ids, {"train": 0.5, "test": 0.5}, seed)["train"]
    large = split_by_prompt(prompt_ids, {"train": 0.75, "test": 0.25}, seed)["train"]
    assert set(small) <= set(large)


def test_parts_hold_their_fraction_of_prompts_and_seeds_differ() -> None:
    prompt_ids = [str(i) for i in range(20_000)]
    parts = split_by_prompt(prompt_ids, FRACTIONS, seed=1)
    # Four standard deviations of a binomial.
    for name, share in FRACTIONS.items():
        assert abs(len(parts[name]) / 20_000 - share) < 4 * (share * (1 - share) / 20_000) ** 0.5
    other = split_by_prompt(prompt_ids, FRACTIONS, seed=2)["test"]
    overlap = len(np.intersect1d(parts["test"], other)) / 20_000
    assert abs(overlap - 0.01) < 0.004  # independent: 0.1 * 0.1


def test_the_split_is_the_same_on_every_machine() -> None:
    parts = split_by_prompt([str(i) for i in range(12)], {"train": 0.5, "test": 0.5}, seed=7)
    assert parts["test"].tolist() == [i for i in range(12) if hash_position(f"split:7:{i}") >= 2**63]
    assert hash_position("abc") == 0xBA7816BF8F01CFEA  # the first 8 bytes of the well-known SHA-256("abc")


def test_empty_parts() -> None:
    parts = split_by_prompt(["a", "b"], {"none": 0.0, "all": 1.0, "also none": 0.0}, seed=0)
    assert [rows.tolist() for rows in parts.values()] == [[], [0, 1], []]
    assert split_by_prompt([], FRACTIONS, 0)["train"].tolist() == []


def test_thirds_lose_no_row() -> None:
    thirds = {"a": 1 / 3, "b": 1 / 3, "c": 1 / 3}
    parts = split_by_prompt([str(i) for i in range(1000)], thirds, seed=0)
    assert sum(map(len, parts.values())) == 1000


@pytest.mark.parametrize(
    "fractions", [{}, {"a": 0.5}, {"a": 0.7, "b": 0.7}, {"a": 1.5, "b": -0.5}, {"a": float("nan")}]
)
def test_fractions_must_sum_to_one(fractions: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="sum to 1"):
        split_by_prompt(["a"], fractions, 0)
