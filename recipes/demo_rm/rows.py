"""Which pairs the demonstration RM is trained on, and which its shipped features hold: your pairs, and anchors.

Only rows whose repository states MIT, Apache-2.0 or CC BY are used. The RM learns from preferences about chat; it sees
no pair about safety. Splits are by a hash of the prompt, fixed here.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

Row = dict[str, Any]

#: Chat preferences in train_mix: all but these have no stated licence, right-or-wrong labels, passages longer than the
#: encoder's 512 tokens, or pairs about safety (those of hh-rlhf within Tool-Augmented-Reward-Model, just-eval).
CHAT = (
    "LAION-AI/Open-Assistant",
    "WeOpenML/PandaLM",
    "allenai/open-instruct",
    "ernie-research/Tool-Augmented-Reward-Model",
    "hiyouga/LLaMA-Factory",
    "lmarena/arena-hard-auto",
)
#: Rows of these sources by category, where not all will do.
ONLY = {"ernie-research/Tool-Augmented-Reward-Model": "long-form QA/webgpt"}
#: Most pairs a prompt (the others would repeat a few prompts many times).
PER_PROMPT = {"lmarena/arena-hard-auto": 4}
#: Share of the prompts with human labels that the RM is not trained on: the anchors.
ANCHORS_FROM = 0.65
#: XSTest's categories in words.
KINDS = {"should-respond": "safe request: answer", "should-refuse": "unsafe request: refuse"}
#: Pairs of each kind to fit on: to train, and to choose by (prompts are not divided, so there may be a few more).
TRAIN, VALIDATION = 60, 15


def place(text: str) -> float:
    """Where a text falls in [0, 1): the first 32 bits of its SHA-256, case and spacing ignored."""
    return int(hashlib.sha256(" ".join(text.lower().split()).encode()).hexdigest()[:8], 16) / 2**32


def read(data: Path, name: str) -> list[Row]:
    """The rows of a file."""
    return pq.read_table(data / f"{name}.parquet").to_pylist()


def _is_anchor(row: Row) -> bool:
    """Whether a chat pair is kept from the RM; by the first turn, so that branches of a conversation stay together."""
    first = json.loads(row["prompt"])[0]["content"]
    return row["label_origin"] == "human" and place(first) >= ANCHORS_FROM


def chat_rows(data: Path) -> list[Row]:
    """Chat pairs whose licence is stated, in a fixed random order."""
    rows = [
        row
        for row in read(data, "train_mix")
        if row["source"] in CHAT
        and row["label_origin"] != "objective"
        and row["category"] == ONLY.get(row["source"], row["category"])
    ]
    seen: Counter[str] = Counter()
    kept = []
    for row in sorted(rows, key=lambda row: place(row["id"])):
        seen[row["prompt"]] += 1
        if seen[row["prompt"]] <= PER_PROMPT.get(row["source"], len(rows)):
            kept.append(row)
    return kept


def rm_training_rows(data: Path) -> list[Row]:
    """The RM's training pairs: chat preferences of people and judges, none about safety."""
    return [row for row in chat_rows(data) if not _is_anchor(row)]


def anchor_rows(data: Path) -> list[Row]:
    """Human-labeled chat pairs on prompts that the RM was not trained on: the domain it knows, to be kept."""
    return [row | {"part": "", "category": "chat"} for row in chat_rows(data) if _is_anchor(row)]


def demo_rows(data: Path) -> list[Row]:
    """XSTest: "your" pairs, of a domain the RM has seen nothing of, with `part` (train, validation, test).

    As many of either kind to fit on, prompts in the order of their hash; the rest is for testing.
    """
    by_kind: dict[str, dict[str, list[Row]]] = {}
    for row in read(data, "xstest_pairs"):
        by_kind.setdefault(row["category"], {}).setdefault(json.loads(row["prompt"])[-1]["content"], []).append(row)
    found: list[Row] = []
    for kind, prompts in by_kind.items():
        count = 0
        for prompt in sorted(prompts, key=place):
            part = "train" if count < TRAIN else "validation" if count < TRAIN + VALIDATION else "test"
            found += [row | {"part": part, "category": KINDS[kind]} for row in prompts[prompt]]
            count += len(prompts[prompt])
    return found
