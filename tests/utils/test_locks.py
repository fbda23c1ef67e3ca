from __future__ import annotations

import errno
import fcntl
import os
import threading
from pathlib import Path

import pytest

from ebrm.errors import DataError
from ebrm.utils.files import atomic_path, is_stale
from ebrm.utils.locks import lock_beside, locked
from ebrm.utils.outputs import tidy


def test_a_lock_is_held_once_in_threads_as_in_processes_and_leaves_nothing(tmp_path: Path) -> None:
    path = lock_beside(tmp_path / "deep" / "out.jsonl")
    refused = []

    def try_it() -> None:
        try:
            with locked(path, "out.jsonl"):
                pass
        except DataError as error:
            refused.append(str(error))

    with locked(path, "out.jsonl"):
        thread = threading.Thread(target=try_it)
        thread.start()
        thread.join()
        assert len(refused) == 1 and f"process {os.getpid()} on" in refused[0]
    assert not list(tmp_path.iterdir())
    with locked(path, "out.jsonl"):
        path.write_text("no JSON")
        try_it()
    assert "Another run is writing out.jsonl. Wait" in refused[1]


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_an_error_that_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def flock(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(DataError, match="has no file locks .*another file system"), locked(tmp_path / ".lock", "m"):
        pass
    with atomic_path(tmp_path / "file") as partial:  # which needs none
        partial.write_text("whole")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_only_what_a_dead_process_left_is_tidied_up(tmp_path: Path) -> None:
    dead, kept = 4194305, [f".out.{os.getpid()}.partial", ".out.partial", ".out.x.partial", f".out.{2**40}.partial"]
    for name in (*kept, f".out.{dead}.partial", f".other.{dead}.partial"):
        (tmp_path / name).touch()
    (tmp_path / f".out.d.{dead}.partial").mkdir()
    elsewhere = tmp_path / f".out.{dead + 1}.partial"
    with open(elsewhere, "w", encoding="utf-8") as handle:  # of another machine, whose processes have other numbers
        fcntl.flock(handle, fcntl.LOCK_SH)
        tidy(tmp_path, "out")
        assert {path.name for path in tmp_path.iterdir()} == {*kept, elsewhere.name, f".other.{dead}.partial"}
    assert is_stale(elsewhere)
