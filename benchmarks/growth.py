"""How time and memory grow with rows: opening, fitting and refining a features folder of 10,000 to 1,000,000 rows.

`python -m benchmarks.growth [--rows 10000 30000 …] [--folder FOLDER]` makes the features (4,096 numbers a row in
bfloat16: 8 GB for a million rows, in FOLDER), runs each job in a process of its own, writes `benchmarks/growth.json`
and draws `docs/performance/growth.svg` from it. The folders are kept if FOLDER is named.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "growth.json"
PICTURE = ROOT / "docs" / "performance" / "growth.svg"
WIDTH = 4096
ROWS = (10_000, 30_000, 100_000, 300_000, 1_000_000)
JOBS = ("import", "open", "verify", "fit", "refine")


class Made:
    """Embeddings [n, d] made when asked for: the first number is the reward's hidden cause, the others noise."""

    def __init__(self, cause: Any, width: int = WIDTH) -> None:
        import torch

        self.cause, self.shape = cause, (len(cause), width)
        self._noise = torch.randn(4096, width, generator=torch.Generator().manual_seed(1))

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> Any:
        start, stop, _ = rows.indices(len(self))
        made = self._noise[: stop - start].roll(start // 4096, 1).clone()
        made[:, 0] = self.cause[start:stop]
        return made


def make_features(folder: Path, rows: int, width: int = WIDTH) -> None:
    """Write features of `rows` rows (two a pair, four pairs a prompt) to `folder`, unless they are there."""
    import torch

    from ebrm.features import FeatureConfig, Features, save_features
    from ebrm.features import manifest as manifests
    from ebrm.pairs import PreferencePairs

    generator = torch.Generator().manual_seed(0)
    cause = torch.randn(rows, generator=generator)
    reward = cause + torch.randn(rows, generator=generator)
    first = torch.arange(0, rows - 1, 2)
    wins = (cause[first] > cause[first + 1]).long()
    pairs = PreferencePairs.of(
        first + 1 - wins, first + wins, prompt_id=[f"prompt-{row // 4:07d}" for row in range(len(first))],
        source=["made"] * len(first), category=[("code", "chat", "math")[row % 3] for row in range(len(first))],
        where=[f"made.jsonl:{row}" for row in range(1, len(first) + 1)],
    )  # fmt: skip
    manifest = manifests.describe(
        origin="imported", backbone=None, text=None, data={"fingerprint": f"made {rows} {width}"},
        embedding_dtype="bfloat16", embedding_size=width, shard_rows=4096, items=rows, pairs=len(pairs),
    )  # fmt: skip
    made = Features(None, manifest, pairs, reward, Made(cause, width))  # type: ignore[arg-type]
    save_features(made, folder, FeatureConfig("bfloat16"))


def job(what: str, folder: Path) -> dict[str, Any]:
    """Do one job in this process: its seconds, and the most memory this process has held, in bytes."""
    from ebrm.features import open_features
    from ebrm.fitting import fit
    from ebrm.model import EnergyRewardModel

    model = folder.with_name(f"{folder.name}-model")
    before = peak_bytes()
    started = time.perf_counter()
    if what in ("open", "verify"):
        open_features(folder, verify=what == "verify")
    elif what == "fit":
        features = open_features(folder, verify=False)
        started = time.perf_counter()
        fitted = fit(features)
        seconds = time.perf_counter() - started
        fitted.model.save_pretrained(model)
        return {"seconds": seconds, "epochs": len(fitted.history), "peak_bytes": peak_bytes()} | fitted.seconds
    elif what == "refine":
        features = open_features(folder, verify=False)
        loaded = EnergyRewardModel.from_pretrained(model)
        started = time.perf_counter()
        loaded.refine(features.embeddings, features.reward)
    return {"seconds": time.perf_counter() - started, "peak_bytes": peak_bytes(), "before_bytes": before}


def peak_bytes() -> int:
    """The most memory this process has held (not its parent: `ru_maxrss` is handed down), in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("there is no VmHWM in /proc/self/status: memory is measured on Linux")


def in_a_process(what: str, folder: Path) -> dict[str, Any]:
    """`job` in a fresh process."""
    ran = subprocess.run(
        [sys.executable, "-m", "benchmarks.growth", "--job", what, "--folder", str(folder)],
        cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    return dict(json.loads(ran.stdout.splitlines()[-1]))


def curve(folder: Path, sizes: tuple[int, ...], width: int = WIDTH) -> list[dict[str, Any]]:
    """One entry a size and job."""
    points = []
    for rows in sizes:
        features = folder / f"rows-{rows}"
        make_features(features, rows, width)
        for what in JOBS:
            point = {"job": what, "rows": rows, "d": width, **in_a_process(what, features)}
            point["rows_per_second"] = rows / point["seconds"] if what in ("fit", "refine") else None
            points.append(point)
            print(
                f"{what:8} {rows:>9,} rows: {point['seconds']:9.3f} s, peak {point['peak_bytes'] / 2**20:7.0f} MiB",
                flush=True,
            )
    return points


def record(name: str, value: Any, path: Path = RESULTS) -> None:
    """Put `value` under `name` into the results, whole or not at all."""
    results = json.loads(path.read_text()) if path.exists() else {}
    results[name] = value
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(results, indent=1) + "\n")
    os.replace(partial, path)


def draw(points: list[dict[str, Any]], picture: Path = PICTURE) -> None:
    """Seconds and peak memory against rows, both axes logarithmic."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "ebrm"  # the same picture gives the same bytes
    import matplotlib.pyplot as plt

    names = {"open": "open", "verify": "open, checksums verified", "fit": "fit", "refine": "refine all rows"}
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.8), facecolor="white", layout="constrained")
    for what, label in names.items():
        line = sorted((p["rows"], p["seconds"], p["peak_bytes"] / 2**30) for p in points if p["job"] == what)
        if line:
            rows, seconds, memory = zip(*line, strict=True)
            left.loglog(rows, seconds, "o-", label=label, markersize=4)
            right.loglog(rows, memory, "o-", label=label, markersize=4)
    rows = sorted({p["rows"] for p in points})
    right.loglog(rows, [n * WIDTH * 2 / 2**30 for n in rows], "--", color="gray", label="the features' size on disk")
    right.axhline(2.5e9 / 2**30, color="black", linewidth=0.8, linestyle=":", label="2.5 GB")
    for axes, title in ((left, "seconds"), (right, "peak resident memory, GiB")):
        axes.set_title(title, fontsize=10)
        axes.set_xlabel(f"rows of {WIDTH:,} bfloat16 numbers")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7)
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, metadata={"Date": None})
    plt.close(figure)


def main(arguments: list[str] | None = None) -> None:
    """Measure, record and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=list(ROWS))
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--job", choices=JOBS, help=argparse.SUPPRESS)
    parser.add_argument("--draw", action="store_true", help="only draw what was recorded")
    given = parser.parse_args(arguments)
    if given.job:
        import torch

        print(json.dumps(job(given.job, given.folder) | {"threads": torch.get_num_threads()}))
        return
    if not given.draw:
        with tempfile.TemporaryDirectory(prefix="ebrm-growth-") as scratch:
            record("growth", curve(given.folder or Path(scratch), tuple(given.rows)))
    draw(json.loads(RESULTS.read_text())["growth"])


if __name__ == "__main__":
    main()
