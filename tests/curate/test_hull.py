from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial import ConvexHull
from tests.curate.made_pairs import a_pair_each, generator

from ebrm.curate import augmentation, convex_hull_augmentation, hull_vertices
from ebrm.groups import Groups

TRIANGLE = torch.tensor([[0.0, 0], [1, 1], [9, 0], [2, 1], [0, 9], [3, 3]])


def one(count):
    return Groups(torch.zeros(count, dtype=torch.int64), 1)


def test_the_corners_of_a_triangle():
    assert hull_vertices(TRIANGLE, one(6)).tolist() == [True, False, True, False, True, False]
    # In more dimensions, turned and moved.
    turn = torch.linalg.qr(torch.randn(7, 7, generator=generator(), dtype=torch.float64))[0][:2]
    assert hull_vertices(TRIANGLE.double() @ turn * 1e-3 + 5, one(6)).tolist() == [
        True,
        False,
        True,
        False,
        True,
        False,
    ]


def test_points_on_a_line_at_one_place_and_on_an_edge():
    line = torch.tensor([[1.0, 1], [0, 0], [3, 3], [2, 2], [3, 3]])
    assert hull_vertices(line, one(5)).tolist() == [False, True, True, False, False]
    assert hull_vertices(line[:, :1], one(5)).tolist() == [False, True, True, False, False]  # one dimension
    assert hull_vertices(torch.full((4, 3), 0.1), one(4)).tolist() == [True, False, False, False]
    square = torch.tensor([[0.0, 0], [2, 0], [2, 2], [0, 2], [1, 0], [1, 1], [0, 0]])
    assert hull_vertices(square * 1.0, one(7)).tolist() == [True, True, True, True, False, False, False]


def test_few_rows_are_all_corners():
    groups = Groups(torch.tensor([3, 0, 3]), 5)
    assert hull_vertices(torch.tensor([[0.0, 1], [5, 5], [2, 2]]), groups).tolist() == [True] * 3
    assert hull_vertices(torch.zeros(0, 4), Groups(torch.zeros(0, dtype=torch.int64), 2)).shape == (0,)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.01, 100))
def test_against_scipy_group_by_group(seed, scale):
    random = generator(seed)
    groups = Groups(torch.randint(0, 4, (40,), generator=random), 4)
    points = torch.randn(40, 6, generator=random, dtype=torch.float64)
    found = hull_vertices(points, groups)
    for group in range(4):
        rows = (groups.index == group).nonzero().flatten()
        if len(rows) >= 4:
            off = points[rows] - points[rows].mean(0)
            plane = off @ torch.linalg.svd(off, full_matrices=False)[2][:2].T
            assert found[rows].nonzero().flatten().tolist() == sorted(ConvexHull(plane.numpy()).vertices.tolist())
    order = torch.randperm(40, generator=random)
    moved = scale * points[order] + groups.index[order, None]
    assert torch.equal(hull_vertices(moved, Groups(groups.index[order], 4)), found[order])


def test_small_parts_find_the_same(monkeypatch):
    points, groups = torch.randn(60, 3, generator=generator()), Groups(torch.arange(60) % 12, 12)
    found = hull_vertices(points, groups)
    monkeypatch.setattr(augmentation, "_CHUNK_CELLS", 60)
    assert torch.equal(hull_vertices(points, groups), found)


def test_the_outermost_copies_become_chosen():
    # Rows 0 … 3 are two pairs; 4 … 9 copies of row 2, and 10, 11 of row 3, which is never chosen.
    embedding = torch.cat([torch.zeros(4, 2), TRIANGLE, torch.ones(2, 2)])
    copy_of = torch.tensor([-1] * 4 + [2] * 6 + [3] * 2)
    pairs, _ = a_pair_each(2).after("weigh", weight=torch.tensor([1.0, 4.0]))
    made, report = convex_hull_augmentation(pairs, embedding, copy_of)
    assert made.chosen.tolist() == [0, 2, 4, 6, 8] and made.rejected.tolist() == [1, 3, 3, 3, 3]
    assert made.weight.tolist() == [1, 4, 4, 4, 4] and made.origin.tolist() == [0, 1, 1, 1, 1]
    assert (report.given, report.kept, report.made, report.dropped) == (2, 2, 3, 0)
    assert report.numbers == {"copies": 8, "outermost": 4}
    assert made.history(1)[-1] == "convex hull: kept" and made.history(2)[-1] == "convex hull: made"
    same, report = convex_hull_augmentation(pairs, embedding, torch.full((12,), -1))
    assert torch.equal(same.chosen, pairs.chosen) and report.made == 0


def test_copies_of_several_pairs_go_to_theirs():
    embedding = torch.randn(10, 3, generator=generator())
    copy_of = torch.tensor([-1, -1, -1, -1, 2, 0, 2, 0, -1, -1])
    made, _ = convex_hull_augmentation(a_pair_each(2), embedding, copy_of)
    assert made.chosen.tolist() == [0, 2, 5, 7, 4, 6] and made.rejected.tolist() == [1, 3, 1, 1, 3, 3]
    none, report = convex_hull_augmentation(a_pair_each(0), embedding, copy_of)
    assert len(none) == report.made == 0
