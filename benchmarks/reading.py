"""Reading every row of a features folder as float32, beside a plain sequential read of the same files.

`python -m benchmarks.reading` prints the figures. Once with the files in the system's cache, and once after it was told
to drop them. On a virtual disk the machine underneath may still hold them: what is then compared is the way to that
machine.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks.growth import WIDTH, make_features
from benchmarks.timing import Figure, Ratio, compare, seconds

REQUIRED = 0.8
_BLOCK = 4 * 2**20  # bytes of the plain read's one buffer


def plain_read(files: list[Path]) -> None:
    """Read files from beginning to end into one buffer that is used again and again."""
    buffer = bytearray(_BLOCK)
    for file in files:
        with open(file, "rb", buffering=0) as handle:
            while handle.readinto(buffer):
                pass


def drop_from_cache(files: list[Path]) -> None:
    """Tell the system to forget the files' contents."""
    for file in files:
        with open(file, "rb") as handle:
            os.fsync(handle.fileno())  # only what is on disk can be dropped
            os.posix_fadvise(handle.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def figures(quick: bool) -> Iterator[Figure]:
    """Two figures: cached, and from disk."""
    from ebrm.features import open_features

    rows = 32_768 if quick else 131_072  # 256 MiB and 1 GiB of bfloat16
    with tempfile.TemporaryDirectory(prefix="ebrm-reading-") as scratch:
        folder = Path(scratch) / "features"
        make_features(folder, rows)
        files = sorted(folder.glob("shard-*"))
        embeddings = open_features(folder, verify=False).embeddings

        def ours() -> None:
            for first in range(0, rows, embeddings.block):
                embeddings[first : first + embeddings.block]

        def figure(name: str, ratio: Ratio) -> Figure:
            return Figure.from_ratio(name, ratio, d=WIDTH, network="-", rows=rows, required=REQUIRED)

        yield figure("reading shards, cached", compare(lambda: plain_read(files), ours, 9))
        plain_seconds, our_seconds = [], []
        for _ in range(3 if quick else 5):
            for work, taken in ((lambda: plain_read(files), plain_seconds), (ours, our_seconds)):
                taken.append(_after_dropping(files, work))
        yield figure("reading shards, from disk", Ratio.of(plain_seconds, our_seconds))


def _after_dropping(files: list[Path], work: Callable[[], None]) -> float:
    drop_from_cache(files)
    return seconds(work)


if __name__ == "__main__":
    for line in figures(quick=False):
        print(f"{line.figure}: {line.ratio:.2f} [{line.ratio_low:.2f}, {line.ratio_high:.2f}] of a plain read's rate")
