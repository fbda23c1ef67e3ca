from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from tests.evaluation.suites import all_kinds, benchmark, best_of, item, pairwise, plain_scores, three

from ebrm.benchmarks import Benchmark, Floats, Item, Score, Terms, Ties
from ebrm.data import prompt_id
from ebrm.evaluation import Entry, Evaluation, ScoredBenchmark, Scores, evaluate_scores
from ebrm.metrics import Bootstrap, Estimate
from ebrm.report import evaluation_to_dict, write_results
from ebrm.report.files import model_names, plain, write_items, write_rewardbench

FEW: dict[str, Any] = {"bootstrap": Bootstrap(50), "permutations": 49}


def some() -> tuple[Evaluation, list[ScoredBenchmark]]:
    scored = []
    for made in all_kinds():
        rm, refined, poor = three(made)
        poor = replace(poor, unscored={2: "the text is too long"})
        rm.reward[4, 0] = np.nan
        scored.append(ScoredBenchmark(made, (rm, refined, poor), {"not sampled": 9}))
    about = {"rm": {"path": Path("models/rm"), "rate": np.float64(0.5), "bad": math.inf}, "poor": {"base": "wrong"}}
    evaluation = evaluate_scores(scored, "rm", about=about, versions={"numpy": "2"}, seconds={"reading": 1.0}, **FEW)
    return evaluation, scored


@pytest.fixture(scope="module")
def made() -> tuple[Evaluation, list[ScoredBenchmark]]:
    return some()


def estimate(value: Estimate | None) -> dict[str, float | None] | None:
    if value is None:
        return None
    ends = {"value": value.value, "low": value.low, "high": value.high}
    return {name: end if math.isfinite(end) else None for name, end in ends.items()}


def test_results_hold_every_number(made: tuple[Evaluation, list[ScoredBenchmark]]) -> None:
    evaluation = made[0]
    found = json.loads(json.dumps(evaluation_to_dict(evaluation), allow_nan=False))
    said = {"reference": "rm", "resamples": 50, "permutations": 49, "seed": 0, "level": 0.95}
    assert said.items() <= found.items()
    assert found["order"] == ["rm", "rm-refined", "poor"]
    assert found["scorers"] == {
        "rm": {"path": "models/rm", "rate": 0.5, "bad": None, "base": None},
        "rm-refined": {"base": "rm"},
        "poor": {"base": None},
    }
    assert found["versions"] == {"numpy": "2"} and "seconds" not in found
    assert [one["name"] for one in found["benchmarks"]] == ["pairs", "best-of", "pool", "styles"]
    for result, one in zip(evaluation.benchmarks, found["benchmarks"], strict=True):
        assert (one["title"], one["origin"], one["notes"]) == (result.title, result.origin, list(result.notes))
        assert (one["items"], one["prompts"]) == (result.items, result.prompts)
        assert one["excluded"] == {"not sampled": 9} and one["unscored_items"] == list(result.unscored_items)
        assert one["unscored"] == {
            "rm": {"the reward is not a number": 1}, "rm-refined": {}, "poor": {"the text is too long": 1},
        }  # fmt: skip
        for score, entry in zip(result.scores, one["scores"], strict=True):
            items, prompts = result.counts[score.name]
            about = {"name": score.name, "kind": score.kind, "weights": dict(score.weights)}
            assert entry == {**about, "items": items, "prompts": prompts}
        for name, scorer in result.scorers.items():
            there = one["scorers"][name]
            assert set(there) == {"scores", "metrics", "calibration", "risk"}
            assert list(there["scores"]) == list(scorer.entries)
            for score, cell in scorer.entries.items():
                assert there["scores"][score] == {
                    "value": estimate(cell.value), "shared": estimate(cell.shared),
                    "difference": estimate(cell.difference), "p": cell.p, "p_holm": cell.p_holm,
                    "gain": estimate(cell.gain), "p_gain": cell.p_gain, "p_gain_holm": cell.p_gain_holm,
                    "few": cell.few, "smallest": cell.smallest,
                    "best": score in scorer.best, "not_worse": score in scorer.not_worse,
                }  # fmt: skip
            assert there["metrics"] == {metric: estimate(value) for metric, value in scorer.metrics.items()}
            if scorer.calibration is None:
                assert there["calibration"] is None
            else:
                assert there["calibration"]["ece"] == estimate(scorer.calibration.ece)
                assert len(there["calibration"]["bins"]) == len(scorer.calibration.bins)
                assert there["calibration"]["bins"][0]["accuracy"] == estimate(scorer.calibration.bins[0].accuracy)
        assert len(one["regressions"]) == len(result.regressions)
        first = result.regressions[0]
        assert one["regressions"][0] == {
            "item": first.item, "group": first.group, "prompt": first.prompt, "right": first.right,
            "wrong": first.wrong, "base": list(first.base), "refined": list(first.refined), "scorer": first.scorer,
        }  # fmt: skip


def test_risk_curves_are_thinned_to_hundredths(made: tuple[Evaluation, list[ScoredBenchmark]]) -> None:
    evaluation = made[0]
    found = evaluation_to_dict(evaluation)["benchmarks"]
    for result, one in zip(evaluation.benchmarks, found, strict=True):
        for name, scorer in result.scorers.items():
            there = one["scorers"][name]["risk"]
            assert list(there) == list(scorer.risk)
            for kind, curve in scorer.risk.items():
                pairs = len(curve.coverage)
                assert there[kind]["pairs"] == pairs
                assert there[kind]["area"] == estimate(curve.area) and there[kind]["best"] == curve.best
                assert there[kind]["gain"] == estimate(curve.gain) and there[kind]["random"] == curve.random
                points = there[kind]["curve"]
                assert len(points) == 100 and points[-1] == [1.0, curve.risk[-1]]
                for share, (coverage, risk) in enumerate(points, start=1):
                    kept = round(coverage * pairs)
                    assert risk == curve.risk[kept - 1]
                    assert share / 100 - 1e-9 <= coverage < share / 100 + 1 / pairs


def test_a_short_curve_is_whole() -> None:
    few = pairwise(count=7)
    result = evaluation_to_dict(evaluate_scores([ScoredBenchmark(few, three(few)[:1])], "rm", **FEW))["benchmarks"][0]
    points = result["scorers"]["rm"]["risk"]["confidence"]["curve"]
    assert [point[0] for point in points] == pytest.approx([k / 7 for k in range(1, 8)])


def test_items_hold_every_reward(made: tuple[Evaluation, list[ScoredBenchmark]], tmp_path: Path) -> None:
    evaluation, scored = made
    path = write_items(tmp_path / "items.parquet", evaluation, scored)
    table = pq.read_table(path)
    assert table.column_names == [
        "benchmark", "item", "group", "prompt_id", "where", "response", "gold", "compared", "reward:rm",
        "reward:rm-refined", "std:rm-refined", "reward:poor",
    ]  # fmt: skip
    rows = iter(table.to_pylist())
    for one in scored:
        for number, each in enumerate(one.benchmark.items):
            for response, gold in enumerate(each.gold):
                row = next(rows)
                expected = {
                    "benchmark": one.benchmark.name, "item": each.id, "group": each.group,
                    "prompt_id": prompt_id(each.prompt), "where": each.where, "response": response, "gold": gold,
                    "compared": number not in (2, 4),
                }  # fmt: skip
                for scores in one.scorers:
                    reward = scores.reward[number, response]
                    expected[f"reward:{scores.name}"] = None if math.isnan(reward) else reward
                    if scores.std is not None:
                        expected[f"std:{scores.name}"] = scores.std[number, response]
                assert row == expected
    assert next(rows, None) is None


def test_a_density_in_one_benchmark_only(tmp_path: Path) -> None:
    scored = []
    for each in (pairwise(count=5), best_of(count=5)):
        rm, refined, _ = three(each)
        plain_one = replace(refined, std=None, interval=None, prefer=None)
        scored.append(ScoredBenchmark(each, (rm, refined if each.name == "pairs" else plain_one)))
    evaluation = evaluate_scores(scored, "rm", **FEW)
    rows = pq.read_table(write_items(tmp_path / "items.parquet", evaluation, scored)).to_pylist()
    for row in rows:
        assert (row["std:rm-refined"] is None) == (row["benchmark"] == "best-of")


def test_everything_is_written_and_the_same_each_time(
    made: tuple[Evaluation, list[ScoredBenchmark]], tmp_path: Path
) -> None:
    evaluation, scored = made
    files = write_results(tmp_path / "out", evaluation, scored)
    assert files == (tmp_path / "out" / "items.parquet", tmp_path / "out" / "results.json")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "items.parquet",
        "results.json",
        "timing.json",
    ]
    assert json.loads(files[1].read_text(encoding="utf-8")) == evaluation_to_dict(evaluation)
    before = [file.read_bytes() for file in files]
    again, scored = some()
    write_results(str(tmp_path / "out"), again, scored)
    assert [file.read_bytes() for file in files] == before


def test_reward_bench_files_come_along(tmp_path: Path) -> None:
    each = replace(pairwise(count=9), name="rewardbench")
    scored = [ScoredBenchmark(each, three(each)[:1])]
    files = write_results(tmp_path, evaluate_scores(scored, "rm", **FEW), scored)
    assert [file.relative_to(tmp_path).as_posix() for file in files] == [
        "items.parquet",
        "reward-bench/eval-set/local/rm.json",
        "reward-bench/eval-set-scores/local/rm.json",
        "results.json",
    ]


def test_plain_values() -> None:
    value = {
        1: (np.arange(3), np.float32(0.5), np.bool_(True)),
        "set": frozenset({"b", "a"}),
        "cell": Entry(Estimate(1.0, math.nan, -math.inf), Estimate(0, 0, 0)),
        "text": "x",
        "none": None,
    }
    assert plain(value) == {
        "1": [[0, 1, 2], 0.5, True],
        "set": ["a", "b"],
        "cell": {
            "value": {"value": 1.0, "low": None, "high": None},
            "shared": {"value": 0, "low": 0, "high": 0},
            **dict.fromkeys(("difference", "p", "p_holm", "gain", "p_gain", "p_gain_holm", "smallest")),
            "few": False,
        },
        "text": "x",
        "none": None,
    }


# reward-bench: the files are read back the way its `analysis/utils.py` does, a folder of owners with JSON files.


def read(folder: Path) -> dict[str, dict[str, Any]]:
    """Model to the content of its file; folders are owners."""
    found = {}
    for owner in folder.iterdir():
        assert owner.is_dir()
        for path in owner.glob("*.json"):
            content = json.loads(path.read_text(encoding="utf-8"))
            assert content["model"] == f"{owner.name}/{path.stem}"
            found[content["model"]] = content
    return found


def written(tmp_path: Path, *scored: ScoredBenchmark) -> tuple[Evaluation, list[str]]:
    evaluation = evaluate_scores(scored, scored[0].scorers[0].name, **FEW)
    files = write_rewardbench(tmp_path, evaluation, scored)
    return evaluation, [path.relative_to(tmp_path).as_posix() for path in files]


def pairs(name: str = "rewardbench") -> Benchmark:
    return benchmark(
        [
            item("30", (1, 0), "Hello?", "alpacaeval-easy", lengths=(3, 4)),
            item("31", (0, 1), "Why?", "alpacaeval-easy"),
            item("7", (1, 0), "How?", "donotanswer"),
            item("0", (1, 0), "What?", "donotanswer"),
        ],
        name,
    )


REWARD = np.array([[2.0, 1.0], [1.0, 3.0], [0.5, 0.5], [0.0, 1.0]])


def test_rewardbench(tmp_path: Path) -> None:
    scorers = (Scores("owner/my-rm", REWARD), Scores("refined", REWARD[:, ::-1].copy(), "owner/my-rm"))
    _, files = written(tmp_path, ScoredBenchmark(pairs(), scorers))
    assert files == [
        "reward-bench/eval-set/owner/my-rm.json",
        "reward-bench/eval-set-scores/owner/my-rm.json",
        "reward-bench/eval-set/local/refined.json",
        "reward-bench/eval-set-scores/local/refined.json",
    ]
    subsets = read(tmp_path / "reward-bench" / "eval-set")
    about = {"model": "owner/my-rm", "model_type": "Seq. Classifier", "chat_template": "tokenizer"}
    assert subsets["owner/my-rm"] == {"alpacaeval-easy": 1.0, "donotanswer": 0.0, **about}
    assert subsets["local/refined"] == {
        "alpacaeval-easy": 0.0, "donotanswer": 0.5, **about, "model": "local/refined",
    }  # fmt: skip
    scores = read(tmp_path / "reward-bench" / "eval-set-scores")["owner/my-rm"]
    assert scores.pop("text_rejected")[0] == [
        {"role": "user", "content": "Hello?"}, {"role": "assistant", "content": "xxxx"},
    ]  # fmt: skip
    chosen = scores.pop("text_chosen")
    assert [len(text[-1]["content"]) for text in chosen] == [3, 21, 20, 20]
    assert scores == {
        "id": [30, 31, 7, 0],
        "subset": ["alpacaeval-easy"] * 2 + ["donotanswer"] * 2,
        "scores_chosen": [2.0, 3.0, 0.5, 0.0],
        "scores_rejected": [1.0, 1.0, 0.5, 1.0],
        "results": [1, 1, 0, 0],
        **about,
    }


def test_only_items_that_all_could_score(tmp_path: Path) -> None:
    made = pairs()
    poor = replace(plain_scores(made, "poor"), unscored={0: "the text is too long"})
    evaluation, _ = written(tmp_path, ScoredBenchmark(made, (Scores("rm", REWARD), poor)))
    scores = read(tmp_path / "reward-bench" / "eval-set-scores")["local/rm"]
    assert scores["id"] == [31, 7, 0] and scores["scores_chosen"] == [3.0, 0.5, 0.0]
    subsets = read(tmp_path / "reward-bench" / "eval-set")["local/rm"]
    cells = evaluation.benchmarks[0].scorers["rm"].entries
    for group in ("alpacaeval-easy", "donotanswer"):
        assert subsets[group] == cells[group].value.value


def test_current_and_legacy_weights_make_the_same_files(tmp_path: Path) -> None:
    _, both = written(
        tmp_path / "both",
        ScoredBenchmark(pairs("rewardbench"), (Scores("rm", REWARD),)),
        ScoredBenchmark(pairs("rewardbench-legacy"), (Scores("rm", REWARD),)),
    )
    _, legacy = written(tmp_path / "legacy", ScoredBenchmark(pairs("rewardbench-legacy"), (Scores("rm", REWARD),)))
    assert both == legacy and len(both) == 2
    for file in both:
        assert (tmp_path / "both" / file).read_bytes() == (tmp_path / "legacy" / file).read_bytes()


def best_of_four(items: Sequence[Item], rewards: Floats, ties: Ties | None) -> Terms:
    """The rule of RewardBench 2 but for Ties, which is here the share of items with the first response on top."""
    values = []
    for row in rewards:
        present = row[~np.isnan(row)]
        values.append((present[0] == present.max()) / (present == present.max()).sum())
    names = tuple(sorted({one.group for one in items}))
    term = np.array([names.index(one.group) for one in items])
    return Terms(names, term, np.arange(len(items)), np.array(values))


def test_rewardbench_2(tmp_path: Path) -> None:
    items = (
        item("Math/5", (1, 0, 0, 0), group="Math"),
        item("Math/6", (1, 0, 0, 0), group="Math"),
        item("Math/7", (1, 0, 0, 0), group="Math"),
        item("Ties/ref:0", (1, 0), group="Ties"),
        item("Ties/tied:0", (1, 1, 0), group="Ties"),
    )
    scores = (
        Score("overall", "overall", {"Math": 0.5, "Ties": 0.5}),
        Score("Math", "subset", {"Math": 1.0}),
        Score("Ties", "subset", {"Ties": 1.0}),
    )
    made = Benchmark("rewardbench2", "RewardBench 2", "made up", items, scores, best_of_four)
    nan = np.nan
    reward = np.array([[3.0, 1, 2, 0], [1, 1, 0, 1], [0, 0, 0, 1], [1, 0, nan, nan], [2, 1, 0, nan]])
    evaluation, files = written(tmp_path, ScoredBenchmark(made, (Scores("org/rm", reward),)))
    assert files == ["reward-bench-2/eval-set/org/rm.json", "reward-bench-2/eval-set-scores/org/rm.json"]
    about = {"model": "org/rm", "model_type": "Seq. Classifier", "chat_template": "tokenizer"}
    ties = evaluation.benchmarks[0].scorers["org/rm"].entries["Ties"].value.value
    assert read(tmp_path / "reward-bench-2" / "eval-set")["org/rm"] == {
        "Math": pytest.approx((1 + 1 / 3) / 3), "Ties": ties, **about,
    }  # fmt: skip
    found = read(tmp_path / "reward-bench-2" / "eval-set-scores")["org/rm"]
    text = found.pop("text")
    assert [len(one) for one in text] == [4, 4, 4, 2, 3]
    assert text[3][1] == [*items[3].prompt, {"role": "assistant", "content": items[3].responses[1]}]
    assert found == {
        "id": ["5", "6", "7", "ref:0", "tied:0"],
        "subset": ["Math"] * 3 + ["Ties"] * 2,
        "num_correct": [1, 1, 1, 1, 2],
        "scores": [[3.0, 1, 2, 0], [1, 1, 0, 1], [0, 0, 0, 1], [1, 0], [2, 1, 0]],
        "results": [1.0, pytest.approx(1 / 3), 0.0, None, None],
        **about,
    }


def test_other_benchmarks_have_no_such_files(tmp_path: Path) -> None:
    made = pairs("mine")
    assert written(tmp_path, ScoredBenchmark(made, (Scores("rm", REWARD),)))[1] == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("odd", ["007", "x1", "٣", "-1", "1.0"])
def test_ids_are_of_one_type(tmp_path: Path, odd: str) -> None:
    made = pairs()
    made = replace(made, items=(*made.items[:3], replace(made.items[3], id=odd)))
    written(tmp_path, ScoredBenchmark(made, (Scores("rm", REWARD),)))
    assert read(tmp_path / "reward-bench" / "eval-set-scores")["local/rm"]["id"] == ["30", "31", "7", odd]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["owner/model", "model"], ["owner/model", "local/model"]),
        (["/a/b/c d/"], ["a-b/c-d"]),
        (["../../x", "..", "a/..", "/"], ["-../x", "local/model", "a/model", "local/model-2"]),
        (["a b", "a-b", "a?b"], ["local/a-b", "local/a-b-2", "local/a-b-3"]),
        (["Modell ä/x"], ["Modell-/x"]),
    ],
)
def test_model_names_are_safe_and_different(names: list[str], expected: list[str]) -> None:
    assert model_names(names) == expected
