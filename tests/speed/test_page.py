from __future__ import annotations

import json

import pytest
from benchmarks import page
from benchmarks.page import PAGE, figures_table, growth_tables, markdown, put
from tests.speed.test_run import FIGURE


def test_a_part_is_replaced_and_the_rest_stays():
    text = "a\n<!-- table one -->\nold\n<!-- end -->\nb\n<!-- table two -->\nkept\n<!-- end -->\n"
    changed = put(text, "one", "new \\1")
    assert changed == "a\n<!-- table one -->\n\nnew \\1\n\n<!-- end -->\nb\n<!-- table two -->\nkept\n<!-- end -->\n"
    assert put(changed, "one", "new \\1") == changed
    with pytest.raises(SystemExit, match="0 places for the table 'three'"):
        put(text, "three", "")


GROWTH = {
    "growth": [
        {"job": job, "rows": 10_000, "seconds": 2.0, "peak_bytes": peak, "rows_per_second": speed}
        for job, peak, speed in [
            ("open", 5e8, None), ("verify", 5e8, None), ("fit", 7e8, 4321.0), ("refine", 6e8, 98765.0),
        ]
    ],
    "stream": [{"kind": "large", "bytes": 5e9, "rows": 25_000, "seconds": 100.4, "peak_bytes": 8e8}],
    "startup": [
        {"what": "ebrm --help", "seconds": 0.18, "low": 0.1, "high": 0.2, "allowed": 0.5},
        {"what": "import torch", "seconds": 1.2, "low": 1.1, "high": 1.3, "allowed": None},
    ],
}  # fmt: skip


def test_the_tables_of_growth():
    lines = growth_tables(GROWTH).splitlines()
    assert "| 10,000 | 2.0 s | 2.0 s | 2.0 s | 4,000 | 2.0 s | 99,000 | 0.70 GB |" in lines
    assert "| JSONL, rows of 200 KB | 5 GB | 25,000 | 100 s | 0.80 GB |" in lines
    assert "| `ebrm --help` | 0.18 s | 0.5 s |" in lines and "| `import torch` | 1.20 s | – |" in lines


def test_the_table_of_figures(tmp_path, monkeypatch):
    results, written = tmp_path / "results.json", tmp_path / "page.md"
    results.write_text(json.dumps([vars(FIGURE)]))
    written.write_text("<!-- table figures -->\n<!-- end -->\n<!-- table growth -->\n<!-- end -->\n")
    growth = tmp_path / "growth.json"
    growth.write_text(json.dumps(GROWTH))
    monkeypatch.setattr(page, "GROWTH", growth)
    monkeypatch.setattr(page, "PAGE", written)
    monkeypatch.setattr(page.sys, "argv", ["page", str(results)])
    page.main()
    assert "| posterior on a grid | small | 4,096 | 2,048 | 20.0 s | 500.0 ms | 40.0 \\[38.1, 41.9\\] | 30 | yes |" in (
        written.read_text()
    )


def test_markdown_tables():
    assert markdown(("a", "b"), [("x", "1")]) == "| a | b |\n| :-- | --: |\n| x | 1 |"
    assert figures_table([FIGURE]).endswith("Measured on: cpu, 2 threads.")


def test_the_page_has_its_parts():
    text = PAGE.read_text(encoding="utf-8")
    for name in ("figures", "growth", "roofline"):
        put(text, name, "")
