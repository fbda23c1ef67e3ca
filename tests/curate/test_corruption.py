from __future__ import annotations

from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.curate.made_pairs import generator

from ebrm.curate import corruption_pairs
from ebrm.groups import Groups

# Parts of responses 0, 2 and 3, out of line; responses 1 and 4 have none.
RESPONSE = Groups(torch.tensor([2, 0, 0, 3, 2, 0, 2]), 5)
PARTS = {0: [1, 2, 5], 2: [0, 4, 6], 3: [3]}


def sequences(made):
    found: dict[int, list[int]] = {int(origin): [] for origin in made.origin}
    for part, number in zip(made.part.tolist(), made.response.index.tolist(), strict=True):
        found[int(made.origin[number])].append(part)
    return found


@pytest.mark.parametrize("seed", range(20))
def test_a_swap_keeps_the_parts_and_changes_the_places_of_two(seed):
    pairs, made, report = corruption_pairs(RESPONSE, "swap", generator(seed))
    assert pairs.chosen.tolist() == [0, 2] and pairs.rejected.tolist() == [5, 6]
    for origin, parts in sequences(made).items():
        assert sorted(parts) == sorted(PARTS[origin])
        assert sum(a != b for a, b in zip(parts, PARTS[origin], strict=True)) == 2
    assert report.made == 2 and report.numbers == {"responses": 5} and pairs.history(0) == ["swap corruption: made"]


@pytest.mark.parametrize("seed", range(20))
def test_a_duplicate_stands_beside_its_part(seed):
    pairs, made, _ = corruption_pairs(RESPONSE, "duplicate", generator(seed))
    assert pairs.chosen.tolist() == [0, 2, 3]
    assert made.response.sizes.tolist() == [4, 4, 2] and made.response.index.tolist() == sorted(made.response.index)
    for origin, parts in sequences(made).items():
        (twice,) = (Counter(parts) - Counter(PARTS[origin])).elements()
        assert parts[parts.index(twice) + 1] == twice
        parts.remove(twice)
        assert parts == PARTS[origin]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.lists(st.tuples(st.integers(0, 5), st.just(0)), max_size=25))
def test_a_splice_comes_from_another_prompt(seed, rows: list[tuple[int, int]]):
    response = Groups(torch.tensor([row for row, _ in rows], dtype=torch.int64), 6)
    prompt = torch.tensor([0, 1, 0, 2, 1, 0])
    pairs, made, _ = corruption_pairs(response, "splice", generator(seed), Groups(prompt, 4))
    prompts = {int(prompt[row]) for row, _ in rows}
    assert made.origin.tolist() == (sorted({row for row, _ in rows}) if len(prompts) > 1 else [])
    for origin, parts in sequences(made).items():
        before = [i for i, (row, _) in enumerate(rows) if row == origin]
        ((old, new),) = [(a, b) for a, b in zip(before, parts, strict=True) if a != b]
        assert old in before and int(prompt[rows[new][0]]) != int(prompt[origin])


def test_every_part_is_as_likely():
    # 1000 responses of three parts each, with prompts 0, 1, 2, … of one response: which part is spliced in and where.
    response = Groups(torch.arange(3000) // 3, 1000)
    prompt = Groups(torch.arange(1000) % 4, 4)
    _, made, _ = corruption_pairs(response, "splice", generator(), prompt)
    new = (made.part != torch.arange(3000)).nonzero().flatten()
    assert len(new) == 1000
    places = torch.bincount(new % 3, minlength=3).double()
    assert float(((places - 1000 / 3) ** 2 / (1000 / 3)).sum()) < 13.8  # 99.9% of χ² with 2 degrees of freedom
    mine, theirs = made.origin % 4, (made.part[new] // 3) % 4
    counts = torch.zeros(4, 4, dtype=torch.float64).index_put_((mine, theirs), torch.ones(1000).double(), True)
    expected = (250 / 3) * (1 - torch.eye(4, dtype=torch.float64))
    assert float(((counts - expected)[expected > 0] ** 2 / (250 / 3)).sum()) < 32.9  # with 12, to be generous
    assert not bool(counts.diagonal().any())
    _, swapped, _ = corruption_pairs(response, "swap", generator())
    still = (swapped.part == torch.arange(3000)).nonzero().flatten() % 3
    assert float(((torch.bincount(still) - 1000 / 3) ** 2 / (1000 / 3)).sum()) < 13.8


def test_what_cannot_be_corrupted_has_no_pair():
    single = Groups(torch.tensor([0, 1]), 2)
    assert len(corruption_pairs(single, "swap", generator())[0]) == 0
    assert len(corruption_pairs(single, "splice", generator())[0]) == 2
    assert len(corruption_pairs(single, "splice", generator(), Groups(torch.tensor([0, 0]), 1))[0]) == 0
    for kind in ("swap", "duplicate", "splice"):
        pairs, made, report = corruption_pairs(Groups(torch.zeros(0, dtype=torch.int64), 0), kind, generator())
        assert len(pairs) == len(made.part) == made.response.count == report.made == 0


def test_the_seed_decides():
    response = Groups(torch.arange(300) // 3, 100)
    one, same, other = (corruption_pairs(response, "swap", generator(seed))[1].part for seed in (0, 0, 1))
    assert torch.equal(one, same) and not torch.equal(one, other)
