"""Writing files so that a reader never sees half of one: a temporary name first, then a rename."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

#: The one file with what differs from run to run: seconds. All others have the same bytes for the same input.
TIMING = "timing.json"
# What a full, failing or read-only disk says: the same behind another library's exception.
_OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EFBIG)


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success flush it to disk and rename it over `path`.

    If the body raises, the temporary file is removed and `path` is left as it was. A process killed in the body
    leaves a file named `.<name>.<pid>.partial`, which no reader here takes for a finished one (:func:`is_stale`). The
    file has the mode that the umask gives new files, whatever mode the body sets.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    file = -1
    try:
        partial.unlink(missing_ok=True)
        # The kernel applies the umask; Python could only read it by setting it, for all threads of the process.
        file = os.open(partial, os.O_CREAT | os.O_WRONLY, 0o666)
        mode = stat.S_IMODE(os.fstat(file).st_mode)
        with suppress(OSError):  # there need not be locks here
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        yield partial
        with open(partial, "rb") as handle:
            os.fsync(handle.fileno())
        partial.chmod(mode)  # some writers make files that only their owner can read
        os.replace(partial, path)
    except Exception as error:
        number, place = system_error(error)
        if number and place in ("", str(partial)):  # writers do not say which file did not fit on the disk
            raise OSError(number, os.strerror(number), str(path)) from error
        raise
    finally:
        if file >= 0:
            os.close(file)
        partial.unlink(missing_ok=True)


def is_stale(partial: Path) -> bool:
    """Whether the process that was writing a `.<name>.<pid>.partial` has died.

    A process of this machine is known by its number; one of another machine holds a lock on the file.
    """
    number = partial.name.removesuffix(".partial").rpartition(".")[2]
    if not number.isdecimal():
        return False
    try:
        os.kill(int(number), 0)
        return False
    except ProcessLookupError:
        pass
    except (OSError, OverflowError):  # another user's; no number of a process
        return False
    if partial.is_dir():
        return True
    try:
        with open(partial, "rb") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def system_error(error: BaseException) -> tuple[int, str]:
    """(errno, path) of an error of the operating system, also behind another library's; (0, "") if it is none.

    safetensors and some writers in Rust and C++ report a failed write as their own exception, the number in its text.
    """
    link: BaseException | None = error
    seen: set[int] = set()
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        if isinstance(link, OSError) and link.errno is not None and (link is error or link.errno in _OF_THE_DISK):
            names = [str(name) for name in (link.filename, link.filename2) if name is not None]
            return link.errno, " -> ".join(names)
        if not isinstance(link, OSError | ValueError | TypeError | KeyError):
            found = re.search(r"os error (\d+)|Os \{ code: (\d+)|[Ee]rrno (\d+)", str(link))
            if found is not None:
                return int(next(group for group in found.groups() if group)), ""
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)
    return 0, ""


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    with atomic_path(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` as indented UTF-8 JSON with sorted keys, atomically; NaN and infinity are refused."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n")


def cache_folder() -> Path:
    """Where what can be made again is kept: EBRM_CACHE if it is set, else `ebrm` in the user's cache folder."""
    folder = os.environ.get("EBRM_CACHE")
    return Path(folder) if folder else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ebrm"


def changed(then: Any, now: Any, name: str = "") -> list[tuple[str, Any, Any]]:
    """Where two values of JSON differ: (dotted name, then, now), None for what one side does not have."""
    if not (then and now and isinstance(then, dict) and isinstance(now, dict)):
        return [] if then == now else [(name, then, now)]
    keys = dict.fromkeys([*then, *now])
    inner = (changed(then.get(key), now.get(key), f"{name}.{key}" if name else str(key)) for key in keys)
    return [one for found in inner for one in found]


def sha256_file(path: str | Path) -> str:
    """SHA-256 of a file's bytes, as 64 hexadecimal digits."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def sha256_json(value: Any) -> str:
    """SHA-256 of a value's canonical JSON (sorted keys, no spaces, UTF-8), as 64 hexadecimal digits."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
