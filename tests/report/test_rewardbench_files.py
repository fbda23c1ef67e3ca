"""The files are read back the way reward-bench's `analysis/utils.py` does: a folder of owners with JSON files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.evaluation.suites import benchmark, item, plain_scores

from ebrm.benchmarks import Benchmark, Floats, Item, Score, Terms, Ties
from ebrm.evaluation import Evaluation, ScoredBenchmark, Scores, evaluate_scores
from ebrm.metrics import Bootstrap
from ebrm.report.files import model_names, write_rewardbench

FEW: dict[str, Any] = {"bootstrap": Bootstrap(20), "permutations": 19}


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
