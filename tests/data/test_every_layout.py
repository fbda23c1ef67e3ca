"""Pairs written in every layout and every kind of file read back equal, and every column and key is read or listed."""

from __future__ import annotations

import csv
import gzip
import io
import json
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ebrm.data import PreferenceConfig, load_preferences

Row = dict[str, Any]
Turns = list[dict[str, str]]


@dataclass(frozen=True)
class Made:
    """A pair to be written."""

    prompt: Turns
    chosen: str
    rejected: str

    @property
    def asked(self) -> str:
        return self.prompt[-1]["content"]


# Texts that are neither blank nor begin like a list, a message or a transcript, with what breaks files.
texts = st.text(
    st.one_of(st.sampled_from("a é👋\n\r\",';\t\u2028\x00{}[]:\\"), st.characters(exclude_categories=["Cs"])),
    min_size=1, max_size=12,
).map(lambda text: "x" + text)  # fmt: skip


@st.composite
def made_pairs(draw: st.DrawFn) -> list[Made]:
    """A few pairs of one shape: all with a system turn or none, all of as many turns."""
    system, before = draw(st.booleans()), draw(st.integers(0, 2))
    pairs = []
    for _ in range(draw(st.integers(1, 4))):
        turns = [{"role": "system", "content": draw(texts)}] if system else []
        for _ in range(before):
            turns += [{"role": "user", "content": draw(texts)}, {"role": "assistant", "content": draw(texts)}]
        chosen = draw(texts)
        pairs.append(Made([*turns, {"role": "user", "content": draw(texts)}], chosen, chosen + draw(texts)))
    return pairs


def say(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def shared(message: Mapping[str, str]) -> dict[str, str]:
    names = {"user": "human", "assistant": "gpt", "system": "system"}
    return {"from": names[message["role"]], "value": message["content"]}


def alpaca(pair: Made) -> Row:
    """Instruction, input, system and history in columns of their own."""
    system = [m["content"] for m in pair.prompt if m["role"] == "system"]
    said = [m["content"] for m in pair.prompt if m["role"] != "system"][:-1]
    instruction, _, more = pair.asked.partition("\n")
    return {
        "instruction": instruction if more else pair.asked, "input": more, "system": (system or [""])[0],
        "history": [[said[i], said[i + 1]] for i in range(0, len(said), 2)], "chosen": pair.chosen,
        "rejected": pair.rejected,
    }  # fmt: skip


def labeled(prompt: str, a: str, b: str, label: str, wins: tuple[Any, Any]) -> Callable[[Made], Row]:
    """Two replies in an order by the hash of the pair, and the label for the better one."""

    def write(pair: Made) -> Row:
        turned = random.Random(pair.chosen).random() < 0.5
        replies = (pair.rejected, pair.chosen) if turned else (pair.chosen, pair.rejected)
        return {prompt: pair.prompt, a: replies[0], b: replies[1], label: wins[turned]}

    return write


def arena(pair: Made) -> Row:
    row = labeled("prompt", "conversation_a", "conversation_b", "winner", ("model_a", "model_b"))(pair)
    both = {name: [*pair.prompt, say(row[name])] for name in ("conversation_a", "conversation_b")}
    return both | {"winner": row["winner"]}


LAYOUTS: dict[str, Callable[[Made], Row]] = {
    "TRL, explicit": lambda p: {"prompt": p.prompt, "chosen": [say(p.chosen)], "rejected": [say(p.rejected)]},
    "TRL, replies as text": lambda p: {"prompt": p.prompt, "chosen": p.chosen, "rejected": p.rejected},
    "TRL, implicit": lambda p: {"chosen": [*p.prompt, say(p.chosen)], "rejected": [*p.prompt, say(p.rejected)]},
    "UltraFeedback binarized": lambda p: {
        "prompt": p.asked, "chosen": [*p.prompt, say(p.chosen)], "rejected": [*p.prompt, say(p.rejected)]},
    "Alpaca": alpaca,
    "ShareGPT": lambda p: {"conversations": [*map(shared, p.prompt)], "chosen": shared(say(p.chosen)),
                           "rejected": shared(say(p.rejected))},
    "OpenAI": lambda p: {"messages": p.prompt, "chosen": say(p.chosen), "rejected": say(p.rejected)},
    "ms-swift": lambda p: {"messages": [*p.prompt, say(p.chosen)], "rejected_response": p.rejected},
    "ms-swift, messages": lambda p: {"messages": [*p.prompt, say(p.chosen)],
                                     "rejected_messages": [*p.prompt, say(p.rejected)]},
    "NeMo-RL": lambda p: {"context": p.prompt, "completions": [
        {"rank": 1, "completion": [say(p.rejected)]}, {"rank": 0, "completion": [say(p.chosen)]}]},
    "NeMo-RL, binary": lambda p: {"prompt": p.prompt, "chosen_response": p.chosen, "rejected_response": p.rejected},
    "UltraFeedback": lambda p: {"instruction": p.prompt, "completions": [
        {"response": p.rejected, "fine-grained_score": 1.5}, {"response": p.chosen, "fine-grained_score": 4.0}]},
    "distilabel": lambda p: {"instruction": p.prompt, "generations": [p.chosen, p.rejected], "ratings": [5, 2]},
    "ranks": lambda p: {"prompt": p.prompt, "responses": [p.rejected, p.chosen], "ranks": [2, 1]},
    "SHP": labeled("history", "human_ref_A", "human_ref_B", "labels", (1, 0)),
    "HelpSteer 2": labeled("prompt", "response_1", "response_2", "preference_strength", (-2, 3)),
    "HelpSteer 3": labeled("context", "response1", "response2", "overall_preference", (-1, 1)),
    "PKU-SafeRLHF": labeled("prompt", "response_0", "response_1", "better_response_id", (0, 1)),
    "JudgeBench": labeled("question", "response_A", "response_B", "label", ("A>B", "B>A")),
    "Arena": arena,
}  # fmt: skip


def jsonl(rows: list[Row]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def table(rows: list[Row], cell: Callable[[Any], str]) -> bytes:
    """CSV whose lists and objects are written by `cell`."""
    out = io.StringIO(newline="")
    writer = csv.writer(out)
    writer.writerow(rows[0])
    for row in rows:
        writer.writerow([cell(value) if isinstance(value, list | dict) else value for value in row.values()])
    return out.getvalue().encode()


def as_file(name: str, data: Callable[[list[Row]], bytes]) -> Callable[[list[Row], Path], Any]:
    def write(rows: list[Row], folder: Path) -> Path:
        (folder / name).write_bytes(data(rows))
        return folder / name

    return write


def as_parquet(rows: list[Row], folder: Path) -> Path:
    pq.write_table(pa.Table.from_pylist(rows), folder / "a.parquet")
    return folder / "a.parquet"


def as_folder(rows: list[Row], folder: Path) -> Path:
    (folder / "data").mkdir()
    (folder / "data" / "part-0.jsonl").write_bytes(jsonl(rows[:1]))
    (folder / "data" / "part-1.jsonl").write_bytes(jsonl(rows[1:]))
    return folder / "data"


def as_frame(rows: list[Row], folder: Path) -> pd.DataFrame:
    """A DataFrame as pandas reads it from Parquet: its lists are arrays."""
    return pd.read_parquet(as_parquet(rows, folder))


SOURCES: dict[str, Callable[[list[Row], Path], Any]] = {
    "list": lambda rows, _: rows,
    "JSONL": as_file("a.jsonl", jsonl),
    "JSONL.gz": as_file("a.jsonl.gz", lambda rows: gzip.compress(jsonl(rows))),
    "JSONL.zst": as_file("a.jsonl.zst", lambda rows: pa.compress(jsonl(rows), "zstd", asbytes=True)),
    "JSON": as_file("a.json", lambda rows: json.dumps(rows, indent=1).encode()),
    "CSV": as_file("a.csv", lambda rows: table(rows, json.dumps)),
    "CSV of reprs": as_file("a.csv", lambda rows: table(rows, repr)),
    "CSV.zst": as_file("a.csv.zst", lambda rows: pa.compress(table(rows, json.dumps), "zstd", asbytes=True)),
    "Parquet": as_parquet,
    "folder": as_folder,
    "DataFrame": lambda rows, _: pd.DataFrame(rows),
    "DataFrame of arrays": as_frame,
    "records": lambda rows, _: pd.DataFrame(rows).to_records(index=False),
    "array of dicts": lambda rows, _: np.array(rows, dtype=object),
    "Arrow": lambda rows, _: pa.Table.from_pylist(rows),
    "Dataset": lambda rows, _: datasets.Dataset.from_list(rows),
}


@pytest.fixture(scope="module")
def numbers():
    return iter(range(10**9))


@given(made_pairs(), st.sampled_from(sorted(LAYOUTS)), st.sampled_from(sorted(SOURCES)))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_pairs_in_any_layout_and_source_read_back_equal(tmp_path, numbers, pairs, layout, source):
    folder = tmp_path / str(next(numbers))
    folder.mkdir()
    loaded = load_preferences(SOURCES[source]([LAYOUTS[layout](pair) for pair in pairs], folder))
    assert [(list(p.prompt), p.chosen, p.rejected) for p in loaded] == [(p.prompt, p.chosen, p.rejected) for p in pairs]
    report = loaded.report
    assert (report.unread_columns, report.unread_keys, report.skipped, report.odd) == ({}, {}, {}, {})


COLUMNS = st.dictionaries(
    st.sampled_from(["id", "meta", "Split", "rater", "model", "score_chosen", "system_a", "x y", "Prompt", "label_"]),
    st.sampled_from([None, "", "said", 3, float("nan"), False]),
    max_size=4,
)  # fmt: skip


@given(
    made_pairs(), st.sampled_from(sorted(LAYOUTS)), COLUMNS, st.sampled_from(["list", "JSONL", "DataFrame", "Parquet"])
)
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_column_is_read_or_listed_with_its_rows(tmp_path, numbers, pairs, layout, more, source):
    folder = tmp_path / f"columns {next(numbers)}"
    folder.mkdir()
    rows = [LAYOUTS[layout](pair) | more for pair in pairs]
    report = load_preferences(SOURCES[source](rows, folder)).report
    empty = (None, "")
    expected = {
        name: 0 if value in empty or (isinstance(value, float) and value != value) else len(rows)
        for name, value in more.items()
    }
    assert report.unread_columns == expected
    for name in more:
        assert f"{name} ({expected[name]:,})" in report.summary()
    read = {*rows[0]} - {*report.unread_columns}
    assert read == {*LAYOUTS[layout](pairs[0])}


@given(
    made_pairs(),
    st.sampled_from(["TRL, explicit", "TRL, implicit", "OpenAI", "ms-swift", "Arena", "NeMo-RL"]),
    st.dictionaries(st.sampled_from(["id", "weight", "images", "loss", "name_"]), st.integers(1, 3), max_size=3),
)
@settings(max_examples=60, deadline=None)
def test_every_key_of_a_message_is_read_or_listed(pairs, layout, more):  # fmt: skip
    def marked(value: Any) -> Any:
        """A value whose messages hold more keys."""
        if isinstance(value, list):
            return [marked(one) for one in value]
        if isinstance(value, dict):
            return {k: marked(v) for k, v in value.items()} | (more if "role" in value else {})
        return value

    def messages(value: Any) -> int:
        found = value if isinstance(value, list) else [*value.values()] if isinstance(value, dict) else []
        return ("role" in value if isinstance(value, dict) else 0) + sum(map(messages, found))

    rows = [LAYOUTS[layout](pair) for pair in pairs]
    report = load_preferences([marked(row) for row in rows]).report
    counts: dict[str, int] = {}
    for name, count in report.unread_keys.items():
        counts[name.rpartition(".")[2]] = counts.get(name.rpartition(".")[2], 0) + count
    assert {*counts} == {*more}
    assert all(count >= messages(rows) for count in counts.values())


def test_options_of_reading_stand_in_the_report_in_json():
    rows = [
        {"prompt": "q", "a": "4", "b": "5", "label": 1, "extra": 1},
        {"prompt": "q", "a": "4", "b": "5", "label": 0},
    ]
    report = load_preferences(rows, PreferenceConfig(label_map={"1": "a", "0": "b"})).report
    found = json.loads(json.dumps(report.to_dict()))
    assert found["labels"]["counts"] == {"0": 1, "1": 1} and found["labels"]["meaning"] == {"0": "b", "1": "a"}
    assert found["unread_columns"] == {"extra": 1} and found["lengths"]["chosen"] == [1, 1, 1]
    assert found["layout"] == "two replies and a label: prompt, a, b, label"
