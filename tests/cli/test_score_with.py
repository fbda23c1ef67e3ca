"""`ebrm score IN --scorer NAME`: scores of a file by what is no model of ours."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from tests.judges.fake import completion, serving
from tests.terminal import answer_rows, ebrm, preference_rows, read_lines, refused, snapshot, write_lines


def by_length(body: dict[str, Any], _: int) -> tuple[int, Any]:
    """A judge of which long answers have high scores, and which says nothing of answers with "eta"."""
    asked = body["messages"][-1]["content"]
    answers = dict(re.findall(r'<answer name="([^"]+)">\n(.*?)\n</answer>', asked, re.S))
    if any(text == "eta" for text in answers.values()):
        return 200, completion("I would rather not say.")
    return 200, completion(json.dumps({"scores": {name: min(5, len(text)) for name, text in answers.items()}}))


def test_a_judge_scores_pairs_and_what_it_cost_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [
        {"prompt": f"q{k}", "chosen": c, "rejected": r}
        for k, (c, r) in enumerate((("abcd", "a"), ("b", "bcd"), ("eta", "d")))
    ]
    source, out = write_lines(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl"
    (tmp_path / "principle.txt").write_text("It is long.\n")
    monkeypatch.setenv("EBRM_JUDGE_TOKEN", "sesame-9")
    with serving(by_length) as fake:
        common = (
            "score", source, "--scorer", "judge", "--judge", fake.url, "--judge-model", "j", "--principle",
            f"@{tmp_path / 'principle.txt'}", "--judge-cache", tmp_path / "cache", "--price", "1000,2000",
        )  # fmt: skip
        ran = ebrm(*common, "--out", out, "--json")
        assert ran.code == 0, ran.err
        assert set(fake.keys) == {"Bearer sesame-9"}
        assert all("Criterion: It is long.\n" in body["messages"][-1]["content"] for body in fake.bodies)
        first = len(fake.bodies)
        again = ebrm(*common, "--out", tmp_path / "again.jsonl")  # all of it from the cache
    assert len(fake.bodies) == first and (tmp_path / "again.jsonl").read_bytes() == out.read_bytes()
    assert [(row["chosen_reward"], row["rejected_reward"]) for row in read_lines(out)] == [(4, 1), (1, 3), (None, None)]
    assert (ran.value["pairs"], ran.value["accuracy"], ran.value["unscored"]) == (2, 0.5, 1)
    usage = ran.value["judge"]
    assert usage["calls"] == first and usage["cost"] == pytest.approx(first * (10 * 1000 + 2 * 2000) / 1e6)
    assert (
        "50.0% of 2 pairs, too few to tell" in again.out
        and f"{usage['requests']} questions, {usage['requests']} known before" in again.out
    )
    assert "sesame" not in ran.out + ran.err + again.err + "".join(map(str, snapshot(tmp_path).values()))


def test_a_judge_that_refuses_is_one_paragraph_with_the_options(tmp_path: Path) -> None:
    source = write_lines(tmp_path / "in.jsonl", answer_rows(1))
    before = snapshot(tmp_path)
    with serving(lambda *_: (401, {"error": {"message": "no such key"}})) as fake:
        ran = ebrm(
            "score", source, "--scorer", "yes-no", "--judge", fake.url, "--judge-model", "j", "--principle", "Kind.",
            "--out", tmp_path / "out.jsonl",
        )  # fmt: skip
    refused(ran, "refuses: 401", "`--judge`", "`--judge-model` and the key (EBRM_JUDGE_TOKEN)")
    assert snapshot(tmp_path) == before


def test_references_score_a_file_and_rows_without_one_are_named(tmp_path: Path) -> None:
    rows = [{"question": "q", "answer": "a b c d", "gold": gold} for gold in ("a b c d", "x", None)]
    source, out = write_lines(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl"
    command = (
        "score", source, "--scorer", "bleu", "--reference", "gold", "--bleu-tokenizer", "whitespace", "--column",
        "prompt=question", "--column", "response=answer", "--out", out,
    )  # fmt: skip
    refused(ebrm(*command), "in.jsonl:3, gold: missing", "--bad-rows mark")
    ran = ebrm(*command, "--bad-rows", "mark")
    assert ran.code == 0 and "1 of 3 rows could not be scored" in ran.err, ran
    scores = [row["reward"] for row in read_lines(out)]
    assert scores[0] == 1 and 0 < scores[1] < 1 and scores[2] is None


def test_a_scorer_takes_the_place_of_the_model(tmp_path: Path) -> None:
    source, out = write_lines(tmp_path / "in.jsonl", preference_rows(2)), tmp_path / "out.jsonl"
    refused(ebrm("score", "m", source, "--scorer", "bleu", "--reference", "x", "--out", out), "there is no MODEL")
    refused(ebrm("score", source, "--out", out), "IN is needed", "--scorer NAME")
    refused(ebrm("score", source, "--scorer", "blue", "--out", out), "--scorer is `blue`", "Did you mean `bleu`")
    refused(ebrm("score", source, "--scorer", "bleu", "--policy", "p", "--out", out), "--policy is an option of", "sar")
    refused(ebrm("score", source, "--scorer", "bleu", "--out", out), "--reference is needed")
    refused(
        ebrm("score", source, "--scorer", "bleu", "--reference", "chosne", "--out", out),
        "`--reference` is chosne", "Did you mean chosen?",
    )  # fmt: skip
    ran = ebrm("score", "--scorer", "sar", "--help")
    assert ran.code == 0 and "--policy" in ran.out and "--clip" in ran.out and "--judge" not in ran.out
    assert "Usage: ebrm score [MODEL] IN [OPTIONS]" in ran.out and "--scorer NAME" in ran.out
    assert set(snapshot(tmp_path)) == {"in.jsonl"}
