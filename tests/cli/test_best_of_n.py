from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from tests.terminal import ebrm, refused, write_lines


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    draws = np.random.default_rng(0)
    rows = []
    for prompt in range(12):
        for _ in range(4 if prompt else 2):
            gold = float(draws.normal())
            rows.append(
                {"prompt_id": f"p{prompt}", "base_reward": float(draws.normal()), "reward": gold + 1, "gold": gold}
            )
    return write_lines(tmp_path / "pool.jsonl", rows)


def test_curves_table_and_picture(pool: Path, tmp_path: Path) -> None:
    ran = ebrm("best-of-n", pool, "--out", tmp_path / "out", "--resamples", 100)
    assert ran.code == 0, ran.err
    for words in ("best of", "minus base_reward", "highest at n =", "highest at KL", "over 11 prompts"):
        assert words in ran.out
    assert "Left out: 1 prompt (fewer than 4 responses)." in ran.out
    assert (tmp_path / "out" / "curves.png").read_bytes().startswith(b"\x89PNG")
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    curve = results["rewards"]["reward"]["n"]
    assert curve["x"] == [1, 2, 3, 4] and curve["peak"]["x"]["value"] == 4
    # A reward that orders as gold does is worth as much as gold itself.
    assert curve["gold"]["value"] == pytest.approx(results["oracle"]["n"]["value"])
    with open(tmp_path / "out" / "curves.csv", newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert len(rows) == 2 * (4 + 21)
    last = [row for row in rows if (row["reward"], row["axis"], row["x"]) == ("reward", "n", "4")]
    assert float(last[0]["gold"]) == pytest.approx(curve["gold"]["value"][-1], rel=1e-5)
    assert [row["gain"] for row in rows if row["reward"] == "base_reward"] == [""] * 25


def test_few_prompts_are_said_to_be_too_few(pool: Path, tmp_path: Path) -> None:
    ran = ebrm("best-of-n", pool, "--out", tmp_path / "out", "--resamples", 100)
    found = json.loads((tmp_path / "out" / "results.json").read_text())["smallest"]
    said = f"only a difference in gold of about {found['base_reward']:.3f} or more between base_reward and any response"
    assert "11 prompts are too few to tell; at n = 4" in ran.out and said in ran.out
    rows = [{"prompt": f"p{k}", "reward": k + n, "gold": (k + n) % 3} for k in range(30) for n in range(3)]
    ran = ebrm("best-of-n", write_lines(tmp_path / "many.jsonl", rows), "--out", tmp_path / "o", "--resamples", 100)
    assert "too few" not in ran.out


def test_for_machines_and_one_reward(pool: Path, tmp_path: Path) -> None:
    ran = ebrm("best-of-n", pool, "--reward", "reward", "--least", 2, "--out", tmp_path / "out", "--json")
    assert ran.code == 0, ran.err
    assert list(ran.value["rewards"]) == ["reward"] and ran.value["prompts"] == 12
    assert ran.value["rewards"]["reward"]["n"]["gain"] is None and ran.value["pool"] == "pool.jsonl"
    stored = json.loads((tmp_path / "out" / "results.json").read_text())
    assert {key: value for key, value in ran.value.items() if key != "out"} == stored
    shown = ebrm("best-of-n", pool, "--reward", "reward", "--out", tmp_path / "out", "--resamples", 100)
    assert "minus" not in shown.out and "the end of the axis" in shown.out


def test_the_same_command_writes_the_same_bytes(pool: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        assert ebrm("best-of-n", pool, "--out", tmp_path / name, "--resamples", 100, "-q").code == 0
    for name in ("curves.png", "curves.csv", "results.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), ("--out is needed",)),
        (("--out", "o", "--reward", "score"), ("no column 'score'", "base_reward")),
        (("--out", "o", "--least", 1), ("least is 1",)),
        (("--out", "o", "--least", 9), ("No prompt has 9 responses",)),
        (("--out", "pool.jsonl"), ("is a file",)),
    ],
)
def test_mistakes(
    pool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], words: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    refused(ebrm("best-of-n", pool, *arguments), *words)


def graded(tmp_path: Path, fitted_on: dict[int, object], prefix: str = "") -> Path:
    rows = [
        {"prompt": f"p{k}", f"{prefix}reward": float(n), "gold": float(n == 1), f"{prefix}fitted_on": fitted_on.get(k)}
        for k in range(6)
        for n in range(3)
    ]
    return write_lines(tmp_path / "graded.jsonl", rows)


def test_prompts_that_the_model_was_fitted_on_are_left_out_or_named(tmp_path: Path) -> None:
    source = graded(tmp_path, {0: True, 1: "True", 2: False}, "x_")
    arguments = ("best-of-n", source, "--reward", "x_reward", "--resamples", 100)
    ran = ebrm(*arguments, "--out", tmp_path / "out")
    assert ran.code == 0, ran.err
    assert "Left out: 2 prompts (a model was fitted on it)." in ran.out and "over 4 prompts" in ran.out
    labeled = ebrm(*arguments, "--out", tmp_path / "out", "--training-items", "label")
    assert "Training prompts: 2 of 6 were fitted on" in labeled.out and "Left out" not in labeled.out
    assert json.loads((tmp_path / "out" / "results.json").read_text())["training_prompts"] == 2
    with open(tmp_path / "out" / "curves.csv", newline="") as handle:
        assert {row["training_prompts"] for row in csv.DictReader(handle)} == {"2"}


def test_a_pool_of_training_prompts_alone_is_refused(tmp_path: Path) -> None:
    source = graded(tmp_path, dict.fromkeys(range(6), True))
    refused(
        ebrm("best-of-n", source, "--out", tmp_path / "out"),
        "fitted on each of the 6 prompts",
        "--training-items label",
    )
    wrong = ebrm("best-of-n", source, "--out", tmp_path / "out", "--training-items", "drop")
    refused(wrong, "training")


def test_results_that_something_else_wrote_are_left_alone(pool: Path, tmp_path: Path) -> None:
    command = ("best-of-n", pool, "--out", tmp_path / "out", "--resamples", 100, "-q")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "curves.csv").write_text("mine")
    refused(ebrm(*command), "--out is", "curves.csv", "`--overwrite`")
    assert (tmp_path / "out" / "curves.csv").read_text() == "mine"
    assert ebrm(*command, "--overwrite").code == 0
    assert ebrm(*command).code == 0
