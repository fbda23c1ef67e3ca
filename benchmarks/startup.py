"""Seconds until something is said: `ebrm --help`, `ebrm info`, and a model loaded and used without its reward model.

`python -m benchmarks.startup` prints them and writes `benchmarks/growth.json`; each is the median of fresh processes.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.growth import ROOT, record

#: Seconds that must not be exceeded.
ALLOWED = {"ebrm --help": 0.5, "ebrm info MODEL": 1.0}

_REFINE = """
from ebrm import EnergyRewardModel, open_features
features = open_features({features!r})
EnergyRewardModel.from_pretrained({model!r}).refine(features.embeddings, features.reward)
"""


def commands(model: Path, features: Path, scratch: Path) -> dict[str, list[str]]:
    """What is run, by what it is called."""
    python = sys.executable
    ebrm = [python, "-m", "ebrm"]
    out = scratch / "scored.jsonl"
    return {
        "ebrm --help": [*ebrm, "--help"],
        "ebrm info MODEL": [*ebrm, "info", str(model)],
        "ebrm score --help": [*ebrm, "score", "--help"],
        "import torch": [python, "-c", "import torch"],
        "import ebrm.model": [python, "-c", "import ebrm.model"],
        "import ebrm.backbone.load": [python, "-c", "import ebrm.backbone.load"],
        "load a model, refine features": [python, "-c", _REFINE.format(model=str(model), features=str(features))],
        "ebrm score MODEL FEATURES": [*ebrm, "score", str(model), str(features), "--out", str(out), "--overwrite"],
    }


def measure(repeats: int) -> list[dict[str, Any]]:
    """One entry a command; the commands take turns."""
    from ebrm.fitting import fit

    features = ROOT / "src" / "ebrm" / "demo" / "features"
    with tempfile.TemporaryDirectory(prefix="ebrm-startup-") as scratch:
        model = Path(scratch) / "model"
        fit(features).model.save_pretrained(model)
        every = commands(model, features, Path(scratch))
        taken: dict[str, list[float]] = {name: [] for name in every}
        for turn in range(repeats + 1):
            for name, command in every.items():
                started = time.perf_counter()
                subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
                if turn:  # the first brings the files into the system's cache
                    taken[name].append(time.perf_counter() - started)
    return [
        {
            "what": name, "seconds": statistics.median(some), "low": min(some), "high": max(some),
            "allowed": ALLOWED.get(name),
        }
        for name, some in taken.items()
    ]  # fmt: skip


def main() -> None:
    """Measure, print and record."""
    entries = measure(7)
    for entry in entries:
        allowed = f"  (allowed: {entry['allowed']} s)" if entry["allowed"] else ""
        print(f"{entry['what']:32} {entry['seconds']:6.2f} s [{entry['low']:.2f}, {entry['high']:.2f}]{allowed}")
    record("startup", entries)


if __name__ == "__main__":
    main()
