"""What holds for every metric with an interval."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from tests.metrics.shared import NAN, ends, estimates, numbers, width

from ebrm import metrics
from ebrm.errors import DataError
from ebrm.metrics import Bootstrap

ROWS = 48
FEW = Bootstrap(40)
Columns = list[np.ndarray]


@dataclass(frozen=True)
class Case:
    """A metric, the columns that it takes by place (of ROWS rows), and whether it takes `cluster`."""

    name: str
    columns: Callable[[np.random.Generator], Columns]
    cluster: bool = True
    settings: dict[str, Any] = field(default_factory=dict)
    exact: bool = True  # the same to the last bit in any order of rows
    labels: Sequence[int] = ()  # columns of labels, which may hold anything
    function: Callable[..., Any] | None = None

    def __call__(self, columns: Sequence[Any], cluster: Any = None, bootstrap: Bootstrap = FEW) -> Any:
        function = self.function or getattr(metrics, self.name)
        given = {"cluster": cluster} if self.cluster and cluster is not None else {}
        return function(*columns, **given, **self.settings, bootstrap=bootstrap)

    def made(self, seed: int = 0) -> tuple[Columns, np.ndarray]:
        """Columns and clusters; groups, prompts and items lie in one cluster each."""
        return self.columns(np.random.default_rng(seed)), PROMPT // 2


PROMPT = np.repeat(np.arange(12), 4)


def quarters(number: int) -> Callable[[np.random.Generator], Columns]:
    return lambda generator: list(generator.integers(-4, 5, (number, ROWS)) / 4)


def flags(generator: np.random.Generator) -> np.ndarray:
    return np.where(np.arange(ROWS) % 4 < 2, True, generator.random(ROWS) < 0.3)


def tables(generator: np.random.Generator, right: int) -> Columns:
    """Rewards and gold of items with so many right responses."""
    gold = np.tile(np.arange(5) < right, (ROWS, 1)) * 1.0
    return [generator.integers(0, 5, (ROWS, 5)) / 4 + 0.5 * gold, gold]


CASES = [
    Case("clustered_mean", quarters(1)),
    Case("paired_accuracy", quarters(4)),
    Case(
        "paired_accuracy_by_category",
        lambda g: [*quarters(4)(g), PROMPT % 3],
        labels=[4],
        function=lambda a, b, c, d, category, cluster=None, **rest: metrics.paired_accuracy_by_category(
            a, b, c, d, cluster, [str(n) for n in category], **rest
        ),
    ),
    Case("group_accuracy", lambda g: [*quarters(2)(g), PROMPT], labels=[2]),
    Case("preference_rate", quarters(2)),
    Case("contrast_consistency", quarters(2)),
    Case("hack_preference_rate", lambda g: [*quarters(2)(g), PROMPT % 3], labels=[2]),
    Case("accuracy_with_ties", lambda g: [*quarters(1)(g), g.integers(-1, 2, ROWS)], settings={"threshold": 0.25}),
    Case("accuracy_without_ties", lambda g: [*quarters(1)(g), g.integers(-1, 2, ROWS)]),
    Case("one_to_many", lambda g: tables(g, 1)),
    Case("ties_score", lambda g: [*tables(g, 3), *tables(g, 1)], exact=False),
    Case("calibration", lambda g: [g.integers(1, 16, ROWS) / 16], exact=False),
    Case("detection_auroc", lambda g: [*quarters(1)(g), flags(g)]),
    Case("error_auroc", lambda g: [*quarters(1)(g), flags(g)]),
    Case("risk_coverage", lambda g: [*quarters(1)(g), flags(g)]),
    Case("error_by_uncertainty", lambda g: [*quarters(1)(g), flags(g)], settings={"bins": 3}),
    Case(
        "interval_coverage",
        lambda g: [np.sort(g.integers(-4, 5, (ROWS, 2)) / 4), *quarters(1)(g)],
        settings={"noise": 0.5},
    ),
    Case("length_correlation", lambda g: [*quarters(2)(g), PROMPT], labels=[2]),
    Case(
        "length_matched",
        lambda g: [flags(g) * 1.0, g.integers(1, 9, ROWS), g.integers(1, 9, ROWS)],
        settings={"ratio": 2.0},
    ),
    Case("positive_spread", lambda g: [*quarters(1)(g), flags(g), PROMPT], exact=False, labels=[2]),
    Case("starc_estimate", lambda g: [*quarters(2)(g), PROMPT], exact=False, labels=[2]),
    Case(
        "reward_drift", lambda g: [*quarters(1)(g), PROMPT, *quarters(2)(g)], cluster=False, exact=False, labels=[1],
        settings={"ceiling": 0.5, "flat": 0.5},
    ),
    Case("downstream_correlation", quarters(2), cluster=False),
    Case(
        "probe_accuracy",
        lambda g: [g.integers(0, 3, (ROWS, 2)), g.integers(0, 3, (ROWS, 2))],
        settings={"dimensions": ("a", "b")},
    ),
    Case("mean_curve", lambda g: [g.integers(-4, 5, (ROWS, 3)) / 4]),
    Case("curve_peak", lambda g: [g.integers(-4, 5, (ROWS, 3)) / 4], settings={"axis": [1, 2, 4]}),
]  # fmt: skip
every = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
#: Fixed numbers of something else than rows, and intervals without estimates.
clusters_only = [case for case in CASES if case.cluster and case.name != "mean_curve"]


@every
@pytest.mark.parametrize("seed", range(8))
def test_nothing_depends_on_the_order_of_rows(case: Case, seed: int) -> None:
    columns, cluster = case.made(seed)
    order = np.random.default_rng(seed).permutation(ROWS)
    one = numbers(case(columns, cluster))
    two = numbers(case([column[order] for column in columns], cluster[order]))
    if case.exact:
        assert np.array_equal(one, two, equal_nan=True)
    assert two == pytest.approx(one, nan_ok=True, rel=1e-9, abs=1e-12)


@every
def test_the_seed_decides_and_the_level_narrows_the_intervals(case: Case) -> None:
    columns, cluster = case.made()
    first, again, other = (numbers(case(columns, cluster, Bootstrap(101, seed=seed))) for seed in (1, 1, 2))
    assert np.array_equal(first, again, equal_nan=True) and not np.array_equal(first, other, equal_nan=True)
    narrow, wide = (case(columns, cluster, Bootstrap(101, level)) for level in (0.5, 0.95))
    for one, two in zip(estimates(narrow), estimates(wide), strict=True):
        assert one.value == two.value or np.isnan([one.value, two.value]).all()
        assert not width(one) > width(two)


@every
def test_lists_and_tensors_are_taken(case: Case) -> None:
    columns, cluster = case.made()
    expected = numbers(case(columns, cluster))
    lists = case([column.tolist() for column in columns], cluster.tolist())
    tensors = [torch.from_numpy(column) for column in columns]
    floats = [one.to(torch.bfloat16).requires_grad_() if one.is_floating_point() else one for one in tensors]
    for found in (lists, case(floats, torch.from_numpy(cluster))):
        assert np.array_equal(numbers(found), expected, equal_nan=True)


@pytest.mark.parametrize("case", clusters_only, ids=lambda case: case.name)
def test_rows_of_one_cluster_are_one_draw(case: Case) -> None:
    columns, cluster = case.made()
    assert all(np.isnan(ends(found)).all() for found in estimates(case(columns, np.zeros(ROWS))))
    # Copies of rows in their clusters are no more evidence.
    many = Bootstrap(1000)
    once = case(columns, cluster, many)
    copied = case([np.repeat(column, 4, axis=0) for column in columns], np.repeat(cluster, 4), many)
    for one, two in zip(estimates(once), estimates(copied), strict=True):
        if case.name != "calibration" or one is not once.ece:  # whose interval is that of the noise
            assert width(two) == pytest.approx(width(one), rel=0.25, abs=0.03, nan_ok=True)


@every
def test_rows_that_do_not_fit_or_are_no_numbers_are_refused(case: Case) -> None:
    columns, cluster = case.made()
    for number, column in enumerate(columns):
        if len(columns) > 1:
            short = [*columns[:number], column[:-1], *columns[number + 1 :]]
            with pytest.raises(ValueError, match="shape|expected|labels|partner"):
                case(short, cluster)
        if number not in case.labels:
            broken = column.astype(np.float64)
            broken[3] = np.inf
            with pytest.raises(DataError, match="(row|first) 3|row 3|3.*row 3"):
                case([*columns[:number], broken, *columns[number + 1 :]], cluster)
            words = [*columns[:number], [["one"], "two"], *columns[number + 1 :]]
            with pytest.raises(ValueError, match="not an array of numbers"):
                case(words, cluster)
    with pytest.raises(DataError, match="no |No "):
        case([column[:0] for column in columns], cluster[:0])
    if case.cluster:
        with pytest.raises(ValueError, match="labels"):
            case(columns, cluster[:-1])


def test_every_metric_with_an_interval_is_here() -> None:
    import inspect

    with_interval = {
        name
        for name in metrics.__all__
        if callable(getattr(metrics, name))
        and "bootstrap" in inspect.signature(getattr(metrics, name)).parameters
        and name[0].islower()
    }
    assert with_interval - {case.name for case in CASES} == {"bootstrap_scores", "resample_sums", "share_interval"}


# What changes nothing: (metric, the columns that a map applies to).
RISING = [("paired_accuracy", range(4)), ("group_accuracy", range(2)), ("preference_rate", range(2)),
          ("hack_preference_rate", range(2)), ("one_to_many", [0]), ("detection_auroc", [0])]  # fmt: skip
OFFSETS = [("group_accuracy", range(2)), ("preference_rate", range(2)), ("paired_accuracy", range(4)),
           ("one_to_many", [0]), ("ties_score", [0]), ("length_correlation", range(2)),
           ("positive_spread", [0]), ("starc_estimate", range(2))]  # fmt: skip
FACTOR = [("paired_accuracy", range(4)), ("ties_score", [0, 2]), ("length_correlation", [0]), ("starc_estimate", [0]),
          ("length_correlation", [1]), ("starc_estimate", [1]), ("downstream_correlation", [0])]  # fmt: skip
BY_NAME = {case.name: case for case in CASES}


def changed(name: str, places: Sequence[int], change: Callable[[np.ndarray], np.ndarray], seed: int) -> tuple[Any, Any]:
    case = BY_NAME[name]
    columns, cluster = case.made(seed)
    moved = [change(column) if number in places else column for number, column in enumerate(columns)]
    return case(columns, cluster), case(moved, cluster)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("name", "places"), RISING)
def test_a_rising_map_of_all_rewards_changes_nothing(name: str, places: Sequence[int], seed: int) -> None:
    one, two = changed(name, places, np.exp, seed)
    assert np.array_equal(numbers(one), numbers(two), equal_nan=True)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("name", "places"), OFFSETS)
def test_an_offset_of_a_prompt_changes_nothing(name: str, places: Sequence[int], seed: int) -> None:
    offset = np.random.default_rng(seed).integers(-8, 8, 12)[PROMPT]
    one, two = changed(name, places, lambda column: (column.T + offset).T, seed)
    assert numbers(two) == pytest.approx(numbers(one), nan_ok=True, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("factor", [0.25, 1024.0])
@pytest.mark.parametrize(("name", "places"), FACTOR)
def test_a_positive_factor_changes_nothing(name: str, places: Sequence[int], factor: float) -> None:
    one, two = changed(name, places, lambda column: factor * column, 0)
    assert numbers(two) == pytest.approx(numbers(one), nan_ok=True, rel=1e-9, abs=1e-9)


def test_missing_values_are_named_with_the_first_row() -> None:
    with pytest.raises(DataError, match=r"the reward of the chosen responses holds 2 of 4 .*\(nan\) in row 1"):
        metrics.preference_rate([0, NAN, 1, np.inf], [0, 0, 0, 0])
