"""Items whose prompts a model was fitted on are left out for all models, or counted as training pairs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tests.evaluation.suites import pairwise, three

from ebrm.benchmarks import Benchmark
from ebrm.errors import DataError
from ebrm.evaluation import ScoredBenchmark, evaluate_scores, prompt_ids
from ebrm.evaluation.training_items import find_training_items
from ebrm.fitted_prompts import FittedPrompts
from ebrm.metrics import Bootstrap
from ebrm.report import details, overview, scores_summary, write_benchmark_report, write_results

FEW = {"bootstrap": Bootstrap(200), "permutations": 199}


class Knows:
    """A model that was fitted on some of a benchmark's prompts."""

    def __init__(self, benchmark: Benchmark, *places: int) -> None:
        self.prompts = FittedPrompts.of([prompt_ids(benchmark.items)[place] for place in places])

    def fitted_on(self, ids):
        return self.prompts and self.prompts.contains(ids, "text")


def prompts_of(benchmark: Benchmark) -> list[str]:
    return prompt_ids(benchmark.items)


def test_the_union_is_left_out_so_that_differences_stay_paired() -> None:
    made = pairwise()
    ids = prompts_of(made)
    models = {"a": Knows(made, 0, 1), "b": Knows(made, 1, 5), "none": Knows(made)}
    kept, found = find_training_items(made, models, "skip")  # type: ignore[arg-type]
    gone = {ids[0], ids[1], ids[5]}
    assert prompts_of(kept) == [name for name in ids if name not in gone]
    assert found.items == len(made) and found.fitted == len(made) - len(kept) == sum(name in gone for name in ids)
    assert found.of == {
        name: sum(one in {ids[k] for k in places} for one in ids) for name, places in (("a", (0, 1)), ("b", (1, 5)))
    }
    assert found.unknown == ("none",)
    assert found.sentence() == (
        f"{found.fitted} of {len(made)} items have prompts that a ({found.of['a']}) or b ({found.of['b']}) was fitted "
        "on; left out for all."
    )


def test_with_no_model_or_no_shared_prompt_nothing_changes() -> None:
    made = pairwise()
    for models in ({}, {"a": Knows(made)}):
        kept, found = find_training_items(made, models, "label")  # type: ignore[arg-type]
        assert kept is made and found.fitted == 0 and found.sentence() is None


def test_labeled_items_stay_and_every_title_says_so() -> None:
    made = pairwise()
    kept, found = find_training_items(made, {"a": Knows(made, 0)}, "label")  # type: ignore[arg-type]
    assert kept.items == made.items
    assert kept.title == f"{made.title} (training pairs: {found.fitted} of {len(made)} items)"
    everything = Knows(made, *range(len(made)))
    assert find_training_items(made, {"a": everything}, "label")[0].title == f"{made.title} (training pairs)"  # type: ignore[dict-item]


def test_with_nothing_left_the_user_is_told_what_to_do() -> None:
    made = pairwise()
    everything = Knows(made, *range(len(made)))
    with pytest.raises(DataError, match=r"that a was fitted on.*other prompts.*`training_items=\"label\"`"):
        find_training_items(made, {"a": everything, "b": Knows(made)}, "skip")  # type: ignore[dict-item]


@pytest.mark.parametrize("rule", ["skip", "label"])
def test_tables_files_and_page_say_it(tmp_path: Path, rule) -> None:
    made = pairwise()
    known = {"rm-refined": Knows(made, 0), "poor": Knows(made)}
    kept, training = find_training_items(made, known, rule)  # type: ignore[arg-type]
    rows = np.array([made.items.index(item) for item in kept.items])
    scorers = [scores.take(rows) for scores in three(made)]
    excluded = {"prompt that a model was fitted on": training.fitted} if rule == "skip" else {}
    scored = ScoredBenchmark(kept, scorers, excluded, training)
    evaluation = evaluate_scores([scored], "rm", **FEW)
    table, notes = scores_summary(evaluation)
    write_results(tmp_path, evaluation, [scored])
    write_benchmark_report(tmp_path / "report.html", evaluation)
    page = (tmp_path / "report.html").read_text()
    said = f"{training.fitted} of {len(made)} items have prompts that rm-refined was fitted on"
    unknown = "Which prompts poor was fitted on is not known"
    for text in ("\n".join(notes), overview(evaluation, "markdown").replace("\\", ""), page):
        assert said in text and unknown in text
    (result,) = json.loads((tmp_path / "results.json").read_text())["benchmarks"]
    assert result["training"] == {
        "items": len(made), "fitted": training.fitted, "of": {"rm-refined": training.fitted}, "unknown": ["poor"],
        "rule": rule,
    }  # fmt: skip
    last = details(evaluation, "csv").splitlines()[1].rpartition(",")[2]
    if rule == "label":
        assert table.body[0][0] == kept.title and "training pairs" in kept.title and "training pairs" in page
        assert last == str(training.fitted)
    else:
        assert result["excluded"] == excluded and last == "0"
        assert " ".join(notes).count(f"{training.fitted} ") >= 1 and "before scoring" not in " ".join(notes)
