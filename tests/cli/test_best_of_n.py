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
