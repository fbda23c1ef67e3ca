from __future__ import annotations

import dataclasses
import json
from types import SimpleNamespace

import pytest
from benchmarks import run
from benchmarks.run import caption, duration, main, met, spread, table
from benchmarks.timing import Figure
from rich.console import Console

FIGURE = Figure("posterior on a grid", 4096, "small", 2048, "cpu", 2, 20.0, 0.5, 40.0, 38.123, 41.9, 30.0)
KEYS = {
    "figure", "d", "network", "rows", "device", "threads", "plain_seconds", "ours_seconds", "ratio", "ratio_low",
    "ratio_high", "required",
}  # fmt: skip


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[object]]:
    """Figure modules that yield one figure each and note what they were called with."""
    calls: dict[str, list[object]] = {}

    def fake(name: str) -> SimpleNamespace:
        def figures(quick, **options):
            calls[name] = [quick, options]
            yield dataclasses.replace(FIGURE, figure=name)

        return SimpleNamespace(figures=figures)

    monkeypatch.setattr(run.importlib, "import_module", lambda name: fake(name.removeprefix("benchmarks.")))
    return calls


def test_all_figures_are_measured_and_written(modules, tmp_path, capsys):
    main(["--quick", "--out", str(tmp_path / "results.json")])
    assert modules == {
        "refine": [True, {"device": "cpu"}], "train": [True, {"device": "cpu"}], "features": [True, {}],
        "end_to_end": [True, {}], "reading": [True, {}],
    }  # fmt: skip
    written = json.loads((tmp_path / "results.json").read_text())
    assert [row["figure"] for row in written] == list(run.MODULES)
    assert all(set(row) == KEYS for row in written)
    assert Figure(**written[0]) == dataclasses.replace(FIGURE, figure="refine")
    assert "5 of 5 requirements met" in " ".join(capsys.readouterr().out.split())
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]


def test_some_figures(modules, tmp_path):
    main(["--only", "train", "--out", str(tmp_path / "r.json")])
    assert modules == {"train": [False, {"device": "cpu"}]}


def test_what_is_not_measured_again_is_kept(modules, tmp_path):
    out = tmp_path / "r.json"
    main(["--only", "reading", "refine", "--out", str(out)])
    before = json.loads(out.read_text())
    assert [row["figure"] for row in before] == ["refine", "reading"]
    out.write_text(json.dumps([{**row, "ratio": 1.0} for row in before] + [{**before[0], "device": "cuda"}]))
    main(["--only", "train", "refine", "--out", str(out)])
    after = [(row["figure"], row["device"], row["ratio"]) for row in json.loads(out.read_text())]
    assert sorted(after) == [
        ("reading", "cpu", 1.0), ("refine", "cpu", 40.0), ("refine", "cuda", 40.0), ("train", "cpu", 40.0),
    ]  # fmt: skip
    assert [name for name, _, _ in after] == ["refine", "refine", "train", "reading"]
    main(["--out", str(out)])
    assert len(json.loads(out.read_text())) == 5


def test_a_failure_leaves_the_results_as_they_were(modules, tmp_path, monkeypatch):
    out = tmp_path / "results.json"
    out.write_text("before")

    def broken(name):
        raise RuntimeError("inaccurate")

    monkeypatch.setattr(run.importlib, "import_module", broken)
    with pytest.raises(RuntimeError):
        main(["--out", str(out)])
    assert out.read_text() == "before"


def test_a_gpu_that_is_not_there_is_refused(monkeypatch, capsys):
    monkeypatch.setattr(run.torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        main(["--device", "cuda"])
    assert "torch finds no GPU" in capsys.readouterr().err


def test_the_table_fits_a_terminal_of_100_columns():
    missed = dataclasses.replace(
        FIGURE, ratio=29.9, figure="posterior on a grid; plain: 64 x 2,048 rows", rows=131072, plain_seconds=1105.2
    )
    free = dataclasses.replace(FIGURE, required=None, ratio=1234.5, ratio_low=1000.4, ratio_high=2000.0)
    named = dataclasses.replace(
        FIGURE, figure="features, share of the matrix rate", network="qwen3-256x8 bfloat16, flat"
    )
    console = Console(width=100, record=True, color_system=None)
    console.print(table([FIGURE, missed, free, named]), caption([FIGURE, missed, free]))
    lines = console.export_text().splitlines()
    assert max(len(line) for line in lines) <= 100
    text = "\n".join(lines)
    assert "40.0 [38.1, 41.9]" in text and "1,234 [1,000, 2,000]" in text and "131,072  1,105.2 s" in text
    assert "20.0 s" in text and "500.0 ms" in text and "1 of 2 requirements met" in " ".join(text.split())
    assert "…" not in text and "30 met" in text and "30 MISSED" in text


def test_numbers_as_they_are_said():
    assert [duration(t) for t in (123.456, 1.234, 0.0123456, 0.5, 45.6e-6)] == [
        "123.5 s", "1.23 s", "12.3 ms", "500.0 ms", "46 µs",
    ]  # fmt: skip
    near_one = dataclasses.replace(FIGURE, ratio=0.9812, ratio_low=0.97, ratio_high=1.0, required=0.98)
    assert spread(near_one) == "0.981 [0.970, 1.000]"
    assert [met(f) for f in (near_one, dataclasses.replace(near_one, required=0.99))] == ["yes", "no"]
    assert met(dataclasses.replace(near_one, required=None)) == ""
