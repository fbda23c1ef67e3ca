"""Locks: one run at a time writes an output, and another is told which run that is.

A lock is that of the operating system (flock) on a small file beside or in the output, which names its owner and goes
with the run. The system frees the lock of a process that has died, so a file left by one stands in nobody's way.
"""

from __future__ import annotations

import errno
import json
import os
import shlex
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ebrm.errors import DataError, EBRMError

#: What a file system answers that has no such locks.
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL)
_TRIES = 5
_COMMAND = 300


def lock_beside(out: Path) -> Path:
    """The lock file of an output that is replaced as a whole: `.NAME.lock` in the same folder."""
    return out.with_name(f".{out.name}.lock")


@contextmanager
def locked(path: Path, what: str, error: type[EBRMError] = DataError) -> Iterator[None]:
    """Hold the lock file `path` while the body runs; folders made for it go again where they are empty.

    Args:
        path: the lock file; its folder is made if it is not there.
        what: what is written, for the error.
        error: its type.

    Raises:
        EBRMError: another run holds it (in this process or another, also on another machine where the file system
            has locks across machines), or the file system has no locks. OSError: the file cannot be made.
    """
    made = [folder for folder in (path.parent, *path.parent.parents) if not folder.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        lock = _acquired(path, what, error)
        try:
            yield
        finally:
            # Unlinked while it is held: whoever opened this file meanwhile finds it unlinked and tries anew.
            path.unlink(missing_ok=True)
            lock.release()
    finally:
        with suppress(OSError):  # they hold something
            for folder in made:
                folder.rmdir()


def _acquired(path: Path, what: str, error: type[EBRMError]) -> FileLock:
    # A soft lock, which is a file that is there or not, would outlive its owner.
    lock = FileLock(path, timeout=0, fallback_to_soft=False, thread_local=False)
    for left in reversed(range(_TRIES)):
        try:
            lock.acquire()
        except Timeout:
            if left and not path.exists():  # its owner has just ended
                continue
            raise error(
                f"Another run is writing {what}{_owner(path)}. Wait until it has finished, or choose another name."
            ) from None
        except OSError as failed:
            if failed.errno not in _NO_LOCKS:
                raise
            path.unlink(missing_ok=True)
            raise error(
                f"{what} cannot be written: the file system of {path.parent} has no file locks "
                f"({os.strerror(failed.errno)}), and without them two runs could overwrite each other's work. Write to "
                "another file system and copy the result there."
            ) from None
        break
    with suppress(OSError):  # a full disk will be said of what matters more
        path.write_text(json.dumps(_this_run()) + "\n", encoding="utf-8")
    return lock


def _this_run() -> dict[str, Any]:
    command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]) if sys.argv else "python"
    since = time.strftime("%Y-%m-%d %H:%M:%S %z")
    return {"pid": os.getpid(), "host": socket.gethostname(), "since": since, "command": command[:_COMMAND]}


def _owner(path: Path) -> str:
    """Who holds a lock, as far as its file says."""
    try:
        run = json.loads(path.read_text(encoding="utf-8"))
        return f": process {run['pid']} on {run['host']}, since {run['since']} ({run['command']})"
    except (OSError, ValueError, RecursionError, KeyError, TypeError):
        return ""
