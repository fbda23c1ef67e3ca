"""Which preference pairs the study reads: prompts with their responses, kinds, and pairs, in a fixed order.

A *prompt group* is a prompt with all of its responses that some pair needs; reading a group once serves all of its
pairs. Which rows are taken is decided by hashes of prompts, so it depends on nothing but the data.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

#: Sources of train_mix: the kind their pairs count as, and at most how many prompts are read.
SOURCES: dict[tuple[str, str], tuple[str, int]] = {
    ("kkminions888-ops/ultrafeedback-dpo-noise-study", ""): ("chat", 700),
    ("GAIR-NLP/auto-j", ""): ("chat", 500),
    ("hiyouga/LLaMA-Factory", "chat/kto-mix"): ("chat", 450),
    ("hiyouga/LLaMA-Factory", "chat/dpo_en_demo"): ("chat", 150),
    ("LAION-AI/Open-Assistant", ""): ("chat", 250),
    ("lmarena/arena-hard-auto", ""): ("chat", 194),
    ("allenai/open-instruct", ""): ("chat", 322),
    ("WeOpenML/PandaLM", ""): ("chat", 142),
    ("ernie-research/Tool-Augmented-Reward-Model", "chat/hh-rlhf"): ("chat", 454),
    ("allenai/FineGrainedRLHF", ""): ("grounded", 488),
    ("benedictflorance/truthfulqa_experiments", ""): ("grounded", 700),
    ("ernie-research/Tool-Augmented-Reward-Model", "long-form QA/webgpt"): ("grounded", 122),
    ("ernie-research/Tool-Augmented-Reward-Model", "code/mbpp"): ("grounded", 600),
}
#: Test files of pairs: their kind, and at most how many prompts are read.
TESTS = {
    "hh_harmless_test": ("hh-harmless", 1000),
    "xstest_pairs": ("xstest", 450),
    "hhh_alignment": ("hhh", 221),
    "llmbar": ("llmbar", 419),
    "rmb_pairwise": ("rmb", 500),
}
PER_PROMPT = 2  # pairs of one prompt
RM_BENCH, POOL = 120, 80  # prompts


@dataclass
class Group:
    """A prompt with its responses, and pairs as (chosen, rejected) numbers of responses.

    Attributes:
        kind: What its pairs count as ("chat", "grounded", "hh-harmless", …).
        source: Where in the data it comes from.
        prompt: Messages.
        responses: Different texts.
        pairs: (chosen, rejected, category) of every pair.
        gold: A score of each response, for pools.
    """

    kind: str
    source: str
    prompt: list[dict[str, str]]
    responses: list[str] = field(default_factory=list)
    pairs: list[tuple[int, int, str]] = field(default_factory=list)
    gold: list[float] | None = None

    @property
    def id(self) -> str:
        """The first 16 hexadecimal digits of a SHA-256 of the prompt."""
        return hashed(json.dumps(self.prompt, sort_keys=True))

    def add(self, chosen: str, rejected: str, category: str) -> None:
        """Count a pair in."""
        for text in (chosen, rejected):
            if text not in self.responses:
                self.responses.append(text)
        self.pairs.append((self.responses.index(chosen), self.responses.index(rejected), category))


def hashed(text: str) -> str:
    """16 hexadecimal digits."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def share(name: str, salt: str = "") -> float:
    """A number in [0, 1) from a name; another `salt`, another number."""
    return int(hashed(salt + name)[:8], 16) / 2**32


def _read(data: Path, name: str) -> list[dict[str, Any]]:
    return pq.read_table(data / f"{name}.parquet").to_pylist()


def _grouped(rows: Iterable[dict[str, Any]], kind: str, most: int, per_prompt: int = PER_PROMPT) -> list[Group]:
    """The groups of rows with the lowest hashes, each with its first pairs."""
    found: dict[str, Group] = {}
    for row in rows:
        group = found.setdefault(row["prompt"], Group(kind, row["source"], json.loads(row["prompt"])))
        if len(group.pairs) < per_prompt and row["chosen"].strip() and row["rejected"].strip():
            group.add(row["chosen"], row["rejected"], row["category"])
    return sorted((group for group in found.values() if group.pairs), key=lambda group: group.id)[:most]


def _mix(data: Path) -> Iterator[list[Group]]:
    rows: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for row in _read(data, "train_mix"):
        for category in ("", row["category"]):
            if (row["source"], category) in SOURCES and "math" not in row["category"]:
                rows[row["source"], category].append(row)
    for key, (kind, most) in SOURCES.items():
        yield _grouped(rows[key], kind, most)


def _tests(data: Path) -> Iterator[list[Group]]:
    for name, (kind, most) in TESTS.items():
        rows = _read(data, name)
        if name == "llmbar":
            rows = [row for row in rows if row["category"].startswith("LLMBar/")]
        if name == "rmb_pairwise":  # the prompts with the highest hashes are not looked at
            rows = [row for row in rows if share(row["prompt"], "rmb") < 2 / 3]
        yield _grouped(rows, kind, most)
    bench = []
    for row in _read(data, "rm_bench"):
        group = Group("rm-bench", row.get("source", "rm_bench"), json.loads(row["prompt"]))
        for i, chosen in enumerate(row["chosen"]):
            for j, rejected in enumerate(row["rejected"]):
                level = "normal" if i == j else "easy" if i > j else "hard"
                if chosen != rejected:
                    group.add(chosen, rejected, f"{row['domain']}/{level}")
        bench.append(group)
    yield sorted(bench, key=lambda group: group.id)[:RM_BENCH]
    pool = [
        Group("tulu-pool", row["source"], json.loads(row["prompt"]), list(row["responses"]), [], list(row["gold"]))
        for row in _read(data, "tulu_bon_pool")
    ]
    yield sorted(pool, key=lambda group: group.id)[:POOL]


def groups(data: Path) -> list[Group]:
    """All prompt groups. The first half of every set comes before the second halves, so a part is of use too."""
    sets = [*_mix(data), *_tests(data)]
    halves = [[one[: len(one) // 2] for one in sets], [one[len(one) // 2 :] for one in sets]]
    return [group for half in halves for one in half for group in one]
