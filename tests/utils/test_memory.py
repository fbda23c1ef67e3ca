"""Freed memory of a server goes back to the system."""

from __future__ import annotations

import platform
import re
import subprocess
import sys

import pytest
from tests.terminal import child_environment

# Eight threads ask the C library for memory at a time; its own account says how many arenas they were given.
ARENAS = """
import ctypes, threading
from ebrm.utils.memory import return_memory

return_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype = libc.fdopen.restype = ctypes.c_void_p
libc.malloc_info.argtypes = [ctypes.c_int, ctypes.c_void_p]
together = threading.Barrier(8)

def allocate():
    together.wait()
    for _ in range(100):
        libc.malloc(10_000)
    together.wait()

threads = [threading.Thread(target=allocate) for _ in range(8)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
libc.malloc_info(0, libc.fdopen(1, b"w"))
libc.fflush(None)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_threads_share_two_arenas_unless_the_environment_says_otherwise() -> None:
    def arenas(**more: str) -> int:
        environment = {name: value for name, value in child_environment().items() if not name.startswith("MALLOC_")}
        done = subprocess.run(
            [sys.executable, "-c", ARENAS], capture_output=True, text=True, check=True, env=environment | more
        )
        return len(re.findall(r"<heap nr=", done.stdout))

    assert arenas() <= 2 < arenas(MALLOC_ARENA_MAX="8")
