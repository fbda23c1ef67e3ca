"""Which preference pairs the demonstration RM is trained on, and which its shipped features hold.

Only rows whose repository states MIT, Apache-2.0 or CC BY are used. Splits are by a hash of the prompt, fixed here.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

Row = dict[str, Any]

#: In train_mix, but without a stated licence.
UNLICENSED = (
    "GAIR-NLP/auto-j",
    "benedictflorance/truthfulqa_experiments",
    "kkminions888-ops/ultrafeedback-dpo-noise-study",
)
#: Answers to be read in passages longer than the encoder's 512 tokens.
TOO_LONG = ("allenai/FineGrainedRLHF",)
#: Most pairs a prompt (the others would repeat a few prompts many times).
PER_PROMPT = {"lmarena/arena-hard-auto": 4}
#: Training pairs of the shipped features that come from the human-labeled part of train_mix (kept under 6 MB).
OTHER_TRAIN_PAIRS = 150
#: Shares of the prompts of a set whose rows the RM may see.
RM_SHARE = {"hh_harmless_test": 0.55, "xstest_pairs": 0.5, "hhh_alignment": 0.5}
#: Of the prompts it may not see, how far up the hash the energy's validation part goes.
VALIDATION_UP_TO = {"hh_harmless_test": 0.62, "xstest_pairs": 0.58, "hhh_alignment": 0.58}


def place(text: str) -> float:
    """Where a text falls in [0, 1): the first 32 bits of its SHA-256, case and spacing ignored."""
    return int(hashlib.sha256(" ".join(text.lower().split()).encode()).hexdigest()[:8], 16) / 2**32


def read(data: Path, name: str) -> list[Row]:
    """The rows of a file."""
    return pq.read_table(data / f"{name}.parquet").to_pylist()


def _shuffled(rows: list[Row]) -> list[Row]:
    """Rows in a fixed random order, by the hash of their id."""
    return sorted(rows, key=lambda row: place(row["id"]))


def _few_a_prompt(rows: list[Row], most: int) -> list[Row]:
    """The first `most` rows of every prompt, in order."""
    seen: Counter[str] = Counter()
    kept = []
    for row in rows:
        seen[row["prompt"]] += 1
        if seen[row["prompt"]] <= most:
            kept.append(row)
    return kept


def _mix(data: Path) -> list[Row]:
    """Training rows of the mixture whose licence is stated and which are not too long."""
    left_out = (*UNLICENSED, *TOO_LONG)
    return [row for row in read(data, "train_mix") if row["split"] == "train" and row["source"] not in left_out]


def rm_training_rows(data: Path) -> list[Row]:
    """The RM's training pairs: preferences of people and judges, not right-or-wrong answers to knowledge questions.

    A 22-million-parameter encoder cannot tell right from wrong answers, so rows with objective labels would only teach
    it noise. XSTest prompts that also stand in RM-Bench are kept for evaluation.
    """
    mix = [row for row in _mix(data) if row["label_origin"] != "objective"]
    found = []
    for source in sorted({row["source"] for row in mix}):
        rows = _shuffled([row for row in mix if row["source"] == source])
        found += _few_a_prompt(rows, PER_PROMPT[source]) if source in PER_PROMPT else rows
    rm_bench = {row["prompt"] for row in read(data, "rm_bench")}
    for name, share in RM_SHARE.items():
        for row in read(data, name):
            if place(row["prompt"]) < share and not (name == "xstest_pairs" and row["prompt"] in rm_bench):
                found.append(row)
    return found


def demo_rows(data: Path) -> list[Row]:
    """The pairs whose features are shipped, with `part` and `rm_training`; labels by people (LLMBar: by its authors).

    The energy trains on pairs that the RM was trained on, as in the paper; validation and test are unseen by both.
    """
    human = [row for row in _mix(data) if row["label_origin"] == "human"]
    others = _few_a_prompt(_shuffled(human), 1)[:OTHER_TRAIN_PAIRS]
    found = [row | {"part": "train", "rm_training": True} for row in others]
    seen_ids = {row["id"] for row in rm_training_rows(data)}
    for name in RM_SHARE:
        rows = read(data, name)
        unseen = [r for r in rows if place(r["prompt"]) >= RM_SHARE[name] and r["id"] not in seen_ids]
        limit = VALIDATION_UP_TO[name]
        found += [row | {"part": "train", "rm_training": True} for row in rows if row["id"] in seen_ids]
        for part in ("validation", "test"):
            some = [row for row in unseen if (place(row["prompt"]) < limit) == (part == "validation")]
            found += [row | {"part": part, "rm_training": False} for row in some]
    llmbar = [row for row in read(data, "llmbar") if row["category"].startswith("LLMBar/")]
    found += [row | {"part": "test", "rm_training": False} for row in llmbar]
    return [row | {"category": _group(row["source"], row["category"])} for row in found]


def _group(source: str, category: str) -> str:
    """A short name of the kind of pair, for tables."""
    if source == "princeton-nlp/LLMBar":
        return "LLMBar adversarial" if "/Adversarial/" in category else "LLMBar natural"
    known = {
        "anthropics/hh-rlhf": "HH harmless",
        "paul-rottger/exaggerated-safety": "XSTest",
        "prometheus-eval/prometheus-eval": "HHH",
    }
    return known.get(source, "other human labels")
