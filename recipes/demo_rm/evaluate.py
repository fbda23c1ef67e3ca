"""Accuracy of the demonstration RM, as its card states it.

    python recipes/demo_rm/evaluate.py --data DATA

Held-out prompts only. AlpacaEval pairs (CC BY-NC data: measured on, never trained on) are a sample of a few a prompt
from the test part.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np

from ebrm.backbone import BackboneConfig, load_backbone
from ebrm.data import PreferenceConfig, Preferences, TextConfig, hash_position, load_preferences
from ebrm.features import Features, extract_features, open_features
from ebrm.metrics import paired_accuracy
from ebrm.pairs import PreferencePairs


def line(name: str, features: Features, pairs: PreferencePairs, origin: str) -> str:
    """One row of the table: accuracy with its interval over prompts."""
    chosen = features.reward[pairs.chosen].numpy()
    rejected = features.reward[pairs.rejected].numpy()
    found = paired_accuracy(chosen, rejected, chosen, rejected, pairs.prompt_id).base
    interval = f"{100 * found.low:.1f} to {100 * found.high:.1f}"
    return f"| {name} | {origin} | {len(pairs):,} | {100 * found.value:.1f} | {interval} |"


def few_a_prompt(preferences: Preferences, count: int, most: int) -> Preferences:
    """At most `count` pairs of every prompt and `most` in all, by a fixed hash of their place in the file."""
    seen: Counter[str] = Counter()
    kept = []
    for row in sorted(preferences.rows, key=lambda row: hash_position(row.row)):
        seen[row.prompt_id] += 1
        if seen[row.prompt_id] <= count:
            kept.append(row)
    return replace(preferences, rows=tuple(kept[:most]))


def main() -> None:
    """Print the table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--per-prompt", type=int, default=3, help="most pairs a prompt of the last sets")
    parser.add_argument("--most", type=int, default=400, help="most pairs of the last sets")
    args = parser.parse_args()
    pairs, anchors = open_features("demo"), open_features("demo-anchors")
    rows = []
    for source in sorted(set(anchors.pairs.source.tolist())):
        part = anchors.pairs.select(np.flatnonzero(anchors.pairs.source == source))
        rows.append(line(f"chat, held out: {source}", anchors, part, "people"))
    rows.append(line("chat, held out: all (the anchors)", anchors, anchors.pairs, "people"))
    for kind in sorted(set(pairs.pairs.category.tolist())):
        part = pairs.pairs.select(np.flatnonzero(pairs.pairs.category == kind))
        rows.append(line(f"XSTest, {kind}", pairs, part, "people"))
    rows.append(line("XSTest, all", pairs, pairs.pairs, "people"))
    backbone = load_backbone(BackboneConfig(backbone="demo", layers=()), TextConfig(truncation="drop"))
    settings = PreferenceConfig(split="test")
    for name, file, origin in (
        ("AlpacaEval, test part", "alpaca_eval_pairs", "GPT-4"),
        ("HH harmless", "hh_harmless_test", "people"),
    ):
        preferences = few_a_prompt(
            load_preferences(str(args.data / f"{file}.parquet"), settings), args.per_prompt, args.most
        )
        with tempfile.TemporaryDirectory() as folder:
            features = extract_features(backbone, preferences, Path(folder) / "f")
            rows.append(line(name, features, features.pairs, origin))
            print(f"{name}: {features.manifest['dropped']} of {len(preferences)} pairs are too long for the model")
    print("| pairs | labels by | n | accuracy | 95% interval |\n| --- | --- | --- | --- | --- |")
    print("\n".join(rows))


if __name__ == "__main__":
    main()
