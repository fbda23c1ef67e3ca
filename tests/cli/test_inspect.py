from __future__ import annotations

import json
from pathlib import Path

from tests.terminal import ebrm, refused


def test_pairs_are_shown_as_a_fit_reads_them(rm: Path, tmp_path: Path) -> None:
    data = tmp_path / "pairs.jsonl"
    rows = [{"prompt": f"Question {i}", "chosen": f"Yes {i}", "rejected": f"No {i}", "id": i} for i in range(4)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    ran = ebrm("inspect", data, "--backbone", rm, "--rows", "2")
    assert ran.code == 0, ran.err
    for words in ("4 of 4 rows", "id (4)", "pairs.jsonl:1", "pairs.jsonl:4", "Question 0", "<|start|>assistant"):
        assert words in ran.out, words
    assert "pairs.jsonl:2" not in ran.out
    found = ebrm("inspect", data, "--json").value
    assert found["report"]["unread_columns"] == {"id": 4} and found["texts"] is None


def test_what_cannot_be_read_is_one_paragraph(tmp_path: Path) -> None:
    refused(ebrm("inspect", tmp_path / "none.jsonl"), "no file or folder")
