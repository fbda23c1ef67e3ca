"""What holds for every benchmark: its scores follow the written rule, and extreme rewards get extreme scores."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from tests.benchmarks import tiny
from tests.benchmarks.rules_by_hand import RULES
from tests.benchmarks.tiny import FILES, Reward, scores_of, table, worth

from ebrm.benchmarks import NAMES, Benchmark, Ties, open_benchmark
from ebrm.metrics import score_values

every = pytest.mark.parametrize("name", FILES)
TIES: tuple[Ties | None, ...] = (None, "wrong", "shared")

#: Scores that a constant reward gets where they are not 0: shared credit for the best of four, a tie that counts as
#: right, and the last rank of ten.
CONSTANT = {
    "rewardbench2": dict.fromkeys(("Factuality", "Precise IF", "Math", "Safety", "Focus"), 0.25)
    | {"Ties": 0.0, "overall": 5 * 0.25 / 6},
    "rewardmath": {"ties as right": 1.0, "MRR": 0.1},
}
#: RewardBench 2's Ties ends at 1.01 and at -0.01, so its overall score goes a little beyond 1 and 0.
PERFECT = {"rewardbench2": {"Ties": 1.01, "overall": 6.01 / 6}}
REVERSED = {"rewardbench2": {"Ties": -0.01, "overall": -0.01 / 6}, "rewardmath": {"MRR": 0.1}}


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Benchmark]:
    """A benchmark made of the rows in `tiny`, read from files by its own reader."""

    @cache
    def read(name: str) -> Benchmark:
        folder = tmp_path_factory.mktemp(name)
        write(folder, name)
        return open_benchmark(name, folder)

    return read


def write(folder: Path, name: str, seed: int | None = None) -> None:
    """Write a benchmark's files, with their rows shuffled if there is a seed."""
    for file, rows in FILES[name].items():
        order = np.arange(len(rows)) if seed is None else np.random.default_rng(seed).permutation(len(rows))
        tiny.write_parquet(folder / file, [rows[int(place)] for place in order])


def random_reward(seed: int, levels: int | None = None) -> Reward:
    """A reward drawn for every text: one of a few levels, or normal."""
    generator = np.random.default_rng(seed)
    texts = sorted(text for files in FILES.values() for rows in files.values() for text in _replies(rows))
    drawn = generator.normal(size=len(texts)) if levels is None else generator.integers(levels, size=len(texts)) / 7
    return dict(zip(texts, drawn.tolist(), strict=True)).__getitem__


def _replies(rows: object) -> list[str]:
    """All texts of `tiny.reply` in some rows."""
    if isinstance(rows, str):
        return [rows] if rows.startswith("reply ") else []
    if isinstance(rows, dict):
        return _replies(list(rows.values()))
    return [text for row in rows for text in _replies(row)] if isinstance(rows, list) else []


def with_exceptions(benchmark: Benchmark, value: float, exceptions: dict[str, dict[str, float]]) -> dict[str, float]:
    return {score.name: value for score in benchmark.scores} | exceptions.get(benchmark.name, {})


def test_every_public_benchmark_is_here() -> None:
    assert set(NAMES) < set(FILES) == set(RULES)


@every
def test_scores_follow_the_written_rule(name: str, opened: Callable[[str], Benchmark]) -> None:
    benchmark = opened(name)
    for seed in range(12):
        reward = random_reward(seed, levels=(None, 2, 3, 5)[seed % 4])
        rewards = table(benchmark, reward)
        for ties in TIES:
            expected = RULES[name](FILES[name], reward, ties)
            assert scores_of(benchmark, rewards, ties) == pytest.approx(expected, abs=1e-9, rel=0)


@every
def test_official_rule_is_one_of_the_two(name: str, opened: Callable[[str], Benchmark]) -> None:
    benchmark = opened(name)
    rewards = table(benchmark, random_reward(5, levels=2))
    official, wrong, shared = (scores_of(benchmark, rewards, ties) for ties in TIES)
    assert wrong != shared
    assert all(wrong[score] <= official[score] <= shared[score] for score in official)
    if name != "rewardbench2":
        assert official == wrong


@every
def test_overall_is_the_first_and_only_one(name: str, opened: Callable[[str], Benchmark]) -> None:
    scores = opened(name).scores
    assert [score.kind for score in scores].count("overall") == 1
    assert (scores[0].name, scores[0].kind) == ("overall", "overall")
    assert len({score.name for score in scores}) == len(scores)
    assert all(sum(score.weights.values()) <= 1.01 + 1e-12 and min(score.weights.values()) > 0 for score in scores)


@every
def test_constant_scores_by_the_tie_rule(name: str, opened: Callable[[str], Benchmark]) -> None:
    benchmark = opened(name)
    rewards = table(benchmark, lambda text: -3.25)
    assert scores_of(benchmark, rewards) == pytest.approx(with_exceptions(benchmark, 0.0, CONSTANT))
    if all(len(item.responses) == 2 for item in benchmark.items) or name in ("rm-bench", "own_pools"):
        assert scores_of(benchmark, rewards, "shared") == pytest.approx(with_exceptions(benchmark, 0.5, {}))


@every
@pytest.mark.parametrize("ties", TIES)
def test_perfect_scores_one(name: str, ties: Ties | None, opened: Callable[[str], Benchmark]) -> None:
    benchmark = opened(name)
    found = scores_of(benchmark, table(benchmark, worth), ties)
    assert found == pytest.approx(with_exceptions(benchmark, 1.0, PERFECT))


@every
@pytest.mark.parametrize("ties", TIES)
def test_reversed_scores_zero(name: str, ties: Ties | None, opened: Callable[[str], Benchmark]) -> None:
    benchmark = opened(name)
    found = scores_of(benchmark, table(benchmark, lambda text: -worth(text)), ties)
    assert found == pytest.approx(with_exceptions(benchmark, 0.0, REVERSED))


@every
def test_random_scores_about_chance(name: str, opened: Callable[[str], Benchmark]) -> None:
    benchmark = opened(name)
    generator = np.random.default_rng(17)
    shape = benchmark.gold()
    drawn = [
        scores_of(benchmark, np.where(np.isfinite(shape), generator.normal(size=shape.shape), np.nan))
        for _ in range(600)
    ]
    for score, chance in _chance(name).items():
        values = np.array([each[score] for each in drawn])
        error = values.std() / np.sqrt(len(values))
        assert abs(values.mean() - chance) < 4.5 * error
        assert error < 0.02


def _chance(name: str) -> dict[str, float]:
    """What random rewards without ties score in expectation."""
    if name == "rewardbench2":
        return dict.fromkeys(("Factuality", "Precise IF", "Math", "Safety", "Focus"), 0.25)
    if name == "rewardmath":
        return {"overall": 0.1, "ties as right": 0.1, "MRR": sum(1 / rank for rank in range(1, 11)) / 10}
    if name == "own_lists":
        return {"overall": 0.25}
    if name != "rmb":
        return {"overall": 0.5}
    scenarios: dict[tuple[str, str], list[float]] = {}
    for row in FILES[name]["rmb_bon.parquet"]:
        scenarios.setdefault((row["category"], row["subset"]), []).append(1 / (1 + len(row["losers"])))
    lists = {
        f"{goal} best-of-n": float(np.mean([np.mean(v) for (c, _), v in scenarios.items() if c.startswith(goal)]))
        for goal in ("Helpfulness", "Harmlessness")
    }
    return lists | {"Helpfulness pairwise": 0.5, "overall": (1.0 + sum(lists.values())) / 4}


@every
def test_metrics_give_the_same_scores(name: str, opened: Callable[[str], Benchmark]) -> None:
    """The plain arithmetic of these tests and the function that evaluations use agree."""
    benchmark = opened(name)
    rewards = table(benchmark, random_reward(15, levels=3))
    terms = benchmark.terms(benchmark.items, rewards, None)
    weights = [[score.weights.get(term, 0.0) for term in terms.names] for score in benchmark.scores]
    found = score_values(terms.term, terms.value[:, None], np.array(weights))[:, 0]
    assert found == pytest.approx(list(scores_of(benchmark, rewards).values()), abs=1e-12)


#: Prepared benchmarks: files, and items.
PREPARED = {
    "rmb": (("rmb_pairwise.parquet", "rmb_bon.parquet"), 12_789), "rm-bench": (("rm_bench.parquet",), 669),
    "llmbar": (("llmbar.parquet",), 1198), "xstest": (("xstest_pairs.parquet",), 976),
    "hhh": (("hhh_alignment.parquet",), 221), "ifbench": (("ifbench.parquet",), 444),
    "own_pairs": (("hh_harmless_test.parquet",), 2303),
}  # fmt: skip


@pytest.mark.parametrize("name", PREPARED)
def test_the_prepared_files_follow_the_written_rule(name: str, data_folder: Path) -> None:
    files, items = PREPARED[name]
    rows = {file: pq.read_table(data_folder / file).to_pylist() for file in files}
    benchmark = open_benchmark(Path(files[0]).stem if name == "own_pairs" else name, data_folder)
    assert len(benchmark) == items
    gold = benchmark.gold()
    assert scores_of(benchmark, gold) == pytest.approx(with_exceptions(benchmark, 1.0, {}))
    for lost in (-gold, 0.0 * gold):
        assert scores_of(benchmark, lost) == pytest.approx(with_exceptions(benchmark, 0.0, {}))
    if name == "rm-bench":
        assert {item.group for item in benchmark.items} == {"code", "safety-refuse", "safety-response"}
        return  # two domains are absent, which the written rule does not know
    for ties in ("wrong", "shared"):
        rewards = table(benchmark, hashed)
        assert scores_of(benchmark, rewards, ties) == pytest.approx(RULES[name](rows, hashed, ties), abs=1e-9, rel=0)


def hashed(text: str) -> float:
    """A reward of few levels that a text always gets."""
    return float(zlib.crc32(text.encode()) % 5)


@every
def test_order_of_items_does_not_matter(name: str, opened: Callable[[str], Benchmark]) -> None:
    benchmark = opened(name)
    order = np.random.default_rng(3).permutation(len(benchmark))
    rewards = table(benchmark, random_reward(11, levels=3))
    for ties in TIES:
        found = scores_of(benchmark.take(order), rewards[order], ties)
        assert found == pytest.approx(scores_of(benchmark, rewards, ties), abs=1e-12)


@every
def test_order_of_rows_does_not_matter(name: str, opened: Callable[[str], Benchmark], tmp_path: Path) -> None:
    benchmark = opened(name)
    write(tmp_path, name, seed=9)
    shuffled = open_benchmark(name, tmp_path)
    reward = random_reward(12, levels=3)
    assert {item.id for item in shuffled.items} == {item.id for item in benchmark.items}
    assert shuffled.scores == benchmark.scores
    found = scores_of(shuffled, table(shuffled, reward))
    assert found == pytest.approx(scores_of(benchmark, table(benchmark, reward)), abs=1e-12)


@every
def test_only_the_order_of_rewards_counts(name: str, opened: Callable[[str], Benchmark]) -> None:
    """Shift and scale change nothing; outside RewardBench 2's Ties, neither does any other increasing map."""
    benchmark = opened(name)
    rewards = table(benchmark, random_reward(13, levels=4))
    for ties in TIES:
        expected = scores_of(benchmark, rewards, ties)
        assert scores_of(benchmark, 4.0 * rewards - 64.0, ties) == pytest.approx(expected, abs=1e-9)
        bent = scores_of(benchmark, np.exp(3.0 * rewards), ties)
        if name == "rewardbench2":
            bent |= {score: expected[score] for score in ("overall", "Ties")}
        assert bent == pytest.approx(expected, abs=1e-12)


@every
def test_values_are_shares(name: str, opened: Callable[[str], Benchmark]) -> None:
    benchmark = opened(name)
    rewards = table(benchmark, random_reward(14, levels=3))
    for ties in TIES:
        terms = benchmark.terms(benchmark.items, rewards, ties)
        lowest = np.where(np.array(terms.names)[terms.term] == "Ties: margin", -1.0, 0.0)
        assert ((lowest <= terms.value) & (terms.value <= 1.0)).all()
        assert terms.term.dtype == terms.item.dtype == np.int64
        assert terms.value.dtype == np.float64
        used = {term for score in benchmark.scores for term in score.weights}
        assert used <= {terms.names[number] for number in set(terms.term.tolist())}
        assert set(terms.item.tolist()) == set(range(len(benchmark)))


@every
def test_missing_rewards_are_an_error(name: str, opened: Callable[[str], Benchmark]) -> None:
    benchmark = opened(name)
    rewards = table(benchmark, worth)
    rewards[0, 1] = np.nan
    with pytest.raises(ValueError, match="finite"):
        benchmark.terms(benchmark.items, rewards, None)


@every
def test_a_single_item_can_be_scored(name: str, opened: Callable[[str], Benchmark]) -> None:
    """As when all others are left out; the tables stay as wide as they were."""
    benchmark = opened(name)
    rewards = table(benchmark, worth)
    for place in (0, len(benchmark) - 1):
        terms = benchmark.terms(benchmark.take([place]).items, rewards[[place]], None)
        assert set(terms.item.tolist()) == {0}
        assert terms.value == pytest.approx(np.ones(len(terms.value)))


@every
def test_items_of_one_prompt_share_a_cluster(name: str, opened: Callable[[str], Benchmark]) -> None:
    benchmark = opened(name)
    by_prompt: dict[str, set[str]] = {}
    for item, cluster in zip(benchmark.items, benchmark.clusters(), strict=True):
        if item.group != "Ties":  # there, the two questions that belong together do
            by_prompt.setdefault(json.dumps(item.prompt), set()).add(cluster)
    assert all(len(clusters) == 1 for clusters in by_prompt.values())
    assert len(set().union(*by_prompt.values())) == len(by_prompt)
