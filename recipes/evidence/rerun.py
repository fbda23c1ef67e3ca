"""Everything in docs/evidence.md but reading and fine-tuning, from the readings that `features.py` put into CACHE.

    python recipes/evidence/rerun.py --data DATA --cache CACHE --out OUT --finetuned FOLDER

FOLDER is what `finetune.py --noise 0.25` wrote. What is in OUT already is not made again. About an hour on two cores.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def main() -> None:
    """Run one step after the other; the first that fails ends it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("data", "cache", "out", "finetuned"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    args = parser.parse_args()
    read = ["--data", str(args.data), "--cache", str(args.cache)]
    out = [*read, "--out", str(args.out)]
    steps = (
        ["choose_default.py", *read],
        ["base_noise.py", *read],
        ["run.py", *out],
        ["run.py", *out, "--paper", "--noise", "0", "0.25"],
        ["run.py", *out, "--model", "demo", "--noise", "0"],
        ["run.py", *out, "--model", str(args.finetuned), "--noise", "0.25"],
        ["tables.py", *out, "--models", "head=frozen", "demo=demo", f"fine-tuned={args.finetuned}"],
        ["figures.py"],
    )
    for script, *options in steps:
        print(script, *options, flush=True)
        # One thread a process: the workers are as many as there are cores.
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        subprocess.run([sys.executable, str(HERE / script), *options], check=True, env=environment)


if __name__ == "__main__":
    main()
