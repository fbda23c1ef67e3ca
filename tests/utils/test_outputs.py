"""Results of several files: what they replace, what stays, and what a kill leaves."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from tests.terminal import snapshot

from ebrm.errors import DataError
from ebrm.utils.locks import locked
from ebrm.utils.outputs import Inputs, results_folder

NAMES = ("results.json", "table.md")


def results(out: Path, text: str = "a table", by: str = "compare", inputs: Inputs | None = None, **more: bool) -> None:
    with results_folder(out, by, NAMES, inputs or {}, **more) as new:
        (new / "sub").mkdir()
        for name in ("table.md", "sub/rows.csv"):
            (new / name).write_text(text)
        (new / "results.json").write_text(json.dumps({"said": text}))


def untouched(folder: Path, match: str, out: Path, **more: Inputs) -> None:
    before = snapshot(folder)
    with pytest.raises(DataError, match=match):
        results(out, "new", **more)
    assert snapshot(folder) == before and not (out / ".work").exists()


def test_results_are_replaced_by_later_ones_and_other_files_stay(tmp_path: Path) -> None:
    results(tmp_path / "out")
    (tmp_path / "out" / "notes.txt").write_text("mine")
    for text in ("another table", "another table"):
        results(tmp_path / "out", text)
    after = snapshot(tmp_path / "out")
    assert set(after) == {"results.json", "table.md", "sub/rows.csv", "notes.txt"}
    assert after["table.md"] == b"another table" and json.loads(after["results.json"])["format"] == "ebrm-compare-1"


@pytest.mark.parametrize("name", ["results.json", "table.md", "sub/rows.csv"])
@pytest.mark.parametrize("written", [False, True])
def test_what_ebrm_did_not_write_or_was_changed_since_is_not_replaced(tmp_path: Path, name: str, written: bool) -> None:
    out = tmp_path / "out"
    out.mkdir()
    if written:
        results(out)
    (out / name).parent.mkdir(exist_ok=True)
    (out / name).write_text("[]")
    untouched(tmp_path, f"holds .*{name}.* did not write.*overwrite", out)
    results(out, "new", overwrite=True)
    assert (out / "table.md").read_text() == "new"


def test_results_of_another_command_and_folders_are_not_replaced(tmp_path: Path) -> None:
    results(tmp_path / "out", by="best-of-n")
    untouched(tmp_path, "results.json and table.md that `ebrm compare` did not write", tmp_path / "out")
    (tmp_path / "other" / "table.md").mkdir(parents=True)
    with pytest.raises(DataError, match="holds table.md"):
        results(tmp_path / "other", overwrite=True)


def test_what_is_read_is_not_overwritten_under_any_name(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (tmp_path / "mine.md").write_text("mine")
    os.link(tmp_path / "mine.md", out / "table.md")
    for given in (tmp_path / "mine.md", out, tmp_path, [str(tmp_path / "m*.md")], str(out / "t*")):
        with pytest.raises(DataError, match=r"FEATURES is .*the same file"):
            results(out, inputs={"FEATURES": given}, overwrite=True)
    assert snapshot(tmp_path) == {"mine.md": b"mine", "out/table.md": b"mine"}


def test_one_run_at_a_time_writes_results(tmp_path: Path) -> None:
    other = pytest.raises(DataError, match=rf"Another run is writing .*process {os.getpid()}")
    with locked(tmp_path / "out" / ".lock", "out"), other:
        results(tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_killed_while_files_are_moved_the_next_run_knows_them_for_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = tmp_path / "expected"
    results(expected, "new")
    for kill_at in range(1, 12):
        out = tmp_path / str(kill_at)
        results(out, "old")
        if (process := os.fork()) == 0:
            count, real = 0, os.replace

            def replace(one: Path, other: Path) -> None:
                nonlocal count
                count += 1
                if count == kill_at:  # noqa: B023 - in a process of its own
                    os._exit(9)
                real(one, other)  # noqa: B023

            code = 1
            try:
                os.replace = replace  # type: ignore[assignment]
                results(out, "new")
                code = 0
            finally:
                os._exit(code)
        killed = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 9
        results(out, "new")
        assert snapshot(out) == snapshot(expected)
        if not killed:
            assert kill_at > 4
            return
    raise AssertionError("it never ended")
