"""`ebrm score`: options reach score_file, and what is shown."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.terminal import answer_rows, ebrm, preference_rows, read_lines, refused, snapshot, write_lines

from ebrm.scoring import rows as scoring


def score(model: Path, source: Path, out: Path, *more: object) -> Any:
    return ebrm("score", model, source, "--out", out, *more)


def test_options_reach_the_scoring(model: Path, rm: Path, tmp_path: Path) -> None:
    rows = [{"question": row["prompt"], "answer": row["response"]} for row in answer_rows(5)]
    source = write_lines(tmp_path / "in.jsonl", rows)
    columns = ("--column", "prompt=question", "--column", "response=answer")
    ran = score(
        model, source, tmp_path / "a.jsonl", *columns, "--prefix", "x_", "--estimate", "ascent", "--steps", 0,
        "--token-budget", 60, "--backbone", rm, "--device", "cpu", "--truncation", "prompt_left",
    )  # fmt: skip
    assert ran.code == 0, ran.err
    assert all(row["x_truncated"] == 0 for row in read_lines(tmp_path / "a.jsonl"))
    assert [row["x_delta"] for row in read_lines(tmp_path / "a.jsonl")] == pytest.approx([0] * 5, abs=1e-5)
    refused(score(model, source, tmp_path / "a.jsonl", *columns), "exists already", "--overwrite")
    assert score(model, source, tmp_path / "a.jsonl", *columns, "--overwrite").code == 0


def test_bad_rows_are_listed_with_the_option_that_marks_them(model: Path, tmp_path: Path) -> None:
    source = write_lines(tmp_path / "in.jsonl", [*answer_rows(2), {"prompt": "a", "response": None}])
    before = snapshot(tmp_path)
    refused(score(model, source, tmp_path / "out.jsonl"), "1 of 3 rows", "in.jsonl:3", "--bad-rows mark")
    assert snapshot(tmp_path) == before
    ran = score(model, source, tmp_path / "out.jsonl", "--bad-rows", "mark", "--json")
    assert (ran.code, ran.value["rows"], ran.value["scored"]) == (0, 3, 2)
    assert "1 of 3 rows could not be scored" in ran.err
    again = score(model, source, tmp_path / "out.jsonl", "--bad-rows", "mark", "--json")
    assert again.value == ran.value and "complete already" in again.err


def test_a_column_that_parquet_cannot_hold_is_refused_with_the_option(model: Path, tmp_path: Path) -> None:
    source = write_lines(tmp_path / "in.jsonl", [{**row, "id": 2**70} for row in answer_rows(2)])
    before = snapshot(tmp_path)
    ran = score(model, source, tmp_path / "out.parquet")
    refused(ran, "column 'id'", "in.jsonl:1", "64 bits", "`--out` a name ending in .jsonl")
    assert snapshot(tmp_path) == before


def test_lists_of_responses_are_scored_for_best_of_n(model: Path, tmp_path: Path) -> None:
    rows = [{"question": f"Say {k}.", "responses": ["alpha", "", "beta"], "worth": [0.1, k, 2]} for k in range(4)]
    source, scored = write_lines(tmp_path / "in.jsonl", rows), tmp_path / "scored.jsonl"
    ran = score(model, source, scored, "--column", "prompt=question")
    assert ran.code == 0, ran.err
    assert "4 responses are empty; they are scored like any other" in ran.err
    ran = ebrm(
        "best-of-n", scored, "--column", "prompt=question", "--column", "gold=worth", "--resamples", 100, "--json",
        "--out", tmp_path / "curves",
    )  # fmt: skip
    assert (ran.code, ran.value["prompts"], ran.value["responses"]) == (0, 4, 12)
    refused(
        ebrm("best-of-n", scored, "--column", "prompt=questoin", "--out", tmp_path / "o"), "Did you mean 'question'"
    )


def test_an_interruption_says_what_is_kept(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(scoring, "write_part", interrupted)
    source = write_lines(tmp_path / "in.jsonl", answer_rows(3))
    ran = score(model, source, tmp_path / "out.jsonl")
    assert ran.code == 130 and "Nothing was written" in ran.err
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]
    monkeypatch.undo()
    monkeypatch.setattr(scoring, "join_parts", interrupted)
    ran = score(model, source, tmp_path / "out.jsonl")
    assert ran.code == 130 and "kept; run the same command again" in ran.err
    other = ("--steps", 7, "--token-budget", 60)
    words = ("`--steps` was 50 and is 7; `--token-budget` was unset and is 60", "`--restart`")
    refused(score(model, source, tmp_path / "out.jsonl", *other), *words)
    monkeypatch.undo()
    assert score(model, source, tmp_path / "out.jsonl", *other, "--restart").code == 0
    assert {path.name for path in tmp_path.iterdir()} == {"in.jsonl", "out.jsonl"}


def test_json_output_is_one_object(model: Path, tmp_path: Path) -> None:
    source = write_lines(tmp_path / "in.jsonl", preference_rows(4))
    ran = score(model, source, tmp_path / "out.jsonl", "--json", "-q")
    assert json.loads(ran.out)["rows"] == 4 and ran.err == ""
    plain = score(model, source, tmp_path / "out2.jsonl")
    assert "rows" in plain.out and "chosen first" in plain.out and "{" not in plain.out
