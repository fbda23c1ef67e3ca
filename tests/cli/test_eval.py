from __future__ import annotations

import csv
import io
import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from tests.terminal import ebrm, ebrm_forked, preference_rows, refused, snapshot, write_lines
from tests.tiny import save_rm

from ebrm.backbone import Backbone
from ebrm.report import benchmarks as report


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of its own for each test, and no benchmarks folder from the environment."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("EBRM_CACHE", str(folder))
    monkeypatch.delenv("EBRM_DATA", raising=False)
    return folder


@pytest.fixture
def no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "write_benchmark_report", lambda path, evaluation: path.write_text("a report"))


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    return write_lines(tmp_path / "mine.jsonl", preference_rows(40, seed=5, prompt="New question"))


def evaluate(*arguments: object, out: Path) -> Any:
    return ebrm("eval", *arguments, "--out", out, "--resamples", 200, "--permutations", 199)


def test_base_and_refined_side_by_side(model: Path, mine: Path, tmp_path: Path) -> None:
    words = ("alpha", "beta", "gamma", "delta", "zeta", "theta")
    bon = [{"prompt": f"Say {word}.", "best": word, "losers": ["no", "never", f"{word}?"]} for word in words]
    pool = [{"prompt": f"How much is {n}?", "responses": [f"{n}", "?", "some"], "gold": [1, 0, 0.5]} for n in range(8)]
    files = [mine, write_lines(tmp_path / "picks.jsonl", bon), write_lines(tmp_path / "pool.jsonl", pool)]
    ran = evaluate(model, "--benchmark", ",".join(map(str, files)), out=tmp_path / "out")
    assert ran.code == 0, ran.err
    for name in ("mine", "picks", "pool", "tiny", "m", "minus tiny", "texts read"):
        assert name in ran.out
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [result["name"] for result in results["benchmarks"]] == ["mine", "picks", "pool"]
    assert results["order"] == ["tiny", "m"] and results["scorers"]["m"]["base"] == "tiny"
    assert results["reference"] == "tiny" and "torch" in results["versions"]
    items = pq.read_table(tmp_path / "out" / "items.parquet")
    assert len(items) == 2 * 40 + 4 * 6 + 3 * 8
    base = results["benchmarks"][1]["scorers"]["tiny"]["scores"]["overall"]["value"]
    rows = [row for row in items.to_pylist() if row["benchmark"] == "picks"]
    reward = [row["reward:tiny"] for row in rows]
    wins = sum(reward[k] > max(reward[k + 1 : k + 4]) for k in range(0, 24, 4))
    assert base["value"] == pytest.approx(wins / 6)
    page = (tmp_path / "out" / "report.html").read_text()
    assert "picks" in page and "<script" not in page


def test_a_second_run_reads_nothing_and_finds_the_same(
    model: Path, mine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_report: None
) -> None:
    first = evaluate(model, "--benchmark", mine, "--json", out=tmp_path / "a")
    assert first.code == 0 and first.value["texts_read"] > 0
    monkeypatch.setattr(Backbone, "read", lambda *_: pytest.fail("a text was read again"))
    again = evaluate(model, "--benchmark", mine, "--json", out=tmp_path / "b")
    assert again.value["texts_read"] == 0
    different = ("out", "texts_read")
    assert {k: v for k, v in first.value.items() if k not in different} == {
        k: v for k, v in again.value.items() if k not in different
    }
    a, b = snapshot(tmp_path / "a"), snapshot(tmp_path / "b")
    assert a.keys() == b.keys() and [name for name in a if a[name] != b[name]] in ([], ["timing.json"])


def test_several_models_and_a_reference(model: Path, rm: Path, mine: Path, tmp_path: Path, no_report: None) -> None:
    second = save_rm(tmp_path / "second", "bert")
    ran = evaluate(second, rm, model, "--benchmark", mine, "--reference", "tiny", "--json", out=tmp_path / "out")
    assert ran.code == 0, ran.err
    assert ran.value["order"] == ["second", "tiny", "m"]
    scorers = ran.value["benchmarks"][0]["scorers"]
    assert scorers["tiny"]["scores"]["overall"]["difference"] is None
    assert scorers["second"]["scores"]["overall"]["difference"] is not None
    shown = evaluate(second, model, "--benchmark", mine, out=tmp_path / "out")
    assert "minus second" in shown.out and "minus its base" in shown.out
    wrong = evaluate(model, "--benchmark", mine, "--reference", "tyni", out=tmp_path / "out")
    refused(wrong, "'tyni'", "tiny, m")


def test_what_is_left_out_is_said_and_counted(model: Path, tmp_path: Path, pairs: Path, no_report: None) -> None:
    new = [{**row, "prompt": f"Other {row['prompt']}"} for row in preference_rows(30, seed=9)]
    new[0]["chosen"] = "word " * 90
    source = write_lines(tmp_path / "some.jsonl", [*preference_rows(60)[:10], *new])
    ran = evaluate(model, "--benchmark", source, "--seen", pairs, "--limit", 14, out=tmp_path / "out")
    assert ran.code == 0, ran.err
    (result,) = json.loads((tmp_path / "out" / "results.json").read_text())["benchmarks"]
    assert result["excluded"] == {"prompt seen in training": 10, "not sampled": 2}
    assert "left out before scoring: 10 items (prompt seen in training), 2 items (not sampled)" in ran.out
    assert "1 of 28 items in no number" in ran.out and "1 item (longer than the 128 tokens" in ran.out


def test_few_items_are_said_to_be_too_few(model: Path, tmp_path: Path, mine: Path) -> None:
    few = write_lines(tmp_path / "few.jsonl", preference_rows(9, seed=5, prompt="New question"))
    ran = evaluate(model, "--benchmark", f"{few},{mine}", "--json", out=tmp_path / "out")
    assert ran.code == 0, ran.err
    entries = [one["scorers"]["m"]["scores"]["overall"] for one in ran.value["benchmarks"]]
    counts = [one["scores"][0] for one in ran.value["benchmarks"]]
    assert [entry["few"] for entry in entries] == [min(c["items"], c["prompts"]) < 30 for c in counts]
    assert entries[0]["few"] and entries[0]["smallest"] > 0.3
    page = (tmp_path / "out" / "report.html").read_text()
    assert "are too few to tell; only a difference of about" in page and "NaN" not in page


def test_columns_of_other_names_are_named(model: Path, tmp_path: Path, no_report: None) -> None:
    rows = [
        {"question": row["prompt"], "first": row["chosen"], "second": row["rejected"], "label": "A>B"}
        for row in preference_rows(6, seed=5, prompt="New question")
    ]
    source = write_lines(tmp_path / "mine.jsonl", rows)
    names = ["--column", "prompt=question", "--column", "a=first", "--column", "b=second"]
    ran = evaluate(model, "--benchmark", source, *names, "--json", out=tmp_path / "out")
    assert (ran.code, ran.value["benchmarks"][0]["items"]) == (0, 6)
    wrong = evaluate(model, "--benchmark", source, *names[:3], "a=third", out=tmp_path / "out")
    refused(wrong, "no column 'third'")
    refused(evaluate(model, "--benchmark", "xstest", *names, out=tmp_path / "out"), "`--column` is for files")


@pytest.mark.parametrize(("form", "name"), [("markdown", "scores.md"), ("csv", "scores.csv")])
def test_formats(model: Path, mine: Path, tmp_path: Path, no_report: None, form: str, name: str) -> None:
    ran = evaluate(model, "--benchmark", mine, "--format", form, out=tmp_path / "out")
    assert ran.code == 0, ran.err
    text = (tmp_path / "out" / name).read_text()
    assert "tiny" in text
    assert "Report: " in ran.err and "Report: " not in ran.out
    assert ran.out.endswith("\n") and ("\n\n" in ran.out or form == "csv")
    if form == "csv":
        assert ran.out.splitlines()[0] == text.splitlines()[0]
        rows = list(csv.DictReader(io.StringIO(text)))
        assert {row["scorer"] for row in rows} == {"tiny", "m"}


def test_a_run_that_is_interrupted_goes_on(
    model: Path, mine: Path, tmp_path: Path, cache: Path, no_report: None
) -> None:
    whole = evaluate(model, "--benchmark", mine, "--json", "--cache", tmp_path / "whole", out=tmp_path / "a")

    def interrupt_at_the_second_read() -> None:
        read, calls = Backbone.read, []

        def counting(self: Backbone, ids: Any, on_error: Any = "raise") -> Any:
            calls.append(1)
            if len(calls) == 2:
                os.kill(os.getpid(), signal.SIGINT)
            return read(self, ids, on_error)

        Backbone.read = counting  # type: ignore[method-assign]

    arguments = ("eval", model, "--benchmark", mine, "--out", tmp_path / "b", "--token-budget", 256)
    stopped = ebrm_forked(*arguments, before=interrupt_at_the_second_read)
    assert stopped.code == 130, stopped.err
    assert f"kept in {cache}" in stopped.err and not (tmp_path / "b" / "results.json").exists()
    again = evaluate(model, "--benchmark", mine, "--json", out=tmp_path / "b")
    assert again.code == 0, again.err
    assert again.value["benchmarks"][0]["items"] == whole.value["benchmarks"][0]["items"]


def test_mistakes_are_refused_before_anything_is_read(
    model: Path, rm: Path, mine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Backbone, "read", lambda *_: pytest.fail("read before the check"))
    out, bad = tmp_path / "o", write_lines(tmp_path / "bad.jsonl", [{"prompt": "p", "chosen": "a"}])
    refused(evaluate(model, "--benchmark", bad, out=out), "bad.jsonl", "rejected")
    refused(evaluate(model, "--benchmark", "reward-bnch", out=out), "reward-bnch", "rewardbench")
    refused(evaluate(model, out=out), "--benchmark is needed")
    refused(evaluate(model, "--benchmark", mine, "--limit", 0, out=out), "limit is 0")
    refused(evaluate(rm, "--benchmark", mine, "--layers", "1.5", out=out), "layers", "1.5")
    refused(evaluate(model, "--benchmark", mine, out=mine), "is a file")
    refused(ebrm("eval", "--benchmark", mine, "--out", out), "MODEL")
    for nothing in ("/nowhere", "nowhere", "./no/where", "~/nowhere", "a b/c", "/a/b"):
        refused(ebrm("eval", nothing, "--benchmark", mine, "--out", out), nothing)
    refused(evaluate(model, "--benchmark", "rmb", "--benchmark-data", tmp_path, out=out), str(tmp_path))
    refused(evaluate(model, "--benchmark", "rmb", out=out), "RMB")
    refused(evaluate(model, "--benchmark", "all", out=out), "`all` means")
    assert not out.exists()


def test_features_are_not_overwritten_by_results(
    model: Path, mine: Path, features: Path, no_report: None, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(features, tmp_path / "f"))
    before = snapshot(copy)
    ran = evaluate(model, "--benchmark", mine, "--overwrite", out=copy)
    refused(ran, "holds features (manifest.json); its items.parquet would be replaced")
    assert {name: data for name, data in snapshot(copy).items() if name != ".lock"} == before
