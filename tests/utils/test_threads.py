from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from ebrm.utils import threads
from ebrm.utils.threads import choose_threads, free_cores, usable_cores


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine of four cores; `use(machine, …)` says how busy each is."""
    monkeypatch.setattr(threads, "_STAT", tmp_path / "stat")
    monkeypatch.setattr(threads, "_QUOTA", tmp_path / "cpu.max")
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1, 2, 3}, raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    use(tmp_path, monkeypatch)
    return tmp_path


def use(folder: Path, monkeypatch: pytest.MonkeyPatch, *busy: float) -> None:
    """While the cores are watched, each is busy for this share of the time (those not named: idle)."""
    shares = [*busy, *[0.0] * (4 - len(busy))]

    def write(factor: int) -> None:
        lines = [
            f"cpu{i} {int(100 * s) * factor} 0 0 {int(100 * (1 - s)) * factor} 0 0 0 0 9 9"
            for i, s in enumerate(shares)
        ]
        (folder / "stat").write_text("\n".join(["cpu 1 2 3 4 5 6 7 8 9 10", *lines, "intr 5"]))

    write(1)
    monkeypatch.setattr(threads.time, "sleep", lambda seconds: write(2))


@pytest.mark.parametrize(
    ("busy", "free"),
    [((), 4), ((0.3,), 4), ((1.0,), 3), ((0.5, 0.5, 0.5, 0.5), 2), ((1, 1, 1, 0.9), 0), ((1, 1, 1, 1), 0)],
)
def test_cores_are_counted_that_have_nothing_else_to_do(
    machine: Path, monkeypatch: pytest.MonkeyPatch, busy: tuple[float, ...], free: int
) -> None:
    use(machine, monkeypatch, *busy)
    assert free_cores([0, 1, 2, 3]) == free


def test_busy_cores_are_left_alone_and_that_is_said(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use(machine, monkeypatch, 1, 1)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    said = choose_threads()
    assert os.environ["OMP_NUM_THREADS"] == "2" and os.environ["OMP_WAIT_POLICY"] == "PASSIVE"
    assert "2 of 4 cores are used" in said and "OMP_NUM_THREADS" in said
    monkeypatch.delitem(os.environ, "OMP_NUM_THREADS")
    use(machine, monkeypatch, 1, 1, 1, 1)
    assert "1 of 4 cores" in choose_threads() and os.environ["OMP_NUM_THREADS"] == "1"


def test_a_quiet_machine_and_a_number_that_is_given_change_nothing(
    machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "environ", dict(os.environ))
    assert choose_threads() == "" and "OMP_NUM_THREADS" not in os.environ
    use(machine, monkeypatch, 1, 1, 1, 1)
    os.environ["OMP_NUM_THREADS"] = "3"
    assert choose_threads() == "" and os.environ["OMP_NUM_THREADS"] == "3"


def test_a_container_s_share_and_a_system_that_tells_nothing(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (machine / "cpu.max").write_text("150000 100000\n")
    assert usable_cores() == [0, 1]
    (machine / "cpu.max").write_text("max 100000\n")
    assert usable_cores() == [0, 1, 2, 3]
    (machine / "stat").unlink()
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    monkeypatch.setattr(os, "getloadavg", lambda: (2.6, 0.0, 0.0))
    assert free_cores([0, 1, 2, 3]) == 1
