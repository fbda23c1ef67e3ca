from __future__ import annotations

import json
from pathlib import Path

import pytest
from benchmarks import kill_matrix
from benchmarks.kill_matrix import ENDINGS, Case, content, ending, load_modules, matrix, table

from ebrm.utils.files import write_text


def test_best_of_n_ends_in_the_same_content_after_every_ending(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = "ebrm.report.summaries.write_selection_figure"  # figures take a second
    monkeypatch.setattr(drawn, lambda path, *_: write_text(path, "a figure"))
    rows = [{"prompt": f"q{n // 3}", "response": f"a{n}", "reward": n % 5, "gold": n % 3} for n in range(24)]
    (tmp_path / "pool.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    case = next(case for case in kill_matrix.CASES if case.name == "best-of-n")
    load_modules([case], tmp_path, tmp_path)
    cells = matrix(case, tmp_path, tmp_path, sample=40)
    assert cells.kills == len(ENDINGS) * len(range(20, cells.events + 1, 40)) > 0
    assert cells.different == [] and cells.equal == cells.kills


def test_a_command_that_loses_something_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def main(arguments: list[str]) -> int:
        (room,) = map(Path, arguments)
        room.mkdir(exist_ok=True)
        if (room / "begun").exists():  # what a run that was ended left is taken for finished
            return 0
        (room / "begun").write_text("1")
        (room / "result").write_text("2")
        return 0

    monkeypatch.setattr("ebrm.cli.main.main", main)
    cells = matrix(Case("loses", ("{out}",)), tmp_path, tmp_path)
    assert cells.events == 3 and cells.kills == 9
    assert [said.split(":")[0] for said in cells.different] == [f"{how} at event 3" for how in ENDINGS]
    assert "missing: out/result" in cells.different[0]
    row = table({"loses": {"command": cells.command, "events": 3, "kills": 9, "equal": 6, "different": 3}})
    assert row.splitlines()[2] == f"| `{cells.command}` | 3 | 9 | 6 | 3 |"


def test_a_full_disk_stays_full_and_lets_files_be_read_and_removed(tmp_path: Path) -> None:
    full = ending("ENOSPC", 2)
    full(1, "open", ("a", "w", 1))
    for event, arguments in (("os.mkdir", ("a", 511, -1)), ("open", (b"a", "w", 1))):
        with pytest.raises(OSError, match="No space left"):
            full(3, event, arguments)
    full(3, "open", ("a", "r", 0))
    full(3, "os.remove", ("a", -1))
    (tmp_path / "timing.json").write_text("1.5")
    (tmp_path / "a").write_text("a")
    assert content(tmp_path) == {"a": b"a"}
