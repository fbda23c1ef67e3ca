"""What a fit may replace, what becomes of what was there, and who may write where at a time."""

from __future__ import annotations

import json
import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.terminal import Ran, ebrm, preference_rows, refused, snapshot, write_lines

from ebrm.cli import work
from ebrm.errors import DataError
from ebrm.model import EnergyRewardModel
from ebrm.utils.files import is_stale
from ebrm.utils.locks import lock_beside, locked


@pytest.fixture(autouse=True)
def plain_report(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ebrm.report.write_report", lambda path, data: path.write_text("a report"))


@pytest.fixture(scope="module")
def residual(features: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("residual") / "m"
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("ebrm.report.write_report", lambda path, data: path.write_text("a report"))
        assert fit(features, out).code == 0
    return out


def fit(features: Path, out: object, *more: object) -> Ran:
    return ebrm("fit", "--features", features, "--out", out, "-q", *more)


def untouched(folder: Path, run: Callable[[], Ran], *words: str) -> None:
    before = snapshot(folder)
    refused(run(), *words)
    assert snapshot(folder) == before


def test_a_fit_never_replaces_a_folder_that_is_not_a_model(
    rm: Path, pairs: Path, features: Path, residual: Path, tmp_path: Path
) -> None:
    mine = shutil.copytree(rm, tmp_path / "rm")
    read = ("--backbone", mine, "--data", pairs)
    untouched(tmp_path, lambda: ebrm("fit", *read, "--out", mine, "--overwrite"), "`--backbone` is")
    untouched(tmp_path, lambda: fit(features, mine, "--overwrite"), "does not hold a model")
    (other := tmp_path / "other").mkdir()
    for text in ("{}", "[]", "no JSON", '{"format": "another"}', '{"format": "ebrm-model-3", "own_tokenizer": true}'):
        (other / "config.json").write_text(text)
        untouched(tmp_path, lambda: fit(features, other, "--overwrite"), "does not hold a model")
    with pytest.raises(Exception, match="another model's config"):
        EnergyRewardModel.from_pretrained(residual).save_pretrained(mine)
    assert snapshot(mine) == snapshot(rm)


def test_what_a_fit_reads_is_never_replaced_by_it(
    rm: Path, pairs: Path, features: Path, residual: Path, tmp_path: Path
) -> None:
    out = shutil.copytree(residual, tmp_path / "m")
    inside = {"rm": rm, "features": features, "keep": features}
    for name, source in inside.items():
        shutil.copytree(source, out / name)
    shutil.copy(pairs, out / "pairs.jsonl")
    (tmp_path / "way").symlink_to(out, target_is_directory=True)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "linked.jsonl").symlink_to(out / "pairs.jsonl")
    (tmp_path / "plain.jsonl").write_bytes(pairs.read_bytes())
    texts, names = ("--backbone", rm), ("--data", pairs)
    for read, words in (
        (("--features", out / "features"), "`--features` is"),
        (("--features", tmp_path / "way" / "features"), "`--features` is"),
        (("--features", features, "--keep", out / "keep"), "`--keep` is"),
        (("--backbone", out / "rm", *names), "`--backbone` is"),
        ((*texts, "--base", out / "rm", *names), "`--base` is"),
        ((*texts, "--data", out / "pairs.jsonl"), "`--data` is"),
        ((*texts, "--data", tmp_path / "plain.jsonl", "--data", tmp_path / "m" / "p*.jsonl"), "`--data` is"),
        ((*texts, "--data", tmp_path / "data"), "`--data` is"),
        ((*texts, "--data", tmp_path), "part of what is read"),
    ):
        for place in (out, tmp_path / "way"):
            untouched(tmp_path, lambda: ebrm("fit", *read, "--out", place, "--overwrite"), words, "another name")  # noqa: B023


def test_own_files_in_a_model_folder_stay_and_are_counted(features: Path, residual: Path, tmp_path: Path) -> None:
    out = shutil.copytree(residual, tmp_path / "m")
    (out / "notes.txt").write_text("mine")
    (out / "deep").mkdir()
    (out / "deep" / "more").write_text("mine too")
    (out / ".config.json.4194305.partial").write_text("half")
    ran = ebrm("fit", "--features", features, "--out", out, "--seed", 7, "--overwrite")
    assert ran.code == 0, ran.err
    assert "2 files and folders of yours" in ran.err and "deep, notes.txt" in ran.err
    after = snapshot(out)
    assert after.pop("notes.txt") == b"mine" and after.pop("deep/more") == b"mine too"
    assert set(after) == set(snapshot(residual)) and after["config.json"] != snapshot(residual)["config.json"]
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_places_that_cannot_be_replaced_are_refused_in_a_paragraph(
    features: Path, residual: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = shutil.copytree(residual, tmp_path / "m")
    (here / "sub").mkdir()
    (tmp_path / "round").symlink_to("round")
    monkeypatch.chdir(here / "sub")
    for place, words in (
        (".", "that this command runs in"),
        ("", "that this command runs in"),
        ("..", "holds the folder that this command runs in"),
        ("/", "holds the folder that this command runs in"),
        ("/proc", "mount point"),
        (tmp_path / "round", "circle of links"),
        (tmp_path / ".m.work", "unfinished work"),
        (tmp_path / ".m.work" / "features" / "x", "unfinished work"),
    ):
        for more in ((), ("--overwrite",)):
            untouched(tmp_path, lambda: fit(features, place, *more), "--out is", words)  # noqa: B023


def test_a_link_to_a_model_stays_a_link(features: Path, residual: Path, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    shutil.copytree(residual, tmp_path / "disk" / "m")
    (tmp_path / "m").symlink_to(tmp_path / "disk" / "m", target_is_directory=True)
    assert fit(features, tmp_path / "m", "--seed", 7, "--overwrite").code == 0
    assert (tmp_path / "m").is_symlink() and [path.name for path in (tmp_path / "disk").iterdir()] == ["m"]
    assert EnergyRewardModel.from_pretrained(tmp_path / "disk" / "m").record.fit.seed == 7


def test_a_fit_that_is_done_is_said_to_be_and_one_with_other_data_is_not(
    rm: Path, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "d.jsonl"
    data.write_bytes(pairs.read_bytes())
    command = ("fit", "--backbone", rm, "--data", data, "--out", tmp_path / "m", "--risk", 0.4)
    first = ebrm(*command)
    assert first.code == 0, first.err
    before = snapshot(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr("ebrm.fitting.fit", None)
        again = ebrm(*command, "--device", "cpu")
    assert (again.code, again.out) == (0, first.out) and "complete already" in again.err
    assert snapshot(tmp_path) == before
    refused(ebrm(*command, "--limit", 20), "--limit was unset and is 20", "--overwrite")
    refused(ebrm(*command[:-1], 0.3), "--risk was 0.4 and is 0.3")
    write_lines(data, preference_rows(60, seed=9))
    refused(ebrm(*command), "--data has other contents")


def test_a_fit_that_another_run_makes_is_refused_by_its_name(features: Path, tmp_path: Path) -> None:
    out = tmp_path / "m"
    with locked(lock_beside(out), "m"):
        owner = json.loads(lock_beside(out).read_text())
        assert owner["pid"] == os.getpid() and owner["host"] == socket.gethostname() and owner["command"]
        ran = fit(features, tmp_path / "." / "m", "--overwrite", "--restart")
        refused(ran, "Another run is writing", str(owner["pid"]), owner["host"], owner["since"], owner["command"])
    lock_beside(out).write_text(json.dumps(owner))  # of a run that was killed
    assert fit(features, out).code == 0
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def steps(out: Path, kill_at: int) -> bool:
    """Put a model in its place in a process that dies before its rename number `kill_at`; whether it died."""
    if (process := os.fork()) == 0:
        count = 0
        real = Path.rename

        def rename(path: Path, target: Any) -> Any:
            nonlocal count
            count += 1
            if count == kill_at:
                os._exit(9)
            return real(path, target)

        code = 1
        try:
            Path.rename = rename  # type: ignore[method-assign,assignment]
            with work.model_place(str(out)) as (place, ended):
                if not ended:
                    work.put_in_place(work.work_of(place), place, True)
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 9


@pytest.mark.parametrize("before", ["nothing", "a model"])
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_killed_between_any_two_renames_the_next_run_ends_with_the_new_model(tmp_path: Path, before: str) -> None:
    config = json.dumps({"format": "ebrm-model-3"})
    for kill_at in range(1, 20):
        out = tmp_path / str(kill_at) / "m"
        made = work.work_of(out) / "model"
        made.mkdir(parents=True)
        (made / "config.json").write_text(config + " ")
        (work.work_of(out) / "features").mkdir()
        if before == "a model":
            out.mkdir()
            for name, text in (("config.json", config), ("mine", "mine"), ("own", "own"), ("report.html", "old")):
                (out / name).write_text(text)
        killed = steps(out, kill_at)
        assert not steps(out, 0)
        expected = {"config.json": config + " "} | ({"mine": "mine", "own": "own"} if before == "a model" else {})
        assert {path.name: path.read_text() for path in out.iterdir()} == expected
        left = [path for path in out.parent.iterdir() if path != out]
        assert all(is_stale(path) for path in left) and len(left) <= 1  # a killed process cannot tidy up after itself
        if not killed:
            assert kill_at > 3 and not left
            return
    raise AssertionError("it never ended")


def test_without_a_new_model_the_old_one_comes_back(tmp_path: Path) -> None:
    old = tmp_path / ".m.work" / "old"
    old.mkdir(parents=True)
    (old / "config.json").write_text("{}")
    with pytest.raises(DataError), work.model_place(str(tmp_path / "m")) as (out, _):
        work.check_out(out, overwrite=False)
    assert (tmp_path / "m" / "config.json").exists() and not old.exists()
