"""Made-up rows of every benchmark in the form of the prepared files, and scores by plain arithmetic.

A response's text says what it is worth ("reply 17 worth 1.0"), and no text occurs twice, so that a reward can be given
by text and every rule recomputed from the rows alone.
"""

from __future__ import annotations

import csv
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ebrm.benchmarks import Benchmark, Floats, Ties, padded

Row = dict[str, Any]
Reward = Callable[[str], float]
_number = itertools.count()


def reply(worth: float) -> str:
    """A response that says what it is worth."""
    return f"reply {next(_number)} worth {worth}"


def replies(worth: float, count: int) -> list[str]:
    return [reply(worth) for _ in range(count)]


def worth(text: str) -> float:
    """What a response of this module is worth."""
    return float(text.rsplit(" ", 1)[1])


def user(text: str) -> str:
    """A prompt of one turn as the prepared files hold it."""
    return messages(text)


def messages(*turns: str) -> str:
    """A conversation as the prepared files hold it: user and assistant in turn."""
    roles = itertools.cycle(("user", "assistant"))
    return json.dumps([{"role": role, "content": turn} for role, turn in zip(roles, turns, strict=False)])


def write_parquet(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist([dict(row) for row in rows]), path)
    return path


def write_json(path: Path, value: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")
    return path


def write_jsonl(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", encoding="utf-8", newline="") as handle:
        writer = csv.DictWriter(handle, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def fake_hub(monkeypatch: pytest.MonkeyPatch, rows: Sequence[Row]) -> list[tuple[str, str]]:
    """Let every Hub data set consist of `rows`; the list takes down what is asked for (name, split)."""
    asked = []

    def load_dataset(path: str, *, split: str, **others: object) -> datasets.Dataset:
        assert set(others.values()) <= {None}
        asked.append((path, split))
        return datasets.Dataset.from_list(list(rows))

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return asked


def table(benchmark: Benchmark, reward: Reward) -> Floats:
    """Rewards of all responses, as `Benchmark.terms` takes them."""
    return padded([[reward(text) for text in item.responses] for item in benchmark.items])


def by_id(benchmark: Benchmark, rewards: Mapping[str, Sequence[float]]) -> Floats:
    """Rewards by item id as a table."""
    return padded([rewards[item.id] for item in benchmark.items])


def scores_of(benchmark: Benchmark, rewards: Floats, ties: Ties | None = None) -> dict[str, float]:
    """Every score: the weighted mean of the means of its terms; terms without values are left out."""
    terms = benchmark.terms(benchmark.items, rewards, ties)
    counts = np.bincount(terms.term, minlength=len(terms.names))
    sums = np.bincount(terms.term, terms.value, minlength=len(terms.names))
    means = {name: sums[t] / counts[t] for t, name in enumerate(terms.names) if counts[t]}
    scores = {}
    for score in benchmark.scores:
        here = {term: weight for term, weight in score.weights.items() if term in means}
        scale = sum(score.weights.values()) / sum(here.values())
        scores[score.name] = float(scale * sum(weight * means[term] for term, weight in here.items()))
    return scores


# ---- rows ---------------------------------------------------------------------------------------------------------


def _pairs(name: str, groups: Sequence[Row], counts: Sequence[int] = (3, 2, 4)) -> list[Row]:
    """Prepared pairs with the columns of each group, as often as `counts` says; two in turn share a prompt."""
    return [
        {
            "id": f"{name}-{number}", "prompt": messages(f"{name} prompt {number // 2}"),
            "chosen": reply(1.0), "rejected": reply(0.0), **group,
        }
        for number, group in enumerate(_many(groups, counts))
    ]  # fmt: skip


def _many(groups: Sequence[Row], counts: Sequence[int] = (3, 2, 4)) -> list[Row]:
    """The columns of each group, as often as `counts` says in turn."""
    sized = zip(groups, itertools.cycle(counts), strict=False)
    return [group for group, count in sized for _ in range(count)]


def _scenarios(*paths: str) -> list[Row]:
    return [
        {"category": category, "subset": subset} for category, _, subset in (path.rpartition("|") for path in paths)
    ]


def rmb() -> dict[str, list[Row]]:
    pairs = _scenarios(
        "Helpfulness/Chat|Casual Conversation", "Helpfulness/Chat|Role Playing", "Helpfulness/Code|Repair",
        "Harmlessness/S1|S1", "Harmlessness/S2|S2",
    )  # fmt: skip
    lists = _scenarios(
        "Helpfulness/Chat|Casual Conversation",
        "Helpfulness/Code|Repair",
        "Helpfulness/Code|Tests",
        "Harmlessness/S1|S1",
    )
    rows = [
        {
            "id": f"rmb-{number}", "prompt": messages("hello", "hi", f"then list {number}"),
            "best": reply(1.0), "losers": replies(0.0, 1 + number % 4), **group,
        }
        for number, group in enumerate(_many(lists, (2, 3)))
    ]  # fmt: skip
    return {"rmb_pairwise.parquet": _pairs("rmb", pairs), "rmb_bon.parquet": rows}


def rm_bench() -> dict[str, list[Row]]:
    domains = [{"domain": d} for d in ("chat", "code", "math", "safety-refuse", "safety-response")]
    rows = [
        {
            "id": f"rmbench-{number}", "subset": "made up", "prompt": messages(f"styles {number}"),
            "chosen": replies(1.0, 3), "rejected": replies(0.0, 3), **domain,
        }
        for number, domain in enumerate(_many(domains, (2, 3, 1, 4)))
    ]  # fmt: skip
    return {"rm_bench.parquet": rows}


def judgebench() -> dict[str, list[Row]]:
    sources = ("mmlu-pro-law", "mmlu-pro-physics", "livebench-reasoning", "livebench-math", "livecodebench")
    groups = [{"source": source, "response_model": model} for source in sources for model in ("gpt-4o", "claude")]
    rows = [
        {
            "pair_id": f"judge-{number}", "question": f"question {number // 2}",
            "response_A": reply(float(number % 3 == 0)), "response_B": reply(float(number % 3 != 0)),
            "label": "A>B" if number % 3 == 0 else "B>A", **group,
        }
        for number, group in enumerate(_many(groups))
    ]  # fmt: skip
    return {"judgebench.parquet": rows}


#: The counts of RewardBench's subsets, by which they weigh in their sections.
REWARDBENCH_COUNTS = {
    "Chat": {
        "alpacaeval-easy": 100, "alpacaeval-length": 95, "alpacaeval-hard": 95, "mt-bench-easy": 28, "mt-bench-med": 40,
    },
    "Chat Hard": {
        "mt-bench-hard": 37, "llmbar-natural": 100, "llmbar-adver-neighbor": 134, "llmbar-adver-GPTInst": 92,
        "llmbar-adver-GPTOut": 47, "llmbar-adver-manual": 46,
    },
    "Safety": {
        "refusals-dangerous": 100, "refusals-offensive": 100, "xstest-should-refuse": 154, "xstest-should-respond": 250,
        "donotanswer": 136,
    },
    "Reasoning": {
        "math-prm": 984, "hep-cpp": 164, "hep-go": 164, "hep-java": 164, "hep-js": 164, "hep-python": 164,
        "hep-rust": 164,
    },
}  # fmt: skip
REWARDBENCH_LEGACY = REWARDBENCH_COUNTS | {
    "Safety": REWARDBENCH_COUNTS["Safety"] | {"xstest-should-refuse": 250, "xstest-should-respond": 154}
}


def rewardbench() -> dict[str, list[Row]]:
    subsets = [{"subset": subset} for counts in REWARDBENCH_COUNTS.values() for subset in counts]
    rows = [
        row | {"id": number, "prompt": f"ask {number // 2}", "chosen_model": "one", "rejected_model": "other"}
        for number, row in enumerate(_pairs("rb", subsets))
    ]
    return {"rewardbench.parquet": rows}


def rewardbench2() -> dict[str, list[Row]]:
    rows = [
        (str(number), subset, 1, 3)
        for subset in ("Factuality", "Precise IF", "Math", "Safety", "Focus")
        for number in range(2 + len(subset) % 3)
    ]
    for number, (right, wrong) in enumerate([(2, 3), (3, 2), (4, 1), (2, 1)]):
        rows += [(f"tied:{number}", "Ties", right, wrong), (f"ref:{number}", "Ties", 1, wrong + 1)]
    made = [
        {
            "id": name, "prompt": f"{subset} {number // 2}", "subset": subset,
            "chosen": replies(1.0, right), "rejected": replies(0.0, wrong),
            "num_correct": right, "total_completions": right + wrong,
        }
        for number, (name, subset, right, wrong) in enumerate(rows)
    ]  # fmt: skip
    return {"rewardbench2.parquet": made}


def rewardmath() -> dict[str, list[Row]]:
    rows = [
        {"id": f"problem {n}", "prompt": f"solve {n}", "chosen": reply(1.0), "rejected": replies(0.0, 9)}
        for n in range(7)
    ]
    return {"rewardmath.parquet": rows}


def own_lists() -> dict[str, list[Row]]:
    rows = [
        {
            "id": f"list {n}", "category": "ab"[n % 2], "prompt": f"ask {n}", "best": reply(1.0),
            "losers": replies(0.0, 3),
        }
        for n in range(7)
    ]  # fmt: skip
    return {"own_lists.parquet": rows}


def own_pools() -> dict[str, list[Row]]:
    gold = [[0.2, 0.9], [0.5, 0.5, 0.1], [1.0, 0.0, 0.0, 1.0], [0.3, 0.1, 0.2], [0.7, 0.7]]
    rows = [
        {
            "id": f"pool {n}", "category": "ab"[n % 2], "prompt": f"ask {n}",
            "responses": [reply(one) for one in each], "gold": each,
        }
        for n, each in enumerate(gold)
    ]  # fmt: skip
    return {"own_pools.parquet": rows}


LLMBAR_SETS = (
    "LLMBar/Natural", "LLMBar/Adversarial/Neighbor", "LLMBar/Adversarial/GPTInst", "LLMBar/Adversarial/GPTOut",
    "LLMBar/Adversarial/Manual", "CaseStudy/Base_9", "CaseStudy/Negation", "Processed/FairEval",
)  # fmt: skip
XSTEST_TYPES = _scenarios("should-respond|homonyms", "should-respond|definitions", "should-refuse|contrast_homonyms")
LEVELS = [{"category": "made up", "subset": f"level-{level}"} for level in (1, 2, 3)]


def _categories(*names: str) -> list[Row]:
    return [{"category": name} for name in names]


#: Name of a benchmark to its files, each with its rows.
FILES: dict[str, dict[str, list[Row]]] = {
    "rmb": rmb(), "rm-bench": rm_bench(), "judgebench": judgebench(), "rewardbench": (_rewardbench := rewardbench()),
    "rewardbench-legacy": _rewardbench, "rewardbench2": rewardbench2(),
    "llmbar": {"llmbar.parquet": _pairs("llmbar", _categories(*LLMBAR_SETS))},
    "xstest": {"xstest_pairs.parquet": _pairs("xstest", XSTEST_TYPES)},
    "hhh": {"hhh_alignment.parquet": _pairs("hhh", _categories("helpful", "honest", "harmless", "other"))},
    "ifbench": {"ifbench.parquet": _pairs("ifbench", LEVELS)}, "rewardmath": rewardmath(),
    "own_pairs": {"own_pairs.parquet": _pairs("own", _categories("first", "second"))}, "own_lists": own_lists(),
    "own_pools": own_pools(),
}  # fmt: skip
