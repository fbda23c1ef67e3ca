"""Fitting on pairs and evaluating on the same file, from the command line: no gain is shown on the training pairs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.terminal import Ran, ebrm, preference_rows, read_lines, refused, write_lines

QUICK = ("--resamples", 100, "--permutations", 99)


@pytest.fixture(scope="module")
def story(rm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("story")
    write_lines(folder / "pairs.jsonl", preference_rows(80))
    # The loosest ridge learns its training pairs by heart.
    options = ("--head", "linear", "--ridge", 1e-6, "--test-fraction", 0.15)
    ran = ebrm("fit", "--backbone", rm, "--data", folder / "pairs.jsonl", "--out", folder / "m", *options)
    assert ran.code == 0, ran.err
    return folder


def evaluate(story: Path, *more: object, models: tuple[object, ...] = ()) -> Ran:
    cache = ("--cache", story / "cache")
    return ebrm("eval", story / "m", *models, *more, "--out", story / "results", *cache, *QUICK)


def test_the_same_file_gives_the_held_out_result_and_says_what_was_left_out(story: Path) -> None:
    data = json.loads((story / "m" / "config.json").read_text())["data"]
    fitted = data["train"] + data["validation"]
    assert 0 < data["test"] < fitted < 80
    ran = evaluate(story, "--benchmark", story / "pairs.jsonl")
    assert ran.code == 0, ran.err
    said = f"{fitted} of 80 items have prompts that m was fitted on; left out for all."
    assert said in " ".join(ran.out.split())
    (result,) = json.loads((story / "results" / "results.json").read_text())["benchmarks"]
    assert result["items"] == data["test"] and result["training"]["of"] == {"m": fitted}
    metrics = json.loads((story / "m" / "metrics.json").read_text())
    for name, side in (("tiny", "base"), ("m", "refined")):
        found = result["scorers"][name]["scores"]["overall"]["value"]["value"]
        assert found == pytest.approx(metrics[side]["accuracy"])
    assert said in (story / "results" / "report.html").read_text()


def test_training_pairs_alone_are_refused_in_one_paragraph(story: Path) -> None:
    held = {row["prompt"] for row in held_out(story)}
    rows = [row for row in read_lines(story / "pairs.jsonl") if row["prompt"] not in held]
    source = write_lines(story / "training.jsonl", rows)
    refused(
        evaluate(story, "--benchmark", source), f"Every one of the {len(rows)} items", "m was fitted on",
        "--training-items label", "other prompts",
    )  # fmt: skip
    ran = evaluate(story, "--benchmark", source, "--training-items", "label")
    assert ran.code == 0, ran.err
    shown = " ".join(ran.out.split())
    assert "training (training pairs)" in shown and "do not say how good" in shown
    (result,) = json.loads((story / "results" / "results.json").read_text())["benchmarks"]
    assert result["title"] == "training (training pairs)" and result["items"] == len(rows)
    page = (story / "results" / "report.html").read_text()
    assert page.index("(training pairs)") < page.index("do not say how good") < page.index("<nav")


def held_out(story: Path) -> list[dict[str, object]]:
    out = story / "which.jsonl"
    if not out.exists():
        assert ebrm("score", story / "m", story / "pairs.jsonl", "--out", out).code == 0
    return [row for row in read_lines(out) if not row["fitted_on"]]


def test_scored_pairs_say_which_were_fitted_on_and_count_them_apart(story: Path) -> None:
    data = json.loads((story / "m" / "config.json").read_text())["data"]
    ran = ebrm("score", story / "m", story / "pairs.jsonl", "--out", story / "scored.csv", "--json")
    assert ran.code == 0, ran.err
    fitted = data["train"] + data["validation"]
    assert (ran.value["rows"], ran.value["fitted_on"]) == (80, fitted)
    rows = held_out(story)
    assert len(rows) == data["test"]
    right = [row["chosen_reward"] > row["rejected_reward"] for row in rows]
    assert ran.value["accuracy"] == pytest.approx(sum(right) / len(right))
    assert ran.value["training_accuracy"] > ran.value["training_base_accuracy"]
    shown = ebrm("score", story / "m", story / "pairs.jsonl", "--out", story / "scored.parquet")
    facts = " ".join(shown.out.split())
    assert f"those of {fitted} of 80 rows" in facts
    assert f"chosen first {ran.value['accuracy']:.1%} (base" in facts
    assert f"training rows: chosen first {ran.value['training_accuracy']:.1%} (base" in facts


def test_models_are_compared_on_the_same_items(story: Path, rm: Path) -> None:
    other = preference_rows(40, seed=3, prompt="Other question")
    write_lines(story / "other.jsonl", other)
    out = story / "second"
    ran = ebrm("fit", "--backbone", rm, "--data", story / "other.jsonl", "--out", out, "--head", "linear")
    assert ran.code == 0, ran.err
    source = write_lines(story / "both.jsonl", [*read_lines(story / "pairs.jsonl"), *other])
    ran = evaluate(story, "--benchmark", source, "--json", models=(out,))
    assert ran.code == 0, ran.err
    (result,) = ran.value["benchmarks"]
    of = result["training"]["of"]
    assert set(of) == {"m", "second"} and result["training"]["fitted"] == sum(of.values())  # no prompt is in both files
    assert result["items"] == 120 - sum(of.values()) and result["unscored_items"] == []
