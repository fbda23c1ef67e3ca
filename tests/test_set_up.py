"""The set-up that `make` does: once, in place when a pin changed, afresh when it was cut short or cannot be used."""

from __future__ import annotations

import fcntl
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
NOTE = "calls.txt"

# Stands in for .ci/set_up.py under make: notes how it was called, and makes an environment that runs.
STAND_IN = f"""
import os, pathlib, sys
with open({NOTE!r}, "a") as note:
    note.write(" ".join(sys.argv[1:]) + "\\n")
venv = pathlib.Path(sys.argv[1])
(venv / "bin").mkdir(parents=True, exist_ok=True)
python = venv / "bin" / "python"
python.unlink(missing_ok=True)
python.symlink_to({sys.executable!r})
for mark in ["ready-demo", "ready"][: 1 + (sys.argv[2] == "all")]:
    (venv / mark).write_text(os.getcwd())
"""


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project with our Makefile and set-up, and nothing to install; the current directory."""
    folder = tmp_path / "a project"
    (folder / ".ci").mkdir(parents=True)
    shutil.copy(ROOT / "Makefile", folder)
    shutil.copy(ROOT / ".ci" / "set_up.py", folder / ".ci")
    for name in ("pyproject.toml", "constraints.txt"):
        (folder / name).touch()
        os.utime(folder / name, (1e9, 1e9))
    monkeypatch.chdir(folder)
    return folder


def make(*arguments: str, path: str | None = None) -> subprocess.CompletedProcess[str]:
    program = shutil.which("make")
    if program is None:
        pytest.skip("there is no make")
    inherited = {
        name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS", "PYTHON", "ARGS"))
    }
    environment = inherited | ({"PATH": path} if path is not None else {})
    return subprocess.run([program, *arguments], capture_output=True, text=True, env=environment)


def make_ready(*arguments: str, mark: str = "ready") -> list[str]:
    """Run make for the environment alone, with the stand-in; how the set-up was called."""
    Path(".ci/set_up.py").write_text(STAND_IN)
    Path(NOTE).unlink(missing_ok=True)
    run = make(f".venv/{mark}", f"PYTHON={sys.executable}", *arguments)
    assert run.returncode == 0, run.stderr
    return Path(NOTE).read_text().splitlines() if Path(NOTE).exists() else []


def test_make_sets_up_once(project):
    assert make_ready() == [".venv all unusable"]
    assert make_ready() == []


@pytest.mark.parametrize("name", ["pyproject.toml", "constraints.txt"])
def test_make_brings_up_to_date_in_place_when_a_source_changed(project, name):
    make_ready()
    os.utime(name, (4e9, 4e9))
    assert make_ready() == [".venv all"]


def test_make_starts_afresh_after_a_set_up_that_was_cut_short(project):
    make_ready()
    os.replace(".venv/ready", ".venv/setting-up")
    assert make_ready() == [".venv all unusable"]


def test_make_starts_afresh_after_a_move(project, monkeypatch):
    make_ready()
    moved = project.with_name("delta")
    project.rename(moved)
    monkeypatch.chdir(moved)
    assert make_ready() == [".venv all unusable"]


def test_make_starts_afresh_when_the_python_is_gone_or_another_is_asked_for(project):
    make_ready()
    Path(".venv/bin/python").unlink()
    assert make_ready() == [".venv all unusable"]
    Path(".venv/bin/python").unlink()
    Path(".venv/bin/python").write_text("#!/bin/sh\necho another version\n")
    Path(".venv/bin/python").chmod(0o755)
    assert make_ready() == [".venv all unusable"]


def test_make_says_which_pythons_will_not_do(project, tmp_path):
    programs = tmp_path / "programs"
    programs.mkdir()
    for name in ("sh", "cat", "tail"):
        (programs / name).symlink_to(shutil.which(name))
    (programs / "python3").write_text("#!/bin/sh\necho it is 3.9 >&2\nexit 1\n")
    (programs / "python3").chmod(0o755)
    run = make("test", path=str(programs))
    assert run.returncode == 2
    assert "ebrm needs Python 3.11 or newer" in run.stderr
    assert "  python3: it is 3.9\n" in run.stderr
    assert "python3.12: " in run.stderr and "not found" in run.stderr
    assert "make PYTHON=/path/to/python3" in run.stderr
    assert not Path(".venv").exists()


@pytest.fixture
def set_up_as_it_is(project):
    """Our set-up script as a module."""
    spec = importlib.util.spec_from_file_location("set_up", project / ".ci" / "set_up.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def set_up(set_up_as_it_is, monkeypatch):
    """The script; its commands are noted in `set_up.commands` and not run."""
    module = set_up_as_it_is
    module.commands = []
    monkeypatch.setattr(module, "run", lambda lock, *command, **_: module.commands.append(command))
    return module


VENV = Path(".venv")


def test_set_up_makes_the_environment_and_installs_the_pins(set_up, project):
    set_up.main(VENV, "all", unusable=True)
    made, backend, package, compiled = set_up.commands
    assert made == (sys.executable, "-m", "venv", ".venv")
    assert backend[:4] == package[:4] == (".venv/bin/python", "-m", "pip", "install")
    assert "-c constraints.txt" in " ".join(backend) and "-c constraints.txt" in " ".join(package)
    assert package[-2:] == ("-e", ".[demo,dev,judges,ray,references,serve,trl]")
    assert "--no-compile" in package and "compile_dir" in compiled[-2] and compiled[-1] == ".venv/lib"
    assert sorted(os.listdir(".venv")) == ["ready", "ready-demo"]
    assert (VENV / "ready").read_text() == str(project)


def test_the_demonstration_s_stage_leaves_the_rest_out_and_the_other_stage_adds_it(set_up, project):
    set_up.main(VENV, "demo", unusable=True)
    assert set_up.commands[-1][-2:] == ("-e", ".[demo]") and os.listdir(".venv") == ["ready-demo"]
    (VENV / "kept").touch()
    set_up.commands.clear()
    set_up.main(VENV, "all", unusable=False)
    assert [command[2] for command in set_up.commands] == ["pip", "pip", "ignore"]
    assert set_up.commands[1][-1] == ".[demo,dev,judges,ray,references,serve,trl]"
    assert sorted(os.listdir(".venv")) == ["kept", "ready", "ready-demo"]
    (VENV / "ready-demo").unlink()  # made by an earlier set-up
    set_up.commands.clear()
    set_up.main(VENV, "demo", unusable=False)
    assert set_up.commands == [] and (VENV / "ready-demo").read_text() == str(project)


def test_two_stages_in_one_make_do_not_throw_each_other_away(set_up, monkeypatch):
    set_up.main(VENV, "demo", unusable=True)
    (VENV / "kept").touch()
    monkeypatch.setattr(set_up, "version_of", lambda venv: sys.version)
    set_up.main(VENV, "all", unusable=True)  # make looked before the first stage
    assert sorted(os.listdir(".venv")) == ["kept", "ready", "ready-demo"]


def test_make_demo_sets_up_its_own_stage(project):
    assert make_ready(mark="ready-demo") == [".venv demo unusable"]
    assert make_ready(mark="ready-demo") == []
    assert make_ready() == [".venv all"]
    assert make_ready(mark="ready-demo") == make_ready() == []


PIP = """
import pathlib, sys, time
print("Collecting numpy>=2\\n  Downloading numpy", flush=True)
print("Installing collected packages: numpy, torch", flush=True)
(pathlib.Path(sys.argv[1]) / "lib/python3/site-packages/numpy-2.dist-info").mkdir(parents=True)
time.sleep(1)
print("ERROR: no space", flush=True)
sys.exit(int(sys.argv[2]))
"""


def test_how_far_pip_is_is_said_and_its_last_words_if_it_fails(set_up_as_it_is, monkeypatch, capfd):
    monkeypatch.setattr(set_up_as_it_is, "BETWEEN_LINES", 0.3)
    monkeypatch.setattr(sys, "argv", ["set_up.py", ".venv"])
    with open("constraints.txt", "rb") as lock:
        set_up_as_it_is.run(lock, sys.executable, "-c", PIP, str(VENV), "0", packages=VENV)
        assert "  installing: 1 of 2 packages\n" in capfd.readouterr().out
        shutil.rmtree(VENV)
        with pytest.raises(SystemExit, match="ERROR: no space\nSetting up .venv failed in: "):
            set_up_as_it_is.run(lock, sys.executable, "-c", PIP, str(VENV), "3", packages=VENV)


def test_an_update_keeps_the_environment(set_up):
    set_up.main(VENV, "all", unusable=True)
    (VENV / "kept").touch()
    os.utime(VENV / "ready", (1e9, 1e9))
    set_up.commands.clear()
    set_up.main(VENV, "all", unusable=False)
    assert [command[2] for command in set_up.commands] == ["pip", "pip", "ignore"]
    assert sorted(os.listdir(".venv")) == ["kept", "ready", "ready-demo"]
    assert (VENV / "ready").stat().st_mtime > 1e9


@pytest.mark.parametrize(("unusable", "step"), [(True, 0), (True, 3), (False, 0), (False, 2)])
def test_a_set_up_cut_short_at_any_step_is_not_ready(set_up, monkeypatch, unusable, step):
    set_up.main(VENV, "all", unusable=True)
    steps = iter(range(step + 1))

    def run(lock, *command, **_):
        if next(steps) == step:
            raise KeyboardInterrupt

    monkeypatch.setattr(set_up, "run", run)
    with pytest.raises(KeyboardInterrupt):
        set_up.main(VENV, "all", unusable)
    assert os.listdir(".venv") == ["setting-up"]
    monkeypatch.setattr(set_up, "run", lambda lock, *command, **_: None)
    (VENV / "half").touch()
    set_up.main(VENV, "all", unusable=True)
    assert sorted(os.listdir(".venv")) == ["ready", "ready-demo"]
    assert sorted(path.name for path in Path().glob(".venv*")) == [".venv"]


def test_an_environment_of_somebody_else_is_moved_not_removed(set_up, capsys):
    for content in ("first", "second"):
        shutil.rmtree(VENV, ignore_errors=True)
        VENV.mkdir()
        (VENV / content).touch()
        set_up.main(VENV, "all", unusable=True)
    assert os.listdir(".venv-1") == ["first"] and os.listdir(".venv-2") == ["second"]
    assert "it is now .venv-2" in capsys.readouterr().out


def test_what_a_removal_left_is_removed(set_up):
    (Path(".venv-discarded") / "lib").mkdir(parents=True)
    VENV.mkdir()
    set_up.main(VENV, "all", unusable=True)
    assert sorted(path.name for path in Path().glob(".venv*")) == [".venv"]


def test_a_second_set_up_waits_for_the_first_and_then_has_nothing_to_do(set_up, monkeypatch, capsys):
    taken = []

    def flock(lock, how):
        taken.append(how)
        if how & fcntl.LOCK_NB:
            raise BlockingIOError
        VENV.mkdir()  # the other one ends
        (VENV / "ready").write_text(os.getcwd())

    monkeypatch.setattr(set_up.fcntl, "flock", flock)
    set_up.main(VENV, "all", unusable=True)
    assert taken == [fcntl.LOCK_EX | fcntl.LOCK_NB, fcntl.LOCK_EX]
    assert set_up.commands == []
    assert "Waiting" in capsys.readouterr().out


def test_the_lock_is_held_by_what_the_set_up_starts(project):
    """If the set-up alone is killed, its pip goes on: nobody may start afresh beside it."""
    spec = importlib.util.spec_from_file_location("set_up", project / ".ci" / "set_up.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    code = "import fcntl, os, sys; fcntl.flock(int(sys.argv[1]), fcntl.LOCK_EX | fcntl.LOCK_NB)"
    with open("constraints.txt", "rb") as lock:
        assert not module.waited_for(lock)
        module.run(lock, sys.executable, "-c", code, str(lock.fileno()))


def test_a_failing_command_is_named(project, monkeypatch):
    spec = importlib.util.spec_from_file_location("set_up", project / ".ci" / "set_up.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(sys, "argv", ["set_up.py", ".venv"])
    with open("constraints.txt", "rb") as lock, pytest.raises(SystemExit, match="Setting up .venv failed in: .*raise"):
        module.run(lock, sys.executable, "-c", "raise SystemExit(3)")
