"""How many threads to compute with: as many as there are cores with nothing else to do."""

from __future__ import annotations

import math
import os
import sys
import time
from pathlib import Path

_STAT, _QUOTA = Path("/proc/stat"), Path("/sys/fs/cgroup/cpu.max")
#: How long the cores are watched. The kernel counts their time in hundredths of a second.
_SECONDS = 0.15
#: The part of a core that has to be idle for it to count: something is always running.
_FREE = 0.6


def choose_threads() -> str:
    """Set the threads of this process to the cores that are free now; OMP_NUM_THREADS has the last word if it is set.

    Threads that wait for one another make a computation many times slower beside another process than fewer threads
    do, so they also sleep, not spin, while they wait (OMP_WAIT_POLICY). Works on the libraries that are not imported
    yet, and on torch.

    Returns:
        a sentence on the cores that are left to others; "" where there are none.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if os.environ.get("OMP_NUM_THREADS"):
        return ""
    cores = usable_cores()
    threads = max(1, min(len(cores), free_cores(cores)))
    if threads == len(cores):
        return ""
    os.environ["OMP_NUM_THREADS"] = str(threads)
    if (torch := sys.modules.get("torch")) is not None:
        torch.set_num_threads(threads)
    return (
        f"Other processes are busy: {threads} of {len(cores)} cores are used. Set the environment variable "
        "OMP_NUM_THREADS to use more or fewer."
    )


def usable_cores() -> list[int]:
    """The cores that this process may run on, no more of them than its container may fill."""
    affinity = getattr(os, "sched_getaffinity", None)
    cores = sorted(affinity(0)) if affinity is not None else list(range(os.cpu_count() or 1))
    try:
        quota, period = _QUOTA.read_text().split()
        return cores[: max(1, math.ceil(int(quota) / int(period)))]
    except (OSError, ValueError):  # no container, or one without a limit ("max")
        return cores


def free_cores(cores: list[int]) -> int:
    """How many of these cores are idle, by a short look; by the system's load where a core's time is not told."""
    before = _times()
    if before is None:
        load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
        return max(0, (os.cpu_count() or 1) - round(load))
    time.sleep(_SECONDS)
    after = _times() or before
    shares = []
    for core in cores:
        idle, total = (now - then for now, then in zip(after.get(core, (1, 1)), before.get(core, (0, 0)), strict=True))
        shares.append(idle / total if total else 1.0)
    return math.floor(sum(shares) + 1 - _FREE)  # one busy process may wander over all cores


def _times() -> dict[int, tuple[int, int]] | None:
    """By core, its time idle and in all, in ticks; None where the system does not say."""
    try:
        lines = _STAT.read_text().splitlines()
    except OSError:
        return None
    found = {}
    for line in lines:
        name, *ticks = line.split()[:9]  # without time of guests, which is in that of users
        if name.startswith("cpu") and name[3:].isdigit():
            times = [int(tick) for tick in ticks]
            found[int(name[3:])] = times[3] + times[4], sum(times)
    return found or None
