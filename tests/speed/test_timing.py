from __future__ import annotations

import dataclasses

import pytest
import torch
from benchmarks import timing
from benchmarks.timing import Figure, Ratio, compare, compare_each
from hypothesis import given
from hypothesis import strategies as st


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that stands still until work moves it: `clock[0]` is the time."""
    now = [0.0]
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])
    return now


class Work:
    """Takes the given seconds, one after another, and notes when it was its turn."""

    def __init__(self, name: str, clock: list[float], turns: list[str], taken: list[float]) -> None:
        self.name, self.clock, self.turns, self.taken = name, clock, turns, iter(taken)

    def __call__(self) -> None:
        self.turns.append(self.name)
        self.clock[0] += next(self.taken)


def test_turns_alternate_and_the_warm_up_does_not_count(clock):
    turns: list[str] = []
    plain = Work("plain", clock, turns, [99.0, 6.0, 8.0, 20.0])
    ours = Work("ours", clock, turns, [77.0, 2.0, 4.0, 2.0])
    ratio = compare(plain, ours, 3)
    assert turns == ["plain", "ours"] * 4
    assert ratio == Ratio(plain_seconds=8.0, ours_seconds=2.0, ratio=4.0, low=2.0, high=10.0)


def test_several_ways_share_the_plain_runs(clock):
    turns: list[str] = []
    plain = Work("plain", clock, turns, [6.0, 6.0])
    ways = {"a": Work("a", clock, turns, [3.0, 2.0]), "b": Work("b", clock, turns, [1.0, 1.0])}
    ratios = compare_each(plain, ways, 2, warm_up=False)
    assert turns == ["plain", "a", "b", "plain", "a", "b"]
    assert ratios == {"a": Ratio(6.0, 2.5, 2.4, 2.0, 3.0), "b": Ratio(6.0, 1.0, 6.0, 6.0, 6.0)}


@given(st.lists(st.tuples(st.floats(1e-3, 1e3), st.floats(1e-3, 1e3)), min_size=1, max_size=9))
def test_the_ratio_of_medians_lies_in_the_spread(taken):
    ratio = Ratio.of([p for p, _ in taken], [o for _, o in taken])
    assert ratio.low * (1 - 1e-12) <= ratio.ratio <= ratio.high * (1 + 1e-12)


def test_plain_on_a_part_of_the_rows_is_scaled():
    assert Ratio(8.0, 2.0, 4.0, 3.0, 5.0).with_plain_times(4) == Ratio(32.0, 2.0, 16.0, 12.0, 20.0)


def test_a_figure_says_what_was_timed_and_whether_it_is_enough():
    ratio = Ratio(8.0, 2.0, 4.0, 3.0, 5.0)
    figure = Figure.from_ratio("refine", ratio, d=512, network="small", rows=2048, required=4.0)
    assert dataclasses.asdict(figure) == {
        "figure": "refine", "d": 512, "network": "small", "rows": 2048, "device": "cpu",
        "threads": torch.get_num_threads(), "plain_seconds": 8.0, "ours_seconds": 2.0,
        "ratio": 4.0, "ratio_low": 3.0, "ratio_high": 5.0, "required": 4.0,
    }  # fmt: skip
    assert figure.met
    assert not dataclasses.replace(figure, required=4.01).met
    assert dataclasses.replace(figure, required=None).met
