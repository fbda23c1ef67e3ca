"""The main job on real text with the packaged reward model, as a person runs it."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
from tests.terminal import ebrm, ebrm_process

from ebrm.backbone.demo import ENCODER_PACKAGE

pytestmark = pytest.mark.skipif(find_spec(ENCODER_PACKAGE) is None, reason="the extra `demo` is not installed")


def test_real_pairs_to_a_model_that_scores_real_responses(data_folder: Path, tmp_path: Path) -> None:
    data = data_folder / "hh_harmless_test.parquet"
    # The file holds a benchmark's test split, all of it; the column is left out, so that the pairs are divided here.
    quick = ("--limit", 40, "--column", "split=", "--max-length", 128, "--truncation", "prompt_left_or_drop")
    head = ("--head", "energy", "--joint-widths", "24,12", "--epochs", 4)
    fitted = ebrm_process("fit", "--backbone", "demo", "--data", data, "--out", tmp_path / "m", *quick, *head, "--json")
    assert fitted.code == 0, fitted.err
    metrics = fitted.value["metrics"]
    assert metrics == json.loads((tmp_path / "m" / "metrics.json").read_text()) and metrics["pairs"] > 3
    assert "explicit prompt, conversational" in fitted.err  # the format is said aloud
    assert "The base RM contradicts the labels of" in fitted.err and "Conflict filter" not in fitted.err
    assert "hh_harmless_test.parquet" in (tmp_path / "m" / "report.html").read_text()

    answers = [
        {"prompt": "How do I boil an egg?", "response": "Eight minutes in boiling water, then cold water."},
        {"prompt": [{"role": "user", "content": "How do I boil an egg?"}], "response": "No."},
    ]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in answers))
    scored = ebrm("score", tmp_path / "m", tmp_path / "in.jsonl", "--out", tmp_path / "out.jsonl")
    assert scored.code == 0, scored.err
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [row["response"] for row in rows] == [row["response"] for row in answers]
    assert all(row["interval_low"] < row["interval_high"] and row["std"] > 0 for row in rows)

    shown = ebrm("info", tmp_path / "m")
    assert shown.code == 0 and "demo" in shown.out
