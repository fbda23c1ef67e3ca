"""RewardBench: its weights, its files, and rows that cannot be used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.benchmarks.tiny import FILES, REWARDBENCH_COUNTS, messages, scores_of, table, write_jsonl, write_parquet

from ebrm.benchmarks import SECTIONS
from ebrm.benchmarks.rewardbench import LEGACY_SECTIONS, load, load_legacy, section_scores

ROWS = FILES["rewardbench"]["rewardbench.parquet"]


def written(folder: Path, *rows: dict[str, Any]) -> Path:
    write_parquet(folder / "rewardbench.parquet", rows)
    return folder


def test_weights() -> None:
    """The counts of the contract, and their sums: 2 985 pairs and 537 more for math-prm's 984."""
    assert SECTIONS == REWARDBENCH_COUNTS
    sums = {section: sum(counts.values()) for section, counts in SECTIONS.items()}
    assert sums == {"Chat": 358, "Chat Hard": 456, "Safety": 740, "Reasoning": 1968}
    assert sum(sums.values()) == 2985 + 984 - 447
    assert SECTIONS["Reasoning"]["math-prm"] == sum(SECTIONS["Reasoning"].values()) / 2


def test_legacy_swaps_two_weights() -> None:
    changed = {
        subset: (count, LEGACY_SECTIONS[section][subset])
        for section, counts in SECTIONS.items()
        for subset, count in counts.items()
        if LEGACY_SECTIONS[section][subset] != count
    }
    assert changed == {"xstest-should-refuse": (154, 250), "xstest-should-respond": (250, 154)}


def test_safety_depends_on_the_weights(tmp_path: Path) -> None:
    written(tmp_path, *ROWS)
    found = {}
    for read in (load, load_legacy):
        benchmark = read(tmp_path)
        refused = {item.responses[0] for item in benchmark.items if item.group == "xstest-should-refuse"}
        rewards = table(benchmark, lambda text, refused=refused: float(text in refused))
        found[benchmark.name] = scores_of(benchmark, rewards)
        assert found[benchmark.name]["Chat"] == 0.0
    assert found["rewardbench"]["Safety"] == pytest.approx(154 / 740)
    assert found["rewardbench-legacy"]["Safety"] == pytest.approx(250 / 740)
    assert found["rewardbench"]["overall"] == pytest.approx(154 / 740 / 4)


def test_legacy_says_so(tmp_path: Path) -> None:
    written(tmp_path, *ROWS)
    old, new = load_legacy(tmp_path), load(tmp_path)
    assert old.items == new.items
    assert "each other's weights" in " ".join(old.notes)
    assert new.notes == ()
    assert old.title != new.title


def test_absent_subsets_are_named_and_left_out(tmp_path: Path) -> None:
    kept = [row for row in ROWS if row["subset"] in ("alpacaeval-easy", "mt-bench-med", "hep-go")]
    benchmark = load(written(tmp_path, *kept))
    assert [score.name for score in benchmark.scores] == [
        "overall", "Chat", "Reasoning", "alpacaeval-easy", "mt-bench-med", "hep-go",
    ]  # fmt: skip
    assert "alpacaeval-length" in benchmark.notes[0] and "hep-go" not in benchmark.notes[0]
    good = {item.responses[0] for item in benchmark.items if item.group == "alpacaeval-easy"}
    found = scores_of(benchmark, table(benchmark, lambda text: float(text in good)))
    assert found["Chat"] == pytest.approx(100 / 140)
    assert found["overall"] == pytest.approx(100 / 140 / 2)


def test_section_scores_weigh_sections_alike() -> None:
    overall, *rest = section_scores(SECTIONS, [subset for counts in SECTIONS.values() for subset in counts])
    for section, counts in SECTIONS.items():
        assert sum(overall.weights[subset] for subset in counts) == pytest.approx(0.25)
        (found,) = (score for score in rest if score.name == section)
        assert found.kind == "section" and sum(found.weights.values()) == pytest.approx(1.0)
    assert {score.kind for score in rest} == {"section", "subset"}
    assert len(rest) == 4 + 23


def test_json_lines(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "rewardbench.jsonl", [ROWS[0] | {"id": "a"}, ROWS[1] | {"prompt": messages("x", "y", "z")}])
    benchmark = load(tmp_path)
    assert [item.id for item in benchmark.items] == ["a", "1"]
    assert benchmark.items[0].prompt == ({"role": "user", "content": "ask 0"},)
    assert [message["content"] for message in benchmark.items[1].prompt] == ["x", "y", "z"]
    assert benchmark.items[1].gold == (1.0, 0.0)
    assert benchmark.items[1].responses == (ROWS[1]["chosen"], ROWS[1]["rejected"])
