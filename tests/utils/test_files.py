"""Files are whole or not there."""

from __future__ import annotations

import errno
import hashlib
import importlib
import json
import os
from pathlib import Path

import pytest

from ebrm.utils import files
from ebrm.utils.files import atomic_path, sha256_file, sha256_json, system_error, write_json, write_text


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    write_text(target, "old")
    with pytest.raises(RuntimeError), atomic_path(target) as partial:
        partial.write_text("half")
        raise RuntimeError
    assert target.read_text() == "old" and os.listdir(tmp_path) == ["a.txt"]


def test_nothing_is_at_the_final_name_until_the_body_ends(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "a.txt"
    with atomic_path(target) as partial:
        partial.write_text("new")
        assert not target.exists() and partial.parent == target.parent
    assert target.read_text() == "new" and os.listdir(target.parent) == ["a.txt"]


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_the_file_has_the_mode_of_the_umask_of_that_moment(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        with atomic_path(tmp_path / "made") as partial:
            partial.write_text("x")
            partial.chmod(0o600)
    finally:
        os.umask(before)
    assert (tmp_path / "made").stat().st_mode & 0o777 == 0o666 & ~mask


def test_the_umask_is_never_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "umask", lambda mask: pytest.fail("another thread would write with this mask"))
    importlib.reload(files)
    files.write_text(tmp_path / "made", "x")


def test_json_is_stable_and_refuses_nan(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"b": 1, "a": "é"})
    assert (tmp_path / "a.json").read_text(encoding="utf-8") == '{\n  "a": "é",\n  "b": 1\n}\n'
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {"a": "é", "b": 1}
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", {"a": float("nan")})
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {"a": "é", "b": 1}


def test_hashes(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert sha256_file(tmp_path / "a") == hashlib.sha256(b"abc").hexdigest()
    assert sha256_json({"a": 1, "b": 2}) == sha256_json({"b": 2, "a": 1})
    assert sha256_json({"a": 1}) != sha256_json({"a": "1"})
    assert sha256_json({"a": "é"}) == hashlib.sha256('{"a":"é"}'.encode()).hexdigest()


@pytest.mark.parametrize(
    "raised",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("I/O error: No space left on device (os error 28)"),
        RuntimeError('Error while serializing: IoError(Os { code: 28, kind: StorageFull, message: "No space" })'),
    ],
)  # fmt: skip
def test_a_full_disk_names_the_file_whatever_library_says_it(tmp_path: Path, raised: Exception) -> None:
    with pytest.raises(OSError) as found, atomic_path(tmp_path / "a.bin"):
        raise raised
    assert (found.value.errno, found.value.filename) == (errno.ENOSPC, str(tmp_path / "a.bin"))
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_seen_behind_another_error_and_a_defect_is_not() -> None:
    behind, defect = RuntimeError("could not draw"), ValueError("list index")
    behind.__cause__ = OSError(errno.EROFS, "Read-only file system", "/mnt/a")
    defect.__context__ = FileNotFoundError(errno.ENOENT, "No such file", "/mnt/b")
    assert system_error(behind) == (errno.EROFS, "/mnt/a")
    assert system_error(defect) == (0, "")
