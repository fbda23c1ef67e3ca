"""The files of an evaluation: results.json, every reward in items.parquet, and reward-bench's own layout.

The scripts of the reward-bench repository, `run_rm.py` (RewardBench) and `run_v2.py` (RewardBench 2), write two JSON
files a model: `eval-set/OWNER/MODEL.json` with the score of every subset, `eval-set-scores/OWNER/MODEL.json` with every
reward. Ours differ in what is not known here: texts are message lists, and `chat_template` is "tokenizer".
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ebrm.benchmarks import Benchmark, Floats, Item
from ebrm.data import message_words
from ebrm.evaluation import BenchmarkResult, Evaluation, ScoredBenchmark, ScorerResult, prompt_ids
from ebrm.metrics import Estimate, RiskCoverage
from ebrm.utils.files import TIMING, atomic_path, write_json, write_text

#: Points of a risk-coverage curve in results.json: coverage 0.01, 0.02, ... 1 (fewer where there are fewer pairs).
CURVE_POINTS = 100


def write_results(out: str | Path, evaluation: Evaluation, scored: Sequence[ScoredBenchmark]) -> tuple[Path, ...]:
    """Write an evaluation to a folder, each file atomically.

    Args:
        out: the folder, made if it is not there. It gets `results.json` (`evaluation_to_dict`), `items.parquet`,
            `timing.json` (seconds of every stage: the other files are the same at every run) and, if RewardBench 1 or
            2 is among the benchmarks, `reward-bench/` and `reward-bench-2/`.
        evaluation: the results.
        scored: the benchmarks and scores it was made from.

    Returns:
        The files, in the order written, without `timing.json`.
    """
    out = Path(out)
    items = write_items(out / "items.parquet", evaluation, scored)
    files = write_rewardbench(out, evaluation, scored)
    write_json(out / TIMING, {"seconds": plain(evaluation.seconds)})
    results = out / "results.json"
    write_json(results, evaluation_to_dict(evaluation))  # last: where it is, all is there
    return items, *files, results


def evaluation_to_dict(evaluation: Evaluation) -> dict[str, Any]:
    """An evaluation as JSON values: shares of 1, null where there is no number.

    Keys: `reference`, `resamples`, `level`, `permutations`, `seed`; `scorers` (name to `base` and what is known about
    it); `benchmarks` (list); `versions`. A benchmark has the fields of `BenchmarkResult`, where `scores` is
    a list of `name`, `kind`, `weights`, `items`, `prompts`, and a scorer has `scores` (name to the fields of `Entry`,
    `best` and `not_worse`), `metrics`, `calibration` and `risk`. An estimate is `value`, `low`, `high`; a risk-coverage
    curve is `curve`, pairs of coverage and risk at about every hundredth of the `pairs`.
    """
    return {
        "reference": evaluation.reference,
        "resamples": evaluation.bootstrap.resamples,
        "level": evaluation.bootstrap.level,
        "permutations": evaluation.permutations,
        "seed": evaluation.bootstrap.seed,
        "scorers": {
            name: {**plain(evaluation.about.get(name, {})), "base": base} for name, base in evaluation.bases.items()
        },
        "order": list(evaluation.bases),
        "benchmarks": [_benchmark(result) for result in evaluation.benchmarks],
        "versions": plain(evaluation.versions),
    }


def write_items(path: str | Path, evaluation: Evaluation, scored: Sequence[ScoredBenchmark]) -> Path:
    """Write one row for every response, with what every scorer says of it.

    Columns: `benchmark`, `item`, `group`, `prompt_id`, `where` (the place it was read), `response` (its place among the
    item's responses, from 0), `gold`, `compared` (whether all scorers could score the item), and for each scorer
    `reward:NAME` and, if it has densities, `std:NAME`; null where there is none.
    """
    densities = {scores.name for one in scored for scores in one.scorers if scores.std is not None}
    fields = [(name, pa.string()) for name in ("benchmark", "item", "group", "prompt_id", "where")]
    fields += [("response", pa.int32()), ("gold", pa.float64()), ("compared", pa.bool_())]
    for name in evaluation.bases:
        fields += [
            (f"{kind}:{name}", pa.float64()) for kind in ("reward", "std") if kind == "reward" or name in densities
        ]
    schema = pa.schema(fields)
    with atomic_path(path) as partial, pq.ParquetWriter(partial, schema, compression="zstd") as writer:
        for result, one in zip(evaluation.benchmarks, scored, strict=True):
            writer.write_table(_responses(result, one, schema))
    return Path(path)


def plain(value: Any) -> Any:
    """JSON values: data classes and mappings as objects, NaN and infinity as null."""
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(name): plain(one) for name, one in value.items()}
    if isinstance(value, set | frozenset):
        return sorted(plain(one) for one in value)
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    if isinstance(value, Path):
        return str(value)
    return value


def _benchmark(result: BenchmarkResult) -> dict[str, Any]:
    whole = ("name", "title", "origin", "notes", "items", "prompts", "excluded", "training", "unscored",
             "unscored_items")  # fmt: skip
    return {
        **{name: plain(getattr(result, name)) for name in whole},
        "scores": [
            {**plain(score), "items": result.counts[score.name][0], "prompts": result.counts[score.name][1]}
            for score in result.scores
        ],
        "scorers": {name: _scorer(scorer) for name, scorer in result.scorers.items()},
        "regressions": plain(result.regressions),
    }


def _scorer(scorer: ScorerResult) -> dict[str, Any]:
    return {
        "scores": {
            name: {**plain(entry), "best": name in scorer.best, "not_worse": name in scorer.not_worse}
            for name, entry in scorer.entries.items()
        },
        "metrics": plain(scorer.metrics),
        "calibration": plain(scorer.calibration),
        "risk": {name: _risk(curve) for name, curve in scorer.risk.items()},
    }


def _risk(curve: RiskCoverage) -> dict[str, Any]:
    pairs = len(curve.coverage)
    places = np.unique(np.ceil(np.arange(1, CURVE_POINTS + 1) / CURVE_POINTS * pairs).astype(np.int64)) - 1
    numbers = {
        field.name: plain(getattr(curve, field.name))
        for field in dataclasses.fields(curve)
        if isinstance(getattr(curve, field.name), float | Estimate)
    }
    return {**numbers, "pairs": pairs, "curve": np.stack([curve.coverage, curve.risk], axis=1)[places].tolist()}


def _responses(result: BenchmarkResult, one: ScoredBenchmark, schema: pa.Schema) -> pa.Table:
    items, gold = one.benchmark.items, one.benchmark.gold()
    place, response = np.nonzero(~np.isnan(gold))
    unscored = set(result.unscored_items)
    compared = np.array([item.id not in unscored for item in items], dtype=bool)

    def texts(values: Sequence[str]) -> pa.Array:
        names: dict[str, int] = {}
        index = np.array([names.setdefault(value, len(names)) for value in values], dtype=np.int32)
        return pa.DictionaryArray.from_arrays(index[place], list(names)).cast(pa.string())

    def numbers(table: Floats | None) -> pa.Array:
        if table is None:
            return pa.nulls(len(place), pa.float64())
        return pa.array(table[place, response], from_pandas=True)  # NaN becomes null

    columns: dict[str, pa.Array] = {
        "benchmark": texts([result.name] * len(items)),
        "item": texts([item.id for item in items]),
        "group": texts([item.group for item in items]),
        "prompt_id": texts(prompt_ids(items)),
        "where": texts([item.where for item in items]),
        "response": pa.array(response.astype(np.int32)),
        "gold": numbers(gold),
        "compared": pa.array(compared[place]),
    }
    for scores in one.scorers:
        columns[f"reward:{scores.name}"] = numbers(scores.reward)
        columns[f"std:{scores.name}"] = numbers(scores.std)
    return pa.table([columns[name] for name in schema.names], schema=schema)


#: Our benchmarks with that layout, and their folders. The legacy weights make other sections, not other subsets.
FOLDERS: Mapping[str, str] = {
    "rewardbench": "reward-bench",
    "rewardbench-legacy": "reward-bench",
    "rewardbench2": "reward-bench-2",
}

# Scorers without an owner in their name: upstream's reader expects a folder of owners.
_NO_OWNER = "local"
_TIES = "Ties"


def write_rewardbench(out: str | Path, evaluation: Evaluation, scored: Sequence[ScoredBenchmark]) -> tuple[Path, ...]:
    """Write the files of RewardBench 1 and 2, if they are among the benchmarks, with the items that all could score."""
    files: list[Path] = []
    done: set[str] = set()
    for result, one in zip(evaluation.benchmarks, scored, strict=True):
        folder = FOLDERS.get(result.name)
        if folder is None or folder in done:
            continue
        done.add(folder)
        unscored = set(result.unscored_items)
        kept = np.array([row for row, item in enumerate(one.benchmark.items) if item.id not in unscored])
        benchmark = one.benchmark.take(kept)
        rows = _best_of_rows if folder == "reward-bench-2" else _pair_rows
        for scores, model in zip(one.scorers, model_names([scores.name for scores in one.scorers]), strict=True):
            about = {"model": model, "model_type": "Seq. Classifier", "chat_template": "tokenizer"}
            entries = result.scorers[scores.name].entries
            subsets = {group: entries[group].value.value for group in {item.group for item in benchmark.items}}
            columns = rows(benchmark, scores.reward[kept])
            for kind, values in (("eval-set", subsets), ("eval-set-scores", columns)):
                path = Path(out) / folder / kind / f"{model}.json"
                text = json.dumps({**values, **about}, indent=4, sort_keys=True, allow_nan=False)
                write_text(path, text)
                files.append(path)
    return tuple(files)


def model_names(names: Sequence[str]) -> list[str]:
    """`OWNER/MODEL` of each scorer's name, safe as a path and different from the others."""
    found: list[str] = []
    for name in names:
        owner, slash, model = name.strip("/").rpartition("/")
        parts = [re.sub(r"[^A-Za-z0-9._-]+", "-", part).lstrip(".") for part in (owner, model)]
        safe = f"{parts[0] if slash and parts[0] else _NO_OWNER}/{parts[1] or 'model'}"
        number = 1
        while (unique := safe if number == 1 else f"{safe}-{number}") in found:
            number += 1
        found.append(unique)
    return found


def _pair_rows(benchmark: Benchmark, reward: Floats) -> dict[str, Sequence[Any]]:
    chosen = [(item, int(np.argmax(item.gold)), int(np.argmin(item.gold))) for item in benchmark.items]
    right = [float(reward[row, one]) for row, (_, one, _) in enumerate(chosen)]
    wrong = [float(reward[row, other]) for row, (_, _, other) in enumerate(chosen)]
    return {
        "id": _numbers(_ids(benchmark.items)),
        "subset": [item.group for item in benchmark.items],
        "text_chosen": [_dialogue(item, one) for item, one, _ in chosen],
        "text_rejected": [_dialogue(item, other) for item, _, other in chosen],
        "scores_chosen": right,
        "scores_rejected": wrong,
        "results": [int(one > other) for one, other in zip(right, wrong, strict=True)],
    }


def _best_of_rows(benchmark: Benchmark, reward: Floats) -> dict[str, Sequence[Any]]:
    """The columns of `eval-set-scores` of RewardBench 2; items of Ties have no result of their own."""
    scores = [row[~np.isnan(row)].tolist() for row in reward]
    return {
        "id": _ids(benchmark.items),
        "subset": [item.group for item in benchmark.items],
        "num_correct": [sum(worth == 1.0 for worth in item.gold) for item in benchmark.items],
        "text": [[_dialogue(item, place) for place in range(len(item.responses))] for item in benchmark.items],
        "scores": scores,
        "results": [_result(item, values) for item, values in zip(benchmark.items, scores, strict=True)],
    }


def _result(item: Item, rewards: Sequence[float]) -> float | None:
    if item.group == _TIES:
        return None
    return 1 / rewards.count(max(rewards)) if rewards[0] == max(rewards) else 0.0


def _dialogue(item: Item, place: int) -> list[dict[str, str]]:
    turns = [{"role": turn["role"], "content": message_words(turn)} for turn in item.prompt]
    return [*turns, {"role": "assistant", "content": message_words(item.responses[place])}]


def _ids(items: Sequence[Item]) -> list[str]:
    """The ids as upstream has them: without the subset that ours may have before them."""
    return [item.id.removeprefix(f"{item.group}/") for item in items]


def _numbers(names: list[str]) -> list[int] | list[str]:
    """RewardBench 1 has numbers for ids; what cannot be one stays as it is."""
    if all(name.isascii() and name.isdecimal() and str(int(name)) == name for name in names):
        return [int(name) for name in names]
    return names
