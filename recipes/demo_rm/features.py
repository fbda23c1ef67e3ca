"""Read the demonstration RM's features of the demo's pairs, as shipped in the package.

python recipes/demo_rm/features.py --data DATA --out src/ebrm/demo/features
"""

from __future__ import annotations

import argparse
from pathlib import Path

from rows import demo_rows

from ebrm.backbone import BackboneConfig, load_backbone
from ebrm.data import TextConfig, load_preferences
from ebrm.features import FeatureConfig, extract_features


def main() -> None:
    """Write the features folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    rows = demo_rows(args.data)
    columns = ("prompt", "chosen", "rejected", "source", "category", "part", "rm_training")
    records = [{name: row[name] for name in columns} for row in rows]
    for record in records:
        record["split"] = record.pop("part")
    trained = [bool(record.pop("rm_training")) for record in records]
    preferences = load_preferences(records)
    backbone = load_backbone(BackboneConfig(backbone="demo", layers=()), TextConfig(truncation="drop"))
    features = extract_features(
        backbone,
        preferences,
        args.out,
        FeatureConfig(embedding_dtype="float16", shard_rows=8192),
        rm_training=trained,
    )
    print(f"{len(features)} responses, {len(features.pairs)} pairs, dropped {features.manifest.get('dropped')}")


if __name__ == "__main__":
    main()
