"""The recipe of rewards from log-probabilities: its run goes on where it stopped, and its page is what it makes."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
import torch
from tests.tiny import save_rm

FOLDER = Path(__file__).parents[2] / "recipes" / "logprobs"


def module(name: str) -> Iterator[ModuleType]:
    sys.path.insert(0, str(FOLDER))
    kept = sys.modules.pop(name, None)
    try:
        yield importlib.import_module(name)
    finally:
        sys.path.remove(str(FOLDER))
        sys.modules.pop(name, None)
        if kept is not None:
            sys.modules[name] = kept


@pytest.fixture(scope="module")
def page() -> Iterator[ModuleType]:
    yield from module("page")


@pytest.fixture(scope="module")
def run() -> Iterator[ModuleType]:
    yield from module("run")


def test_the_page_is_what_the_recipe_makes(page: ModuleType) -> None:
    text = page.PAGE.read_text(encoding="utf-8")
    assert page.filled(text, page.tables()) == text, "run recipes/logprobs/page.py"


def test_results_hold_numbers_and_no_texts(page: ModuleType) -> None:
    items = json.loads((page.RESULTS / "rewards.json").read_text(encoding="utf-8"))["items"]
    assert items
    for item in items:
        assert set(item) == {"key", "kind", "prompt", "rewards"} and len(item["prompt"]) == 12
        assert all(isinstance(value, float) for values in item["rewards"].values() for value in values.values())


def test_a_run_goes_on_where_it_stopped(
    run: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save_rm(tmp_path / "lm", "llama", "causal", max_position_embeddings=600)
    for name in ("train_mix", *run.SETS):
        made = [
            {"id": f"{name}-{i}", "source": run.QUESTIONS, "prompt": json.dumps([{"role": "user", "content": f"{i}?"}]),
             "chosen": f"It is {i}.", "rejected": "No."}
            for i in range(2)
        ]  # fmt: skip
        parquet.write_table(pa.Table.from_pylist(made), tmp_path / f"{name}.parquet")
    rewards = SimpleNamespace(
        read_texts=lambda prompt, texts, on_error: (SimpleNamespace(reward=torch.ones(len(texts))), ())
    )
    monkeypatch.setattr(run, "load_backbone", lambda name: rewards)
    monkeypatch.setattr(run.torch, "set_num_threads", lambda _: None)
    base = ["--data", str(tmp_path), "--model", str(tmp_path / "lm"), "--cache", str(tmp_path / "cache")]
    options = [*base, "--padded", "1", "--pairs", "1", "--out", str(tmp_path / "out")]
    run.main([*options, "--minutes", "-1"])
    assert "5 items are left" in capsys.readouterr().out
    run.main(options)
    first = (tmp_path / "out" / "rewards.json").read_text()
    assert "5/5" in capsys.readouterr().out and len(json.loads(first)["items"]) == 5
    file = tmp_path / "cache" / "rewards.jsonl"
    file.write_text(file.read_text()[:-30])
    run.main(options)
    assert "5 items, 4 of them done before" in capsys.readouterr().out
    assert (tmp_path / "out" / "rewards.json").read_text() == first
    with pytest.raises(SystemExit, match="is of another model or other texts"):
        run.main([*options, "--dtype", "bfloat16"])
