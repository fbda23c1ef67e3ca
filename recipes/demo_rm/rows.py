"""Which preference pairs the demonstration RM is trained on, and which its shipped features hold.

Only rows whose repository states MIT, Apache-2.0 or CC BY are used. Splits are by a hash of the prompt, fixed here.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import pandas as pd

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
#: Training pairs of the shipped features that come from the human-labelled part of train_mix (kept under 6 MB).
OTHER_TRAIN_PAIRS = 150
#: Shares of the prompts of a set whose rows the RM may see.
RM_SHARE = {"hh_harmless_test": 0.55, "xstest_pairs": 0.5, "hhh_alignment": 0.5}
#: Of the prompts it may not see, how far up the hash the energy's validation part goes.
VALIDATION_UP_TO = {"hh_harmless_test": 0.62, "xstest_pairs": 0.58, "hhh_alignment": 0.58}


def place(text: str) -> float:
    """Where a text falls in [0, 1): the first 32 bits of its SHA-256, case and spacing ignored."""
    return int(hashlib.sha256(" ".join(text.lower().split()).encode()).hexdigest()[:8], 16) / 2**32


def _set(data: Path, name: str) -> pd.DataFrame:
    frame = pd.read_parquet(data / f"{name}.parquet")
    return frame.assign(place=frame["prompt"].map(place), set=name)


def rm_training_rows(data: Path) -> pd.DataFrame:
    """The RM's training pairs: preferences of people and judges, not right-or-wrong answers to knowledge questions.

    A 22-million-parameter encoder cannot tell right from wrong answers, so rows with objective labels would only teach
    it noise. XSTest prompts that also stand in RM-Bench are kept for evaluation.
    """
    mix = pd.read_parquet(data / "train_mix.parquet")
    mix = mix[(mix["split"] == "train") & ~mix["source"].isin((*UNLICENSED, *TOO_LONG))]
    mix = mix[mix["label_origin"] != "objective"]
    parts = []
    for source, group in mix.groupby("source"):
        group = group.assign(place=group["id"].map(place)).sort_values("place")
        parts.append(group.groupby("prompt").head(PER_PROMPT[source]) if source in PER_PROMPT else group)
    rm_bench = set(pd.read_parquet(data / "rm_bench.parquet")["prompt"])
    for name, share in RM_SHARE.items():
        frame = _set(data, name)
        seen = frame["place"] < share
        if name == "xstest_pairs":
            seen &= ~frame["prompt"].isin(rm_bench)
        parts.append(frame[seen])
    return pd.concat(parts)


def demo_rows(data: Path) -> pd.DataFrame:
    """The pairs whose features are shipped, with `part` and `rm_training`; labels by people (LLMBar: by its authors).

    The energy trains on pairs that the RM was trained on, as in the paper; validation and test are unseen by both.
    """
    mix = pd.read_parquet(data / "train_mix.parquet")
    human = (mix["split"] == "train") & (mix["label_origin"] == "human") & ~mix["source"].isin((*UNLICENSED, *TOO_LONG))
    one_each = mix[human].assign(place=mix[human]["id"].map(place)).sort_values("place").groupby("prompt").head(1)
    parts = [one_each.head(OTHER_TRAIN_PAIRS).assign(part="train", rm_training=True)]
    seen_ids = set(rm_training_rows(data)["id"])
    for name in RM_SHARE:
        frame = _set(data, name)
        trained = frame["id"].isin(seen_ids)
        unseen = frame[(frame["place"] >= RM_SHARE[name]) & ~trained]
        validation = unseen["place"] < VALIDATION_UP_TO[name]
        parts.append(frame[trained].assign(part="train", rm_training=True))
        parts.append(unseen[validation].assign(part="validation", rm_training=False))
        parts.append(unseen[~validation].assign(part="test", rm_training=False))
    llmbar = _set(data, "llmbar")
    llmbar = llmbar[llmbar["category"].str.startswith("LLMBar/")]
    parts.append(llmbar.assign(part="test", rm_training=False))
    rows = pd.concat(parts)
    return rows.assign(category=[_group(s, c) for s, c in zip(rows["source"], rows["category"], strict=True)])


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
