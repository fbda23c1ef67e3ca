from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from tests.terminal import answer_rows, ebrm, preference_rows, read_lines, refused, snapshot, write_lines

from ebrm.cli import scoring
from ebrm.model import EnergyRewardModel

MEASURES = list(scoring.MEASURES)
# An ascent carries the rounding of the embedding, which depends on the batch a text is read in, a little further.
REWARD = 1e-4


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "CHUNK_ROWS", 7)


def score(model: Path, source: Path, out: Path, *more: object) -> Any:
    return ebrm("score", model, source, "--out", out, *more)


def test_every_row_comes_out_in_order_with_what_the_model_says(model: Path, tmp_path: Path, small_chunks: None) -> None:
    rows = answer_rows(20)
    source = write_lines(tmp_path / "in.jsonl", rows)
    ran = score(model, source, tmp_path / "out.jsonl")
    assert ran.code == 0, ran.err
    found = read_lines(tmp_path / "out.jsonl")
    assert [{name: row[name] for name in rows[0]} for row in found] == rows
    assert list(found[0]) == [*rows[0], *MEASURES, "error"]
    expected = EnergyRewardModel.from_pretrained(model).score(
        [row["prompt"] for row in rows], [row["response"] for row in rows]
    )
    for name, values in {"reward": expected.reward, "base_reward": expected.base_reward, "std": expected.std}.items():
        tolerance = REWARD if name == "reward" else 1e-5
        torch.testing.assert_close(torch.tensor([row[name] for row in found]), values, atol=tolerance, rtol=1e-5)
    for row in found:
        assert row["interval_low"] < row["interval_high"]
        assert row["delta"] == pytest.approx(row["reward"] - row["base_reward"], abs=1e-5)
        assert row["error"] is None


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
def test_formats_agree(model: Path, tmp_path: Path, small_chunks: None, ending: str) -> None:
    rows = answer_rows(10)
    plain = write_lines(tmp_path / "plain.jsonl", rows)
    assert score(model, plain, tmp_path / "plain-out.jsonl").code == 0
    expected = [row["reward"] for row in read_lines(tmp_path / "plain-out.jsonl")]
    source = tmp_path / f"in.{ending}"
    if ending == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), source)
    elif ending == "csv":
        with open(source, "w", newline="", encoding="utf-8") as handle:
            writer = csv.DictWriter(handle, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    else:
        write_lines(source, rows)
    out = tmp_path / f"out.{ending}"
    assert score(model, source, out).code == 0
    if ending == "parquet":
        table = pq.read_table(out)
        assert table.schema.field("reward").type == pa.float32()
        assert table.schema.field("id").type == pa.int64()
        found = table.column("reward").to_pylist()
    elif ending == "csv":
        with open(out, newline="", encoding="utf-8") as handle:
            found = [float(row["reward"]) for row in csv.DictReader(handle)]
    else:
        found = [row["reward"] for row in read_lines(out)]
    assert found == pytest.approx(expected, abs=1e-6)


def test_pairs_get_both_sides_and_a_probability(model: Path, tmp_path: Path, small_chunks: None) -> None:
    rows = preference_rows(9)
    ran = score(model, write_lines(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl", "--json")
    found = read_lines(tmp_path / "out.jsonl")
    ebm = EnergyRewardModel.from_pretrained(model)
    for row, scored in zip(rows, found, strict=True):
        for side in ("chosen", "rejected"):
            expected = ebm.score([row["prompt"]], [row[side]])
            assert scored[f"{side}_reward"] == pytest.approx(float(expected.reward), abs=REWARD)
        assert scored["p_chosen"] == pytest.approx(ebm.prefer(row["prompt"], row["chosen"], row["rejected"]), abs=1e-5)
    right = [row["chosen_base_reward"] > row["rejected_base_reward"] for row in found]
    assert ran.value["base_accuracy"] == pytest.approx(sum(right) / 9)
    assert 0 < sum(right) < 9  # or the line above could not fail


def test_messages(model: Path, tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "Question 1"}, {"role": "assistant", "content": "alpha"}]
    source = write_lines(tmp_path / "in.jsonl", [{"messages": turns}, {"messages": turns[:1] + turns[1:]}])
    assert score(model, source, tmp_path / "out.jsonl").code == 0
    expected = EnergyRewardModel.from_pretrained(model).score(["Question 1"], ["alpha"])
    assert read_lines(tmp_path / "out.jsonl")[1]["reward"] == pytest.approx(float(expected.reward), abs=REWARD)


def test_features_need_no_reward_model(
    model: Path, features: Path, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_chunks: None
) -> None:
    assert score(model, pairs, tmp_path / "text.jsonl").code == 0

    def refuse(self: Any) -> None:
        raise AssertionError("the reward model was asked for")

    monkeypatch.setattr(EnergyRewardModel, "backbone", property(refuse))
    assert score(model, features, tmp_path / "features.jsonl").code == 0
    text, found = read_lines(tmp_path / "text.jsonl"), read_lines(tmp_path / "features.jsonl")
    assert len(found) == len(text)
    for mine, theirs in zip(found, text, strict=True):
        for name in ("chosen_reward", "rejected_base_reward", "p_chosen"):
            tolerance = REWARD if name == "chosen_reward" else 2e-5
            assert mine[name] == pytest.approx(theirs[name], abs=tolerance)
    assert found[3]["where"] == "pairs.jsonl:4"
    assert found[3]["category"] == "beta"


BAD = [
    {"prompt": "a", "response": "fine"},
    {"prompt": "a", "response": ""},
    {"prompt": "a", "response": None},
    {"prompt": "a", "response": 3},
    {"prompt": "a", "response": "\ud83d"},
    {"prompt": "", "response": "b"},
    {"response": "b"},
    {"prompt": "a", "response": "fine"},
]


def test_bad_rows_stop_before_anything_is_written(model: Path, tmp_path: Path) -> None:
    source = write_lines(tmp_path / "in.jsonl", BAD)
    before = snapshot(tmp_path)
    ran = score(model, source, tmp_path / "out.jsonl")
    refused(ran, "6 of 8 rows", "in.jsonl:2", "in.jsonl:6", "--bad-rows mark")
    assert "in.jsonl:7" not in ran.err  # the sixth
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("ending", ["jsonl", "parquet", "csv"])
def test_bad_rows_can_be_marked(model: Path, tmp_path: Path, small_chunks: None, ending: str) -> None:
    rows = [row for row in BAD if ending == "jsonl" or row.get("response") not in (3, "\ud83d")]
    source = write_lines(tmp_path / "in.jsonl", rows)
    ran = score(model, source, tmp_path / f"out.{ending}", "--bad-rows", "mark", "--json")
    assert ran.code == 0, ran.err
    assert (ran.value["rows"], ran.value["scored"]) == (len(rows), 2)
    assert f"{len(rows) - 2} of {len(rows)} rows could not be scored" in ran.err
    if ending == "jsonl":
        found = read_lines(tmp_path / "out.jsonl")
        assert [row["error"] is None for row in found] == [True, *[False] * 6, True]
        assert [row["reward"] is None for row in found] == [False, *[True] * 6, False]
        assert found[1]["error"] == "response: empty"


def long_rows(limit_words: int) -> list[dict[str, str]]:
    return [{"prompt": "a", "response": "b"}, {"prompt": "word " * limit_words, "response": "b"}]


def test_a_text_longer_than_the_model(model: Path, tmp_path: Path) -> None:
    source = write_lines(tmp_path / "in.jsonl", long_rows(500))
    refused(score(model, source, tmp_path / "out.jsonl"), "in.jsonl:2", "128", "--bad-rows mark")
    ran = score(model, source, tmp_path / "out.jsonl", "--bad-rows", "mark")  # goes on from where it stopped
    assert ran.code == 0, ran.err
    first, second = read_lines(tmp_path / "out.jsonl")
    assert first["reward"] is not None
    assert second["reward"] is None
    assert "128" in second["error"]


def test_a_row_that_is_not_finite_is_marked(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ebrm.backbone import Backbone

    read = Backbone.read

    def with_nan(self: Backbone, ids: Any) -> Any:
        reading = read(self, ids)
        reading.embedding[1, 0] = float("nan")
        return reading

    monkeypatch.setattr(Backbone, "read", with_nan)
    source = write_lines(tmp_path / "in.jsonl", answer_rows(3))
    refused(score(model, source, tmp_path / "out.jsonl"), "in.jsonl:2", "not finite")
    assert score(model, source, tmp_path / "out.jsonl", "--bad-rows", "mark").code == 0
    found = read_lines(tmp_path / "out.jsonl")
    assert [row["error"] for row in found] == [None, "the reward model's output is not finite", None]
    assert found[2]["reward"] is not None


def test_columns_that_are_there_already(model: Path, tmp_path: Path) -> None:
    source = write_lines(tmp_path / "in.jsonl", [{**row, "reward": 1, "std": 2} for row in answer_rows(2)])
    refused(score(model, source, tmp_path / "out.jsonl"), "reward, std", "--prefix")
    assert score(model, source, tmp_path / "out.jsonl", "--prefix", "new_").code == 0
    row = read_lines(tmp_path / "out.jsonl")[0]
    assert (row["reward"], row["std"]) == (1, 2)
    assert isinstance(row["new_reward"], float)
    assert row["new_error"] is None


def test_the_same_command_again_is_done_at_once(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_lines(tmp_path / "in.jsonl", answer_rows(5))
    first = score(model, source, tmp_path / "out.jsonl", "--json")
    before = snapshot(tmp_path)
    monkeypatch.setattr(scoring, "score_texts", None)
    again = score(model, source, tmp_path / "out.jsonl", "--json")
    assert again.code == 0, again.err
    assert again.value == first.value
    assert "complete already" in again.err
    assert snapshot(tmp_path) == before


def test_another_input_model_or_setting_is_another_job(model: Path, tmp_path: Path) -> None:
    source = write_lines(tmp_path / "in.jsonl", answer_rows(5))
    out = tmp_path / "out.jsonl"
    assert score(model, source, out).code == 0
    before = out.read_bytes()
    refused(score(model, source, out, "--estimate", "mode"), "exists already", "--overwrite")
    write_lines(source, answer_rows(6))
    refused(score(model, source, out), "exists already")
    assert out.read_bytes() == before
    assert score(model, source, out, "--overwrite").code == 0
    assert len(read_lines(out)) == 6


def test_inference_settings_change_the_result(model: Path, tmp_path: Path) -> None:
    source = write_lines(tmp_path / "in.jsonl", answer_rows(5))
    assert score(model, source, tmp_path / "a.jsonl", "--estimate", "ascent").code == 0
    assert score(model, source, tmp_path / "b.jsonl", "--estimate", "ascent", "--steps", 0).code == 0
    assert score(model, source, tmp_path / "c.jsonl").code == 0
    moved = [row["delta"] for row in read_lines(tmp_path / "b.jsonl")]
    assert moved == pytest.approx([0] * 5, abs=1e-5)  # no ascent: the base reward
    moves = {name: [row["delta"] for row in read_lines(tmp_path / f"{name}.jsonl")] for name in "abc"}
    assert moves["a"] != moved and moves["c"] != moved and moves["a"] != moves["c"]


def test_settings_of_the_reward_model_reach_it(model: Path, rm: Path, tmp_path: Path) -> None:
    source = write_lines(tmp_path / "in.jsonl", answer_rows(5))
    assert score(model, source, tmp_path / "a.jsonl").code == 0
    ran = score(model, source, tmp_path / "b.jsonl", "--token-budget", 60, "--backbone", rm, "--device", "cpu")
    assert ran.code == 0, ran.err
    first, second = (read_lines(tmp_path / name) for name in ("a.jsonl", "b.jsonl"))
    for name, tolerance in (("base_reward", 1e-5), ("reward", REWARD)):
        assert [row[name] for row in first] == pytest.approx([row[name] for row in second], abs=tolerance)


@pytest.mark.parametrize("rows", [7, 8, 13, 14])
def test_chunk_borders(model: Path, tmp_path: Path, small_chunks: None, rows: int) -> None:
    source = write_lines(tmp_path / "in.jsonl", answer_rows(rows))
    assert score(model, source, tmp_path / "out.jsonl").code == 0
    assert [row["id"] for row in read_lines(tmp_path / "out.jsonl")] == list(range(rows))


@pytest.mark.parametrize("ending", ["jsonl", "parquet", "csv"])
@pytest.mark.parametrize("stop_after", [0, 1, 2, 3])
def test_a_stopped_run_ends_with_the_same_bytes(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_chunks: None, ending: str, stop_after: int
) -> None:
    source = write_lines(tmp_path / "in.jsonl", answer_rows(20))
    assert score(model, source, tmp_path / f"whole.{ending}").code == 0
    out, real, calls = tmp_path / f"out.{ending}", scoring.write_part, []

    def interrupted(*arguments: Any) -> None:
        if len(calls) == stop_after:
            raise KeyboardInterrupt
        calls.append(arguments[0])
        real(*arguments)

    monkeypatch.setattr(scoring, "write_part", interrupted)
    ran = score(model, source, out)
    assert (ran.code, out.exists()) == ((130, False) if stop_after < 3 else (0, True))
    if stop_after < 3:
        assert "kept; run the same command again" in ran.err
    monkeypatch.setattr(scoring, "write_part", lambda *arguments: (calls.append(arguments[0]), real(*arguments)))
    assert score(model, source, out).code == 0
    assert out.read_bytes() == (tmp_path / f"whole.{ending}").read_bytes()
    assert [path.name for path in calls] == [f"{k:08d}.{ending}" for k in range(3)]  # nothing was done twice


def test_json_output_is_one_object(model: Path, tmp_path: Path) -> None:
    source = write_lines(tmp_path / "in.jsonl", answer_rows(4))
    ran = score(model, source, tmp_path / "out.jsonl", "--json", "-q")
    assert json.loads(ran.out)["rows"] == 4
    assert ran.err == ""
    plain = score(model, source, tmp_path / "out2.jsonl")
    assert "rows" in plain.out
    assert "{" not in plain.out
