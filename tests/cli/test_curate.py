"""`ebrm curate`: rewards of features and of a reward model, and the way of curated pairs into a fit."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.terminal import ebrm, read_lines, refused, snapshot, write_lines

from ebrm import open_features


def test_features_and_their_reward_model_curate_alike_and_a_fit_reads_the_pairs(
    rm: Path, pairs: Path, features: Path, tmp_path: Path
) -> None:
    steps = ("--step", "flip", "--flip-fraction", 0.1, "--step", "soft-labels", "--soft-smoothing", 0.2)
    common = ("curate", pairs, *steps, "--json", "-q")
    by_features = ebrm(*common, "--features", features, "--out", tmp_path / "f")
    assert by_features.code == 0, by_features.err
    by_model = ebrm(*common, "--backbone", rm, "--out", tmp_path / "b")
    assert by_model.code == 0, by_model.err
    assert (tmp_path / "f/pairs.jsonl").read_bytes() == (tmp_path / "b/pairs.jsonl").read_bytes()
    assert set(snapshot(tmp_path / "f")) == {"pairs.jsonl", "report.txt", "results.json"}
    assert by_model.value["steps"][0]["flipped"] == 6 and by_model.value["rewards"] == ["base reward"]
    before = snapshot(tmp_path / "b/features")
    assert ebrm(*common, "--backbone", rm, "--out", tmp_path / "b").code == 0  # nothing is read again
    assert snapshot(tmp_path / "b/features") == before
    # The labels are in the features that a fit makes of the pairs.
    ran = ebrm("features", "--backbone", rm, "--data", tmp_path / "f/pairs.jsonl", "--out", tmp_path / "new", "-q")
    assert ran.code == 0, ran.err
    read = open_features(tmp_path / "new").pairs
    assert read.label.tolist() == [row["soft_label"] for row in read_lines(tmp_path / "f/pairs.jsonl")]
    assert sorted(set(read.label.tolist())) == pytest.approx([0.8, 1.0])


def test_what_is_missing_is_said_in_options(pairs: Path, features: Path, rm: Path, tmp_path: Path) -> None:
    out = ("--out", tmp_path / "o")
    refused(ebrm("curate", pairs, *out, "--column-rewards", "x"), "`--step` is empty", "filter-conflicts")
    refused(ebrm("curate", pairs, *out, "--step", "flip"), "`--features`", "`--backbone`", "`--column-rewards`")
    both = ("--features", features, "--backbone", rm)
    refused(ebrm("curate", pairs, *out, "--step", "flip", *both), "`--features` and `--backbone` are both given")
    refused(ebrm("curate", pairs, *out, "--step", "soft-labels", "--column-rewards", "x"), "`--soft-smoothing 0.1`")
    refused(ebrm("curate", pairs, *out, "--step", "best-worst", "--column-rewards", "x"), "holds no single responses")
    two = "takes the rewards of two models, and there are 1"
    refused(ebrm("curate", pairs, *out, "--step", "dual-consistency", "--backbone", rm), two)  # before it reads
    unused = ("--column-rewards", "x", "--flip-fraction", 0.1)
    refused(
        ebrm("curate", pairs, *out, "--step", "margin", *unused), "`--flip-fraction` belongs to the step flip", "margin"
    )
    other = write_lines(tmp_path / "other.jsonl", [{"prompt": "q", "chosen": "a", "rejected": "b"}])
    refused(ebrm("curate", other, *out, "--step", "flip", "--features", features), "have none of these pairs")
    assert set(snapshot(tmp_path)) == {"other.jsonl"}


def test_a_scored_file_is_curated_by_what_it_was_scored_with(tmp_path: Path) -> None:
    rows = [{"prompt": f"q{k}", "responses": ["a b", "a b c", "x"], "gold": "a b c"} for k in range(2)]
    source, scored = write_lines(tmp_path / "in.jsonl", rows), tmp_path / "scored.jsonl"
    bleu = ("--scorer", "bleu", "--reference", "gold", "--bleu-tokenizer", "whitespace")
    assert ebrm("score", source, *bleu, "--out", scored).code == 0
    ran = ebrm("curate", scored, "--step", "best-worst", "--column-rewards", "reward", "--out", tmp_path / "o")
    assert ran.code == 0, ran.err
    assert [(row["chosen"], row["rejected"]) for row in read_lines(tmp_path / "o/pairs.jsonl")] == [("a b c", "x")] * 2
    assert "best-worst" in ran.out and "ebrm fit --backbone RM --data" in ran.out
