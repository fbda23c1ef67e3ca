"""Train the demonstration RM's recipe on pairs of which a share have their labels turned round.

    python recipes/evidence/finetune.py --data DATA --noise 0.25 --out FOLDER

One epoch over the pairs that are not held out; about twenty minutes on one core.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
from labels import held_out, turned

from ebrm.data import prompt_id

sys.path.append(str(Path(__file__).parent.parent / "demo_rm"))
from rows import rm_training_rows  # noqa: E402
from train import train  # noqa: E402


def main() -> None:
    """Turn labels round, and train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--noise", type=float, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rows = rm_training_rows(args.data)
    held = held_out([prompt_id(json.loads(row["prompt"])) for row in rows], args.seed)
    wrong = turned([row["id"] for row in rows], args.noise, args.seed)
    kept = []
    for index in np.flatnonzero(~held):
        row = dict(rows[index])
        if wrong[index]:
            row["chosen"], row["rejected"] = row["rejected"], row["chosen"]
        kept.append(row)
    print(f"{len(kept)} of {len(rows)} pairs, {wrong[~held].sum()} turned round", flush=True)
    train(kept, args.out, 1.0, args.seed)


if __name__ == "__main__":
    main()
