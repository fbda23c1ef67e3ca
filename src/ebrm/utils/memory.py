"""Memory that a long-lived process no longer uses goes back to the system."""

from __future__ import annotations

import ctypes
import os

#: glibc's parameters (malloc.h), the environment variables that set them, and values. What is given back late by
#: default: blocks below a threshold that grows with every large one freed, and memory in an arena for each thread.
_PARAMETERS = (
    (-8, "MALLOC_ARENA_MAX", 2),
    (-3, "MALLOC_MMAP_THRESHOLD_", 2**20),
    (-1, "MALLOC_TRIM_THRESHOLD_", 2**20),
)


def return_memory() -> None:
    """Have glibc's malloc return freed memory to the system soon; elsewhere, do nothing.

    Environment variables that are set have the last word. To be called before threads are started.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is None:  # another C library
        return
    for parameter, variable, value in _PARAMETERS:
        if variable not in os.environ:
            mallopt(parameter, value)
