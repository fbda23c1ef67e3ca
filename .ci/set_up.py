"""Makes the environment `make` runs in, or brings it up to date: `python .ci/set_up.py .venv [unusable]`.

The file `setting-up` is in the environment from before anything else until the end, when it is renamed `ready`. So a
set-up that was cut short at any point is known by it, and is thrown away rather than mended: a killed pip can leave
packages that look installed and are not whole.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from pathlib import Path

SOURCES = [Path("pyproject.toml"), Path("constraints.txt")]


def main(venv: Path, unusable: bool) -> None:
    setting_up, ready = venv / "setting-up", venv / "ready"
    with open("constraints.txt", "rb") as lock:
        if waited_for(lock) and is_done(ready):
            return
        if unusable:
            discard(venv, ours=setting_up.exists() or ready.exists())
            print(f"Making {venv} with {sys.executable} ({sys.version.split()[0]}).", flush=True)
            venv.mkdir()
            setting_up.write_text(os.getcwd())
            run(lock, sys.executable, "-m", "venv", str(venv))
            print("Installing the versions in constraints.txt: a few minutes, 2 GB or more on disk.", flush=True)
        else:
            print(f"Bringing {venv} up to date.", flush=True)
            os.replace(ready, setting_up)
            os.utime(setting_up)
        pip = (str(venv / "bin" / "python"), "-m", "pip", "install", "-qq", "-c", "constraints.txt")
        run(lock, *pip, "hatchling", "editables")
        run(lock, *pip, "--no-build-isolation", "-e", ".[demo,dev,ray,serve,trl]")
        os.replace(setting_up, ready)


def waited_for(lock) -> bool:
    """Take the lock, which lasts until this process and those it started have ended; say whether it had to wait."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print("Waiting for another set-up of this environment to end.", flush=True)
        fcntl.flock(lock, fcntl.LOCK_EX)
        return True
    except OSError:
        pass  # a file system without locks
    return False


def is_done(ready: Path) -> bool:
    return ready.exists() and all(ready.stat().st_mtime >= source.stat().st_mtime for source in SOURCES)


def discard(venv: Path, ours: bool) -> None:
    """Remove an environment of ours; move one that somebody else made, with whatever is in it, out of the way."""
    trash = venv.with_name(f"{venv.name}-discarded")  # a rename first: a removal that is cut short leaves no half
    shutil.rmtree(trash, ignore_errors=True)
    if not (venv.exists() or venv.is_symlink()):
        return
    if ours or (venv.is_dir() and not any(venv.iterdir())):
        os.replace(venv, trash)
        shutil.rmtree(trash)
        return
    number = next(n for n in range(1, 10**6) if not venv.with_name(f"{venv.name}-{n}").exists())
    os.replace(venv, venv.with_name(f"{venv.name}-{number}"))
    print(f"There was a {venv} that make had not finished or not made: it is now {venv}-{number}.", flush=True)


def run(lock, *command: str) -> None:
    environment = os.environ | {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INPUT": "1", "PIP_USER": "0"}
    # The children hold the lock too: if this process alone is killed, the next set-up waits for its pip to end.
    result = subprocess.run(command, env=environment, pass_fds=(lock.fileno(),))
    if result.returncode:
        sys.exit(
            f"Setting up {sys.argv[1]} failed in: {' '.join(command)}\n"
            "The cause is above. The next make starts it afresh."
        )


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]), unusable=len(sys.argv) > 2)
    except KeyboardInterrupt:
        sys.exit("Stopped. The next make starts the set-up afresh.")
