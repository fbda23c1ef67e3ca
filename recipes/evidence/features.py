"""Read all texts of the study with a reward model, once.

    python recipes/evidence/features.py --data DATA --cache CACHE [--model demo | --model FOLDER]

About 60,000 texts; half an hour on two cores. It can be stopped and started again at any time. DATA is
a folder of the preference data and benchmarks as Parquet files.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch
from encoder import load_encoder, load_finetuned

from ebrm.backbone import Backbone
from ebrm.benchmarks import Benchmark, open_benchmark, sample_prompts
from ebrm.data import prompt_id
from ebrm.evaluation import BenchmarkTexts, TextCache
from ebrm.features import FeatureConfig, Text

sys.path.append(str(Path(__file__).parent.parent / "demo_rm"))
from rows import rm_training_rows  # noqa: E402

TESTS = ("llmbar", "hhh", "xstest", "ifbench", "hh_harmless_test", "rm-bench", "rmb")
POOLS = ("tulu_bon_pool", "mmlu_pro_pool", "arena_bench_pool")
#: Prompts of RMB that fine-tuned models are asked about, for time; the frozen encoder reads all.
RMB_PROMPTS = 800


def training_texts(data: Path) -> list[Text]:
    """Chosen and rejected of every training pair, in turn."""
    texts = []
    for row in rm_training_rows(data):
        prompt = tuple(json.loads(row["prompt"]))
        name = prompt_id(prompt)
        texts += [Text(name, prompt, row[side], f"{row['id']}, {side}") for side in ("chosen", "rejected")]
    return texts


def test_sets(data: Path, model: str) -> dict[str, Benchmark]:
    """The test sets of a model: all with the frozen encoder; with others no pools, and a sample of RMB."""
    found = {name: open_benchmark(name, data) for name in (TESTS if model != "frozen" else (*TESTS, *POOLS))}
    if model != "frozen":
        found["rmb"] = sample_prompts(found["rmb"], RMB_PROMPTS, 0)
    return found


def load(model: str) -> Backbone:
    """The frozen encoder, the demonstration RM, or a folder."""
    return load_encoder() if model == "frozen" else load_finetuned(model)


def cache_of(backbone: Backbone, folder: Path) -> TextCache:
    """What was read with this reward model."""
    return TextCache(folder, backbone.identity.to_dict(), backbone.text_rule.identity())


def main() -> None:
    """Read what is not in the cache yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--model", default="frozen")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    backbone = load(args.model)
    cache = cache_of(backbone, args.cache)
    settings = FeatureConfig(embedding_dtype="float16", shard_rows=1024)
    texts = {"train": training_texts(args.data)}
    texts |= {name: BenchmarkTexts.of(test).texts for name, test in test_sets(args.data, args.model).items()}
    for name, wanted in texts.items():
        print(f"{name}: {len(wanted):,} texts, {cache.read(wanted, lambda: backbone, settings):,} read now", flush=True)


if __name__ == "__main__":
    main()
