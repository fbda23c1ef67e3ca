"""Files scored by what is no reward model of ours: functions, log-probabilities, reference texts, judges."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.integrations.policies import save_policy
from tests.terminal import answer_rows, preference_rows, read_lines, snapshot, write_lines

from ebrm.backbone import load_backbone
from ebrm.errors import ConfigError, DataError
from ebrm.logprobs import CausalLogprobs, endogenous_reward, self_aligned
from ebrm.references import max_similarity, ot_alignment, smoothed_bleu, token_embedder
from ebrm.scoring import (
    BleuScorer,
    DensityRatioScorer,
    EndogenousScorer,
    FollowupScorer,
    ImplicitScorer,
    JudgeScorer,
    MaxSimilarityScorer,
    OTScorer,
    ScoreConfig,
    SelfAlignedScorer,
    score_file_with,
    score_with,
    text_scorer,
)
from ebrm.scoring import rows as row_loop

MARK = ScoreConfig(bad_rows="mark")


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_policy(tmp_path_factory.mktemp("policy") / "p"))


def lengths(prompts: list[Any], responses: list[Any]) -> torch.Tensor:
    """A scorer: the number of characters, and none for the word "gamma"."""
    assert len(prompts) == len(responses)
    return torch.tensor([math.nan if one == "gamma" else float(len(one)) for one in responses])


def test_a_function_scores_every_shape_of_rows(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    rows = [{"prompt": "a", "response": "bcd", "id": 7}, {"prompt": "a", "response": "gamma", "id": 8}]
    found = score_file_with(lengths, write_lines(tmp_path / "one.jsonl", rows), out)
    assert [(row["id"], row["reward"], row["error"]) for row in read_lines(out)] == [
        (7, 3.0, None),
        (8, None, "text: no score"),
    ]
    assert found == {
        "rows": 2, "scored": 1, "errors": 1, "texts": 1, "empty": 0, "unscored": 1, "mean_reward": 3.0,
    }  # fmt: skip
    rows = [{"prompt": "a", "responses": ["b", "gamma", ""]}, {"prompt": "a", "responses": ["bc"]}]
    found = score_file_with(lengths, write_lines(tmp_path / "lists.jsonl", rows), tmp_path / "lists.out.jsonl")
    assert [row["reward"] for row in read_lines(tmp_path / "lists.out.jsonl")] == [[1.0, None, 0.0], [2.0]]
    assert (found["texts"], found["unscored"], found["empty"], found["mean_reward"]) == (3, 1, 1, 1.0)
    rows = [
        {"prompt": "a", "chosen": c, "rejected": r} for c, r in (("bb", "c"), ("b", "cc"), ("b", "c"), ("b", "gamma"))
    ]
    found = score_file_with(lengths, write_lines(tmp_path / "pairs.jsonl", rows), tmp_path / "pairs.csv")
    assert (found["pairs"], found["accuracy"], found["unscored"]) == (3, 1 / 3, 1)
    assert (tmp_path / "pairs.csv").read_text().splitlines()[-1] == "a,b,gamma,,,rejected: no score"


def test_a_stopped_run_goes_on_by_the_same_scorer_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(score_with, "CHUNK_ROWS", 4)
    source, out = write_lines(tmp_path / "in.jsonl", answer_rows(10)), tmp_path / "out.parquet"
    score_file_with(lengths, source, tmp_path / "whole.parquet")
    real, asked = row_loop.write_part, []

    def interrupted(*arguments: Any) -> None:
        if len(asked) == 2:
            raise KeyboardInterrupt
        asked.append(0)
        real(*arguments)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(row_loop, "write_part", interrupted)
        score_file_with(lengths, source, out)
    with pytest.raises(
        DataError, match="unfinished work of other rows or settings .`scorer` was .a function. and is .b."
    ):
        score_file_with(lengths, source, out, name="b")
    seen: list[int] = []
    score_file_with(lambda prompts, responses: lengths(prompts, seen.append(len(responses)) or responses), source, out)
    assert seen == [2] and out.read_bytes() == (tmp_path / "whole.parquet").read_bytes()
    before = snapshot(tmp_path)
    assert score_file_with(lengths, source, out)["texts"] == 10 and snapshot(tmp_path) == before


def test_a_scorer_gives_one_number_a_response(tmp_path: Path) -> None:
    source = write_lines(tmp_path / "in.jsonl", answer_rows(2))
    with pytest.raises(ValueError, match="a function gave 1 rewards for 2 responses"):
        score_file_with(lambda *_: torch.zeros(1), source, tmp_path / "out.jsonl")
    assert set(snapshot(tmp_path)) == {"in.jsonl"}


def test_references_come_from_a_column_as_a_text_or_a_list(tmp_path: Path) -> None:
    known: list[Any] = ["the capital is Paris", ["Paris", "it is Paris"], json.dumps(["a b", "b c"]), "[1, 2]"]
    rows = [{"prompt": "q", "response": "it is Paris", "gold": gold} for gold in known]
    source, out = write_lines(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl"
    scorer = text_scorer(BleuScorer(reference="gold", bleu_tokenizer="whitespace"))
    score_file_with(scorer, source, out)
    meant = [known[0], known[1], ["a b", "b c"], "[1, 2]"]
    expected = smoothed_bleu(["it is Paris"] * 4, meant, tokenizer="whitespace")
    assert [row["reward"] for row in read_lines(out)] == pytest.approx(expected.tolist())
    bad = write_lines(tmp_path / "bad.jsonl", [rows[0], {**rows[0], "gold": None}, {**rows[0], "gold": [3]}])
    with pytest.raises(
        DataError, match=r"2 of 3 rows(?s:.)*bad.jsonl:2, gold: missing(?s:.)*bad.jsonl:3, gold: not a "
    ):
        score_file_with(scorer, bad, tmp_path / "b.jsonl")
    found = score_file_with(scorer, bad, tmp_path / "b.jsonl", MARK)
    assert (found["scored"], found["errors"], found["unscored"]) == (1, 2, 0)
    assert [row["error"] for row in read_lines(tmp_path / "b.jsonl")][1] == "gold: missing"
    with pytest.raises(DataError, match="`reference` is golt, and .*no such column. Did you mean gold?"):
        score_file_with(text_scorer(BleuScorer(reference="golt")), source, tmp_path / "c.jsonl")


def test_token_scorers_find_a_text_nearest_to_itself(rm: Path, tmp_path: Path) -> None:
    rows = [{"prompt": "q", "response": text, "gold": ["alpha beta", "gamma"]} for text in ("alpha beta", "zeta!", "")]
    source, embed = write_lines(tmp_path / "in.jsonl", rows), token_embedder(load_backbone(str(rm)))

    def meant(config: Any, response: str, reference: str) -> float:
        (one, other), masks = embed([response, reference])
        one, other = one[masks[0]], other[masks[1]]
        if isinstance(config, OTScorer):
            return ot_alignment(other, one, regularization=0.05).reward
        return float(max_similarity(one[None], other[None]))

    for config, best in (
        (MaxSimilarityScorer(reference="gold", embedder=str(rm)), 1.0),
        (OTScorer(reference="gold", embedder=str(rm), regularization=0.05), None),
    ):
        out = tmp_path / f"{config.kind}.jsonl"
        found = score_file_with(text_scorer(config), source, out, MARK)
        same, other, none = (row["reward"] for row in read_lines(out))
        assert same > other and none is None and found["errors"] == 1
        assert other == pytest.approx(max(meant(config, "zeta!", known) for known in ("alpha beta", "gamma")), abs=1e-6)
        assert best is None or same == pytest.approx(best)


def test_log_probabilities_score_as_their_functions_do(policy: str, tmp_path: Path) -> None:
    rows = answer_rows(5)
    source, read = write_lines(tmp_path / "in.jsonl", rows), CausalLogprobs(policy)
    prompts, responses = [row["prompt"] for row in rows], [row["response"] for row in rows]
    tokens = read(prompts, responses, log_z=True)
    expected = {
        "sar": self_aligned(tokens, read(prompts, responses, unconditional=True)),
        "endogenous": endogenous_reward(tokens).sum(1),
        "implicit": torch.zeros(5),  # of a policy over itself
        "density-ratio": torch.zeros(5),
    }
    configs = [
        SelfAlignedScorer(policy=policy), EndogenousScorer(policy=policy), ImplicitScorer(policy=policy, weak=policy),
        DensityRatioScorer(policy=policy, weak=policy, reduction="mean"),
    ]  # fmt: skip
    for config in configs:
        out = tmp_path / f"{config.kind}.jsonl"
        score_file_with(text_scorer(config), source, out)
        found = [row["reward"] for row in read_lines(out)]
        assert found == pytest.approx(expected[config.kind].tolist(), abs=1e-5), config.kind
    config = FollowupScorer(policy=policy, dimensions=("relevance",))
    score_file_with(text_scorer(config), source, tmp_path / "f.jsonl")
    good = [
        read.followup(prompts, responses, one).mean()
        for one in ("That answers exactly what I asked.", "Right to the point.")
    ]
    bad = [read.followup(prompts, responses, one).mean() for one in ("That has nothing to do with it.", "Off topic.")]
    meant = torch.stack(good, 1).mean(1) - torch.stack(bad, 1).mean(1)
    assert [row["reward"] for row in read_lines(tmp_path / "f.jsonl")] == pytest.approx(meant.tolist(), abs=1e-5)


def test_one_text_that_a_policy_cannot_read_is_named_and_the_others_are_scored(policy: str, tmp_path: Path) -> None:
    rows = [*answer_rows(2), {"prompt": "a", "response": "word " * 2000}]
    source, out = write_lines(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl"
    scorer = text_scorer(SelfAlignedScorer(policy=policy))
    with pytest.raises(DataError, match=r"1 of 3 rows(?s:.)*in.jsonl:3, text: cannot be read"):
        score_file_with(scorer, source, out)
    found = score_file_with(scorer, source, out, MARK)
    assert (found["scored"], found["errors"]) == (2, 1)
    last = read_lines(out)[-1]
    assert last["reward"] is None and "tokens" in last["error"] and "Text 0" not in last["error"]


def test_settings_that_contradict_each_other_are_refused_before_anything_is_read(policy: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="dimensions has style; there are understanding, relevance"):
        text_scorer(FollowupScorer(policy=policy, dimensions=("style",)))
    with pytest.raises(ConfigError, match="`url` is"):
        text_scorer(JudgeScorer(url="localhost", model="j", principle="Be short."))
    with pytest.raises(ConfigError, match="principle. is empty"):
        text_scorer(JudgeScorer(url="http://127.0.0.1:1/v1", model="j", principle=" "))
    source = write_lines(tmp_path / "in.jsonl", preference_rows(2))
    scorer = text_scorer(SelfAlignedScorer(policy="http://127.0.0.1:1"))
    with pytest.raises(ConfigError, match="policy is a URL, which gives no tokenizer: .*`policy_tokenizer`"):
        score_file_with(scorer, source, tmp_path / "out.jsonl")


def test_what_a_scorer_reads_is_never_overwritten(policy: str, tmp_path: Path) -> None:
    source = write_lines(tmp_path / "in.jsonl", answer_rows(2))
    with pytest.raises(DataError, match="is a folder. A scorer reads texts"):
        score_file_with(lengths, tmp_path, tmp_path / "out.jsonl")
    inside = Path(policy) / "notes.jsonl"
    inside.write_text("{}")
    with pytest.raises(DataError, match="`policy` is .* what is read is not overwritten"):
        score_file_with(text_scorer(SelfAlignedScorer(policy=policy)), source, inside)
    inside.unlink()
