"""Read the demonstration RM's features of your pairs and of the anchors, as shipped in the package.

python recipes/demo_rm/features.py --data DATA --out src/ebrm/demo
"""

from __future__ import annotations

import argparse
from pathlib import Path

from rows import Row, anchor_rows, demo_rows

from ebrm.backbone import Backbone, BackboneConfig, load_backbone
from ebrm.data import TextConfig, load_preferences
from ebrm.features import FeatureConfig, extract_features

COLUMNS = ("prompt", "chosen", "rejected", "source", "category", "split")


def write(backbone: Backbone, rows: list[Row], out: Path) -> None:
    """Write a features folder; the RM was trained on none of the rows."""
    records = [{name: row[name] for name in COLUMNS} | {"split": row["part"]} for row in rows]
    features = extract_features(
        backbone,
        load_preferences(records),
        out,
        FeatureConfig(embedding_dtype="float16", shard_rows=8192),
        rm_training=[False] * len(records),
    )
    dropped = features.manifest.get("dropped")
    print(f"{out}: {len(features)} responses, {len(features.pairs)} pairs; {dropped} are too long for the model")


def main() -> None:
    """Write both folders."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    backbone = load_backbone(BackboneConfig(backbone="demo", layers=()), TextConfig(truncation="drop"))
    write(backbone, demo_rows(args.data), args.out / "features")
    write(backbone, anchor_rows(args.data), args.out / "anchors")


if __name__ == "__main__":
    main()
