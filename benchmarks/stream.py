"""Memory of `ebrm score` against the size of what is scored: files of few large rows, and of many small ones.

`python -m benchmarks.stream [--folder FOLDER] [--bytes 5e7 5e8 5e9]` makes JSONL files whose rows carry a large column
that is passed through (so that the number of texts stays in the tens of thousands), one of many ordinary rows, and a
features folder; runs the real command on each in a process of its own; and writes `benchmarks/growth.json`.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.growth import ROOT, make_features, record

LARGE_ROW = 200_000  # bytes
SMALL_ROW = 400
_WORDS = ("the", "of", "and", "to", "is", "you", "that", "he", "was", "for", "are", "with", "they", "have", "from")


def rows(kind: str, size: float) -> Iterator[dict[str, Any]]:
    """Rows of JSONL files of `size` bytes; every text is another one."""
    draw = random.Random(0)

    def words(count: int) -> str:
        return " ".join(draw.choices(_WORDS, k=count))

    ballast = words(LARGE_ROW // 4)
    for number in range(max(1, int(size / (LARGE_ROW if kind == "large" else SMALL_ROW)))):
        row: dict[str, Any] = {"id": number, "prompt": f"Question {number}: {words(8)}?", "response": words(10)}
        long = LARGE_ROW if kind == "large" else SMALL_ROW
        yield row | {"notes": ballast[: long - len(json.dumps(row)) - 14]}


def make_file(path: Path, kind: str, size: float) -> int:
    """Write the rows to `path` and count them."""
    count = 0
    with open(path, "w", encoding="utf-8") as handle:
        for row in rows(kind, size):
            handle.write(json.dumps(row) + "\n")
            count += 1
    return count


def score(model: Path, source: Path, out: Path) -> tuple[float, int]:
    """(seconds, most resident bytes) of `ebrm score MODEL SOURCE --out OUT`."""
    started = time.perf_counter()
    command = [sys.executable, "-m", "ebrm", "--quiet", "score", str(model), str(source), "--out", str(out)]
    process = subprocess.Popen(command, cwd=ROOT)
    peak, ended = 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not ended.wait(0.05):  # the last reading is from at most so long before the end
            try:
                status = Path(f"/proc/{process.pid}/status").read_text()
            except (FileNotFoundError, ProcessLookupError):
                return
            peak = max([peak, *(int(line.split()[1]) * 1024 for line in status.splitlines() if "VmHWM" in line)])

    watcher = threading.Thread(target=watch)
    watcher.start()
    code = process.wait()
    ended.set()
    watcher.join()
    if code:
        raise RuntimeError(f"{' '.join(command)} ended with {code}")
    return time.perf_counter() - started, peak


def make_models(folder: Path) -> tuple[Path, Path, Path]:
    """(the demonstration's model, a model of made features, those features)."""
    from ebrm.features import open_features
    from ebrm.fitting import fit

    demo, plain, features = folder / "demo", folder / "features-model", folder / "features"
    if not (demo / "config.json").exists():
        fit(ROOT / "src" / "ebrm" / "demo" / "features").model.save_pretrained(demo)
    make_features(features, 200_000, 64)
    if not (plain / "config.json").exists():
        fit(open_features(features, verify=False)).model.save_pretrained(plain)
    return demo, plain, features


def measure(folder: Path, sizes: list[float], small: list[float]) -> Iterator[dict[str, Any]]:
    """One entry a file, as it comes."""
    demo, plain, features = make_models(folder)
    for kind, size in [("large", size) for size in sizes] + [("small", size) for size in small] + [("features", 0.0)]:
        source, out = folder / f"{kind}.jsonl", folder / "out.jsonl"
        if kind == "features":
            source, count = features, 100_000
        else:
            count = make_file(source, kind, size)
        taken, peak = score(plain if kind == "features" else demo, source, out)
        held = source.stat().st_size if source.is_file() else sum(file.stat().st_size for file in source.iterdir())
        print(
            f"{kind:8} {held / 1e6:7.0f} MB {count:8,} rows: {taken:7.1f} s, peak {peak / 2**20:6.0f} MiB", flush=True
        )
        for path in (out, *(source,) * source.is_file()):
            path.unlink()
        yield {"kind": kind, "bytes": held, "rows": count, "seconds": taken, "peak_bytes": peak}


def main(arguments: list[str] | None = None) -> None:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bytes", type=float, nargs="*", default=[5e7, 5e8, 5e9])
    parser.add_argument("--small", type=float, nargs="*", default=[4e6, 4e7])
    parser.add_argument("--folder", type=Path)
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="ebrm-stream-") as scratch:
        folder = given.folder or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        points: list[dict[str, Any]] = []
        for point in measure(folder, given.bytes, given.small):
            points.append(point)
            record("stream", points)  # what is measured stays, whatever happens to the rest


if __name__ == "__main__":
    main()
