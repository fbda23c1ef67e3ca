from __future__ import annotations

from pathlib import Path

import pytest
from tests.terminal import preference_rows, write_lines

from ebrm.errors import ConfigError
from ebrm.evaluation import BenchmarkConfig, cache_folder, choose_items, evaluate
from ebrm.evaluation.run import NOT_SAMPLED, SEEN, open_benchmarks, seen_prompts
from ebrm.features import open_features


def settings(*names: object, **more: object) -> BenchmarkConfig:
    return BenchmarkConfig(tuple(map(str, names)), **more)  # type: ignore[arg-type]


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    return write_lines(tmp_path / "mine.jsonl", preference_rows(12, prompt="New question"))


@pytest.mark.parametrize("models", [len, None, ["m", len]])
def test_models_that_are_no_names_are_refused(models) -> None:
    with pytest.raises(ConfigError, match=r"`models` holds a \w+; names or folders were expected.*score_function"):
        evaluate(models, "xstest")


def test_python_gets_the_evaluation_and_the_rewards_behind_it(model: Path, mine: Path, tmp_path: Path):
    made = evaluate([str(model)], settings(mine, cache=str(tmp_path / "c"), resamples=100, permutations=99))
    assert made.texts_read == 24 and list(made.evaluation.bases) == ["tiny", "m"]
    assert [len(scores.reward) for scores in made.scored[0].scorers] == [12, 12]
    assert made.evaluation.about["m"]["fingerprint"] and made.evaluation.about["tiny"]["reward_model"]["name"]
    assert {"benchmarks", "reading", "refining", "compare"} <= set(made.evaluation.seconds)


def test_a_benchmark_named_twice_is_opened_once(mine: Path):
    assert [one.name for one in open_benchmarks(settings(mine, mine))] == ["mine"]


def test_all_is_everything_in_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist(preference_rows(4)), tmp_path / "other_pairs.parquet")
    (found,) = open_benchmarks(settings("all", data=str(tmp_path)))
    assert found.name == "other_pairs"
    monkeypatch.setenv("EBRM_DATA", str(tmp_path))
    assert len(open_benchmarks(settings("all"))) == 1
    monkeypatch.delenv("EBRM_DATA")
    with pytest.raises(ConfigError, match="name it with `data`"):
        open_benchmarks(settings("all"))
    (tmp_path / "other_pairs.parquet").unlink()
    with pytest.raises(ConfigError, match="no benchmark in"):
        open_benchmarks(settings("all", data=str(tmp_path)))


def test_what_is_left_out_is_counted(mine: Path):
    (benchmark,) = open_benchmarks(settings(mine))
    first = benchmark.clusters()[0]
    chosen = choose_items(benchmark, settings(mine, limit=2), {first})
    assert chosen.excluded == {SEEN: 2, NOT_SAMPLED: 6} and len(chosen.benchmark) == 4
    assert first not in chosen.benchmark.clusters()
    everything = choose_items(benchmark, settings(mine, limit=50))
    assert everything.benchmark is benchmark and everything.excluded == {}


def test_seen_prompts_come_from_data_and_from_features_but_not_their_test_split(
    pairs: Path, features: Path, tmp_path: Path
):
    names = set(open_features(features).pairs.prompt_id.tolist())
    assert seen_prompts([str(pairs)]) == seen_prompts([str(features)]) == names
    assert seen_prompts([]) == set()
    rows = [{**row, "split": "test" if k else "train"} for k, row in enumerate(preference_rows(20, seed=3))]
    assert len(seen_prompts([str(write_lines(tmp_path / "seen.jsonl", rows))])) == 1


def test_where_the_cache_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("EBRM_CACHE", str(tmp_path / "a"))
    assert cache_folder(settings("x", cache="b")) == Path("b")
    assert cache_folder(settings("x")) == tmp_path / "a"
    monkeypatch.delenv("EBRM_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "x"))
    assert cache_folder(settings("x")) == tmp_path / "x" / "ebrm"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder(settings("x")) == Path.home() / ".cache" / "ebrm"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"benchmark": ()}, "names nothing"),
        ({"limit": 0}, "limit is 0"),
        ({"resamples": 10}, "resamples is 10"),
        ({"training_items": "count"}, "training_items is 'count'; it must be one of skip, label"),
    ],
)
def test_settings_out_of_range(change: dict[str, object], said: str):
    with pytest.raises(ConfigError, match=said):
        BenchmarkConfig(**{"benchmark": ("rmb",), **change})  # type: ignore[arg-type]
