from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.terminal import ebrm, refused, snapshot, write_lines

from ebrm.cli.compare import CompareConfig
from ebrm.cli.parser import field_help
from ebrm.evaluation.head_benchmark import METHODS
from ebrm.features import open_features
from ebrm.fitting import choose_splits

QUICK = ("--resamples", 100, "--epochs", 2, "--hidden", 8, "--joint-widths", "8,4")


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    rows = [
        {"prompt": f"How much is {n}?", "responses": [f"{n}", f"{n + 1}", "some"], "gold": [1.0, 0.25, 0.5]}
        for n in range(8)
    ]
    return write_lines(tmp_path / "pool.jsonl", rows)


def test_one_table_with_a_pool(features: Path, pool: Path, tmp_path: Path) -> None:
    names = "base,energy,linear,silu-uwo,base-shorter"
    arguments = ("compare", features, "--methods", names, "--pool", pool, "--cache", tmp_path / "cache", *QUICK)
    ran = ebrm(*arguments, "--members", 2, "--out", tmp_path / "out")
    assert ran.code == 0, ran.err
    lines = ran.out.splitlines()
    assert [line.split()[0] for line in lines[1:6]] == names.split(",")
    for words in ("minus base", "ECE, %", "best of 3", "parameters", "µs a row", "any response: 0.583"):
        assert words in ran.out
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [method["name"] for method in results["methods"]] == names.split(",")
    assert results["n"] == 3 and results["pool"] == "pool" and results["pool_prompts"] == 8
    assert results["methods"][3]["parameters"] == 2 * (results["methods"][2]["parameters"] + 2) * 8
    assert "seconds" not in results["methods"][0] and "microseconds" not in results["methods"][0]
    text = (tmp_path / "out" / "table.md").read_text()
    assert text.count("\n| ") == 2 + 5 and "held-out pair" in text


def test_prompts_of_the_pool_that_heads_are_fitted_on_are_left_out(features: Path, tmp_path: Path) -> None:
    rows = [{"prompt": f"Question {n}", "responses": ["alpha", "beta", "zeta"], "gold": [1, 0, 0.5]} for n in range(32)]
    more = ("--methods", "base,linear", "--cache", tmp_path / "cache", "--resamples", 100, "--test-fraction", 0.3)
    ran = ebrm("compare", features, "--pool", write_lines(tmp_path / "pool.jsonl", rows), *more, "--json")
    assert ran.code == 0, ran.err
    fitted = (ran.value["train"] + ran.value["validation"]) // 2  # two pairs a prompt, of 30
    assert ran.value["left_out"] == {"prompt that the heads are fitted on": fitted}
    assert ran.value["pool_prompts"] == 32 - fitted and ran.value["pairs"] == 60 - 2 * fitted


def test_a_pool_of_training_prompts_alone_is_refused(features: Path, tmp_path: Path) -> None:
    opened = open_features(features)
    place = int(choose_splits(opened.pairs).train[0])  # of 60 pairs in the order of the file, two a prompt
    rows = [{"prompt": f"Question {place // 2}", "responses": ["alpha", "beta"], "gold": [1, 0]}]
    arguments = ("--methods", "base", "--pool", write_lines(tmp_path / "pool.jsonl", rows), "--cache", tmp_path / "c")
    refused(ebrm("compare", features, *arguments), "Every prompt of the pool (1)", "other prompts")


def test_for_machines_without_a_pool_or_a_folder(features: Path, tmp_path: Path) -> None:
    ran = ebrm("compare", features, "--methods", "linear,base", "--resamples", 100, "--json")
    assert ran.code == 0, ran.err
    first, second = ran.value["methods"]
    assert first["name"] == "linear" and first["difference"] is None and first["gold"] is None
    assert second["difference"]["low"] <= second["difference"]["value"] <= second["difference"]["high"]
    assert ran.value["train"] + ran.value["validation"] + ran.value["pairs"] == 60
    assert ran.value["out"] is None and not (tmp_path / "out").exists()


def test_heads_can_be_saved(features: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ebrm.report.write_report", lambda path, data: path.write_text("a report"))
    arguments = ("compare", features, "--methods", "base,linear,silu", "--save", tmp_path / "s", *QUICK[:6])
    ran = ebrm(*arguments, "--ridge", 0.5, "--json")
    assert ran.code == 0, ran.err
    assert sorted(path.name for path in (tmp_path / "s").iterdir()) == ["linear", "silu"]
    shown = {method["name"]: method["accuracy"]["value"] for method in ran.value["methods"]}
    for name in ("linear", "silu"):
        assert json.loads((tmp_path / "s" / name / "metrics.json").read_text())["refined"]["accuracy"] == shown[name]
        scored = tmp_path / f"{name}.jsonl"
        assert ebrm("score", tmp_path / "s" / name, features, "--out", scored, "-q").code == 0
    assert "ridge 0.5" in ebrm("info", tmp_path / "s" / "linear").out
    before = snapshot(tmp_path / "s")
    assert ebrm(*arguments, "--ridge", 0.5).code == 0  # the same again
    refused(ebrm(*arguments), "--save", "holds another head linear")
    refused(ebrm(*arguments, "--methods", "base,silu"), "--save", "something other than heads")
    assert snapshot(tmp_path / "s") == before


def test_settings_reach_the_heads(features: Path) -> None:
    def temperature(*arguments: object) -> float:
        ran = ebrm("compare", features, "--methods", "linear", "--resamples", 100, *arguments, "--json")
        assert ran.code == 0, ran.err
        found: float = ran.value["methods"][0]["temperature"]
        return found

    assert temperature("--ridge", 1000) < 0.1 * temperature("--ridge", 0.01)  # log odds shrunk towards 0


def test_the_help_names_every_method() -> None:
    words = field_help(CompareConfig)["methods"].replace(",", " ").replace(".", " ").split()
    assert set(METHODS) <= set(words)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--methods", "liner"), ("no method 'liner'", "'linear'", "base-shorter")),
        (("--methods", "none"), ("nothing to compare",)),
        (("--members", 1), ("members is 1",)),
        (("--hidden", 0), ("hidden is 0",)),
        (("--out", "file"), ("is a file",)),
        (("--pool", "nowhere.jsonl"), ("nowhere.jsonl",)),
        (("--methods", "linear", "--test-fraction", 1e-9), ("none is held out",)),
    ],
)
def test_mistakes(
    features: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[object, ...],
    words: tuple[str, ...],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    refused(ebrm("compare", features, *arguments), *words)
    refused(ebrm("compare", tmp_path / "nothing"), "nothing")
