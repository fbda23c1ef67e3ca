"""Makes the environment `make` runs in, or brings it up to date: `python .ci/set_up.py .venv demo|all [unusable]`.

There are two stages: `demo` has what the demonstration needs, `all` also what tests, linters and the extras need. A
stage that came to its end has its mark, `ready-demo` or `ready` (which implies the other). The file `setting-up` is in
the environment, and neither mark, from before anything else until the end. So a set-up that was cut short at any point
is known by it, and is thrown away rather than mended: a killed pip can leave packages that look installed and are not
whole.
"""

from __future__ import annotations

import collections
import fcntl
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

SOURCES = [Path("pyproject.toml"), Path("constraints.txt")]
MARKS = {"demo": "ready-demo", "all": "ready"}
EXTRAS = {"demo": "demo", "all": "demo,dev,judges,ray,references,serve,trl"}
ABOUT = {
    "demo": "what the demonstration needs, about 1.5 GB on disk; `make test` adds the rest",
    "all": "everything, about 2.6 GB on disk",
}
COMPILE = "import compileall, sys; compileall.compile_dir(sys.argv[1], maxlevels=30, quiet=2, workers=0)"
#: Seconds between the lines that say how far it is, where there is no terminal.
BETWEEN_LINES = 15


def main(venv: Path, stage: str, unusable: bool) -> None:
    setting_up, ready = venv / "setting-up", venv / MARKS[stage]
    marks = [venv / name for name in MARKS.values()]
    with open("constraints.txt", "rb") as lock:
        if waited_for(lock) and is_done(ready):
            return
        # Another stage may have been made since make looked.
        if unusable and not setting_up.exists() and any(map(is_done, marks)):
            unusable = version_of(venv) != sys.version
        if not unusable and stage == "demo" and is_done(venv / MARKS["all"]):
            ready.write_text(os.getcwd())
            return
        if unusable:
            discard(venv, ours=any(path.exists() for path in [setting_up, *marks]))
            print(f"Making {venv} with {sys.executable} ({sys.version.split()[0]}).", flush=True)
            venv.mkdir()
            setting_up.write_text(os.getcwd())
            run(lock, sys.executable, "-m", "venv", str(venv))
        else:
            print(f"Bringing {venv} up to date.", flush=True)
            os.replace(next(mark for mark in marks if mark.exists()), setting_up)
            for mark in marks:
                mark.unlink(missing_ok=True)
        print(f"Installing the versions in constraints.txt: {ABOUT[stage]}. It takes minutes.", flush=True)
        python = str(venv / "bin" / "python")
        # pip would compile modules one after the other, which takes longer than all the rest.
        pip = (python, "-m", "pip", "install", "--no-compile", "--progress-bar", "off", "-c", "constraints.txt")
        run(lock, *pip, "-qq", "hatchling", "editables")
        run(lock, *pip, "--no-build-isolation", "-e", f".[{EXTRAS[stage]}]", packages=venv)
        if stage == "all":
            # Before tests, under which a warning of a compiler is a failure; the demonstration compiles what it uses.
            print("Compiling modules.", flush=True)
            run(lock, python, "-W", "ignore", "-c", COMPILE, str(venv / "lib"))
        for mark in marks[: marks.index(ready)]:
            mark.write_text(os.getcwd())
        setting_up.write_text(os.getcwd())
        os.replace(setting_up, ready)


def version_of(venv: Path) -> str:
    """The version of the environment's Python; "" where it does not run."""
    try:
        command = [str(venv / "bin" / "python"), "-c", "import sys; print(sys.version)"]
        return subprocess.run(command, capture_output=True, text=True).stdout.removesuffix("\n")
    except OSError:
        return ""


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


def run(lock, *command: str, packages: Path | None = None) -> None:
    """Run a command; of a pip that installs `packages` into an environment, show how far it is."""
    environment = os.environ | {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INPUT": "1", "PIP_USER": "0"}
    said: collections.deque[str] = collections.deque(maxlen=20)
    # The children hold the lock too: if this process alone is killed, the next set-up waits for its pip to end.
    with subprocess.Popen(
        command, env=environment, pass_fds=(lock.fileno(),), text=True, errors="replace",
        stdout=None if packages is None else subprocess.PIPE, stderr=None if packages is None else subprocess.STDOUT,
    ) as process:  # fmt: skip
        if packages is not None:
            watch(process, packages, said)
    if process.returncode:
        sys.exit(
            "".join(said) + f"Setting up {sys.argv[1]} failed in: {' '.join(command)}\n"
            "The cause is above. The next make starts it afresh."
        )


def watch(process: subprocess.Popen[str], venv: Path, said: collections.deque[str]) -> None:
    """Say how far pip is until it ends: one line that changes on a terminal, a line now and then elsewhere."""
    # pip names what it installs once, at the beginning; a package that is installed has its folder of metadata.
    state: dict[str, object] = {"found": 0, "name": "", "installing": 0}

    def read() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            said.append(line)
            if found := re.match(r"\s*(?:Collecting|Requirement already satisfied:) ([\w.-]+)", line):
                state["found"], state["name"] = int(str(state["found"])) + 1, found[1]
            if line.startswith("Installing collected packages:"):
                state["installing"] = line.count(",") + 1

    def installed() -> set[str]:
        return {path.name for path in venv.glob("lib/python*/site-packages/*.dist-info")}

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    terminal, before, spoke = sys.stdout.isatty(), installed(), time.monotonic()
    while process.poll() is None:
        time.sleep(0.2)
        if not terminal and time.monotonic() - spoke < BETWEEN_LINES:
            continue
        spoke = time.monotonic()
        line = f"  finding and downloading: {state['found']} packages so far ({state['name']})"
        if total := state["installing"]:
            new = installed() - before
            line = f"  installing: {min(len(new), int(str(total)))} of {total} packages"
        if terminal:
            print(f"\r{line[:78]:<78}", end="", flush=True)
        else:
            print(line, flush=True)
    reader.join()
    if terminal:
        print(f"\r{'':<78}\r", end="", flush=True)


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]), sys.argv[2], unusable=len(sys.argv) > 3)
    except KeyboardInterrupt:
        sys.exit("Stopped. The next make starts the set-up afresh.")
