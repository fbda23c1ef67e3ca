"""score_file: every row comes out with its reward, in any format, and a stopped run goes on."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from tests.terminal import answer_rows, preference_rows, read_lines, snapshot, write_lines

import ebrm
from ebrm.backbone import Backbone
from ebrm.errors import ConfigError, DataError
from ebrm.model import EnergyRewardModel
from ebrm.scoring import ScoreConfig, score
from ebrm.scoring import rows as row_loop
from ebrm.scoring.score import MEASURES
from ebrm.utils.locks import lock_beside, locked

# An ascent carries the rounding of the embedding, which depends on the batch a text is read in, a little further.
REWARD = 1e-4
MARK = ScoreConfig(bad_rows="mark")
#: Values of a column by row (the last one goes on) that have no one type in Arrow, within a chunk of seven or across.
NOT_PARQUET: dict[str, list[Any]] = {
    "an int of 70 bits": [2**70],
    "2**63": [1, 2**63],
    "a negative one": [1] * 8 + [-(2**63) - 1],
    "mixed types": [1, "a"],
    "mixed in another chunk": [1] * 8 + ["a"],
    "a lone surrogate": ["a", "\ud800"],
    "a lone surrogate inside": [{"a": ["\ud800"]}],
    "an int inside": [{"a": [2**64]}],
    "mixed inside": [{"a": 1}, {"a": {"b": 1}}],
    "mixed inside lists": [[1], ["a"]],
    "list and number": [[1], 1],
    "true and a number": [True, 3],
    "an empty object": [{}],
    "a large whole number and a fraction": [2**60 + 1] * 8 + [0.5],
}


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(score, "CHUNK_ROWS", 7)


def save(path: Path, rows: list[dict[str, Any]]) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".csv":
        with open(path, "w", newline="", encoding="utf-8") as handle:
            writer = csv.DictWriter(handle, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    else:
        write_lines(path, rows)
    return path


def load(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".parquet":
        return pq.read_table(path).to_pylist()
    if path.suffix == ".csv":
        with open(path, newline="", encoding="utf-8") as handle:
            return list(csv.DictReader(handle))
    return read_lines(path)


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
def test_every_row_comes_out_in_order_with_what_the_model_gives(model, tmp_path, small_chunks, ending):
    rows, seen = answer_rows(20), []
    out = tmp_path / f"out.{ending}"
    summary = ebrm.score_file(
        model, save(tmp_path / f"in.{ending}", rows), out, on_progress=lambda *counts: seen.append(counts)
    )
    found = load(out)
    assert list(found[0]) == [*rows[0], *MEASURES, "fitted_on", "error"]
    assert [{name: str(row[name]) for name in rows[0]} for row in found] == [
        {name: str(value) for name, value in row.items()} for row in rows
    ]
    expected = EnergyRewardModel.from_pretrained(model).score(
        [row["prompt"] for row in rows], [row["response"] for row in rows]
    )
    known = torch.tensor([str(row["fitted_on"]) == "True" for row in found])
    assert summary["fitted_on"] == int(known.sum()) and summary["training_texts"] == int(known.sum())
    for name in ("reward", "base_reward", "std"):
        values, tolerance = getattr(expected, name), REWARD if name == "reward" else 1e-5
        given = torch.tensor([float(row[name]) for row in found])
        torch.testing.assert_close(given, values, atol=tolerance, rtol=1e-5)
        # What the model was fitted on is in numbers of its own.
        assert summary[f"mean_{name}"] == pytest.approx(float(values[~known].double().mean()), abs=REWARD)
        assert summary[f"training_mean_{name}"] == pytest.approx(float(values[known].double().mean()), abs=REWARD)
    for row in found:
        low, high, delta, reward, base = (
            float(row[name]) for name in ("interval_low", "interval_high", "delta", "reward", "base_reward")
        )
        assert low < high and delta == pytest.approx(reward - base, abs=1e-5) and not row["error"]
    assert (summary["rows"], summary["scored"], summary["errors"]) == (20, 20, 0)
    assert seen == [(0, 20), (7, 20), (14, 20), (20, 20)]
    if ending == "parquet":
        schema = pq.read_schema(out)
        assert schema.field("reward").type == pa.float32() and schema.field("id").type == pa.int64()
        assert schema.field("fitted_on").type == pa.bool_()


def test_pairs_get_both_sides_and_a_probability(model, tmp_path, small_chunks):
    rows = preference_rows(9, prompt="New question")
    ebm = EnergyRewardModel.from_pretrained(model)
    summary = ebrm.score_file(ebm, write_lines(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl")
    found = read_lines(tmp_path / "out.jsonl")
    for row, scored in zip(rows, found, strict=True):
        for side in ("chosen", "rejected"):
            expected = ebm.score(row["prompt"], row[side])
            assert scored[f"{side}_reward"] == pytest.approx(float(expected.reward), abs=REWARD)
        assert scored["p_chosen"] == pytest.approx(ebm.prefer(row["prompt"], row["chosen"], row["rejected"]), abs=1e-5)
    right = [row["chosen_base_reward"] > row["rejected_base_reward"] for row in found]
    assert summary["base_accuracy"] == pytest.approx(sum(right) / 9)
    assert summary["mean_p_chosen"] == pytest.approx(sum(row["p_chosen"] for row in found) / 9)
    assert 0 < sum(right) < 9  # or the accuracy above could not be wrong


def test_messages(model, tmp_path):
    turns = [{"role": "user", "content": "Question 1"}, {"role": "assistant", "content": "alpha"}]
    source = write_lines(tmp_path / "in.jsonl", [{"messages": turns}, {"messages": turns[:1] + turns[1:]}])
    ebrm.score_file(model, source, tmp_path / "out.jsonl")
    expected = EnergyRewardModel.from_pretrained(model).score("Question 1", "alpha")
    assert read_lines(tmp_path / "out.jsonl")[1]["reward"] == pytest.approx(float(expected.reward), abs=REWARD)


def test_features_need_no_reward_model(model, features, pairs, tmp_path, monkeypatch, small_chunks):
    ebrm.score_file(model, pairs, tmp_path / "text.jsonl")
    monkeypatch.setattr(
        EnergyRewardModel, "backbone", property(lambda _: pytest.fail("the reward model was asked for"))
    )
    ebrm.score_file(model, features, tmp_path / "features.jsonl", backbone={"device": "cpu"})
    text, found = read_lines(tmp_path / "text.jsonl"), read_lines(tmp_path / "features.jsonl")
    for mine, theirs in zip(found, text, strict=True):
        for name in ("chosen_reward", "rejected_base_reward", "p_chosen"):
            tolerance = REWARD if name == "chosen_reward" else 2e-5
            assert mine[name] == pytest.approx(theirs[name], abs=tolerance)
    assert (found[3]["where"], found[3]["category"]) == ("pairs.jsonl:4", "beta")


BAD = [
    {"prompt": "a", "response": "fine"},
    {"prompt": "a", "response": None},
    {"prompt": "a", "response": ["x"]},
    {"prompt": "a", "response": 3},
    {"prompt": "a", "response": "\ud83d"},
    {"prompt": "", "response": "b"},
    {"response": "b"},
    {"prompt": "a", "response": "fine"},
]


def test_bad_rows_stop_before_anything_is_written_or_loaded(model, tmp_path, monkeypatch):
    monkeypatch.setattr(EnergyRewardModel, "backbone", property(lambda _: pytest.fail("the reward model was loaded")))
    source = write_lines(tmp_path / "in.jsonl", BAD)
    before = snapshot(tmp_path)
    with pytest.raises(
        DataError, match=r'6 of 8 rows(?s:.)*in.jsonl:2(?s:.)*in.jsonl:6(?s:.)*`bad_rows="mark"`'
    ) as said:
        ebrm.score_file(model, source, tmp_path / "out.jsonl")
    assert "in.jsonl:7" not in str(said.value)  # the sixth
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("ending", ["jsonl", "parquet", "csv"])
def test_bad_rows_can_be_marked(model, tmp_path, small_chunks, ending):
    rows = [row for row in BAD if ending == "jsonl" or row.get("response") in ("fine", "b", None)]
    source = write_lines(tmp_path / "in.jsonl", rows)
    summary = ebrm.score_file(model, source, tmp_path / f"out.{ending}", MARK)
    assert (summary["rows"], summary["scored"], summary["errors"]) == (len(rows), 2, len(rows) - 2)
    found = load(tmp_path / f"out.{ending}")
    fine = [True, *[False] * (len(rows) - 2), True]
    assert [not row["error"] for row in found] == [row["reward"] not in (None, "") for row in found] == fine
    assert found[1]["error"] == "response: missing"


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
def test_a_list_of_responses_gets_lists_of_numbers(model, tmp_path, small_chunks, ending):
    rows = [{"prompt": f"New {k}", "responses": ["alpha", "", "beta gamma"][: k % 3 + 1]} for k in range(9)]
    out = tmp_path / f"out.{ending}"
    summary = ebrm.score_file(model, write_lines(tmp_path / "in.jsonl", rows), out)
    assert (summary["rows"], summary["scored"], summary["texts"], summary["empty"]) == (9, 9, 18, 6)
    ebm, found = EnergyRewardModel.from_pretrained(model), load(out)
    for row, scored in zip(rows, found, strict=True):
        rewards = json.loads(scored["reward"]) if ending == "csv" else scored["reward"]
        expected = ebm.score(row["prompt"], row["responses"])
        assert rewards == pytest.approx(expected.reward.tolist(), abs=REWARD)
        assert not scored["error"] and str(scored["fitted_on"]) == "False"
    if ending == "parquet":
        assert pq.read_schema(out).field("std").type == pa.list_(pa.float32())


def test_one_response_that_cannot_be_scored_leaves_a_hole_in_the_list(model, tmp_path, small_chunks):
    rows = [{"prompt": "a", "responses": ["b", "word " * 500, None, "c"]}, {"prompt": "a", "responses": 3}]
    source, out = write_lines(tmp_path / "in.jsonl", rows), tmp_path / "out.parquet"
    with pytest.raises(DataError, match=r"2 of 2 rows(?s:.)*in.jsonl:1, responses\[2\]: missing"):
        ebrm.score_file(model, source, tmp_path / "other.jsonl")
    summary = ebrm.score_file(model, write_lines(tmp_path / "in2.jsonl", rows[:1] * 8), out, MARK)
    assert (summary["scored"], summary["errors"], summary["texts"]) == (0, 8, 16)
    row = load(out)[7]
    assert [one is None for one in row["base_reward"]] == [False, True, True, False]
    assert row["error"] == "responses[2]: missing"
    ebrm.score_file(model, source, tmp_path / "other.jsonl", MARK)
    assert load(tmp_path / "other.jsonl")[1]["reward"] is None


@pytest.mark.parametrize("ids", NOT_PARQUET.values(), ids=NOT_PARQUET)
def test_what_parquet_cannot_hold_is_said_before_anything_is_scored(model, tmp_path, monkeypatch, small_chunks, ids):
    monkeypatch.setattr(EnergyRewardModel, "backbone", property(lambda _: pytest.fail("the reward model was loaded")))
    rows = [{"prompt": "a", "response": "b", "id": ids[min(k, len(ids) - 1)]} for k in range(9)]
    source = write_lines(tmp_path / "in.jsonl", rows)
    before = snapshot(tmp_path)
    with pytest.raises(
        DataError, match=r"column 'id' cannot be written as Parquet \((?s:.)*`out` a name ending in .jsonl"
    ):
        ebrm.score_file(model, source, tmp_path / "out.parquet")
    assert snapshot(tmp_path) == before
    monkeypatch.undo()
    ebrm.score_file(model, source, tmp_path / "out.jsonl")
    assert [row["id"] for row in load(tmp_path / "out.jsonl")] == [row["id"] for row in rows]


@pytest.mark.parametrize("kind", ["response", "pair"])
def test_a_text_longer_than_the_model(model, tmp_path, kind):
    rows = [{"prompt": "a", "response": "b"}, {"prompt": "word " * 500, "response": "b"}]
    if kind == "pair":
        rows = [{"prompt": "a", "chosen": "b", "rejected": "c"}, {"prompt": "a", "chosen": "b", "rejected": "c " * 300}]
    source, out = write_lines(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl"
    with pytest.raises(DataError, match=r'in.jsonl:2(?s:.)*the limit is 128(?s:.)*`bad_rows="mark"`'):
        ebrm.score_file(model, source, out)
    ebrm.score_file(model, source, out, MARK)  # goes on from where it stopped
    first, second = read_lines(out)
    name = "reward" if kind == "response" else "chosen_reward"
    assert first[name] is not None and second[name] is None
    assert "the limit is 128" in second["error"] and second["error"].startswith("rejected: ") == (kind == "pair")


def test_a_row_that_is_not_finite_is_marked(model, tmp_path, monkeypatch):
    embed = Backbone._embed

    def with_nan(self: Backbone, ids: Any) -> Any:
        found = embed(self, ids)
        if len(found) == 3:  # the rows, not the fixed texts of the probe
            found[1, 0] = float("nan")
        return found

    monkeypatch.setattr(Backbone, "_embed", with_nan)
    source = write_lines(tmp_path / "in.jsonl", answer_rows(3))
    with pytest.raises(DataError, match=r"in.jsonl:2(?s:.)*not a finite number"):
        ebrm.score_file(model, source, tmp_path / "out.jsonl")
    ebrm.score_file(model, source, tmp_path / "out.jsonl", MARK)
    found = read_lines(tmp_path / "out.jsonl")
    assert [row["error"] is None for row in found] == [True, False, True]
    assert "not a finite number" in found[1]["error"] and found[2]["reward"] is not None


def test_columns_that_are_there_already(model, tmp_path):
    source = write_lines(tmp_path / "in.jsonl", [{**row, "reward": 1, "std": 2} for row in answer_rows(2)])
    with pytest.raises(DataError, match='columns named reward, std, .*`prefix="refined_"`'):
        ebrm.score_file(model, source, tmp_path / "out.jsonl")
    ebrm.score_file(model, source, tmp_path / "out.jsonl", ScoreConfig(prefix="new_"))
    row = read_lines(tmp_path / "out.jsonl")[0]
    assert (row["reward"], row["std"], row["new_error"]) == (1, 2, None) and isinstance(row["new_reward"], float)


def test_another_ending_or_treatment_of_bad_rows_is_refused(model, tmp_path):
    with pytest.raises(ConfigError, match="out is .*out.txt; scored rows are written as"):
        ebrm.score_file(model, tmp_path / "in.jsonl", tmp_path / "out.txt")
    with pytest.raises(ConfigError, match="bad_rows is 'skip'; it must be one of stop, mark"):
        ScoreConfig(bad_rows="skip")  # type: ignore[arg-type]


def test_the_same_job_again_is_done_at_once(model, tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO")
    source = write_lines(tmp_path / "in.jsonl", answer_rows(5))
    first = ebrm.score_file(model, source, tmp_path / "out.jsonl")
    before = snapshot(tmp_path)
    assert set(before) == {"in.jsonl", "out.jsonl"}
    monkeypatch.setattr(score, "_score", None)
    assert ebrm.score_file(model, source, tmp_path / "out.jsonl") == first
    assert "complete already" in caplog.text and snapshot(tmp_path) == before


def test_another_input_model_or_setting_is_another_job(model, tmp_path):
    source, out = write_lines(tmp_path / "in.jsonl", answer_rows(5)), tmp_path / "out.jsonl"
    ebrm.score_file(model, source, out)
    before = out.read_bytes()
    other = EnergyRewardModel.from_pretrained(model).with_inference(estimate="mode")
    with pytest.raises(DataError, match="exists already.*`overwrite=true`"):
        ebrm.score_file(other, source, out)
    with pytest.raises(DataError, match="exists already"):
        ebrm.score_file(model, source, out, backbone={"token_budget": 60})
    write_lines(source, answer_rows(6))
    with pytest.raises(DataError, match="exists already"):
        ebrm.score_file(model, source, out)
    assert out.read_bytes() == before
    ebrm.score_file(model, source, out, ScoreConfig(overwrite=True))
    assert len(read_lines(out)) == 6


def test_inference_settings_change_the_result(model, tmp_path):
    source, loaded = write_lines(tmp_path / "in.jsonl", answer_rows(5)), EnergyRewardModel.from_pretrained(model)
    deltas = {}
    for name, changes in {"a": {"estimate": "ascent"}, "b": {"estimate": "ascent", "steps": 0}, "c": {}}.items():
        ebrm.score_file(loaded.with_inference(**changes), source, tmp_path / f"{name}.jsonl")
        deltas[name] = [row["delta"] for row in read_lines(tmp_path / f"{name}.jsonl")]
    assert deltas["b"] == pytest.approx([0] * 5, abs=1e-5)  # no ascent: the base reward
    assert deltas["a"] != deltas["b"] != deltas["c"] != deltas["a"]


def test_settings_of_the_reward_model_reach_it(model, rm, tmp_path):
    source = write_lines(tmp_path / "in.jsonl", answer_rows(5))
    ebrm.score_file(model, source, tmp_path / "a.jsonl")
    settings = {"token_budget": 60, "backbone": str(rm), "device": "cpu"}
    ebrm.score_file(model, source, tmp_path / "b.jsonl", backbone=settings)
    first, second = (read_lines(tmp_path / name) for name in ("a.jsonl", "b.jsonl"))
    for name, tolerance in (("base_reward", 1e-5), ("reward", REWARD)):
        assert [row[name] for row in first] == pytest.approx([row[name] for row in second], abs=tolerance)


@pytest.mark.parametrize("rows", [7, 8, 13, 14])
def test_chunk_borders(model, tmp_path, small_chunks, rows):
    source = write_lines(tmp_path / "in.jsonl", answer_rows(rows))
    ebrm.score_file(model, source, tmp_path / "out.jsonl")
    assert [row["id"] for row in read_lines(tmp_path / "out.jsonl")] == list(range(rows))


@pytest.mark.parametrize("ending", ["jsonl", "parquet", "csv"])
@pytest.mark.parametrize("stop_after", [0, 1, 2, 3])
def test_a_stopped_run_ends_with_the_same_bytes(model, tmp_path, monkeypatch, small_chunks, ending, stop_after):
    source, loaded = write_lines(tmp_path / "in.jsonl", answer_rows(20)), EnergyRewardModel.from_pretrained(model)
    ebrm.score_file(loaded, source, tmp_path / f"whole.{ending}")
    out, real, calls = tmp_path / f"out.{ending}", row_loop.write_part, []

    def interrupted(*arguments: Any) -> None:
        if len(calls) == stop_after:
            raise KeyboardInterrupt
        calls.append(arguments[0])
        real(*arguments)

    monkeypatch.setattr(row_loop, "write_part", interrupted)
    if stop_after < 3:
        with pytest.raises(KeyboardInterrupt):
            ebrm.score_file(loaded, source, out)
        assert not out.exists()
    monkeypatch.setattr(row_loop, "write_part", lambda *arguments: (calls.append(arguments[0]), real(*arguments)))
    ebrm.score_file(loaded, source, out)
    assert out.read_bytes() == (tmp_path / f"whole.{ending}").read_bytes()
    assert [path.name for path in calls] == [f"{k:08d}.{ending}" for k in range(3)]  # nothing was done twice


def first_line_cut(data: bytes) -> bytes:
    return data.split(b"\n", 1)[1]


def another_number(data: bytes) -> bytes:
    return data.replace(b"0.", b"9.", 1)


@pytest.mark.parametrize("damage", [first_line_cut, another_number, lambda data: data[:-20], lambda data: b"", None])
def test_damaged_parts_of_a_stopped_run_are_scored_again_and_it_is_said(
    model, tmp_path, monkeypatch, small_chunks, caplog, damage
):
    source, loaded = write_lines(tmp_path / "in.jsonl", answer_rows(20)), EnergyRewardModel.from_pretrained(model)
    whole, out, real = tmp_path / "whole.jsonl", tmp_path / "out.jsonl", row_loop.write_part
    ebrm.score_file(loaded, source, whole)

    def interrupted(path: Path, *arguments: Any) -> None:
        if path.stem == "00000002":
            raise KeyboardInterrupt
        real(path, *arguments)

    with monkeypatch.context() as patched:
        patched.setattr(row_loop, "write_part", interrupted)
        with pytest.raises(KeyboardInterrupt):
            ebrm.score_file(loaded, source, out)
    part = tmp_path / ".out.jsonl.progress" / "00000001.jsonl"
    if damage is None:
        part.with_name(part.name + ".sha256").unlink()
    else:
        part.write_bytes(damage(part.read_bytes()))
    ebrm.score_file(loaded, source, out)
    assert "1 of the parts scored before are damaged (00000001.jsonl" in caplog.text
    assert out.read_bytes() == whole.read_bytes()
    assert not part.parent.exists()


def test_a_part_of_a_stopped_run_stands_for_no_other(model, tmp_path, monkeypatch, small_chunks):
    source, loaded = write_lines(tmp_path / "in.jsonl", answer_rows(20)), EnergyRewardModel.from_pretrained(model)
    whole, out, real = tmp_path / "whole.jsonl", tmp_path / "out.jsonl", row_loop.write_part
    ebrm.score_file(loaded, source, whole)

    def interrupted(path: Path, *arguments: Any) -> None:
        if path.stem == "00000002":
            raise KeyboardInterrupt
        real(path, *arguments)

    with monkeypatch.context() as patched:
        patched.setattr(row_loop, "write_part", interrupted)
        with pytest.raises(KeyboardInterrupt):
            ebrm.score_file(loaded, source, out)
    for name in ("0000000{}.jsonl", "0000000{}.jsonl.sha256"):
        one, other = (tmp_path / ".out.jsonl.progress" / name.format(number) for number in (0, 1))
        data = one.read_bytes()
        one.write_bytes(other.read_bytes())
        other.write_bytes(data)
    ebrm.score_file(loaded, source, out)
    assert out.read_bytes() == whole.read_bytes()


class TestTooLong:
    ROWS = [
        {"prompt": "Question 1", "response": "alpha"},
        {"prompt": "eta theta " * 60, "response": "zeta"},
        {"prompt": "Question 2", "response": "eta theta " * 60},
    ]

    @pytest.mark.parametrize(
        ("truncation", "scored"), [("drop", [0]), ("prompt_left", [0, 1]), ("prompt_left_or_drop", [0, 1])]
    )
    def test_is_cut_or_dropped_as_asked_and_recorded(self, model, tmp_path, truncation, scored):
        source, out = save(tmp_path / "in.jsonl", self.ROWS), tmp_path / "out.jsonl"
        cuts = truncation != "drop"
        config = MARK if truncation == "prompt_left" else ScoreConfig()  # a drop does not stop
        summary = ebrm.score_file(model, source, out, config, backbone={"truncation": truncation})
        rows = load(out)
        assert [i for i, row in enumerate(rows) if row["error"] is None] == scored
        assert summary["truncation"] == truncation and summary["errors"] == 3 - len(scored)
        assert (summary["truncated"] == 1 and rows[1]["truncated"] > 0 == rows[0]["truncated"]) if cuts else (
            "truncated" not in rows[0]
        )  # fmt: skip
        expected = EnergyRewardModel.from_pretrained(model).score(["Question 1"], ["alpha"]).reward
        assert rows[0]["reward"] == pytest.approx(float(expected), abs=REWARD)

    def test_else_stops_with_options_that_there_are(self, model, tmp_path):
        with pytest.raises(DataError, match=r"(?s)2 of 3 rows.*`truncation=\"prompt_left\"`") as caught:
            ebrm.score_file(model, save(tmp_path / "in.jsonl", self.ROWS), tmp_path / "out.jsonl")
        assert "max_length" not in str(caught.value)


def test_tools_and_system_columns_are_read(model, tmp_path, monkeypatch):
    loaded = EnergyRewardModel.from_pretrained(model)
    template = "{{ tools | tojson if tools else '' }}{% for m in messages %}{{ m.role }}\n{{ m.content }}\n{% endfor %}"
    monkeypatch.setattr(loaded.backbone, "text_rule", replace(loaded.backbone.text_rule, template=template))
    tools = [{"type": "function", "function": {"name": "f"}}]
    rows = [
        {"prompt": "Hi", "response": "Yes", "tools": tools, "system": None},
        {"prompt": "Hi", "response": "Yes", "tools": None, "system": "Be brief."},
    ]
    out = tmp_path / "out.jsonl"
    ebrm.score_file(loaded, save(tmp_path / "in.jsonl", rows), out)
    user = {"role": "user", "content": "Hi"}
    given = [{"messages": [user], "tools": tools}, [{"role": "system", "content": "Be brief."}, user]]
    expected = loaded.score(given, ["Yes", "Yes"]).reward.tolist()
    assert [row["reward"] for row in load(out)] == pytest.approx(expected, abs=REWARD) and expected[0] != expected[1]


def test_what_is_read_is_never_overwritten(features, model, tmp_path, monkeypatch):
    source = write_lines(tmp_path / "in.jsonl", answer_rows(3))
    (tmp_path / "link.jsonl").symlink_to(source)
    (tmp_path / "hard.jsonl").hardlink_to(source)
    held = tmp_path / "f"
    held.mkdir()
    for path in features.iterdir():
        (held / path.name).write_bytes(path.read_bytes())
    monkeypatch.chdir(tmp_path)
    before = snapshot(tmp_path)
    outputs = ("in.jsonl", f"../{tmp_path.name}/in.jsonl", "link.jsonl", "hard.jsonl")
    for read, outs in ((source, outputs), (Path("link.jsonl"), outputs), (held, ["f/pairs.parquet"])):
        for out in outs:
            with pytest.raises(DataError, match="is the same file: what is read is not overwritten"):
                ebrm.score_file(model, read, out, ScoreConfig(overwrite=True))
    assert snapshot(tmp_path) == before


def test_two_runs_do_not_score_into_one_file(model, tmp_path):
    source, out = write_lines(tmp_path / "in.jsonl", answer_rows(3)), tmp_path / "out.jsonl"
    (tmp_path / f".out.jsonl.{2**22 + 1}.partial").touch()
    with locked(lock_beside(out), "out"), pytest.raises(DataError, match=r"Another run is writing .*out\.jsonl: proc"):
        ebrm.score_file(model, source, out)
    lock_beside(out).write_text("of a run that was killed")
    ebrm.score_file(model, source, out)
    assert {path.name for path in tmp_path.iterdir()} == {"in.jsonl", "out.jsonl"}


def test_the_parts_of_a_run_killed_at_its_very_end_go_with_the_next(model, tmp_path, monkeypatch):
    source, out = write_lines(tmp_path / "in.jsonl", answer_rows(3)), tmp_path / "out.jsonl"
    with monkeypatch.context() as patched:
        patched.setattr("ebrm.scoring.files.shutil.rmtree", lambda *_, **__: None)
        first = ebrm.score_file(model, source, out)
    assert (tmp_path / ".out.jsonl.progress").is_dir()
    assert ebrm.score_file(model, source, out) == first
    assert {path.name for path in tmp_path.iterdir()} == {"in.jsonl", "out.jsonl"}
